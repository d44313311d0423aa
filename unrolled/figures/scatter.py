"""Points with names in a plane, such as models by competence and alignment, or a map of models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unrolled.figures.escaping import in_print
from unrolled.figures.lines import mark, name_beside
from unrolled.figures.panel import Frame, Panel
from unrolled.figures.style import LIGHT, LINE, SIZE, TITLE, WIDTH, colour, size_of
from unrolled.figures.words import apart, labels, number, shortened, ticks, width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INNER, _MARKERS = 184.0, 4
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Scatter(Panel):
    """One panel. Groups differ in colour and in their marks; names that would collide are shortened or left out.

    Args:
        title: names the vertical quantity and its unit.
        x_label, y_label: of the axes; without `y_label` the title says it.
        x, y: of the points; non-finite ones are not drawn.
        names: of the points, shown where there is room and in full when pointed at.
        groups: one name a point, or empty.
        error: half the length of a vertical bar for each point, or empty.
        interval: both ends of a vertical bar for each point, where it is not as long below as above; or empty.
        equal: one unit is as long on both axes, as a map needs; the axes then carry no numbers.
    """

    title: str
    x_label: str
    x: Sequence[float]
    y: Sequence[float]
    y_label: str = ""
    names: Sequence[str] = ()
    groups: Sequence[str] = ()
    error: Sequence[float] = ()
    interval: Sequence[tuple[float, float]] = ()
    equal: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not len(self.x):
            raise ValueError(f"scatter {self.title!r}: x and y must have the same length, at least 1")
        for what in ("names", "groups", "error", "interval"):
            if len(getattr(self, what)) not in (0, len(self.x)):
                raise ValueError(
                    f"scatter {self.title!r}: {what} must be empty or one for each of {len(self.x)} points"
                )

    def description(self) -> str:
        """One sentence for people who cannot see the points."""
        text = f"{len(self.x)} points: {self.y_label or self.title} against {self.x_label}"
        kinds = list(dict.fromkeys(self.groups))
        return text + (f", in the groups {', '.join(kinds)}." if kinds else ".")

    def data(self) -> tuple[list[str], list[list[str | float]]]:
        """Name, group, x, y and error, or both ends of the interval, of every point."""
        n = len(self.x)
        names, groups = self.names or [""] * n, self.groups or [""] * n
        bars = [list(ends) for ends in self.interval] or [[e] for e in self.error or [math.nan] * n]
        rows: list[list[str | float]] = [
            [name, group, float(x), float(y), *map(float, bar)]
            for name, group, x, y, bar in zip(names, groups, self.x, self.y, bars, strict=True)
        ]
        ends = ["low", "high"] if self.interval else ["error"]
        return ["name", "group", self.x_label, self.y_label or self.title, *ends], rows

    def _bar(self, i: int) -> tuple[float, float] | None:
        """Ends of a point's bar; None where it has none."""
        if self.interval:
            low, high = self.interval[i]
        elif self.error:
            low, high = self.y[i] - self.error[i], self.y[i] + self.error[i]
        else:
            return None
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None

    def _draw(self, ax: Axes, frame: Frame | None) -> None:
        kinds = list(dict.fromkeys(self.groups)) or [""]
        shown = [i for i in range(len(self.x)) if math.isfinite(self.x[i]) and math.isfinite(self.y[i])]
        xs = _ends([float(self.x[i]) for i in shown])
        ys = _ends([float(end) for i in shown for end in self._bar(i) or (self.y[i], self.y[i])])
        legend = [wrapped(kind, 0.34 * WIDTH, bold=True) for kind in kinds] if kinds != [""] else []
        words = [] if self.equal else labels(ticks(*ys))
        if frame is None:
            wide, tall = size_of(ax)
            self._head(ax)
            ax.set_ylabel(in_print(self.y_label), parse_math=False)
            ax.set_xlabel(in_print(self.x_label), parse_math=False)
        else:
            tall = max(_INNER, LINE * sum(1.3 + name.count("\n") for name in legend))
            left = 10 + max(28.0, *map(width, words)) if words else 38.0
            right = 26 + max(width(name, bold=True) for name in legend) if legend else 12.0
            wide = WIDTH - left - right
            ax.set_xlabel(
                wrapped(self.x_label, 2 * min(left + wide / 2, right + wide / 2)),
                size=SIZE, color=LIGHT["soft"], labelpad=5, parse_math=False,
            )  # fmt: skip
            aside = wrapped(self.y_label, WIDTH) if self.y_label else ""
            frame.set(
                title=wrapped(self.title, WIDTH, size=TITLE, bold=True), left=left, right=right, inner=tall,
                below=40 + LINE * ax.get_xlabel().count("\n"), above=14 + LINE * (1 + aside.count("\n")) * bool(aside),
            )  # fmt: skip
            ax.text(
                -left / wide, 1 + 9 / tall, aside, transform=ax.transAxes, size=SIZE, color=LIGHT["soft"],
                parse_math=False,
            )  # fmt: skip
        if self.equal:
            scale = max((xs[1] - xs[0]) / wide, (ys[1] - ys[0]) / tall)
            xs, ys = _around(*xs, scale * wide), _around(*ys, scale * tall)
        ax.set_xlim(xs)
        ax.set_ylim(ys)
        ax.set_yticks([] if self.equal else ticks(*ys), words)
        marks = [] if self.equal else ticks(*xs, max(2, int(wide / 48)))
        marks = apart(marks, wide)
        ax.set_xticks(marks, labels(marks))
        for i in shown:
            self._point(ax, i, kinds, says=frame is not None and frame.says)
        self._labels(ax, shown, xs, ys, (wide, tall), frame)
        y = tall - 8
        for place, name in enumerate(legend):
            below = LINE * name.count("\n")
            name_beside(ax, place % _MARKERS, colour(place), name, y - below / 2, frame)
            y -= below + 1.3 * LINE

    def _point(self, ax: Axes, i: int, kinds: list[str], *, says: bool) -> None:
        place = kinds.index(self.groups[i]) if self.groups else 0
        if bar := self._bar(i):
            ax.plot([self.x[i]] * 2, bar, color=colour(place), linewidth=1.3, alpha=0.75)
        name = f"{self.names[i]}: " if self.names else ""
        words = f"{name}{number(self.x[i])}, {number(self.y[i])}"
        mark(ax, [self.x[i]], [self.y[i]], place % _MARKERS, colour(place), gid=in_print(words) if says else None)

    def _labels(
        self, ax: Axes, shown: list[int], xs: tuple[float, float], ys: tuple[float, float], size: tuple[float, float],
        frame: Frame | None,
    ) -> None:  # fmt: skip
        """Names beside their points, in the first free place; shortened, or none, where all are taken."""
        if not self.names:
            return
        wide, tall = size
        at = {
            i: ((self.x[i] - xs[0]) / (xs[1] - xs[0]) * wide, (self.y[i] - ys[0]) / (ys[1] - ys[0]) * tall)
            for i in shown
        }
        taken: list[_Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in at.values()]
        for i, (x, y) in at.items():
            if "\n" in in_print(self.names[i]):
                continue
            names = dict.fromkeys(shortened(self.names[i], room) for room in (WIDTH, 0.4 * WIDTH, 0.25 * WIDTH))
            for name, (left, low) in ((each, corner) for each in names for corner in _corners(x, y, width(each))):
                box = (left, low, left + width(name), low + 12)
                if left < -4 or box[2] > wide + 8 or low < 0 or box[3] > tall + 8:
                    continue
                if any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                    continue
                taken.append(box)
                ax.text(
                    left / wide, (low + 2) / tall, name, transform=ax.transAxes, color=LIGHT["soft"], parse_math=False,
                    size=None if frame is None else SIZE,
                )  # fmt: skip
                break


def _corners(x: float, y: float, long: float) -> Iterator[tuple[float, float]]:
    """Where a name may begin: right of its point, left, above, below; above and below to the left and to the right."""
    yield from ((x + 7, y - 6), (x - 7 - long, y - 6), (x - long / 2, y + 7), (x - long / 2, y - 19))
    yield from ((x + 5 - long, y + 7), (x + 5 - long, y - 19), (x - 5, y + 7), (x - 5, y - 19))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.07 * (high - low) or 0.07 * abs(high) or 0.5
    return low - room, high + room


def _around(low: float, high: float, length: float) -> tuple[float, float]:
    middle = (low + high) / 2
    return middle - length / 2, middle + length / 2
