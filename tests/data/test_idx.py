from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from unrolled.data import eval_transform, open_images
from unrolled.errors import CorruptFile


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, count in (("train", 30), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx((np.arange(count) % 10).astype("u1"))))
    return folder


@pytest.mark.parametrize("inside", [True, False])
def test_fashion_mnist_from_the_four_original_files(files: Path, inside: bool) -> None:
    place = files if inside else files.parent
    train, val = (
        open_images("fashion_mnist", s, data_dir=place, val_fraction=1 / 3)
        for s in ("train", "val")  # type: ignore[arg-type]
    )
    test = open_images("fashion_mnist", "test", data_dir=place)
    assert (len(train), len(val), len(test), test.native_size) == (20, 10, 20, (1, 28, 28))
    assert test.classes[9] == "Ankle boot"
    assert test.load(12)[1] == 2
    # grey of 28 pixels fits a colour model of 32
    tensor = eval_transform((3, 32, 32), [0.5], [0.5])(test.load(0)[0])
    assert tensor.shape == (3, 32, 32)
    assert (tensor[0] == tensor[1]).all()


@pytest.mark.parametrize("damage", ["cut", "kind", "long", "packed", "pair"])
def test_a_damaged_file_is_named(files: Path, damage: str) -> None:
    path = files / "t10k-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    damaged = {
        "cut": gzip.compress(whole[:-5]),
        "kind": gzip.compress(b"\0\0\x0d" + whole[3:]),
        "long": gzip.compress(whole + b"x"),
        "packed": path.read_bytes()[:-40],
        "pair": gzip.compress(idx(np.zeros((7, 28, 28), np.uint8))),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(CorruptFile, match="t10k-images"):
        open_images("fashion_mnist", "test", data_dir=files)
