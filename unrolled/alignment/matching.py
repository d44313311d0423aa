"""Metrics that match single units: a change of basis is noticed, an exchange of units is not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from torch import Tensor

from unrolled.alignment.metric import Features, Metric, Representation
from unrolled.ops.gram import accumulator
from unrolled.ops.rows import unit_rows, varies
from unrolled.ops.transport import Array, best_transport, largest_transport


class SoftMatching(Metric):
    """Mean correlation of units that are matched as well as can be (Khosla and Williams, arXiv 2311.09466).

    s = max_P sum_ij P_ij corr(x_i, y_j) over P >= 0 with row sums 1 / d_x and column sums 1 / d_y: for equal widths the
    best one-to-one matching, for others the best transport, in which a unit may be shared out. It is exact: an
    assignment, or a transport whose value is proved to lie within 1e-9 of the best.

    Args:
        kind: "correlation" s in [-1, 1], or "distance" sqrt(2 - 2 s), the soft matching distance of units of zero mean
            and unit norm, which keeps the triangle inequality.

    Units are compared whatever their offset and their positive scale; those that do not vary are left out. Rotations of
    the features are noticed. By chance s is well above 0, about sqrt(2 log(d) / n) for d independent units: the best of
    many matchings is chosen, so read it against its null. Time grows with the third power of the width: of 768 units on
    both sides a pair takes some 10 ms, and so does each of its relabellings. Of unequal widths it takes longer, as with
    units that do not vary; there a relabelling is solved for those pairs of layers alone that may be the best.
    """

    name: ClassVar[str] = "soft_matching"
    invariances = frozenset({"scale", "offset", "permutation"})

    def __init__(self, *, kind: str = "correlation"):
        if kind not in ("correlation", "distance"):
            raise ValueError(f"kind must be 'correlation' or 'distance', got {kind!r}")
        self.kind = kind

    @property
    def range(self) -> tuple[float, float]:  # type: ignore[override]
        """Depends on `kind`."""
        return (-1.0, 1.0) if self.kind == "correlation" else (0.0, 2.0)

    @property
    def higher_is_closer(self) -> bool:  # type: ignore[override]
        """Only for "correlation"."""
        return self.kind == "correlation"

    def prepare(self, x: Features | Representation) -> Tensor:
        """[n, d] units with zero mean and unit norm, of those that vary.

        Raises:
            ValueError: none varies by more than rounding.
        """
        rep = Representation.of(x)
        units = rep.x[:, varies(rep.x)].to(accumulator(rep.x))
        if not units.shape[1]:
            raise ValueError("x has no unit that varies by more than rounding: similarity is undefined")
        units = unit_rows(units.mT)
        units = units - units.mean(1, keepdim=True)
        return unit_rows(units - units.mean(1, keepdim=True)).mT.contiguous()

    def compare(self, a: Any, b: Any) -> float:
        """Mean correlation (or distance) of two prepared representations."""
        return self._value(best_transport(_correlations(a, b)))

    def null_bests(self, rows: Sequence[Any], columns: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[float]:
        """The closest pair after each relabelling, the same as of `null_grids`, without solving all pairs."""
        left, right = ([layer for layer in side if layer is not None] for side in (rows, columns))
        if not left or not right:
            yield from super().null_bests(rows, columns, orders)
            return
        for order in orders:
            moved = [self.relabel(layer, order) for layer in right]
            yield self._value(largest_transport([_correlations(a, b) for a in left for b in moved]))

    def _value(self, correlation: float) -> float:
        matched = max(-1.0, min(1.0, correlation))
        return matched if self.kind == "correlation" else math.sqrt(2 - 2 * matched)

    def relabel(self, prepared: Tensor, order: Tensor) -> Tensor:
        """The samples in another order."""
        return prepared[order.to(prepared.device)]


def _correlations(a: Tensor, b: Tensor) -> Array:
    """[d_x, d_y] of prepared units."""
    correlations: Array = (a.mT @ b).double().cpu().numpy()
    return correlations
