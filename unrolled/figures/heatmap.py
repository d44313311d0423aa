"""A matrix with named rows and columns, such as layers against layers, as colours."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unrolled.figures.escaping import in_print
from unrolled.figures.images import heat
from unrolled.figures.panel import Frame, Panel
from unrolled.figures.style import LIGHT, LINE, SIZE, TITLE, WIDTH, size_of
from unrolled.figures.words import labels, number, shortened, width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LARGEST_CELL, _KEY, _KEY_HEIGHT = 34.0, 12.0, 120.0
_MANY = 900  # cells: with more, they are pixels of one image, and none says its value when pointed at


@dataclass(frozen=True, kw_only=True)
class HeatMap(Panel):
    """One panel; NaN cells are empty. `mark` is the (row, column) of a cell with a frame around it.

    With `signed`, colours run from blue below zero over pale to orange above it, as far on both sides.
    """

    title: str
    values: NDArray[np.float64]
    rows: Sequence[str]
    columns: Sequence[str]
    row_label: str = ""
    column_label: str = ""
    mark: tuple[int, int] | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.rows), len(self.columns)) or not self.values.size:
            raise ValueError(
                f"heat map {self.title!r}: values {list(self.values.shape)} do not fit {len(self.rows)} rows and "
                f"{len(self.columns)} columns"
            )

    def description(self) -> str:
        """One sentence for people who cannot see the colours."""
        low, high = self._ends()
        text = f"{self.title}: {len(self.rows)} x {len(self.columns)} values from {number(low)} to {number(high)}"
        if self.mark is not None:
            text += f"; marked: {self.rows[self.mark[0]]} and {self.columns[self.mark[1]]}"
        return text + "."

    def data(self) -> tuple[list[str], list[list[str | float]]]:
        """Row name, then one value a column."""
        rows: list[list[str | float]] = [
            [name, *(float(value) for value in line)] for name, line in zip(self.rows, self.values, strict=True)
        ]
        return [self.row_label or "row", *self.columns], rows

    def scale_words(self) -> str:
        """What the colours mean, for a caption: they run over the values shown and no further."""
        low, high = self._key_words()
        return f"Colours run from {low} to {high}, the range of what is shown."

    def _ends(self) -> tuple[float, float]:
        known = self.values[np.isfinite(self.values)]
        return (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)

    def _scale(self) -> tuple[float, float]:
        """The values at the ends of the colours."""
        low, high = self._ends()
        far = max(abs(low), abs(high))
        return (-far, far) if self.signed else (low, high)

    def _key_words(self) -> tuple[str, str]:
        """The values at the ends of the colours, with as many digits as tell them apart."""
        low, high = self._scale()
        if number(low) != number(high) or low == high:
            return number(low), number(high)
        least, most = labels([low, high])
        return least, most

    def _draw(self, ax: Axes, frame: Frame | None) -> None:
        (n, m), (low, high) = self.values.shape, self._scale()
        row_names = [shortened(name, 0.42 * WIDTH) for name in self.rows]
        column_names = [shortened(name, 0.34 * WIDTH) for name in self.columns]
        least, most = self._key_words()
        key = [most, *(["0"] if self.signed else []), least]
        wide_names, long = max(map(width, row_names)), max(map(width, column_names))
        left = 10 + max(28.0, wide_names)
        right = 18 + _KEY + 6 + max(map(width, key)) + 4
        wide, tall = (0.0, 0.0) if frame is not None else size_of(ax)
        cell = min(_LARGEST_CELL, (WIDTH - left - right) / m) if frame is not None else wide / m
        lengths = [width(name) for name in column_names]
        upright = max((a + b for a, b in itertools.pairwise(lengths)), default=0.0) / 2 + 5 > cell
        across = range(0, m, max(1, int(np.ceil((13.0 if upright else 1.0) / cell))))
        if upright and all(re.fullmatch(r"[-+.\d]+", name) for name in column_names):  # every few of them say it
            across, upright = range(0, m, max(1, int(np.ceil((long + 8) / cell)))), False
        down = range(0, n, max(1, int(np.ceil(13.0 / (cell if frame is not None else tall / n)))))
        beneath = (long if upright else SIZE) + 12
        if frame is None:
            self._head(ax)
            ax.set_ylabel(in_print(self.row_label), parse_math=False)
            ax.set_xlabel(in_print(self.column_label), parse_math=False)
        else:
            tall = max(cell * n, _KEY_HEIGHT)
            if self.column_label and width(self.column_label, bold=True) > cell * m + 12:  # below the key
                beneath = max(beneath, tall - cell * n)
            right = WIDTH - left - cell * m
            below = tall - cell * n + max(8.0, beneath + (1.4 * LINE if self.column_label else 0) - (tall - cell * n))
            title = wrapped(self.title, WIDTH, size=TITLE, bold=True)
            frame.set(
                title=title, left=left, right=right, inner=cell * n, below=below, above=24 if self.row_label else 10
            )
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.set_xlim(-0.5, m - 0.5)
        ax.set_ylim(n - 0.5, -0.5)
        ax.set_yticks(list(down), [row_names[i] for i in down], parse_math=False)
        turned: dict[str, Any] = (
            {"rotation": 90, "ha": "right", "va": "center", "rotation_mode": "anchor"} if upright else {}
        )
        ax.set_xticks(list(across), [column_names[j] for j in across], parse_math=False, **turned)
        self._cells(ax, low, high, says=frame is not None and frame.says)
        if self.mark is not None:
            from matplotlib.patches import Rectangle

            corner = (self.mark[1] - 0.5, self.mark[0] - 0.5)
            for tone, line in (("#000001", 3.0), ("#fffffe", 1.2)):  # black and white in every light
                ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=tone, linewidth=line, clip_on=False))
        size: dict[str, Any] = {"size": SIZE, "color": LIGHT["soft"]} if frame is not None else {}
        if frame is not None:
            wide, tall = cell * m, cell * n
            for label, x, y, room in (
                (self.row_label, -left / wide, 1 + 9 / tall, WIDTH),
                (self.column_label, 0, -(beneath + 17) / tall, WIDTH - left),
            ):
                words = shortened(label, room, bold=True)
                ax.text(x, y, words, transform=ax.transAxes, weight="bold", parse_math=False, **size)
        self._key(ax, (low, high), key, (wide, tall), size)

    def _cells(self, ax: Axes, low: float, high: float, *, says: bool) -> None:
        colours = heat(self.values, low, high, signed=self.signed)
        pixels = np.concatenate([colours, 255 * np.isfinite(self.values)[..., None].astype(np.uint8)], -1)
        if self.values.size > _MANY:
            ax.imshow(pixels, interpolation="none", aspect="auto")
            return
        words = [
            f"{row} x {column}: {number(float(value))}"
            for row, line in zip(self.rows, self.values, strict=True)
            for column, value in zip(self.columns, line, strict=True)
        ]
        rows, columns = (np.arange(size + 1) - 0.5 for size in self.values.shape)
        ax.pcolormesh(columns, rows, pixels / 255, gid="\n".join(map(in_print, words)) if says else None)

    def _key(
        self, ax: Axes, ends: tuple[float, float], words: list[str], size: tuple[float, float], look: dict[str, Any]
    ) -> None:
        """The colours beside the axes, with the values at their ends."""
        (wide, tall), height = size, min(_KEY_HEIGHT, max(size[1], 60.0)) if not look else _KEY_HEIGHT
        steps = heat(np.linspace(ends[1], ends[0], 60)[:, None], *ends, signed=self.signed)
        inset = ax.inset_axes((1 + 18 / wide, 1 - height / tall, _KEY / wide, height / tall))
        inset.imshow(steps, interpolation="none", aspect="auto", extent=(0, 1, 0, 1))
        inset.set_axis_off()
        for place, word in zip(np.linspace(1, 0, len(words)), words, strict=True):
            va = {1.0: "top", 0.0: "bottom"}.get(float(place), "center")
            inset.text(1.5, place, word, va=va, parse_math=False, **look)
