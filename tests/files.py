"""Files that tests read: pictures as bytes, and tars."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def encoded(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file that a picture is saved as."""
    stream = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(stream, kind, **options)
    return stream.getvalue()


def plain(value: int = 0, side: int = 4) -> bytes:
    """A square of one grey, as RGB."""
    return encoded(np.full((side, side, 3), value, np.uint8))


def tar(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], mode: Any = "w") -> Path:
    """A tar of files by name, or of members of any kind, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
