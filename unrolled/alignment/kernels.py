"""Metrics of agreement between kernels and dissimilarity matrices: CKA and representational similarity analysis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from scipy import stats
from torch import Tensor

from unrolled.alignment.embedded import DenseEmbedding
from unrolled.alignment.embedding import EmbeddingMetric, schur_moments
from unrolled.alignment.metric import DENSE_LIMIT, Features, Representation, representations, stacked
from unrolled.alignment.tiles import Form, TiledRDM, components, similarity
from unrolled.ops.gram import (
    accumulator,
    center_gram,
    from_triangle,
    gram,
    linear_hsic,
    rbf_gram,
    relabelled_hsic,
    square_distances,
    triangle,
    triangle_relabelling,
    u_center,
)
from unrolled.ops.rows import as_floats, check_devices, scaled_rows, unit_rows, varies


@dataclass(frozen=True)
class CentredFeatures:
    """Centred features [n, d] of a data set too large for an n x n matrix, and their HSIC with themselves."""

    x: Tensor
    hsic: Tensor


class CKA(EmbeddingMetric):
    """Centred kernel alignment, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Cortes et al. 2012, Kornblith et al. 2019).

    Args:
        unbiased: use the unbiased HSIC of Song et al. 2012. Independent features then score 0 in expectation, while the
            biased form scores about sqrt(PR_x PR_y) / (n - 1), with PR the participation ratio of the spectrum.
        kernel: "linear", or "rbf" with bandwidth `sigma` in the units of the features.

    Rows are taken as given. There is no constant in the denominator, so the value does not depend on the scale of
    features.
    """

    name: ClassVar[str] = "cka"

    def __init__(self, *, unbiased: bool = False, kernel: str = "linear", sigma: float = 1.0):
        if kernel not in ("linear", "rbf"):
            raise ValueError(f"kernel must be 'linear' or 'rbf', got {kernel!r}")
        self.unbiased, self.kernel, self.sigma = unbiased, kernel, sigma
        self.min_samples = 4 if unbiased else 2
        self.invariances = frozenset(
            {"rotation", "offset", "permutation"} | ({"scale"} if kernel == "linear" else set())
        )

    @property
    def range(self) -> tuple[float, float]:  # type: ignore[override]
        """[0, 1]; unbiased estimates can be negative."""
        return (-1.0, 1.0) if self.unbiased else (0.0, 1.0)

    def __call__(self, x: Features | Representation, y: Features | Representation) -> float:
        """CKA of x [n, d_x] and y [n, d_y]; from features where they are narrower than the sample is large."""
        left, right = representations(x, y, min_samples=self.min_samples)
        if self.kernel == "linear" and max(left.d, right.d) <= left.n:
            return self.compare(self._features(left), self._features(right))
        return self.compare(self.prepare(left), self.prepare(right))

    def prepare(self, x: Features | Representation) -> DenseEmbedding | CentredFeatures:
        """Unit vector of the centred kernel up to n = 4096, centred features above (linear kernel only)."""
        rep = Representation.of(x, min_samples=self.min_samples)
        if self.kernel == "rbf":
            x, scale = rep.moderate
            raw = rbf_gram(x, self.sigma / scale)
            kernel = u_center(raw) if self.unbiased else center_gram(raw)
            return DenseEmbedding.of(kernel, diagonal=not self.unbiased, scale=1.0)
        if rep.n > DENSE_LIMIT:
            return self._features(rep)
        scale = float(rep.gram.diagonal().max())
        kernel = u_center(rep.gram) if self.unbiased else rep.gram
        narrow = rep.centred if rep.d**2 <= rep.n else None
        return DenseEmbedding.of(kernel, diagonal=not self.unbiased, scale=scale, features=narrow)

    def _features(self, rep: Representation) -> CentredFeatures:
        energy = linear_hsic(rep.centred, rep.centred, unbiased=self.unbiased)
        total = rep.centred.square().sum(1).max().to(energy) ** 2
        if not float(energy) > 1e-12 * float(total):
            raise ValueError("x has no similarity structure: its centred kernel is zero up to rounding")
        return CentredFeatures(rep.centred, energy)

    def compare(self, a: Any, b: Any) -> float:
        """Value for two prepared representations."""
        if isinstance(a, CentredFeatures):
            wide = torch.promote_types(a.x.dtype, b.x.dtype)
            together = linear_hsic(a.x.to(wide), b.x.to(wide), unbiased=self.unbiased)
            value = float(together / (a.hsic.sqrt() * b.hsic.sqrt()))
            return max(self.range[0], min(1.0, value))
        return super().compare(a, b)

    def relabel(self, prepared: Any, order: Tensor) -> Any:
        """The samples in another order."""
        if isinstance(prepared, CentredFeatures):
            return CentredFeatures(prepared.x[order.to(prepared.x.device)], prepared.hsic)
        return super().relabel(prepared, order)

    def null_moments(self, rows: Sequence[Any], columns: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """Exact moments; for features only those of the unbiased estimate, which depend on n alone."""
        large = [a for a in rows if isinstance(a, CentredFeatures)]
        if not large:
            return super().null_moments(rows, columns)
        if not self.unbiased:
            return None
        n = large[0].x.shape[0]
        defined = torch.tensor([[a is not None and b is not None for b in columns] for a in rows])
        nothing = torch.full(defined.shape, math.nan, dtype=torch.float64)
        return torch.where(defined, 0.0, nothing), torch.where(defined, 2 / (n * (n - 3)), nothing)

    def null_grids(self, rows: Sequence[Any], columns: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """`grid` after relabelling all columns alike, once for each order; narrow features do without their kernels."""
        if any(e is not None and getattr(e, "features", None) is None for e in (*rows, *columns)):
            yield from super().null_grids(rows, columns, orders)
            return
        left, right = (
            [None if e is None else e.features.to(accumulator(e.features)) for e in side] for side in (rows, columns)
        )
        norms = [
            torch.tensor(
                [math.nan if x is None else float(linear_hsic(x, x, unbiased=self.unbiased)) for x in side],
                dtype=torch.float64,
            )
            for side in (left, right)
        ]
        scale = torch.outer(*norms).sqrt()
        for some in stacked(orders, 16):
            grids = torch.full((len(some), len(rows), len(columns)), math.nan, dtype=torch.float64)
            for (i, x), (j, y) in itertools.product(enumerate(left), enumerate(right)):
                if x is not None and y is not None:
                    grids[:, i, j] = relabelled_hsic(x, y, some.to(y.device), unbiased=self.unbiased).double().cpu()
            yield from grids / scale


class RSA(EmbeddingMetric):
    """Representational similarity analysis: agreement of two matrices of dissimilarities (Kriegeskorte et al. 2008).

    Args:
        method: "spearman", "pearson", "tau-a" (Kendall, ties count against; Nili et al. 2014), or "whitened": Pearson
            after whitening by the covariance of dissimilarity estimates under independent noise (Diedrichsen et al.
            2021).
        dissimilarity: "correlation" (1 - Pearson of rows), "cosine", "euclidean" or "sqeuclidean".

    Memory, beside float64 copies of the features, is at most 4 GiB (`RSA_BYTES`) for any number of samples, and each
    prepared layer keeps 4 n^2 bytes of it. Up to 8,192 samples (`RSA_DENSE`) all pairs are held; above, they are made
    again a tile at a time (`alignment.tiles`), a pass of n^2 d operations for every comparison and every relabelling.
    "spearman" then ranks by 2^24 classes of near-equal dissimilarities, which moves the value by less than 1e-6 where
    they are spread smoothly; "tau-a" needs all pairs and is refused.
    """

    name: ClassVar[str] = "rsa"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    min_samples = 4

    def __init__(self, *, method: str = "spearman", dissimilarity: str = "correlation"):
        if method not in ("spearman", "pearson", "tau-a", "whitened"):
            raise ValueError(f"method must be 'spearman', 'pearson', 'tau-a' or 'whitened', got {method!r}")
        if dissimilarity not in _DISSIMILARITIES:
            raise ValueError(f"dissimilarity must be one of {', '.join(_DISSIMILARITIES)}, got {dissimilarity!r}")
        self.method, self.dissimilarity = method, dissimilarity
        self.invariances = _DISSIMILARITIES[dissimilarity]

    def prepare(self, x: Features | Representation) -> DenseEmbedding | Tensor | TiledRDM:
        """Unit vector of the (ranked or whitened) dissimilarities; for tau-a the [n (n - 1) / 2] dissimilarities.

        Of more than `RSA_DENSE` samples, the rows that dissimilarities are made of a tile at a time.
        """
        rep = Representation.of(x, min_samples=self.min_samples)
        if rep.n > RSA_DENSE:
            if self.method == "tau-a":
                raise ValueError(
                    f"x has {rep.n:,} samples: rsa with method='tau-a' holds all pairs, of at most {RSA_DENSE:,}; give "
                    "fewer samples, or method='spearman'"
                )
            rows, form, _ = _rows_of(rep, self.dissimilarity)
            return TiledRDM.of(rows, form, ranks=self.method == "spearman")
        return self.prepare_rdm(_rdm(rep, self.dissimilarity)[0])

    def prepare_rdm(self, dissimilarities: Tensor) -> DenseEmbedding | Tensor:
        """As `prepare`, from a symmetric [n, n] matrix; its diagonal is ignored."""
        n = dissimilarities.shape[0]
        values = (
            triangle(dissimilarities).double() if dissimilarities.device.type != "mps" else triangle(dissimilarities)
        )
        scale = float(values.abs().max())
        if float(values.max() - values.min()) <= 1e-6 * scale:
            raise ValueError("x has no similarity structure: all pairwise dissimilarities are equal")
        if self.method in ("tau-a", "spearman"):
            values = (values / scale).round(decimals=12)  # what differs by rounding is tied
        if self.method == "tau-a":
            return values
        if self.method == "spearman":
            values = _average_ranks(values)
            scale = float(values.numel())
        hollow = from_triangle(values - values.mean(), n)
        if self.method == "whitened":
            hollow = _whiten(hollow)
        return DenseEmbedding.of(hollow, diagonal=False, scale=scale)

    def compare(self, a: Any, b: Any) -> float:
        """Value for two prepared representations."""
        if isinstance(a, TiledRDM):
            return max(-1.0, min(1.0, similarity(a, b, whitened=self.method == "whitened")))
        return _tau_a(a, b) if isinstance(a, Tensor) else super().compare(a, b)

    def relabel(self, prepared: Any, order: Tensor) -> Any:
        """The samples in another order."""
        if isinstance(prepared, TiledRDM):
            return prepared.relabelled(order)
        return (
            prepared[triangle_relabelling(order.to(prepared.device))]
            if isinstance(prepared, Tensor)
            else super().relabel(prepared, order)
        )

    def null_moments(self, rows: Sequence[Any], columns: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """Exact mean and variance over all relabellings, but for tau-a."""
        tiled = [a for a in (*rows, *columns) if isinstance(a, TiledRDM)]
        if not tiled:
            return super().null_moments(rows, columns)
        nothing = (math.nan,) * 3
        sides = [
            torch.tensor(
                [nothing if a is None else components(a, whitened=self.method == "whitened") for a in side],
                dtype=torch.float64,
            )
            for side in (rows, columns)
        ]
        return schur_moments(sides[0], sides[1], tiled[0].n)


RSA_DENSE = 8192
"""Samples of which RSA holds all pairs; of more it makes them a tile at a time."""
RSA_BYTES = 2**32
"""What RSA of features allocates at most, beside float64 copies of them."""

_DISSIMILARITIES = {
    "correlation": frozenset({"scale", "row_scale", "permutation"}),
    "cosine": frozenset({"rotation", "scale", "row_scale", "permutation"}),
    "euclidean": frozenset({"rotation", "scale", "offset", "permutation"}),
    "sqeuclidean": frozenset({"rotation", "scale", "offset", "permutation"}),
}


def rdm(x: Features | Representation, dissimilarity: str = "correlation") -> Tensor:
    """[n, n] symmetric matrix of dissimilarities between the rows of x [n, d], zero on the diagonal.

    Raises:
        ValueError: unknown dissimilarity, or "correlation" with fewer than two columns.
    """
    rep = Representation.of(x)
    out, scale = _rdm(rep, dissimilarity)
    return (out * scale).to(rep.x.dtype)


def _rdm(rep: Representation, dissimilarity: str) -> tuple[Tensor, float]:
    """`rdm` over a number, which keeps it inside the range of its dtype, and that number."""
    rows, form, scale = _rows_of(rep, dissimilarity)
    out = 1 - gram(rows) if form == "cosine" else square_distances(rows)
    out = out.sqrt() if form == "euclidean" else out
    return out.fill_diagonal_(0), scale


def _rows_of(rep: Representation, dissimilarity: str) -> tuple[Tensor, Form, float]:
    """Rows [n, d] that dissimilarities are made of, how, and the number that these are then over."""
    if dissimilarity not in _DISSIMILARITIES:
        raise ValueError(f"dissimilarity must be one of {', '.join(_DISSIMILARITIES)}, got {dissimilarity!r}")
    wide = accumulator(rep.x)  # the rounding of float32 would put equal dissimilarities in an order of its own
    if dissimilarity == "cosine":
        return unit_rows(rep.x.to(wide)), "cosine", 1.0
    if dissimilarity == "correlation":
        if rep.d < 2:
            raise ValueError(
                "x has 1 column, which correlates with nothing: give at least 2, or in Python dissimilarity='euclidean'"
            )
        rows = scaled_rows(rep.x.to(wide))
        # a row whose entries are equal up to rounding correlates with nothing, not with what rounding left of it
        centred = torch.where(varies(rep.x.mT)[:, None], rows - rows.mean(1, keepdim=True), 0)
        return unit_rows(centred), "cosine", 1.0
    x, scale = rep.moderate
    x = x.to(wide)  # before its mean is taken off, so that equal distances stay equal
    x = x - x.mean(0)
    return (x, "euclidean", scale) if dissimilarity == "euclidean" else (x, "sqeuclidean", scale**2)


def compare_rdms(a: Tensor, b: Tensor, method: str = "spearman") -> float:
    """RSA of two given [n, n] dissimilarity matrices; `method` as in `RSA`.

    Raises:
        ValueError: shapes differ, are not square, or entries are not finite.
    """
    a, b = as_floats(a, "a"), as_floats(b, "b")
    check_devices(a, b)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape != b.shape or a.shape[0] < 4:
        raise ValueError(f"a and b must be [n, n] with the same n >= 4, got {tuple(a.shape)} and {tuple(b.shape)}")
    metric = RSA(method=method)
    values = []
    for name, matrix in (("a", a), ("b", b)):
        off = ~torch.eye(matrix.shape[0], dtype=torch.bool, device=matrix.device)
        if not bool(torch.isfinite(matrix[off]).all()):
            raise ValueError(f"{name} has NaN or infinite dissimilarities: drop these samples on both sides")
        values.append(metric.prepare_rdm((matrix + matrix.T) / 2))
    return metric.compare(*values)


def _average_ranks(values: Tensor) -> Tensor:
    # NumPy sorts with vector instructions
    order = torch.from_numpy(values.numpy().argsort()) if values.device.type == "cpu" else values.argsort()
    ordered = values[order]
    first = torch.ones_like(ordered, dtype=torch.bool)  # of the values tied with it
    first[1:] = ordered[1:] != ordered[:-1]
    ends = torch.cat([first.nonzero()[1:, 0], order.new_tensor([len(order)])])
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    ranks = ends.to(values) - (counts.to(values) - 1) / 2
    return torch.empty_like(values).scatter_(0, order, ranks.repeat_interleave(counts))


def _whiten(hollow: Tensor) -> Tensor:
    """V^(-1/2) times a vector of dissimilarities with zero mean, as a symmetric matrix.

    With independent noise of equal variance, V has entries 4 for a pair with itself, 1 for pairs that share a sample
    and 0 otherwise. On u_i + u_j with sum(u) = 0 it acts as multiplication by n, on what has zero row sums by 2.
    """
    n = hollow.shape[0]
    u = hollow.sum(1) / (n - 2)
    rows = (u[:, None] + u[None, :]).fill_diagonal_(0)
    return (hollow - rows) / math.sqrt(2) + rows / math.sqrt(n)


def _tau_a(a: Tensor, b: Tensor) -> float:
    # SciPy counts concordant minus discordant pairs in O(m log m) but divides by the pairs untied on either side
    x, y = a.cpu().numpy(), b.cpu().numpy()
    tau_b = float(stats.kendalltau(x, y).statistic)
    pairs = len(x) * (len(x) - 1) / 2
    untied = [pairs - sum(c * (c - 1) / 2 for c in torch.unique(v, return_counts=True)[1].tolist()) for v in (a, b)]
    return tau_b * math.sqrt(untied[0] * untied[1]) / pairs
