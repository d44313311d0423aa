"""A matrix with named rows and columns, such as layers against layers, as colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unrolled.report.charts import WIDTH, number, svg_element
from unrolled.report.escaping import escape
from unrolled.report.images import heat

_TOP, _LEFT, _BOTTOM, _KEY, _LARGEST_CELL = 40.0, 110.0, 44.0, 90.0, 34.0


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One panel; NaN cells are empty. `mark` is the (row, column) of a cell with a frame around it."""

    title: str
    values: NDArray[np.float64]
    rows: Sequence[str]
    columns: Sequence[str]
    row_label: str = ""
    column_label: str = ""
    mark: tuple[int, int] | None = None

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

    def svg(self, ident: str, *, standalone: bool = False) -> str:
        """The drawing, as wide as a chart; rows run downwards."""
        low, high = self._ends()
        colours = heat(self.values, low, high)
        cell = min(_LARGEST_CELL, (WIDTH - _LEFT - _KEY) / len(self.columns))
        bottom = _TOP + cell * len(self.rows)
        parts = [f'<text class="title" x="0" y="16">{escape(self.title)}</text>']
        for i, line in enumerate(self.values):
            for j, value in enumerate(line):
                if np.isfinite(value):
                    name = escape(f"{self.rows[i]} x {self.columns[j]}: {number(float(value))}")
                    place = f'x="{_LEFT + j * cell:.1f}" y="{_TOP + i * cell:.1f}"'
                    size = f'width="{cell:.2f}" height="{cell:.2f}"'
                    colour = tuple(int(c) for c in colours[i, j])
                    look = f'fill="rgb{colour}" shape-rendering="crispEdges"'
                    parts.append(f"<rect {place} {size} {look}><title>{name}</title></rect>")
        if self.mark is not None:
            x, y = _LEFT + self.mark[1] * cell, _TOP + self.mark[0] * cell
            parts += [
                f'<rect x="{x - 1:.1f}" y="{y - 1:.1f}" width="{cell + 2:.1f}" height="{cell + 2:.1f}" fill="none" '
                f'stroke="{frame}" stroke-width="{width}"/>'
                for frame, width in (("#000", 3), ("#fff", 1.2))
            ]
        parts += self._labels(cell, bottom) + _key(_LEFT + cell * len(self.columns) + 18, low, high)
        height = max(bottom + _BOTTOM, _TOP + 120 + 16)
        return svg_element("".join(parts), ident, self.title, self.description(), WIDTH, height, standalone=standalone)

    def _labels(self, cell: float, bottom: float) -> list[str]:
        parts = []
        for i in _shown(len(self.rows), cell, 14):
            y = _TOP + (i + 0.5) * cell + 4
            parts.append(f'<text x="{_LEFT - 6}" y="{y:.1f}" text-anchor="end">{escape(self.rows[i])}</text>')
        for j in _shown(len(self.columns), cell, min(72, 7.3 * max(map(len, self.columns)) + 4)):
            x = _LEFT + (j + 0.5) * cell
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{escape(self.columns[j])}</text>'
            )
        if self.row_label:
            parts.append(f'<text class="label" x="0" y="{_TOP - 4}">{escape(self.row_label)}</text>')
        if self.column_label:
            parts.append(f'<text class="label" x="{_LEFT}" y="{bottom + 34:.1f}">{escape(self.column_label)}</text>')
        return parts

    def _ends(self) -> tuple[float, float]:
        known = self.values[np.isfinite(self.values)]
        return (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)


def _shown(count: int, cell: float, room: float) -> range:
    """Indices whose names fit beside each other."""
    return range(0, count, max(1, int(np.ceil(room / cell))))


def _key(x: float, low: float, high: float) -> list[str]:
    steps = heat(np.linspace(1, 0, 30)[:, None])[:, 0]
    parts = [
        f'<rect x="{x:.1f}" y="{_TOP + 4 * i:.1f}" width="12" height="4.3" fill="rgb{tuple(int(c) for c in colour)}"/>'
        for i, colour in enumerate(steps)
    ]
    return [
        *parts,
        f'<text x="{x + 17:.1f}" y="{_TOP + 9:.1f}">{number(high)}</text>',
        f'<text x="{x + 17:.1f}" y="{_TOP + 120:.1f}">{number(low)}</text>',
    ]
