"""Line charts as small SVG drawings that take their colours from CSS variables.

A drawing of our own instead of a plotting library's: the same few kilobytes read well in light, dark and print, inside
the page and as a file, and every panel is narrow enough for a phone without being scaled down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unrolled.report.escaping import escape

WIDTH, HEIGHT = 400, 262
_TOP, _BOTTOM, _LEFT = 46, 40, 50
_CAPITAL, _OTHER = 8.8, 7.2  # widths in pixels of a bold character of the labels, in a wide system font
_LABEL_STEP = 14.0
_LEADER = 60.0  # a longer line from a last point to its name would read as a part of the curve
_ASIDE = 16.0  # between points of several series at the only x

# Okabe and Ito's colour-blind safe hues, darkened for white paper and lightened for a dark page.
_LIGHT = {
    "ink": "#16191d",
    "soft": "#5b6470",
    "line": "#dfe3e8",
    "s0": "#0067a5",
    "s1": "#c24e00",
    "s2": "#007a59",
    "s3": "#9a4484",
    "s4": "#6b6000",
    "s5": "#444b55",
}
_DARK = {
    "ink": "#eceff2",
    "soft": "#a3adb8",
    "line": "#343b43",
    "s0": "#6cb8ee",
    "s1": "#f5a25d",
    "s2": "#4fc7a0",
    "s3": "#e09fcb",
    "s4": "#d9cb5b",
    "s5": "#c3cad2",
}
COLOURS = 6


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


LIGHT_VARIABLES, DARK_VARIABLES = _variables(_LIGHT), _variables(_DARK)

FIGURE_CSS = (
    ".fig text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;"
    "font-size:11.5px;fill:var(--soft);font-variant-numeric:tabular-nums}"
    ".fig .title{font-size:13.5px;font-weight:600;fill:var(--ink)}"
    ".fig .grid{stroke:var(--line);stroke-width:1}"
    ".fig .base{stroke:var(--soft);stroke-width:1}"
    ".fig .curve{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
    ".fig .dashed{stroke-dasharray:2 5}"
    ".fig .band{opacity:.17;stroke:none}"
    ".fig .bar{stroke-width:1.3;fill:none;opacity:.75}"
    ".fig .mark{stroke-width:1.8;stroke-linejoin:round}"
    ".fig .hollow{fill:var(--paper,transparent)}"
    ".fig .leader{stroke-width:1;opacity:.5}"
    ".fig .label{font-weight:600}"
    ".fig image.small{image-rendering:pixelated}"
    + "".join(
        f".fig .s{i}{{stroke:var(--s{i})}}.fig .f{i}{{fill:var(--s{i})}}.fig text.f{i}{{fill:var(--s{i})}}"
        for i in range(COLOURS)
    )
)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart: `y` against `x`, optionally with one symmetric `error` per point.

    A non-finite value leaves a gap. `color` is a place in the palette (series that belong together share one);
    `dashed` marks controls and baselines, whose markers are hollow.
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
class LineChart:
    """One panel of a figure: a title that names quantity and unit, an x axis, and lines labelled where they end.

    Where all points share one x, those of several series stand side by side above it.
    """

    title: str
    x_label: str
    series: Sequence[Series]
    log_y: bool = False
    y_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError(f"chart {self.title!r} has no series: give at least one")

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

    def svg(self, ident: str, *, standalone: bool = False) -> str:
        """The drawing, `WIDTH` units wide; `ident` makes its element ids unique on a page."""
        return svg_element(_draw(self), ident, self.title, self.description(), WIDTH, HEIGHT, standalone=standalone)


def svg_element(
    body: str, ident: str, title: str, description: str, width: float, height: float, *, standalone: bool
) -> str:
    """Wrap drawing commands in an accessible `<svg>`; a standalone one carries its own colours."""
    style = namespace = ""
    if standalone:
        namespace = ' xmlns="http://www.w3.org/2000/svg"'
        dark = f"@media (prefers-color-scheme:dark){{svg{{{DARK_VARIABLES}--paper:#14171a;background:#14171a}}}}"
        style = f"<style>svg{{{LIGHT_VARIABLES}--paper:#fff;background:#fff}}{dark}{FIGURE_CSS}</style>"
    return (
        f'<svg{namespace} class="fig" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{ident}-t {ident}-d"><title id="{ident}-t">{escape(title)}</title>'
        f'<desc id="{ident}-d">{escape(description)}</desc>{style}{body}</svg>'
    )


def number(value: float) -> str:
    """A number as short as reading it needs: `1200`, `3.25`, `0.0042`."""
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        return f"{value:.2e}"
    digits = max(0, 3 - 1 - math.floor(math.log10(size)))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _short(value: float) -> str:
    """A number in the few characters that fit beside an axis: `0.0001` as `1e-4`."""
    text = number(value)
    mantissa, exponent = f"{value:.2e}".split("e")
    power = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return power if len(text) > 5 and len(power) < len(text) else text


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most about `count` round numbers covering [low, high]."""
    raw = (high - low) / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(few) >= 3:
        return few[:: math.ceil(len(few) / 6)]
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def _apart(low: float, high: float, pad: float) -> tuple[float, float]:
    """The ends of an axis, `pad` of the way beyond the values; equal values get room on both sides."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-20):
        room = 0.06 * abs(high) if abs(high) > 1e-20 else 0.5
        return low - room, high + room
    return low - pad * (high - low), high + pad * (high - low)


def _y_limits(chart: LineChart) -> tuple[float, float]:
    if chart.y_range is not None:
        return chart.y_range
    values: list[float] = []
    for series in chart.series:
        errors = series.error if series.error is not None and not chart.log_y else [0.0] * len(series.y)
        for y, e in zip(series.y, errors, strict=True):
            e = e if math.isfinite(e) else 0.0
            values += [v for v in (y - e, y + e) if math.isfinite(v) and (v > 0 or not chart.log_y)]
    if not values:
        return (0.1, 1.0) if chart.log_y else (0.0, 1.0)
    low, high = min(values), max(values)
    if chart.log_y:
        return low / 1.15, high * 1.15
    if high > 1e-20 and 0 <= low <= 0.5 * high:  # a zero that is near belongs on the axis
        return 0.0, high * 1.05
    return _apart(low, high, 0.06)


def _draw(chart: LineChart) -> str:
    right = WIDTH - min(max(_width(series.label) for series in chart.series) + 18, 0.45 * WIDTH)
    bottom = HEIGHT - _BOTTOM
    xs = [float(x) for series in chart.series for x in series.x]
    x_low, x_high = _apart(min(xs), max(xs), 0.0)
    alone = min(xs) == max(xs)
    aside = min(_ASIDE, (right - _LEFT - 40) / len(chart.series)) if alone else 0.0
    y_low, y_high = _y_limits(chart)

    def at_x(value: float) -> float:
        return _LEFT + 6 + (value - x_low) / (x_high - x_low) * (right - _LEFT - 14)

    def at_y(value: float) -> float:
        if chart.log_y:
            share = (math.log(max(value, y_low)) - math.log(y_low)) / (math.log(y_high) - math.log(y_low))
        else:
            share = (value - y_low) / (y_high - y_low)
        return bottom - min(max(share, 0.0), 1.0) * (bottom - _TOP)

    parts = [f'<text class="title" x="0" y="16">{escape(chart.title)}</text>']
    for tick in _log_ticks(y_low, y_high) if chart.log_y else ticks(y_low, y_high):
        y = at_y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    parts.append(f'<line class="base" x1="{_LEFT}" x2="{right:.1f}" y1="{bottom}" y2="{bottom}"/>')
    for tick in xs[:1] if alone else _x_ticks(x_low, x_high, xs):
        parts.append(f'<text x="{at_x(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(chart.x_label)}</text>')

    ends: list[tuple[float, float, int, Series]] = []
    for i, series in enumerate(chart.series):
        shift = aside * (i - (len(chart.series) - 1) / 2)
        points = [
            (at_x(float(x)) + shift, at_y(float(y))) if math.isfinite(y) and (y > 0 or not chart.log_y) else None
            for x, y in zip(series.x, series.y, strict=True)
        ]
        parts.append(_error_marks(series, i, points, at_y))
        parts.append(_curve(series, i, points))
        drawn = [point for point in points if point is not None]
        if drawn:
            ends.append((*drawn[-1], i, series))
    parts.append(_end_labels(ends, right, bottom))
    return "".join(parts)


def _width(label: str) -> float:
    return sum(_CAPITAL if character.isupper() else _OTHER for character in label)


def _x_ticks(low: float, high: float, values: Sequence[float]) -> list[float]:
    whole = all(value == int(value) for value in values)
    found = ticks(low, high, 6)
    return [tick for tick in found if tick == int(tick)] if whole else found


def _colour(series: Series, place: int) -> int:
    return (place if series.color is None else series.color) % COLOURS


def _error_marks(
    series: Series, place: int, points: Sequence[tuple[float, float] | None], at_y: Callable[[float], float]
) -> str:
    if series.error is None:
        return ""
    triples = [
        (point[0], at_y(y - e), at_y(y + e))
        for point, y, e in zip(points, series.y, series.error, strict=True)
        if point is not None and math.isfinite(e)
    ]
    colour = _colour(series, place)
    if len(triples) > 14:  # whiskers would merge, so a band
        upper = [f"{x:.1f},{high:.1f}" for x, _, high in triples]
        lower = [f"{x:.1f},{low:.1f}" for x, low, _ in reversed(triples)]
        return f'<polygon class="band f{colour}" points="{" ".join(upper + lower)}"/>'
    path = "".join(
        f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6" for x, low, high in triples
    )
    return f'<path class="bar s{colour}" d="{path}"/>' if path else ""


def _curve(series: Series, place: int, points: Sequence[tuple[float, float] | None]) -> str:
    path, pen = "", "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        path += f"{pen}{point[0]:.1f} {point[1]:.1f}"
        pen = "L"
    if not path:
        return ""
    colour = _colour(series, place)
    drawn = [point for point in points if point is not None]
    every = max(1, math.ceil(len(drawn) / 8)) if len(drawn) > 14 else 1
    chosen = drawn[::-every][::-1]
    marks = "".join(marker(place, x, y, colour, hollow=series.dashed) for x, y in chosen)
    return f'<path class="curve s{colour}{" dashed" if series.dashed else ""}" d="{path}"/>{marks}'


def marker(shape: int, x: float, y: float, colour: int, *, hollow: bool) -> str:
    """A circle, square, triangle, diamond, lower triangle or plus centred on (x, y)."""
    style = f'class="mark s{colour} {"hollow" if hollow else f"f{colour}"}"'
    kind = shape % 6
    if kind == 0:
        return f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    paths = {
        1: f"M{x - 2.9:.1f} {y - 2.9:.1f}h5.8v5.8h-5.8z",
        2: f"M{x:.1f} {y - 3.8:.1f}l3.6 6.4h-7.2z",
        3: f"M{x:.1f} {y - 4.1:.1f}l4.1 4.1l-4.1 4.1l-4.1 -4.1z",
        4: f"M{x:.1f} {y + 3.8:.1f}l3.6 -6.4h-7.2z",
        5: f"M{x - 4:.1f} {y:.1f}h8M{x:.1f} {y - 4:.1f}v8",
    }
    return f'<path {style} d="{paths[kind]}"/>'


def _end_labels(ends: list[tuple[float, float, int, Series]], right: float, bottom: float) -> str:
    """Names beside the last points, pushed apart where lines end together."""
    ends = sorted(ends, key=lambda end: end[1])
    places = [end[1] for end in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + _LABEL_STEP)
    limit = bottom - 2
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - _LABEL_STEP
    text = ""
    for (x, y, place, series), label_y in zip(ends, places, strict=True):
        colour = _colour(series, place)
        if right - x < _LEADER and (abs(label_y - y) > 3 or right - x > 12):
            text += (
                f'<path class="leader s{colour}" fill="none" d="M{x + 5:.1f} {y:.1f}L{right + 2:.1f} {label_y:.1f}"/>'
            )
        text += marker(place, right + 8, label_y, colour, hollow=series.dashed)
        text += (
            f'<text class="label f{colour}" x="{right + 16:.1f}" y="{label_y + 4:.1f}">{escape(series.label)}</text>'
        )
    return text
