"""Files that tests read: pictures as bytes, and tars."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def encoded(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file that a picture is saved as."""
    stream = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(stream, kind, **options)
    return stream.getvalue()


def plain(value: int = 0, side: int = 4) -> bytes:
    """A square of one grey, as RGB."""
    return encoded(np.full((side, side, 3), value, np.uint8))


def disc(seed: int = 0, scale: int = 2) -> Image.Image:
    """A yellow disc on noisy blue, twice as wide as high."""
    noise = np.random.default_rng(seed).integers(0, 40, (30 * scale, 60 * scale, 3), dtype=np.uint8)
    image = Image.fromarray(noise + np.array([10, 20, 120], np.uint8))
    ImageDraw.Draw(image).ellipse([scale * side for side in (30, 5, 50, 25)], fill=(250, 220, 30))
    return image


def disc_mask(scale: int = 2) -> Image.Image:
    """Where the disc is."""
    mask = Image.new("L", (60 * scale, 30 * scale))
    ImageDraw.Draw(mask).ellipse([scale * side for side in (30, 5, 50, 25)], fill=255)
    return mask


def tar(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], mode: Any = "w") -> Path:
    """A tar of files by name, or of members of any kind, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
