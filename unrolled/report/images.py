"""Grids of small images (inputs, attention maps, masks) as SVG panels with the pixels embedded."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unrolled.report.charts import WIDTH, svg_element
from unrolled.report.escaping import escape

_GAP, _TITLE, _ROW_LABEL, _NAME = 8.0, 26.0, 20.0, 17.0
_LARGEST_CELL = 84.0

# Dark to light with steadily rising lightness, so that order survives print in grey and colour-blind eyes.
_HEAT = np.array(
    [
        [10, 12, 38],
        [49, 22, 97],
        [105, 33, 116],
        [163, 49, 103],
        [213, 80, 70],
        [242, 132, 42],
        [249, 193, 70],
        [252, 250, 190],
    ],
    dtype=np.float64,
)


def heat(values: NDArray, low: float | None = None, high: float | None = None) -> NDArray[np.uint8]:
    """Colour a map [h, w] -> uint8 [h, w, 3]; `low` and `high` are the ends, by default the map's own; NaN is dark."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"values must be a map [h, w], not of shape {list(values.shape)}")
    known = values[np.isfinite(values)]
    low = float(known.min(initial=np.inf)) if low is None else low
    high = float(known.max(initial=-np.inf)) if high is None else high
    share = np.nan_to_num(np.clip((values - low) / (high - low if high > low else 1.0), 0, 1))
    place = share * (len(_HEAT) - 1)
    return (
        np.stack([np.interp(place, np.arange(len(_HEAT)), _HEAT[:, c]) for c in range(3)], -1).round().astype(np.uint8)
    )


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """Images uint8 [h, w] or [h, w, 3] side by side under one label, each with an optional short name below."""

    images: Sequence[NDArray[np.uint8]]
    label: str = ""
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError(f"image row {self.label!r} is empty: give at least one image")
        if self.names and len(self.names) != len(self.images):
            raise ValueError(f"image row {self.label!r}: give one name per image or none")
        for image in self.images:
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
                raise ValueError(
                    f"image row {self.label!r}: images must be uint8 [h, w] or [h, w, 3]; see `heat` for maps"
                )


@dataclass(frozen=True, kw_only=True)
class ImageGrid:
    """One panel of images; `alt` says in a sentence what they show.

    Images are drawn at most `largest` wide, where a chart is 400 wide. Those that then do not fit beside each other go
    on in the next line; without it the whole row shares the width, at most 84 each.
    """

    title: str
    rows: Sequence[ImageRow]
    alt: str = ""
    largest: float | None = None

    def __post_init__(self) -> None:
        if self.largest is not None and not 0 < self.largest <= WIDTH:
            raise ValueError(f"image grid {self.title!r}: largest={self.largest} must lie in 0 to {WIDTH}")
        if not self.rows:
            raise ValueError(f"image grid {self.title!r} has no rows: give at least one")

    def description(self) -> str:
        """One sentence for people who cannot see the images."""
        return self.alt or f"{sum(len(row.images) for row in self.rows)} images: {self.title}."

    def data(self) -> tuple[list[str], list[list[str | float]]]:
        """What is where and its mean brightness, 0 to 1; pixels are in the picture itself."""
        rows: list[list[str | float]] = []
        for row in self.rows:
            for i, image in enumerate(row.images):
                rows.append([row.label, row.names[i] if row.names else str(i + 1), round(float(image.mean()) / 255, 4)])
        return ["row", "image", "mean brightness"], rows

    def svg(self, ident: str, *, standalone: bool = False) -> str:
        """The drawing, as wide as a chart."""
        most = max(len(row.images) for row in self.rows)
        fit = most if self.largest is None else max(1, int((WIDTH + _GAP) / (self.largest + _GAP)))
        columns = min(most, fit)
        cell = min(self.largest or _LARGEST_CELL, (WIDTH - _GAP * (columns - 1)) / columns)
        parts = [f'<text class="title" x="0" y="16">{escape(self.title)}</text>']
        y = _TITLE
        for row in self.rows:
            if row.label:
                parts.append(f'<text class="label" x="0" y="{y + 13:.1f}">{escape(row.label)}</text>')
                y += _ROW_LABEL
            for first in range(0, len(row.images), columns):
                line = range(first, min(first + columns, len(row.images)))
                height = cell * max(min(1.0, row.images[i].shape[0] / row.images[i].shape[1]) for i in line)
                for i in line:
                    x = (i - first) * (cell + _GAP)
                    place = f'x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{height:.1f}"'
                    look = ' class="small"' if max(row.images[i].shape[:2]) < cell else ""
                    parts.append(f'<image{look} {place} href="{_data_address(row.images[i])}"/>')
                    if row.names:
                        place = f'x="{x + cell / 2:.1f}" y="{y + height + 13:.1f}" text-anchor="middle"'
                        parts.append(f"<text {place}>{escape(row.names[i])}</text>")
                y += height + (_NAME if row.names else 0) + 8
        return svg_element("".join(parts), ident, self.title, self.description(), WIDTH, y, standalone=standalone)


def _data_address(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
