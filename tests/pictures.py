"""Pictures as the bytes of files."""

from __future__ import annotations

import io
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
