"""A tree of hierarchical clustering, drawn with its leaves as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unrolled.figures.escaping import in_print
from unrolled.figures.panel import Frame, Panel
from unrolled.figures.style import LIGHT, SIZE, TITLE, WIDTH, colour
from unrolled.figures.words import labels, shortened, ticks, width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 17.0


@dataclass(frozen=True, kw_only=True)
class Tree(Panel):
    """One panel: `merges` is the linkage matrix [leaves - 1, 4] of SciPy, of heights in its third column."""

    title: str
    merges: NDArray[np.float64]
    leaves: Sequence[str]
    x_label: str

    def __post_init__(self) -> None:
        if self.merges.shape != (len(self.leaves) - 1, 4) or len(self.leaves) < 2:
            raise ValueError(f"tree {self.title!r}: merges must be [leaves - 1, 4] with at least two leaves")

    def description(self) -> str:
        """One sentence for people who cannot see the tree."""
        order = ", ".join(self.leaves[i] for i in self.order())
        return f"{self.title}: clusters of {len(self.leaves)}, like beside like: {order}."

    def data(self) -> tuple[list[str], list[list[str | float]]]:
        """One row a merge: the two that merge, the height, the leaves below."""
        n = len(self.leaves)

        def name(node: float) -> str:
            return self.leaves[int(node)] if node < n else f"merge {int(node) - n + 1}"

        rows: list[list[str | float]] = [[name(m[0]), name(m[1]), float(m[2]), int(m[3])] for m in self.merges]
        return ["first", "second", self.x_label, "leaves"], rows

    def order(self) -> list[int]:
        """Leaves from top to bottom."""
        n, below = len(self.leaves), {i: [i] for i in range(len(self.leaves))}
        for i, merge in enumerate(self.merges):
            below[n + i] = below.pop(int(merge[0])) + below.pop(int(merge[1]))
        (order,) = below.values()
        return order

    def _draw(self, ax: Axes, frame: Frame | None) -> None:
        n, order = len(self.leaves), self.order()
        heights = [float(merge[2]) for merge in self.merges]
        low = min(0.0, *heights)
        high = low + ((max(heights) - low) or 1.0)
        names = [shortened(self.leaves[leaf], 0.5 * WIDTH) for leaf in order]
        if frame is None:
            self._head(ax)
            ax.set_xlabel(in_print(self.x_label), parse_math=False)
        else:
            left, right = 12 + max(map(width, names)), 16.0
            ax.set_xlabel(
                wrapped(self.x_label, WIDTH - left), size=SIZE, color=LIGHT["soft"], labelpad=5, parse_math=False
            )
            title = wrapped(self.title, WIDTH, size=TITLE, bold=True)
            below = 40 + 14 * ax.get_xlabel().count("\n")
            frame.set(title=title, left=left, right=right, inner=_ROW * n, below=below, above=4)
        ax.grid(False)
        ax.set_xlim(low, high)
        ax.set_ylim(n - 0.5, -0.5)
        ax.set_yticks(range(n), names, parse_math=False)
        ax.set_xticks(ticks(low, high), labels(ticks(low, high)))
        place = {leaf: (low, float(row)) for row, leaf in enumerate(order)}
        for i, merge in enumerate(self.merges):
            (x0, y0), (x1, y1) = place[int(merge[0])], place[int(merge[1])]
            x = float(merge[2])
            ax.plot([x0, x, x, x1], [y0, y0, y1, y1], color=colour(0), linewidth=2, clip_on=False)
            place[n + i] = (x, (y0 + y1) / 2)
