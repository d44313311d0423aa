"""A tree of hierarchical clustering, drawn with its leaves as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unrolled.report.charts import WIDTH, number, svg_element, ticks
from unrolled.report.escaping import escape

_TOP, _BOTTOM, _ROW, _CHARACTER = 30.0, 40.0, 17.0, 6.8


@dataclass(frozen=True, kw_only=True)
class Tree:
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

    def svg(self, ident: str, *, standalone: bool = False) -> str:
        """The drawing, as wide as a chart; merges further right are of less alike clusters."""
        n = len(self.leaves)
        left = min(0.4 * WIDTH, 18 + _CHARACTER * max(len(leaf) for leaf in self.leaves))
        bottom, right = _TOP + _ROW * n, WIDTH - 14
        heights = [float(m[2]) for m in self.merges]
        low = min(0.0, *heights)
        span = (max(heights) - low) or 1.0

        def at(height: float) -> float:
            return left + (height - low) / span * (right - left)

        place = {leaf: (at(low), _TOP + _ROW * (row + 0.5)) for row, leaf in enumerate(self.order())}
        parts = [f'<text class="title" x="0" y="16">{escape(self.title)}</text>']
        for leaf, (x, y) in place.items():
            parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(self.leaves[leaf])}</text>')
        for i, merge in enumerate(self.merges):
            (x0, y0), (x1, y1) = place[int(merge[0])], place[int(merge[1])]
            x = at(float(merge[2]))
            parts.append(f'<path class="curve s0" d="M{x0:.1f} {y0:.1f}H{x:.1f}V{y1:.1f}H{x1:.1f}"/>')
            place[n + i] = (x, (y0 + y1) / 2)
        parts.append(f'<line class="base" x1="{left:.1f}" x2="{right:.1f}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>')
        for tick in ticks(low, low + span):
            parts.append(f'<text x="{at(tick):.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{number(tick)}</text>')
        middle = (left + right) / 2
        parts.append(f'<text x="{middle:.1f}" y="{bottom + 34:.1f}" text-anchor="middle">{escape(self.x_label)}</text>')
        return svg_element(
            "".join(parts), ident, self.title, self.description(), WIDTH, bottom + _BOTTOM, standalone=standalone
        )
