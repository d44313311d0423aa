"""What every alignment metric shares: checked features, the kernels several metrics reuse, and the metric contract."""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unrolled.alignment.copies import warn_of_copies
from unrolled.ops.gram import accumulator, gram
from unrolled.ops.rows import as_floats, as_rows, check_devices, moderate, nearly_one_way, unit_rows
from unrolled.ops.ties import Membership, membership, membership_of_scores

if TYPE_CHECKING:
    from unrolled.alignment.dependence import Units

Features = Tensor | np.ndarray | Sequence[Sequence[float]]

DENSE_LIMIT = 4096
"""Largest n for which n x n matrices are kept; above it metrics work from features and tiles."""


def as_features(x: Features, name: str = "x", *, min_samples: int = 2) -> Tensor:
    """Check features and return them as a detached float tensor [n, d] on their own device.

    Integers and half precision become float32 (large integers float64); float64 stays.

    Raises:
        ValueError: what `ops.rows.as_rows` refuses (not numbers, masked, sparse, not 2-D, NaN or infinite entries, the
            rows named), too few samples, or no variance between rows.
    """
    tensor = as_rows(x, name)
    if tensor.shape[0] < min_samples:
        raise ValueError(f"{name} has {tensor.shape[0]} samples: at least {min_samples} are needed")
    slack = 8 * torch.finfo(tensor.dtype).eps * float(tensor[0].abs().max())
    if not any(float((part - tensor[0]).abs().max()) > slack for part in tensor.split(64)):
        raise ValueError(f"{name} has zero variance: all {tensor.shape[0]} rows are equal, so similarity is undefined")
    return tensor


