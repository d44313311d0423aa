"""Gram matrices, their centrings, HSIC, and the one-pass moments of linear CKA.

Letters used throughout: `x` [n, d] features with samples in rows, `k` and `l` [n, n] symmetric kernels, `H` the
centring matrix I - 11'/n. `triangle` vectors list the entries above the diagonal row by row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gram(x: Tensor, *, block: int = 256) -> Tensor:
    """Inner products of all rows: [n, d] -> [n, n], exactly symmetric.

    Only blocks on and above the diagonal are multiplied, which saves up to half of the work.
    """
    n = x.shape[0]
    block = max(block, math.ceil(n / 8))
    if n <= block:
        k = x @ x.T
        return torch.triu(k) + torch.triu(k, 1).T
    k = x.new_empty(n, n)
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        product = x[rows] @ x[start:].T
        k[rows, start:] = product
        k[start:, rows] = product.T
        square = k[rows, rows]
        k[rows, rows] = torch.triu(square) + torch.triu(square, 1).T
    return k


def rbf_gram(x: Tensor, sigma: float) -> Tensor:
    """Gaussian kernel exp(-|x_i - x_j|^2 / (2 sigma^2)): [n, d] -> [n, n]."""
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    distances = square_distances((x - x.mean(0)).to(accumulator(x)))
    sigma = min(max(sigma, 1e-150), 1e150)  # its square must be a number; beyond, the kernel is 0 and 1, or all 1
    return torch.exp(distances.div_(-2 * sigma**2)).to(x.dtype)


def square_distances(x: Tensor) -> Tensor:
    """|x_i - x_j|^2 of all rows: [n, d] -> [n, n]. Rows equal but for the rounding of their products are 0 apart."""
    k = gram(x)
    both = k.diagonal()[:, None] + k.diagonal()
    distances = both - 2 * k
    return torch.where(distances > 16 * torch.finfo(x.dtype).eps * both, distances, 0).fill_diagonal_(0)


def center_gram(k: Tensor) -> Tensor:
    """HkH in O(n^2): the kernel of centred features."""
    rows = k.mean(1)
    return k - rows[:, None] - rows[None, :] + rows.mean()


def u_center(k: Tensor) -> Tensor:
    """Projection of `k` onto matrices with zero diagonal and zero row sums (Szekely and Rizzo 2014, U-centring).

    For unbiased HSIC, <u_center(k), l> = n (n - 3) HSIC(k, l). Needs n >= 4.
    """
    n = k.shape[0]
    if n < 4:
        raise ValueError(f"an unbiased estimate needs at least 4 samples, got {n}")
    hollow = k.clone().fill_diagonal_(0)
    rows = hollow.sum(1)
    shift = rows / (n - 2)
    hollow.sub_(shift[:, None]).sub_(shift - rows.sum() / ((n - 1) * (n - 2)))
    return hollow.fill_diagonal_(0)


def hsic(k: Tensor, l: Tensor, *, unbiased: bool = False) -> Tensor:
    """Hilbert-Schmidt independence criterion of two [n, n] kernels, in O(n^2).

    Biased: tr(kHlH) (Gretton et al. 2005, without the factor 1/(n-1)^2). Unbiased: Song et al. 2012, equation 5.
    """
    if not unbiased:
        return (center_gram(k) * l).sum()
    n = k.shape[0]
    return (u_center(k) * l).sum() / (n * (n - 3))


def linear_hsic(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    """`hsic(gram(x), gram(y))` from the features, in O(n d_x d_y) time and d_x d_y memory (n^2 if that is less).

    Args:
        x: [n, d_x]; y: [n, d_y]. Both must already be centred (zero column means).
        unbiased: as in `hsic`.

    Returns:
        0-d tensor in float64 (float32 where the device has no float64).
    """
    wide = accumulator(x)
    if x.shape[1] * y.shape[1] <= x.shape[0] ** 2:
        cross = (x.T @ y).to(wide).square().sum()
    else:
        cross = (gram(x).to(wide) * gram(y)).sum()
    if not unbiased:
        return cross
    n = x.shape[0]
    if n < 4:
        raise ValueError(f"an unbiased estimate needs at least 4 samples, got {n}")
    a, b = x.to(wide).square().sum(1), y.to(wide).square().sum(1)
    return _unbiased(cross, a @ b, a.sum() * b.sum(), n)


def relabelled_hsic(x: Tensor, y: Tensor, orders: Tensor, *, unbiased: bool = False) -> Tensor:
    """[m] values of `linear_hsic(x, y[order])` for m orders [m, n] at once; centred features, in their own dtype."""
    n, m = len(x), len(orders)
    cross = (x.T @ y[orders.T].flatten(1)).unflatten(1, (m, -1)).square().sum((0, 2))
    if not unbiased:
        return cross
    a, b = x.square().sum(1), y.square().sum(1)
    return _unbiased(cross, b[orders] @ a, a.sum() * b.sum(), n)


def _unbiased(cross: Tensor, ab: Tensor, total: Tensor, n: int) -> Tensor:
    """From the biased value, the sum of products of diagonals, and the product of their sums."""
    return (cross - ab + total / ((n - 1) * (n - 2)) - 2 * ab / (n - 2)) / (n * (n - 3))


def accumulator(x: Tensor) -> torch.dtype:
    """Dtype for sums: float64, or float32 on devices without it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def triangle(k: Tensor) -> Tensor:
    """Entries above the diagonal, row by row: [n, n] -> [n (n - 1) / 2]."""
    return torch.cat([row[i + 1 :] for i, row in enumerate(k.unbind())])


