from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.files import encoded
from unrolled.data.images import synthetic_images


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """Twelve small RGB images of three classes (image i has class i % 3 up to the source's own order)."""
    source = synthetic_images(12, size=12, classes=3, seed=5)
    return [np.asarray(source.load(index)[0]) for index in range(12)]


@pytest.fixture
def image_folder(tmp_path: Path, pictures: list[np.ndarray]) -> Path:
    """train/ and val/ with classes a, b, c; a note and an upper-case suffix among them."""
    for index, picture in enumerate(pictures):
        part = "val" if index >= 9 else "train"
        folder = tmp_path / "set" / part / "abc"[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "PNG" if index % 2 else "png"
        (folder / f"{index:02d}.{suffix}").write_bytes(encoded(picture))
    (tmp_path / "set" / "train" / "a" / "notes.txt").write_text("not an image")
    return tmp_path / "set"


@pytest.fixture
def write_packed(pictures: list[np.ndarray]) -> Callable[..., Path]:
    def write(path: Path, **changes: object) -> Path:
        blobs = [encoded(picture) for picture in pictures]
        arrays: dict[str, object] = {
            "payload": np.frombuffer(b"".join(blobs), np.uint8),
            "offsets": np.concatenate([[0], np.cumsum([len(blob) for blob in blobs])]).astype(np.uint32),
            "labels": np.arange(len(blobs), dtype=np.uint8) % 3,
            "class_names": np.array(["a", "b", "c"]),
        }
        arrays.update(changes)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return write
