"""Values with their intervals as rows, each under its name, such as metrics by how well they tell families apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unrolled.figures.escaping import in_print
from unrolled.figures.lines import mark
from unrolled.figures.panel import Frame, Panel
from unrolled.figures.style import LIGHT, LINE, SIZE, TITLE, WIDTH, colour, size_of
from unrolled.figures.words import apart, labels, number, shortened, ticks, width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 17.0


@dataclass(frozen=True, kw_only=True)
class Forest(Panel):
    """One panel, of one value a row, from top to bottom as they are given.

    Args:
        title: names the quantity and what it is of.
        x_label: of the axis.
        names: of the rows.
        values: one a row; those that are not finite are not drawn.
        interval: both ends for each row; NaN where there is none.
        beside: a value that all are seen beside, such as that by chance, drawn as a line through the rows.
    """

    title: str
    x_label: str
    names: Sequence[str]
    values: Sequence[float]
    interval: Sequence[tuple[float, float]]
    beside: float | None = None

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.values) == len(self.interval) > 0:
            raise ValueError(f"forest {self.title!r}: names, values and interval must have the same length, at least 1")

    def description(self) -> str:
        """One sentence for people who cannot see the rows."""
        known = [i for i, value in enumerate(self.values) if math.isfinite(value)]
        if not known:
            return f"{self.x_label} of {len(self.names)} rows, none of which is known."
        ends = [f"{self.names[i]} {number(self.values[i])}" for i in (known[0], known[-1])]
        return f"{self.x_label} of {len(self.names)} rows with intervals, from {ends[0]} to {ends[1]}."

    def data(self) -> tuple[list[str], list[list[str | float]]]:
        """Name, value and both ends of the interval of every row."""
        rows: list[list[str | float]] = [
            [name, float(value), float(low), float(high)]
            for name, value, (low, high) in zip(self.names, self.values, self.interval, strict=True)
        ]
        return ["name", self.x_label, "low", "high"], rows

    def _draw(self, ax: Axes, frame: Frame | None) -> None:
        n = len(self.names)
        names = [shortened(name, 0.5 * WIDTH) for name in self.names]
        everything = [*self.values, *(end for ends in self.interval for end in ends)]
        everything += [] if self.beside is None else [self.beside]
        finite = [float(value) for value in everything if math.isfinite(value)] or [0.0, 1.0]
        room = 0.05 * (max(finite) - min(finite)) or 0.5
        low, high = min(finite) - room, max(finite) + room
        if frame is None:
            wide, _ = size_of(ax)
            self._head(ax)
            ax.set_xlabel(in_print(self.x_label), parse_math=False)
        else:
            left, right = 14 + max(map(width, names)), 16.0
            wide = WIDTH - left - right
            ax.set_xlabel(wrapped(self.x_label, wide), size=SIZE, color=LIGHT["soft"], labelpad=5, parse_math=False)
            title = wrapped(self.title, WIDTH, size=TITLE, bold=True)
            below = 40 + LINE * ax.get_xlabel().count("\n")
            frame.set(title=title, left=left, right=right, inner=_ROW * n, below=below, above=4)
        ax.grid(False)
        ax.set_xlim(low, high)
        ax.set_ylim(n - 0.5, -0.5)
        ax.set_yticks(range(n), names, parse_math=False)
        marks = apart(ticks(low, high, max(2, int(wide / 48))), wide)
        ax.set_xticks(marks, labels(marks))
        if self.beside is not None:
            ax.axvline(self.beside, color=LIGHT["soft"], linewidth=1, linestyle=(0, (4, 3)))
        for row, (value, ends) in enumerate(zip(self.values, self.interval, strict=True)):
            if not math.isfinite(value):
                continue
            words = number(value)
            if all(map(math.isfinite, ends)):
                ax.plot(ends, [row, row], color=colour(0), linewidth=1.6)
                words += f", {number(ends[0])} to {number(ends[1])}"
            says = frame is not None and frame.says
            mark(ax, [value], [row], 0, colour(0), gid=in_print(f"{self.names[row]}: {words}") if says else None)