def from_triangle(values: Tensor, n: int) -> Tensor:
    """Symmetric matrix with zero diagonal whose `triangle` is `values`."""
    k, start = values.new_zeros(n, n), 0
    for i, row in enumerate(k.unbind()):
        row[i + 1 :] = values[start : start + n - 1 - i]
        start += n - 1 - i
    return k + k.T


def triangle_relabelling(order: Tensor) -> Tensor:
    """Index `r` such that `triangle(k[order][:, order]) == triangle(k)[r]`.

    Args:
        order: [n] a permutation of the samples.
    """
    n = order.shape[0]
    i, j = torch.triu_indices(n, n, 1, device=order.device)
    low, high = torch.minimum(order[i], order[j]), torch.maximum(order[i], order[j])
    return low * n - low * (low + 1) // 2 + high - low - 1


class LinearMoments:
    """Sums from which biased and unbiased linear HSIC follow exactly, collected in one pass over paired batches.

    With a = |x|^2 and b = |y|^2 per sample, the state is X'Y, X'X, Y'Y and the sums of x, y, a, b, ax, bx, ay, by, a^2,
    b^2, ab: O(d_x d_y + d_x^2 + d_y^2) float64 numbers whatever n is. States of disjoint data add, so partial states of
    several processes can be summed. A rough `center` (any constant vector near the mean) keeps the subtraction accurate
    when means are far larger than the spread; it must be the same in states that are merged.
    """

    def __init__(self, *, center_x: Tensor | None = None, center_y: Tensor | None = None):
        self.center = {"x": center_x, "y": center_y}
        self.n = 0
        self.sums: dict[str, Tensor] = {}

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add paired rows x [b, d_x] and y [b, d_y]."""
        if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
            raise ValueError(f"x and y must be [b, d] with the same b, got {tuple(x.shape)} and {tuple(y.shape)}")
        if self.sums and self.sums["xy"].shape != (x.shape[1], y.shape[1]):
            raise ValueError(f"widths changed from {tuple(self.sums['xy'].shape)} to {(x.shape[1], y.shape[1])}")
        x, y = self._centred(x, "x"), self._centred(y, "y")
        a, b = x.square().sum(1), y.square().sum(1)
        new = {
            "xy": x.T @ y, "xx": x.T @ x, "yy": y.T @ y,
            "x": x.sum(0), "y": y.sum(0), "a": a.sum(), "b": b.sum(),
            "ax": a @ x, "bx": b @ x, "ay": a @ y, "by": b @ y,
            "aa": a @ a, "bb": b @ b, "ab": a @ b,
        }  # fmt: skip
        self.n += x.shape[0]
        self.sums = {key: self.sums[key] + value for key, value in new.items()} if self.sums else new

    def merge(self, other: LinearMoments) -> None:
        """Add the state of disjoint data collected elsewhere with the same centres."""
        for side, mine in self.center.items():
            theirs = other.center[side]
            if (mine is None) != (theirs is None) or (mine is not None and not torch.equal(mine, theirs)):  # type: ignore[arg-type]
                raise ValueError(f"cannot merge states collected with different center_{side}")
        if not other.sums:
            return
        self.n += other.n
        self.sums = {k: self.sums[k] + v for k, v in other.sums.items()} if self.sums else dict(other.sums)

    def hsic(self, *, unbiased: bool = False) -> tuple[float, float, float]:
        """HSIC of (x, y), (x, x) and (y, y), equal to `hsic(gram(x), gram(y))` and so on."""
        if self.n < (4 if unbiased else 2):
            raise ValueError(f"need at least {4 if unbiased else 2} samples, got {self.n}")
        pairs = (("xy", "x", "y", "a", "b"), ("xx", "x", "x", "a", "a"), ("yy", "y", "y", "b", "b"))
        return tuple(self._hsic(*pair, unbiased=unbiased) for pair in pairs)  # type: ignore[return-value]

    def _hsic(self, cross: str, u: str, v: str, a: str, b: str, *, unbiased: bool) -> float:
        s, n = self.sums, self.n
        if not unbiased:
            return float((s[cross] - torch.outer(s[u], s[v]) / n).square().sum())
        ab = s[a + b]
        trace = s[cross].square().sum() - ab
        total_k, total_l = s[u] @ s[u] - s[a], s[v] @ s[v] - s[b]
        # the sum of b_i x_i is stored under "bx", of a_i y_i under "ay", and so on
        path = s[u] @ s[cross] @ s[v] - s[u] @ s[b + u] - s[v] @ s[a + v] + ab
        value = trace + total_k * total_l / ((n - 1) * (n - 2)) - 2 * path / (n - 2)
        return float(value / (n * (n - 3)))

    def _centred(self, x: Tensor, side: str) -> Tensor:
        x, center = x.detach().to(accumulator(x)), self.center[side]
        return x if center is None else x - center.to(x)
