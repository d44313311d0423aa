"""Words and numbers in figures: how wide they are, where lines break, and how an axis is counted."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from unrolled.figures.escaping import in_print
from unrolled.figures.style import SIZE

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

_UNITS = 1000  # size of the letters that are measured


def width(text: str, size: float = SIZE, *, bold: bool = False) -> float:
    """How wide the widest line is, in the units of `size`; as wide in every place, whatever fonts there are."""
    return max(sum(_advance(letter, bold) for letter in line) for line in text.split("\n")) * size / _UNITS


@cache
def _advance(letter: str, bold: bool) -> float:
    font = _font(bold)
    if not font.get_char_index(ord(letter)):
        return _UNITS  # of another font, such as Chinese: as wide as high
    return float(font.load_char(ord(letter)).linearHoriAdvance) / 65536


@cache
def _font(bold: bool) -> FT2Font:
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    # not `font_manager.get_font`: Matplotlib sets the size of that one to whatever it draws
    font = FT2Font(f"{get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf")
    font.set_size(_UNITS, 72)
    return font


def wrapped(text: str, room: float, *, size: float = SIZE, bold: bool = False) -> str:
    """`text` in lines at most `room` wide, broken between words or after signs, within a word where all else fails."""
    lines = [""]
    for piece in re.findall(r"\s+|[^\s/_:.,=-]+[/_:.,=-]*|[/_:.,=-]+", in_print(text)):
        if lines[-1] and width(lines[-1] + piece.rstrip(), size, bold=bold) > room:
            lines.append("")
        lines[-1] = (lines[-1] + piece).lstrip()
        while width(lines[-1].rstrip(), size, bold=bold) > room and len(lines[-1]) > 1:
            fits = range(len(lines[-1]) - 1, 1, -1)
            fit = next((n for n in fits if width(lines[-1][:n], size, bold=bold) <= room), 1)
            lines[-1:] = [lines[-1][:fit], lines[-1][fit:]]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def shortened(text: str, room: float, *, bold: bool = False) -> str:
    """`text` on one line, with `…` for its middle where it is wider than `room`."""
    text = in_print(text)
    if width(text, bold=bold) <= room:
        return text
    for length in range(len(text) - 1, 0, -1):
        short = f"{text[: (length + 1) // 2]}…{text[len(text) - length // 2 :]}"
        if width(short, bold=bold) <= room:
            return short
    return "…"


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


def with_error(value: float, error: float) -> str:
    """`130.0 ± 0.5`: as many decimals as the error has a digit for, and one more where that digit is 1."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{number(value)} ± {number(error)}"
    first, exponent = f"{error:.0e}".split("e")
    digits = max(0, (first == "1") - int(exponent))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def short(value: float) -> str:
    """A number in the few characters that fit beside an axis: `0.0001` as `1e-4`."""
    text = number(value)
    mantissa, exponent = f"{value:.2e}".split("e")
    power = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return power if len(text) > 5 and len(power) < len(text) else text


def labels(ticks: Sequence[float]) -> list[str]:
    """What stands beside ticks: short numbers, with more digits where they would read alike."""
    texts = [short(tick) for tick in ticks]
    for digits in range(3, 9):
        if len(set(texts)) == len(texts):
            break
        texts = [f"{tick:.{digits}g}" for tick in ticks]
    return texts


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """At most about `count` round numbers in [low, high]."""
    from matplotlib.ticker import MaxNLocator

    places = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(f"{place:.12g}") for place in places if low - slack <= place <= high + slack]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high]; of a short range 1, 2 and 5 of each; of one shorter still, round numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(few) >= 3:
        return few[:: math.ceil(len(few) / 6)]
    more = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return more if len(more) >= 3 else [tick for tick in ticks(low, high) if tick > 0]


def apart(ticks: Sequence[float], room: float) -> list[float]:
    """Those of evenly spread ticks whose numbers stand beside each other on an axis `room` long."""
    spread = list(ticks)
    while len(spread) > 2 and max(map(width, labels(spread))) + 10 > room / (len(spread) - 1):
        spread = spread[::2]
    return spread


def spread_out(places: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of labels, in order, near `places` and without overlap, between `low` and `high` as far as they fit."""
    moved = [float(place) for place in places]
    for i in range(len(moved)):
        first = low + sizes[i] / 2 if i == 0 else moved[i - 1] + (sizes[i - 1] + sizes[i]) / 2
        moved[i] = max(moved[i], first)
    for i in reversed(range(len(moved))):
        last = high - sizes[i] / 2 if i == len(moved) - 1 else moved[i + 1] - (sizes[i] + sizes[i + 1]) / 2
        moved[i] = min(moved[i], last)
    return moved