def whole(name: str, value: Any) -> int:
    """`value` as an int; ValueError naming the option unless it is a whole number."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def prepare_features(
    x: Any, clamp: float | None = 0.95, normalize: bool = True, *, threshold: str = "layer", quantile: str = "exact"
) -> Any:
    """The paper's preparation: limit outliers element-wise, then l2-normalise rows (Huh et al. 2024).

    Args:
        x: [n, d] features of one layer, [n, layers, d] of several, or a list or mapping of layers.
        clamp: elements are clamped to +- the `clamp` quantile of their absolute values; None or 1 leaves them.
        normalize: divide rows by their l2 norm afterwards.
        threshold: "layer" takes the quantile per layer; "global" one over all layers together, which the published code
            does for stacked tensors (so that the same features score differently as a list).
        quantile: "exact" takes the element of rank floor(clamp * size); "per_sample" the mean over samples of their
            quantiles, the published default.

    Returns:
        Same structure as `x`, with float tensors.
    """
    if threshold not in ("layer", "global"):
        raise ValueError(f"threshold must be 'layer' or 'global', got {threshold!r}")
    if quantile not in ("exact", "per_sample"):
        raise ValueError(f"quantile must be 'exact' or 'per_sample', got {quantile!r}")
    if clamp is not None and not 0 < clamp <= 1:
        raise ValueError(f"clamp must be a quantile in (0, 1] or None, got {clamp}")
    if isinstance(x, Mapping):
        values = prepare_features(list(x.values()), clamp, normalize, threshold=threshold, quantile=quantile)
        return dict(zip(x, values, strict=True))
    if isinstance(x, (list, tuple)) and x and np.ndim(x[0]) == 2:
        layers = [as_floats(layer, f"x[{i}]") for i, layer in enumerate(x)]
    else:
        x = as_floats(x)
        if x.ndim == 3:
            out = prepare_features(list(x.unbind(1)), clamp, normalize, threshold=threshold, quantile=quantile)
            return torch.stack(out, 1)
        if x.ndim != 2:
            raise ValueError(f"x must be [n, d] or [n, layers, d], got shape {tuple(x.shape)}")
        layers = [x]
    if clamp is not None and clamp < 1:
        if threshold == "global":
            limit = _outlier_limit(
                torch.cat([layer.reshape(layer.shape[0], -1) for layer in layers], 1), clamp, quantile
            )
            limits = [limit] * len(layers)
        else:
            limits = [_outlier_limit(layer, clamp, quantile) for layer in layers]
        layers = [layer.clamp(-limit, limit) for layer, limit in zip(layers, limits, strict=True)]
    if normalize:
        layers = [unit_rows(layer) for layer in layers]
    return layers if isinstance(x, (list, tuple)) else layers[0]


def _outlier_limit(x: Tensor, clamp: float, quantile: str) -> float:
    size = x.abs()
    if quantile == "exact":
        rank = min(int(clamp * size.numel()), size.numel() - 1)
        return float(size.flatten().kthvalue(rank + 1).values)
    return float(torch.stack([torch.quantile(row, clamp) for row in size]).mean())


class Representation:
    """Checked features of one layer with the matrices that several metrics share, computed once when first asked for.

    Attributes:
        x: [n, d] features as checked by `as_features`.
    """

    def __init__(self, x: Features, name: str = "x", *, min_samples: int = 2):
        self.x = as_features(x, name, min_samples=min_samples)
        self.n, self.d = self.x.shape
        self._memberships: dict[int, Membership] = {}

    @classmethod
    def of(cls, x: Features | Representation, *, min_samples: int = 2) -> Representation:
        """`x` itself if it is a representation already."""
        if isinstance(x, Representation):
            if x.n < min_samples:
                raise ValueError(f"x has {x.n} samples: at least {min_samples} are needed")
            return x
        return cls(x, min_samples=min_samples)

    @cached_property
    def moderate(self) -> tuple[Tensor, float]:
        """[n, d] features over a power of two, and that power: 1 unless their squares would leave float32."""
        return moderate(self.x)

    @cached_property
    def centred(self) -> Tensor:
        """[n, d] `moderate` features with zero column means."""
        x = self.moderate[0]
        centred = x - x.mean(0)
        return centred.sub_(centred.mean(0))  # what rounding left over when the mean is large

    @cached_property
    def gram(self) -> Tensor:
        """[n, n] inner products of centred rows."""
        return gram(self.centred)

    @cached_property
    def directions(self) -> Tensor:
        """[n, d] the features, in float64 where rows point so nearly one way that float32 cosines tell few apart."""
        return self.x.to(accumulator(self.x)) if nearly_one_way(self.x) else self.x

    @cached_property
    def unit(self) -> Tensor:
        """[n, d] rows as given over their norms."""
        return unit_rows(self.directions)

    @cached_property
    def cosine(self) -> Tensor:
        """[n, n] cosines of the rows as given."""
        return gram(self.unit)

    def membership(self, k: int) -> Membership:
        """Neighbourhoods of the k nearest rows by cosine, ties shared."""
        if k not in self._memberships:
            if not 1 <= k < self.n:
                raise ValueError(f"k must be between 1 and n - 1 = {self.n - 1}, got {k}: lower k or give more samples")
            dense = "cosine" in self.__dict__
            self._memberships[k] = membership_of_scores(self.cosine, k) if dense else membership(self.directions, k)
        return self._memberships[k]


class Metric(ABC):
    """A similarity or distance between two representations of the same samples.

    `prepare` does the work that concerns one representation, `compare` the work per pair, so a grid of L x M layers
    costs L + M preparations. Class attributes are promises which the tests enforce:

    Attributes:
        name: how the metric is asked for by string.
        range: smallest and largest possible value.
        higher_is_closer: direction; False for distances.
        symmetric: compare(a, b) == compare(b, a).
        invariances: changes of one side that leave the value unchanged: "rotation" (x Q), "scale" (c x), "row_scale"
            (rows times positive numbers), "offset" (x + constant row), "permutation" (of columns), "linear" (x A, A
            invertible).
        min_samples: fewest samples with a defined value.
        share_of_samples: the value is the share of samples for which something holds.
        few_numbers: `prepare` gives O(n k) numbers, a `SparseEmbedding` or lists [n, k], which `prepared` files hold.
    """

    name: ClassVar[str]
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_closer: ClassVar[bool] = True
    symmetric: bool = True
    invariances: frozenset[str] = frozenset()
    min_samples: int = 2
    share_of_samples: ClassVar[bool] = False
    few_numbers: ClassVar[bool] = False

    def __call__(self, x: Features | Representation, y: Features | Representation) -> float:
        """Value for features x [n, d_x] and y [n, d_y] whose rows are the same samples."""
        left, right = representations(x, y, min_samples=self.min_samples)
        return self.compare(self.prepare(left), self.prepare(right))

    @abstractmethod
    def prepare(self, x: Features | Representation) -> Any:
        """What `compare` needs of one representation."""

    @abstractmethod
    def compare(self, a: Any, b: Any) -> float:
        """Value for two prepared representations."""

    @abstractmethod
    def relabel(self, prepared: Any, order: Tensor) -> Any:
        """`prepare(x[order])` from `prepare(x)`, without repeating the costly part. `order` is a permutation [n]."""

    def null_moments(self, rows: Sequence[Any], columns: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """Exact mean and variance, [len(rows), len(columns)] each, of `grid` when the columns' samples are relabelled.

        Over all orders with equal probability; None where no closed form is known. Missing layers give NaN.
        """
        return None

    def null_shapes(self, rows: Sequence[Any], columns: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """Where `null_moments` are known: exact skewness, and how far one sample of each side may move the value alone.

        The latter is the geometric mean of the largest shares that a sample has in the two squared norms. Both are
        [len(rows), len(columns)]; None where no closed form is known.
        """
        return None

    def for_units(self, units: Units) -> Metric:
        """This metric for rows that depend on each other: where it leaves samples out, whole units are left out."""
        return self

    def grid(self, rows: Sequence[Any], columns: Sequence[Any]) -> Tensor:
        """[len(rows), len(columns)] float64 values; a missing (None) layer gives NaN."""
        return torch.tensor(
            [[math.nan if a is None or b is None else self.compare(a, b) for b in columns] for a in rows],
            dtype=torch.float64,
        ).reshape(len(rows), len(columns))

    def null_grids(self, rows: Sequence[Any], columns: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """`grid` after relabelling all columns alike, once for each order."""
        for order in orders:
            yield self.grid(rows, [None if b is None else self.relabel(b, order) for b in columns])

    def null_bests(self, rows: Sequence[Any], columns: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[float]:
        """The closest value of each of `null_grids`; NaN where all are missing."""
        for grid in self.null_grids(rows, columns, orders):
            known = grid[~grid.isnan()]
            yield float(known.max() if self.higher_is_closer else known.min()) if len(known) else math.nan

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={getattr(self, key)!r}" for key in inspect.signature(type(self)).parameters)
        return f"{type(self).__name__}({options})"


def stacked(orders: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """[m, n] up to `count` orders at a time."""
    orders = iter(orders)
    while some := list(itertools.islice(orders, count)):
        yield torch.stack(some)


def representations(
    x: Features | Representation, y: Features | Representation, *, min_samples: int = 2
) -> tuple[Representation, Representation]:
    """Check that two sets of features can be compared: same samples, same device; a common dtype is chosen.

    Features given as such, not as a `Representation`, are warned of if many of their rows are copies.

    Raises:
        ValueError: unequal numbers of rows, different devices, or what `as_features` refuses.
    """
    left = x if isinstance(x, Representation) else Representation(x, "x", min_samples=min_samples)
    right = y if isinstance(y, Representation) else Representation(y, "y", min_samples=min_samples)
    if left.n != right.n:
        raise ValueError(f"x has {left.n} samples and y {right.n}: rows must be the same samples in the same order")
    check_devices(left.x, right.x)
    for side, given, name in ((left, x, "x"), (right, y, "y")):
        if side is not given:
            warn_of_copies(side.x, name)
    if left.x.dtype != right.x.dtype:
        left, right = Representation(left.x.double()), Representation(right.x.double())
    return left, right
