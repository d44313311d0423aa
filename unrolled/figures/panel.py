"""One drawing of a figure: what it shows in words and numbers, and its axes in the house style."""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

from unrolled.figures.escaping import escape, typeset
from unrolled.figures.style import (
    DARK_VARIABLES,
    FIGURE_CSS,
    HEIGHT,
    LIGHT,
    LIGHT_VARIABLES,
    SIZE,
    TITLE,
    WIDTH,
    size_of,
)
from unrolled.figures.words import wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = 1.4  # pixels a unit in a notebook, whose letters are then as large as its text


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

    def _head(self, ax: Axes) -> None:
        """The title over axes of others, in lines no wider than they are."""
        size = float(ax.title.get_fontsize())
        title = wrapped(self.title, size_of(ax)[0], size=size)
        ax.set_title(title, parse_math=False)

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

    def _repr_svg_(self) -> str:
        """What a notebook shows of a panel at the end of a cell: the drawing, light or dark as its page is."""
        width, _, body = self._body
        drawing = self.svg(f"figure{zlib.crc32(body.encode())}", standalone=True)
        return drawing.replace("<svg ", f'<svg width="{_SHOWN * width:g}" ', 1)

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
