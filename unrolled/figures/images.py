"""Grids of small images (inputs, attention maps, masks) as SVG panels with the pixels embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unrolled.figures.panel import Frame, Panel
from unrolled.figures.style import LIGHT, LINE, SIZE, TITLE, WIDTH
from unrolled.figures.words import shortened, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP, _ROW_LABEL, _NAME = 8.0, 20.0, 17.0
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
# Blue below zero, orange above it, pale where nothing is: lightness tells how far from zero.
_SIGNED = np.array(
    [[8, 64, 110], [0, 114, 178], [128, 184, 218], [246, 246, 244], [246, 200, 120], [226, 140, 0], [150, 76, 0]],
    dtype=np.float64,
)


def heat(
    values: NDArray, low: float | None = None, high: float | None = None, *, signed: bool = False
) -> NDArray[np.uint8]:
    """Colour a map [h, w] -> uint8 [h, w, 3]; `low` and `high` are the ends, by default the map's own; NaN is dark.

    With `signed` the colours run from blue over pale at the middle to orange, and the ends are by default as far from
    zero on both sides, so that pale is zero.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"values must be a map [h, w], not of shape {list(values.shape)}")
    known = values[np.isfinite(values)]
    least, most = float(known.min(initial=np.inf)), float(known.max(initial=-np.inf))
    if signed:
        most = max(abs(least), abs(most))
        least = -most
    low, high = least if low is None else low, most if high is None else high
    flat = 0.5 if signed else 0.0
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(values.shape, flat)
    colours = _SIGNED if signed else _HEAT
    place = np.nan_to_num(share) * (len(colours) - 1)
    return (
        np.stack([np.interp(place, np.arange(len(colours)), colours[:, c]) for c in range(3)], -1)
        .round()
        .astype(np.uint8)
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
class ImageGrid(Panel):
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

    def _draw(self, ax: Axes, frame: Frame | None) -> None:
        most = max(len(row.images) for row in self.rows)
        fit = most if self.largest is None else max(1, int((WIDTH + _GAP) / (self.largest + _GAP)))
        columns = min(most, fit)
        cell = min(self.largest or _LARGEST_CELL, (WIDTH - _GAP * (columns - 1)) / columns)
        size: dict[str, Any] = {} if frame is None else {"size": SIZE}
        y = 0.0
        for row in self.rows:
            if row.label:
                label = wrapped(row.label, WIDTH, bold=True)
                ax.text(0, y + 13, label, weight="bold", va="baseline", color=LIGHT["soft"], parse_math=False, **size)
                y += _ROW_LABEL + LINE * label.count("\n")
            for first in range(0, len(row.images), columns):
                line = range(first, min(first + columns, len(row.images)))
                height = cell * max(min(1.0, row.images[i].shape[0] / row.images[i].shape[1]) for i in line)
                for i in line:
                    x = (i - first) * (cell + _GAP)
                    box = _inside(row.images[i], x, y, cell, height)
                    ax.imshow(row.images[i], extent=box, interpolation="none", cmap="gray", vmin=0, vmax=255)
                    if row.names:
                        name = shortened(row.names[i], cell)
                        ax.text(x + cell / 2, y + height + 13, name, ha="center", color=LIGHT["soft"], parse_math=False,
                                **size)  # fmt: skip
                y += height + (_NAME if row.names else 0) + 8
        ax.set_axis_off()
        ax.set_xlim(0, WIDTH)
        ax.set_ylim(y, 0)
        if frame is None:
            ax.set_aspect("equal")
            self._head(ax)
        else:
            ax.set_aspect("auto")
            title = wrapped(self.title, WIDTH, size=TITLE, bold=True)
            frame.set(title=title, left=0, right=0, inner=y, below=0, above=8)


def _inside(
    image: NDArray[np.uint8], x: float, y: float, wide: float, tall: float
) -> tuple[float, float, float, float]:
    """Where an image lies in a box that it fills as far as its shape lets it: left, right, lower and upper end."""
    scale = min(wide / image.shape[1], tall / image.shape[0])
    across, down = scale * image.shape[1], scale * image.shape[0]
    left, top = x + (wide - across) / 2, y + (tall - down) / 2
    return left, left + across, top + down, top
