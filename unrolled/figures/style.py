"""The house style of figures: a palette for light paper, dark pages and print, sizes, and how axes look.

A figure is drawn in the colours of light paper; as SVG its colours are classes, and the page says what they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 400, 262
SIZE, TITLE, BOLD = 11.5, 13.5, 600  # of letters in units of the figure, of those of titles; weight
LINE = 14.0  # from a line of text to the next
COLOURS = 6

# Okabe and Ito's colour-blind safe hues, darkened for white paper and lightened for a dark page.
LIGHT = {
    "ink": "#16191d",
    "soft": "#5b6470",
    "line": "#dfe3e8",
    "s0": "#0067a5",
    "s1": "#c24e00",
    "s2": "#007a59",
    "s3": "#9a4484",
    "s4": "#6b6000",
    "s5": "#444b55",
    "paper": "#ffffff",
}
DARK = {
    "ink": "#eceff2",
    "soft": "#a3adb8",
    "line": "#343b43",
    "s0": "#6cb8ee",
    "s1": "#f5a25d",
    "s2": "#4fc7a0",
    "s3": "#e09fcb",
    "s4": "#d9cb5b",
    "s5": "#c3cad2",
    "paper": "#14171a",
}
NAMES = {colour: name for name, colour in LIGHT.items()}


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


LIGHT_VARIABLES, DARK_VARIABLES = _variables(LIGHT), _variables(DARK)

FIGURE_CSS = (
    ".fig text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;"
    f"font-size:{SIZE}px;fill:var(--soft);font-variant-numeric:tabular-nums}}"
    f".fig .title{{font-size:{TITLE}px;font-weight:{BOLD};fill:var(--ink)}}.fig .label{{font-weight:{BOLD}}}"
    ".fig path{fill:none;stroke-linejoin:round;stroke-linecap:round}"
    ".fig image.small{image-rendering:pixelated}"
    + "".join(
        f".fig .{name}{{stroke:var(--{name})}}.fig .f-{name},.fig text.f-{name}{{fill:var(--{name})}}" for name in LIGHT
    )
)


def colour(place: int) -> str:
    """A series' colour on light paper; after the last the first comes again."""
    return LIGHT[f"s{place % COLOURS}"]


def size_of(ax: Axes) -> tuple[float, float]:
    """Width and height of axes, in units of 72 an inch, as letters are measured."""
    box = ax.get_window_extent()
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes are of a figure"
    dots = figure.dpi
    return 72 * box.width / dots, 72 * box.height / dots
