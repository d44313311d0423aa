"""Pictures to begin with: two photos and two digits that come with scikit-learn, and two drawn here."""

from __future__ import annotations

import io
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SAMPLES = {
    "flower": "A flower",
    "temple": "A temple roof",
    "roof": "The roof, close",
    "shapes": "Three shapes, drawn",
    "three": "A handwritten 3",
    "eight": "A handwritten 8",
}
"""Name -> what it shows."""


@cache
def sample(name: str) -> Image.Image:
    """One of `SAMPLES`, RGB.

    Raises:
        ValueError: no sample of that name.
    """
    if name not in SAMPLES:
        raise ValueError(f"sample: there is none called {name[:40]!r}; there are {', '.join(SAMPLES)}")
    if name in ("flower", "temple", "roof"):
        photo = Image.open(_bundled("images", "flower.jpg" if name == "flower" else "china.jpg")).convert("RGB")
        boxes = {"flower": (60, 0, 620, 420), "temple": (100, 20, 620, 410), "roof": (120, 130, 340, 295)}
        return photo.crop(boxes[name])
    if name == "shapes":
        return _shapes()
    images, labels = digits()
    return images[int(np.flatnonzero(labels == (3 if name == "three" else 8))[4])]


@cache
def digits() -> tuple[list[Image.Image], NDArray[np.int64]]:
    """Scikit-learn's 1,797 handwritten digits, RGB of 8 x 8 pixels, as `unrolled.data` has them, and what they are."""
    rows = np.loadtxt(_bundled("data", "digits.csv.gz"), delimiter=",")
    pixels = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(image).convert("RGB") for image in pixels], rows[:, -1].astype(np.int64)


def _bundled(*parts: str) -> Path:
    """A file of scikit-learn's data sets where it lies: importing them takes longer than a first picture may."""
    spec = find_spec("sklearn")
    origin = None if spec is None else spec.origin
    assert origin is not None  # a dependency
    return Path(origin).parent.joinpath("datasets", *parts)


def encode(picture: Image.Image, *, side: int | None = None, format: str = "PNG") -> bytes:
    """The picture as a file's bytes; shrunk until its longer side is at most `side`."""
    out = picture.copy()
    if side is not None:
        out.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if format == "JPEG":
        out.save(buffer, format, quality=90)
    else:
        out.save(buffer, format)
    return buffer.getvalue()


def _shapes() -> Image.Image:
    """A disc, a square and a triangle on a soft ground."""
    height, width = 360, 480
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    ground = np.stack([200 - 50 * rows / height, 210 - 30 * columns / width, 190 + 40 * rows / height], -1)
    ground += 6 * np.sin(columns / 9)[..., None]
    disc = (rows - 130) ** 2 + (columns - 130) ** 2 < 80**2
    square = (abs(rows - 235) < 65) & (abs(columns - 340) < 65)
    triangle = (rows > 215) & (rows < 330) & (abs(columns - 150) < (rows - 215) * 0.6)
    for inside, colour in ((disc, (200, 80, 30)), (square, (30, 90, 160)), (triangle, (240, 200, 60))):
        shade = 1 - 0.15 * (rows / height)
        ground[inside] = (np.array(colour) * shade[..., None])[inside]
    return Image.fromarray(ground.clip(0, 255).round().astype(np.uint8))
