"""Points with names in a plane, such as models by competence and alignment, or a map of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unrolled.report.charts import COLOURS, HEIGHT, WIDTH, marker, number, svg_element, ticks
from unrolled.report.escaping import escape

_At = Callable[[float, float], tuple[float, float]]
_LEFT, _TOP, _BOTTOM, _CHARACTER, _LINE = 52.0, 34.0, 44.0, 6.2, 12.0


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """One panel. Groups differ in colour and in the shape of their marks; names that would collide are left out.

    Args:
        title: names the vertical quantity and its unit.
        x_label, y_label: of the axes; without `y_label` the title says it.
        x, y: of the points; non-finite ones are not drawn.
        names: of the points, shown where there is room and in full when pointed at.
        groups: one name a point, or empty.
        error: half the length of a vertical bar for each point, or empty.
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
    equal: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not len(self.x):
            raise ValueError(f"scatter {self.title!r}: x and y must have the same length, at least 1")
        for what in ("names", "groups", "error"):
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
        """Name, group, x, y and error of every point."""
        n = len(self.x)
        names, groups = self.names or [""] * n, self.groups or [""] * n
        errors = self.error or [math.nan] * n
        rows: list[list[str | float]] = [
            [name, group, float(x), float(y), float(e)]
            for name, group, x, y, e in zip(names, groups, self.x, self.y, errors, strict=True)
        ]
        return ["name", "group", self.x_label, self.y_label or self.title, "error"], rows

    def svg(self, ident: str, *, standalone: bool = False) -> str:
        """The drawing, as wide as a chart."""
        return svg_element(self._draw(), ident, self.title, self.description(), WIDTH, HEIGHT, standalone=standalone)

    def _draw(self) -> str:
        kinds = list(dict.fromkeys(self.groups)) or [""]
        legend = 0.0 if kinds == [""] else 26 + _CHARACTER * max(len(kind) for kind in kinds)
        right, bottom = WIDTH - 12 - min(legend, 0.4 * WIDTH), HEIGHT - _BOTTOM
        reach = self.error or [0.0] * len(self.x)
        shown = [i for i in range(len(self.x)) if math.isfinite(self.x[i]) and math.isfinite(self.y[i])]
        parts = [f'<text class="title" x="0" y="16">{escape(self.title)}</text>']
        if not shown:
            return parts[0]
        x_low, x_high = _ends([self.x[i] for i in shown])
        y_low, y_high = _ends(
            [self.y[i] + s * (reach[i] if math.isfinite(reach[i]) else 0) for i in shown for s in (-1, 1)]
        )
        if self.equal:
            scale = max((x_high - x_low) / (right - _LEFT), (y_high - y_low) / (bottom - _TOP))
            x_low, x_high = _around(x_low, x_high, scale * (right - _LEFT))
            y_low, y_high = _around(y_low, y_high, scale * (bottom - _TOP))

        def at(x: float, y: float) -> tuple[float, float]:
            return (
                _LEFT + (x - x_low) / (x_high - x_low) * (right - _LEFT),
                bottom - (y - y_low) / (y_high - y_low) * (bottom - _TOP),
            )

        if not self.equal:
            for tick in ticks(y_low, y_high):
                y = at(x_low, tick)[1]
                parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
                parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
            for tick in ticks(x_low, x_high):
                x = at(tick, y_low)[0]
                parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>')
        parts.append(f'<line class="base" x1="{_LEFT}" x2="{right:.1f}" y1="{bottom}" y2="{bottom}"/>')
        middle = (_LEFT + right) / 2
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(self.x_label)}</text>')
        if self.y_label:
            parts.append(f'<text x="0" y="{_TOP - 4}">{escape(self.y_label)}</text>')
        for i in shown:
            parts.append(self._point(i, kinds, at))
        parts += self._labels(shown, at, right)
        if legend:
            for place, kind in enumerate(kinds):
                y, colour = _TOP + 8 + 18 * place, place % COLOURS
                parts.append(marker(place % 4, right + 16, y, colour, hollow=False))
                parts.append(
                    f'<text class="label f{colour}" x="{right + 26:.1f}" y="{y + 4:.1f}">{escape(kind)}</text>'
                )
        return "".join(parts)

    def _point(self, i: int, kinds: list[str], at: _At) -> str:
        place = kinds.index(self.groups[i]) if self.groups else 0
        x, y = at(self.x[i], self.y[i])
        name = f"{self.names[i]}: " if self.names else ""
        told = escape(f"{name}{number(self.x[i])}, {number(self.y[i])}")
        parts = []
        if self.error and math.isfinite(self.error[i]):
            low, high = (at(self.x[i], self.y[i] + s * self.error[i])[1] for s in (-1, 1))
            parts.append(f'<path class="bar s{place % COLOURS}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
        parts.append(f"<g><title>{told}</title>{marker(place % 4, x, y, place % COLOURS, hollow=False)}</g>")
        return "".join(parts)

    def _labels(self, shown: list[int], at: _At, right: float) -> list[str]:
        """Names beside their points, in the first of four places that is free; none where all are taken."""
        if not self.names:
            return []
        taken = []
        for i in shown:
            x, y = at(self.x[i], self.y[i])
            taken.append((x - 5, y - 5, x + 5, y + 5))
        parts = []
        for i in shown:
            x, y = at(self.x[i], self.y[i])
            wide = _CHARACTER * len(self.names[i])
            for left, top in ((x + 7, y - 6), (x - 7 - wide, y - 6), (x - wide / 2, y - 19), (x - wide / 2, y + 7)):
                box = (left, top, left + wide, top + _LINE)
                if left < 0 or left + wide > right + 8 or top < _TOP - 14 or box[3] > HEIGHT - _BOTTOM + 2:
                    continue
                if any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                    continue
                taken.append(box)
                parts.append(f'<text x="{left:.1f}" y="{top + 10:.1f}">{escape(self.names[i])}</text>')
                break
        return parts


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.07 * (high - low) or 0.07 * abs(high) or 0.5
    return low - room, high + room


def _around(low: float, high: float, length: float) -> tuple[float, float]:
    middle = (low + high) / 2
    return middle - length / 2, middle + length / 2
