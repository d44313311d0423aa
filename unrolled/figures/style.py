"""The house style of figures: a palette for light paper, dark pages and print, sizes, and how axes look.

A figure is drawn in the colours of light paper; as SVG its colours are classes, and the page says what they are.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from unrolled.figures.escaping import escape, typeset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


class Panel:
    """One drawing of a figure: its words, its numbers, and how it looks on Matplotlib's axes."""

    title: str

    def description(self) -> str:
        """One sentence for people who cannot see the drawing."""
        raise NotImplementedError

    def data(self) -> tuple[list[str], list[list[str | float]]]:
        """Column names and rows of everything drawn."""
        raise NotImplementedError

    def _draw(self, ax: Axes, frame: Frame | None) -> None:
        """Draw on axes; `frame` is there where they are alone in a figure of the house style."""
        raise NotImplementedError

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw with Matplotlib.

        Args:
            ax: axes to draw on, whose style stays theirs; by default those of a new figure in the style of the reports,
                made by `pyplot`: a notebook shows it, and `ax.figure.savefig("figure.pdf")` writes it.

        Returns:
            The axes.
        """
        if ax is not None:
            self._draw(ax, None)
            return ax
        from matplotlib import pyplot

        frame = Frame(lambda **options: pyplot.figure(dpi=144, **options))
        self._draw(frame.ax, frame)
        return frame.ax

    def svg(self, ident: str, *, standalone: bool = False) -> str:
        """The drawing as SVG, `WIDTH` units wide; `ident` makes its element ids unique on a page."""
        width, height, body = self._body
        return svg_element(body, ident, self.title, self.description(), width, height, standalone=standalone)

    @cached_property
    def _body(self) -> tuple[float, float, str]:
        from matplotlib.figure import Figure

        from unrolled.figures.svg import body

        frame = Frame(lambda **options: Figure(dpi=72, **options), says=True)
        self._draw(frame.ax, frame)
        frame.figure.patch.set_visible(False)
        width, height = frame.figure.get_size_inches()
        return round(72 * width, 2), round(72 * height, 2), body(frame.figure)


class Frame:
    """Axes alone in a figure of the house style: one with a frame of measured margins, `WIDTH` units wide."""

    def __init__(self, make: Any, *, says: bool = False) -> None:
        import matplotlib

        self.says = says  # whether marks and cells have their words, shown when they are pointed at, as their `gid`
        look: dict[Any, Any] = {
            "font.family": ["DejaVu Sans"],
            "font.size": SIZE,
            "text.color": LIGHT["soft"],
            "text.parse_math": False,
        }
        with matplotlib.rc_context(look):
            self.figure: Figure = make(figsize=(WIDTH / 72, HEIGHT / 72), layout="none")
            self.ax = self.figure.add_axes((0, 0, 1, 1), facecolor="none")
        self.ax.spines[["left", "top", "right"]].set_visible(False)
        self.ax.spines["bottom"].set(color=LIGHT["soft"], linewidth=1)
        self.ax.set_axisbelow(True)
        self.ax.grid(axis="y", color=LIGHT["line"], linewidth=1)
        self.ax.tick_params(length=0, labelsize=SIZE, labelcolor=LIGHT["soft"], labelfontfamily="DejaVu Sans")
        self.ax.tick_params(axis="x", pad=6)
        self.ax.tick_params(axis="y", pad=8)

    def set(self, *, title: str, left: float, right: float, inner: float, below: float, above: float = 14) -> None:
        """Leave margins around the axes, make them `inner` high, and put the title over all.

        Args:
            title: in lines no wider than the figure.
            left: beside the axes, where their tick labels are.
            right: beside the axes, where names are.
            inner: height of the axes.
            below: under the axes.
            above: between the title and the axes.
        """
        lines = title.count("\n") + 1
        top = 18 * lines + above
        height, across = top + inner + below, WIDTH - left - right
        self.figure.set_size_inches(WIDTH / 72, height / 72)
        self.ax.set_position((left / WIDTH, below / height, across / WIDTH, inner / height))
        self.ax.set_title("")
        self.ax.text(
            -left / across, 1 + (top - 3) / inner, title, transform=self.ax.transAxes, va="top", linespacing=1.25,
            size=TITLE, weight="bold", color=LIGHT["ink"], parse_math=False,
        )  # fmt: skip


def svg_element(
    body: str, ident: str, title: str, description: str, width: float, height: float, *, standalone: bool
) -> str:
    """Wrap drawing commands in an accessible `<svg>`; a standalone one carries its own colours."""
    style = namespace = ""
    if standalone:
        namespace = ' xmlns="http://www.w3.org/2000/svg"'
        dark = f"@media (prefers-color-scheme:dark){{svg{{{DARK_VARIABLES}background:var(--paper)}}}}"
        style = f"<style>svg{{{LIGHT_VARIABLES}background:var(--paper)}}{dark}{FIGURE_CSS}</style>"
    return (
        f'<svg{namespace} class="fig" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{ident}-t {ident}-d"><title id="{ident}-t">{escape(typeset(title))}</title>'
        f'<desc id="{ident}-d">{escape(typeset(description))}</desc>{style}{body}</svg>'
    )
