"""A chart to draw, and what is wrong with the texts of a drawing: cut off at its edge, or over each other."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from unrolled.figures import LineChart, Series
from unrolled.figures.style import SIZE, TITLE
from unrolled.figures.words import width

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

SVG = "{http://www.w3.org/2000/svg}"
_SLACK = 1.0
Box = tuple[float, float, float, float]


def chart(**options: Any) -> LineChart:
    """Two lines, one with error bars, the other dashed and with a gap."""
    series = [
        Series(label="CRATE", x=[0, 1, 2], y=[3.0, 2.0, 1.0], error=[0.1, 0.1, 0.1]),
        Series(label="CRATE untrained", x=[0, 1, 2], y=[3.0, math.nan, 1.1], color=0, dashed=True),
    ]
    return LineChart(**{"title": "Rᶜ (nats)", "x_label": "layer", "series": series, **options})


def boxes(root: ElementTree.Element) -> list[tuple[str, Box]]:
    """Every text with the box of its letters: left, top, right, bottom."""
    found = []
    for element in root.iter():
        if element.tag.removeprefix(SVG) != "text":
            continue
        text, kind = element.text or "", (element.get("class") or "").split()
        size = TITLE if "title" in kind else SIZE
        if own := re.search(r"font-size:([\d.]+)", element.get("style") or ""):
            size = float(own[1])
        long = width(text, size, bold="title" in kind or "label" in kind)
        x, y = float(element.get("x", "")), float(element.get("y", ""))
        left = x - long * {"middle": 0.5, "end": 1.0}.get(element.get("text-anchor") or "", 0.0)
        box = (left, y - 0.74 * size, left + long, y + 0.2 * size)
        if turn := re.match(r"rotate\((-?[\d.]+) ", element.get("transform") or ""):
            assert turn[1] == "-90"
            box = (x + box[1] - y, y - (box[2] - x), x + box[3] - y, y - (box[0] - x))
        found.append((text, box))
    return found


def faults(drawing: str) -> list[str]:
    """Texts that leave the drawing, and pairs that overlap."""
    root = ElementTree.fromstring(drawing)
    _, _, wide, tall = map(float, root.get("viewBox", "").split())
    return faults_of(boxes(root), wide, tall)


def faults_of(texts: list[tuple[str, Box]], wide: float, tall: float) -> list[str]:
    """The same, of texts with their boxes in a drawing so wide and tall."""
    cut = [
        f"{text!r} is cut"
        for text, (left, top, right, bottom) in texts
        if left < -_SLACK or top < -_SLACK or right > wide + _SLACK or bottom > tall + _SLACK
    ]
    over = [
        f"{text!r} is over {other!r}"
        for i, (text, a) in enumerate(texts)
        for other, b in texts[:i]
        if min(a[2], b[2]) - max(a[0], b[0]) > _SLACK and min(a[3], b[3]) - max(a[1], b[1]) > _SLACK
    ]
    return cut + over


def faults_of_figure(figure: Figure) -> list[str]:
    """The same, of a figure of Matplotlib as its window shows it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and _drawn(text):
            box = text.get_window_extent(canvas.get_renderer())
            shrunk = 72 / figure.dpi  # to points, of which the slack is one
            texts.append((text.get_text(), (box.x0 * shrunk, box.y0 * shrunk, box.x1 * shrunk, box.y1 * shrunk)))
    wide, tall = figure.get_size_inches() * 72
    return faults_of(texts, wide, tall)


def _drawn(text: Text) -> bool:
    """Whether it is on the page: ticks outside of an axis are objects, but are not drawn."""
    axes = text.axes
    if axes is None or not axes.axison:
        return axes is None or text in axes.texts or text is axes.title
    for axis in (axes.xaxis, axes.yaxis):
        labels = [
            label for tick in axis.get_major_ticks() + axis.get_minor_ticks() for label in (tick.label1, tick.label2)
        ]
        if text in labels:
            return text in [label for tick in axis._update_ticks() for label in (tick.label1, tick.label2)]
    return True
