"""Lines against an axis, each with its name where it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.figures.escaping import in_print
from unrolled.figures.panel import Frame, Panel
from unrolled.figures.style import COLOURS, LIGHT, LINE, SIZE, TITLE, WIDTH, colour, size_of
from unrolled.figures.words import apart, labels, log_ticks, number, spread_out, ticks, width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INNER = 176.0  # height of the axes
_LEADER = 60.0  # a longer line from a last point to its name would read as a part of the curve
_ASIDE = 16.0  # between points of several series at the only x
_MANY = 14  # points of a line: with more, bars merge and every mark would hide the line
MARKERS = ("o", "s", "^", "D", "v", "+", "*", "X", "<", "p", ">", "x")  # the second six are of those colours again
_SIZES = (6.0, 5.8, 7.0, 5.8, 7.0, 8.0, 9.5, 7.5, 7.0, 7.5, 7.0, 6.5)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart: `y` against `x`, optionally with one symmetric `error` per point.

    A non-finite value leaves a gap. `color` is a place in the palette (series that belong together share one);
    `dashed` marks controls and baselines: their lines are dotted and their markers hollow. From the seventh place on
    colours come again, with other markers and long dashes.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    color: int | None = None
    dashed: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or (self.error is not None and len(self.error) != len(self.y)):
            raise ValueError(f"series {self.label!r}: x, y and error must have the same length")
        if not self.x:
            raise ValueError(f"series {self.label!r} is empty: give at least one point")
        if not all(math.isfinite(x) for x in self.x):
            raise ValueError(f"series {self.label!r}: x must be finite; leave such points out")

    def scaled(self, factor: float) -> Series:
        """The same line in another unit."""
        error = None if self.error is None else [abs(factor) * value for value in self.error]
        return replace(self, y=[factor * value for value in self.y], error=error)


@dataclass(frozen=True, kw_only=True)
class LineChart(Panel):
    """One panel of a figure: a title that names quantity and unit, an x axis, and lines labelled where they end.

    Where all points share one x, those of several series stand side by side above it. `log_x` needs an x above 0.
    """

    title: str
    x_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError(f"chart {self.title!r} has no series: give at least one")
        if self.log_x and not all(x > 0 for series in self.series for x in series.x):
            raise ValueError(f"chart {self.title!r}: log_x needs an x above 0; leave such points out, or log_x")

    @property
    def lone(self) -> bool:
        """Whether there is nothing to see but a dot or two: no line has two points, and there are at most two lines."""
        return len(self.series) <= 2 and not any(self._shown(series).sum() > 1 for series in self.series)

    def description(self) -> str:
        """One sentence for people who cannot see the chart."""
        parts = [f"Line chart of {self.title} against {self.x_label}."]
        for series in self.series:
            points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
            if points:
                (first_x, first), (last_x, last) = points[0], points[-1]
                span = f"{number(first)} at {number(first_x)} to {number(last)} at {number(last_x)}"
                parts.append(f"{series.label}: {span}.")
            else:
                parts.append(f"{series.label}: no finite value.")
        return " ".join(parts)

    def data(self) -> tuple[list[str], list[list[str | float]]]:
        """Column names and rows of everything drawn, long form: series, x, y, error."""
        rows: list[list[str | float]] = []
        for series in self.series:
            errors = series.error if series.error is not None else [math.nan] * len(series.x)
            rows += [
                [series.label, float(x), float(y), float(e)] for x, y, e in zip(series.x, series.y, errors, strict=True)
            ]
        return ["series", self.x_label, self.title, "error"], rows

    def _draw(self, ax: Axes, frame: Frame | None) -> None:
        drawn = [(place, series) for place, series in enumerate(self.series) if self._shown(series).any()]
        names = {place: wrapped(series.label, 0.42 * WIDTH, bold=True) for place, series in drawn}
        heights = {place: LINE * (1 + name.count("\n")) for place, name in names.items()}
        low, high = self._y_limits()
        marks = log_ticks(low, high) if self.log_y else ticks(low, high)
        words = labels(marks)
        across = self._x_axis(ax)
        if self.log_y:
            ax.set_yscale("log")
        ax.set_ylim(low, high)
        ax.set_yticks(marks, words)
        ax.set_yticks([], minor=True)
        if frame is None:
            wide, tall = size_of(ax)
            self._head(ax)
            ax.set_xlabel(in_print(self.x_label), parse_math=False)
        else:
            tall = max(_INNER, sum(heights.values()) + 4)
            left = 10 + max(28.0, *(width(word) for word in words)) if words else 38.0
            right = max((width(name, bold=True) for name in names.values()), default=0.0) + 20
            wide = WIDTH - left - right
            ax.set_xlabel(
                wrapped(self.x_label, 2 * min(left + wide / 2, right + wide / 2)),
                size=SIZE, color=LIGHT["soft"], labelpad=5, parse_math=False,
            )  # fmt: skip
            below = 40 + LINE * ax.get_xlabel().count("\n")
            title = wrapped(self.title, WIDTH, size=TITLE, bold=True)
            frame.set(title=title, left=left, right=right, inner=tall, below=below)
        shifts = self._shifts(across, wide)
        self._marks_of_axes(ax, across, wide, shifts)
        ends = []
        for place, series in drawn:
            x, y = self._line(ax, place, series, shifts[place])
            ends.append((place, series, *ax.transAxes.inverted().transform(ax.transData.transform((x, y)))))
        ends.sort(key=lambda end: -end[3])
        places = spread_out(
            [tall * (1 - min(max(end[3], 0), 1)) for end in ends], [heights[end[0]] for end in ends], -6, tall + 4
        )
        for (place, series, x, y), down in zip(ends, places, strict=True):
            tone = colour(place if series.color is None else series.color)
            away, moved = (1 - x) * wide, abs(tall - down - y * tall)
            if away < _LEADER and (moved > 3 or away > 12):
                ax.plot(
                    [x + 5 / wide, 1 + 2 / wide], [y, 1 - down / tall], color=tone, linewidth=1, alpha=0.5,
                    transform=ax.transAxes, clip_on=False, scalex=False, scaley=False,
                )  # fmt: skip
            name_beside(ax, place, tone, names[place], tall - down, frame, hollow=series.dashed)

    def _shown(self, series: Series) -> np.ndarray:
        """Which points there are: [n], bool."""
        y = np.asarray(series.y, np.float64)
        return np.isfinite(y) & (y > 0) if self.log_y else np.isfinite(y)

    def _x_axis(self, ax: Axes) -> tuple[float, float]:
        xs = [float(x) for series in self.series for x in series.x]
        return _apart(min(xs), max(xs), 0.0)

    def _shifts(self, across: tuple[float, float], wide: float) -> list[float]:
        """How far the points of each series stand aside, in units of x."""
        xs = {float(x) for series in self.series for x in series.x}
        aside = min(_ASIDE, (wide - 40) / len(self.series)) if len(xs) == 1 else 0.0
        unit = (across[1] - across[0]) / wide
        return [aside * unit * (place - (len(self.series) - 1) / 2) for place in range(len(self.series))]

    def _marks_of_axes(self, ax: Axes, across: tuple[float, float], wide: float, shifts: list[float]) -> None:
        xs = [float(x) for series in self.series for x in series.x]
        alone = min(xs) == max(xs)
        if self.log_x and not alone:
            unit = (across[1] / across[0]) ** (1 / wide)
            ax.set_xscale("log")
            ax.set_xlim(across[0] * unit**-6, across[1] * unit**8)
            marks, room = log_ticks(*across), wide
            if len(marks) > 1:  # where they stand closest, they must do
                room *= (len(marks) - 1) * min(np.diff(np.log(marks))) / math.log(across[1] / across[0])
        else:
            unit = (across[1] - across[0]) / wide
            ax.set_xlim(across[0] - 6 * unit, across[1] + 8 * unit)
            marks = xs[:1] if alone else ticks(*across, 6, whole=all(x == int(x) for x in xs))
            room = wide
        marks = apart(marks, room)
        ax.set_xticks(marks, labels(marks))
        ax.set_xticks([], minor=True)

    def _y_limits(self) -> tuple[float, float]:
        if self.y_range is not None:
            return self.y_range
        values: list[float] = []
        for series in self.series:
            errors = series.error if series.error is not None and not self.log_y else [0.0] * len(series.y)
            for y, e in zip(series.y, errors, strict=True):
                e = e if math.isfinite(e) else 0.0
                values += [v for v in (y - e, y + e) if math.isfinite(v) and (v > 0 or not self.log_y)]
        if not values:
            return (0.1, 1.0) if self.log_y else (0.0, 1.0)
        low, high = min(values), max(values)
        if self.log_y:
            return low / 1.15, high * 1.15
        if high > 1e-20 and 0 <= low <= 0.5 * high:  # a zero that is near belongs on the axis
            return 0.0, high * 1.05
        return _apart(low, high, 0.06)

    def _line(self, ax: Axes, place: int, series: Series, shift: float) -> tuple[float, float]:
        """Draw a curve with its marks and errors; return its last point."""
        tone = colour(place if series.color is None else series.color)
        shown = self._shown(series)
        x = np.asarray(series.x, np.float64) + shift
        y = np.where(shown, np.asarray(series.y, np.float64), np.nan)
        y = np.clip(y, *ax.get_ylim())
        if series.error is not None:
            error = np.asarray(series.error, np.float64)
            known = shown & np.isfinite(error)
            low, high = (np.clip(np.asarray(series.y) + sign * error, *ax.get_ylim()) for sign in (-1, 1))
            if known.sum() > _MANY:
                ax.fill_between(x[known], low[known], high[known], color=tone, alpha=0.17, linewidth=0)
            elif known.any():
                ax.errorbar(
                    x[known], y[known], [y[known] - low[known], high[known] - y[known]], fmt="none", ecolor=tone,
                    elinewidth=1.3, capsize=3, capthick=1.3, alpha=0.75,
                )  # fmt: skip
        again = (place if series.color is None else series.color) >= COLOURS  # its colour is that of another
        dashes = (0, (1, 2.5)) if series.dashed else (0, (6, 3)) if again else "-"
        ax.plot(
            x, y, color=tone, linewidth=2, linestyle=dashes, dash_capstyle="round", solid_capstyle="round", marker=""
        )
        points = np.flatnonzero(shown)
        every = max(1, math.ceil(len(points) / 8)) if len(points) > _MANY else 1
        marked = points[::-every][::-1]
        mark(ax, x[marked], y[marked], place, tone, hollow=series.dashed)
        return float(x[points[-1]]), float(y[points[-1]])


def mark(
    ax: Axes, x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float], place: int, tone: str, *,
    hollow: bool = False, **options: Any,
) -> None:  # fmt: skip
    """Marks of the shape and size that the place in a chart has."""
    ax.plot(
        x, y, linestyle="none", marker=MARKERS[place % len(MARKERS)], markersize=_SIZES[place % len(MARKERS)],
        markeredgewidth=1.8, markeredgecolor=tone, markerfacecolor=LIGHT["paper"] if hollow else tone, **options,
    )  # fmt: skip


def name_beside(
    ax: Axes, place: int, tone: str, name: str, middle: float, frame: Frame | None, *, hollow: bool = False
) -> None:
    """A mark and a name to the right of the axes, `middle` units above their lower end."""
    wide, tall = size_of(ax)
    mark(
        ax, [1 + 8 / wide], [middle / tall], place, tone, hollow=hollow, transform=ax.transAxes, clip_on=False,
        scalex=False, scaley=False,
    )  # fmt: skip
    ax.text(
        1 + 16 / wide, middle / tall, name, transform=ax.transAxes, va="center_baseline", weight="bold", color=tone,
        linespacing=1.2, parse_math=False, size=None if frame is None else SIZE,
    )  # fmt: skip


def _apart(low: float, high: float, pad: float) -> tuple[float, float]:
    """The ends of an axis, `pad` of the way beyond the values; equal values get room on both sides."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-20):
        room = 0.06 * abs(high) if abs(high) > 1e-20 else 0.5
        return low - room, high + room
    return low - pad * (high - low), high + pad * (high - low)
