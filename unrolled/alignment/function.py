"""A plain function of two sets of features as a metric."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

from torch import Tensor

from unrolled.alignment.metric import Features, Metric, Representation


class FunctionMetric(Metric):
    """`function(x, y)` of features [n, d_x] and [n, d_y], tensors with paired rows, which returns a number.

    Chance, p-value and interval come as for any metric: the rows of y are relabelled, and the function is called for
    each relabelling and pair of layers. A `Metric` of your own, whose `prepare` does what concerns one side only once,
    is faster.

    Args:
        function: with these two arguments by place; its own name is the metric's.
        higher_is_closer: False for a distance.
        range: its smallest and largest value, where they are known: intervals end there, and scores are calibrated
            between chance and the best. A value beyond it is refused.
        symmetric: whether function(y, x) is the same.
        options: keyword arguments of every call.

    Raises:
        ValueError: the function cannot be called so, or the range ends before it begins.
    """

    name = "function"

    def __init__(
        self, function: Callable[..., float], *, higher_is_closer: bool = True,
        range: tuple[float, float] = (-math.inf, math.inf), symmetric: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        try:
            inspect.signature(function).bind(None, None, **options)
        except TypeError as error:
            given = "".join(f", {name}" for name in options)
            raise ValueError(f"metric: {function!r} cannot be called as function(x, y{given}): {error}") from error
        except ValueError:  # some functions written in C do not say what they take
            pass
        ends = list(range) if isinstance(range, list | tuple) else []
        if len(ends) != 2 or not all(isinstance(end, numbers.Real) for end in ends) or not ends[0] < ends[1]:
            raise ValueError(f"range must be the smallest and the largest value, such as (0, 1), got {range!r}")
        low, high = ends
        self.function, self.options, self.symmetric = function, options, symmetric
        self.range = float(low), float(high)  # type: ignore[misc]
        self.name = getattr(function, "__name__", type(function).__name__)  # type: ignore[misc]
        self.higher_is_closer = higher_is_closer  # type: ignore[misc]

    def prepare(self, x: Features | Representation) -> Tensor:
        """The features themselves."""
        return Representation.of(x).x

    def compare(self, a: Tensor, b: Tensor) -> float:
        """What the function returns.

        Raises:
            ValueError: it is no finite number, or not of the range that was declared.
        """
        value = self.function(a, b, **self.options)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise ValueError(f"metric: {self.name} returned a {type(value).__name__}; return a number")
        if not math.isfinite(value):
            raise ValueError(f"metric: {self.name} returned {float(value)}; return a finite number")
        low, high = self.range
        slack = 1e-6 * max(1.0, abs(value))  # of rounding
        if not low - slack <= value <= high + slack:
            raise ValueError(f"metric: {self.name} returned {float(value)}, outside its range={self.range}")
        return min(max(float(value), low), high)

    def relabel(self, prepared: Tensor, order: Tensor) -> Tensor:
        """The rows in that order."""
        return prepared[order]

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.name}({options})"
