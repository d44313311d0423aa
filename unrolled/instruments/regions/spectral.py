"""Normalised cuts of a grid of tokens: MaskCut, and clustering of tokens.

The graph of a cut joins tokens whose cosine similarity exceeds tau with weight 1 and all other pairs with weight eps.
Its cut is the second generalised eigenvector of (D - W) x = lambda D x, D the diagonal of row sums (Shi and Malik,
2000). W = eps 1 1^T + (1 - eps) B with B zero or one, so Lanczos steps cost one product with B each.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from unrolled.ops.rows import power_of_two, unit_rows

Solver = Literal["auto", "dense", "lanczos"]

DENSE_BELOW = 128  # tokens; LAPACK on the whole matrix is then as fast
HELD_BELOW = 5000  # tokens; larger graphs stay boolean and are converted block by block
BLOCK = 512
TOLERANCE = 1e-10  # of the residual of an eigenvector; the eigenvalues lie in 0..2
STEPS = 400
TIE = 1e-8  # entries of a unit eigenvector closer than this are equal, and the first is taken: twins differ by rounding


def maskcut(
    features: Tensor,
    grid: tuple[int, int],
    tau: float = 0.2,
    masks: int = 3,
    eps: float = 1e-5,
    *,
    solver: Solver = "auto",
) -> Tensor:
    """Find objects one after another by normalised cuts (MaskCut, arXiv 2301.11320; TokenCut's object in each cut).

    A stage splits the tokens at the mean of the cut's eigenvector and takes the side of the entry of largest magnitude,
    or the other side where that one holds three or more corners of the grid; the object is the 4-connected component at
    that side's extreme entry. Its tokens are then disconnected and the next stage begins. A later object that overlaps
    the object of the stage before it with a Jaccard index above 0.5, or covers at most 1 % of the grid, is blanked.

    Two departures from the published code, which leaves both cases to rounding errors: the eigenvector's sign is fixed
    (its largest entry is positive), and a stage whose remaining tokens are all joined, or not joined at all, finds
    nothing, so that constant features give no object. No CRF is applied; see `refine_mask`.

    Args:
        features: `[n, d]`, one row for each patch in row-major order, e.g. keys; l2-normalised here. Any device and
            floating type; computed in at least float32, the eigenvectors in float64.
        grid: (H, W) with H W = n.
        tau: cosine similarity above which two tokens are joined; the CRATE papers use 0.15, or 0.3 for CRATE-alpha.
        masks: number of stages.
        eps: weight of all other edges, > 0.
        solver: `"dense"` LAPACK, `"lanczos"`, or by size. Both give the same masks.

    Returns:
        Boolean `[masks, H, W]` in the order found, on the device of `features`. Each is without the tokens of earlier
        ones; a stage that found nothing is all False.

    Raises:
        ValueError: shapes that do not fit, non-finite features, or an option out of range.
    """
    features = check_features(features, grid)
    if masks < 1:
        raise ValueError(f"masks={masks}: must be at least 1")
    _check_graph(tau, eps, solver)
    joined = _joined(features, tau)
    n, (height, width) = len(features), grid
    previous, covered = np.zeros(grid, bool), np.zeros(grid, bool)
    out = np.zeros((masks, height, width), bool)
    component: np.ndarray | None = None
    fresh = True
    for stage in range(masks):
        if fresh:  # a blanked stage leaves the graph, and so the cut, as it was
            component = _cut(joined, ~covered, tau, eps, solver)
        if component is None:
            break
        fresh = False
        keep = component
        if stage:
            overlap = (component & previous).sum() / (component | previous).sum()
            if overlap > 0.5 or component.sum() <= 0.01 * n:
                keep = np.zeros(grid, bool)
        out[stage] = keep & ~covered
        fresh = bool(keep.any())
        covered |= keep
        previous = keep
    return torch.from_numpy(out).to(features.device)


def normalized_cut(
    features: Tensor, tau: float = 0.2, eps: float = 1e-5, *, count: int = 1, solver: Solver = "auto"
) -> tuple[Tensor, Tensor]:
    """The generalised eigenvectors that follow the constant one, as `maskcut` sees them in its first stage.

    Args:
        features: `[n, d]`, n at least `count` + 1.
        tau: see `maskcut`.
        eps: see `maskcut`.
        count: how many, from the smallest eigenvalue up.
        solver: see `maskcut`. Of an eigenvalue that occurs more than once, Lanczos finds one vector.

    Returns:
        Eigenvalues `[count]` in 0..2 and unit eigenvectors `[n, count]`, float64, the largest entry of each positive.

    Raises:
        ValueError: as `maskcut`, or `count` out of range.
    """
    features = check_features(features, (1, len(features)))
    _check_graph(tau, eps, solver)
    if not 1 <= count < len(features):
        raise ValueError(f"count={count}: {len(features)} tokens have 1 to {len(features) - 1} cuts")
    return _eigenvectors(_joined(features, tau), eps, count, solver)


def cluster_tokens(
    features: Tensor,
    clusters: int,
    *,
    method: Literal["kmeans", "kmeans-euclidean", "spectral"] = "kmeans",
    tau: float = 0.2,
    eps: float = 1e-5,
    seed: int = 0,
) -> Tensor:
    """Group tokens by cosine similarity, or by distance.

    Args:
        features: `[n, d]`; tokens of several images may be stacked to be clustered together.
        clusters: how many, 1 to n. Fewer come back where fewer tokens differ.
        method: `"kmeans"` on l2-normalised tokens (scikit-learn, 10 starts), `"kmeans-euclidean"` on tokens as they
            are (colours), or `"spectral"`: k-means on the rows of the `clusters` - 1 first eigenvectors of the
            normalised cut (Shi and Malik, 2000).
        tau: for `"spectral"`, see `maskcut`.
        eps: for `"spectral"`, see `maskcut`.
        seed: of k-means' starts.

    Returns:
        Labels int64 `[n]` on the device of `features`, numbered in order of first appearance.

    Raises:
        ValueError: shapes that do not fit, non-finite features, or an option out of range.
    """
    from sklearn.cluster import KMeans

    features = check_features(features, (1, len(features)))
    n = len(features)
    if not 1 <= clusters <= n:
        raise ValueError(f"clusters={clusters}: {n} tokens make 1 to {n} clusters")
    if method in ("kmeans", "kmeans-euclidean"):
        same_scale = unit_rows(features) if method == "kmeans" else features / power_of_two(features.abs().max())
        rows = same_scale.cpu().double().numpy()
    elif method == "spectral":
        _check_graph(tau, eps, "auto")
        joined = _joined(features, tau)
        if clusters == 1 or bool(joined.all()):
            return torch.zeros(n, dtype=torch.int64, device=features.device)
        rows = _eigenvectors(joined, eps, clusters - 1, "auto")[1].cpu().double().numpy()
    else:
        raise ValueError(f"method={method!r}: choose 'kmeans', 'kmeans-euclidean' or 'spectral'")
    rows = rows.round(9)  # equal tokens differ by rounding alone
    distinct = len(np.unique(rows, axis=0))
    labels = KMeans(min(clusters, distinct), n_init=10, random_state=seed).fit_predict(rows)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return torch.from_numpy(order[inverse].astype(np.int64)).to(features.device)


def check_features(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """`features` `[n, d]` in at least float32, detached, or a ValueError that says what does not fit."""
    if not features.is_floating_point() or features.dim() != 2 or 0 in features.shape:
        raise ValueError(
            f"features: needs a floating tensor [n, d] of one image, got {features.dtype} {tuple(features.shape)}"
        )
    if len(grid) != 2 or grid[0] * grid[1] != len(features):
        raise ValueError(
            f"grid={tuple(grid)}: must be (H, W) with H * W = {len(features)}, the number of rows of features; "
            "leave out class and register tokens"
        )
    features = features.detach()
    features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    if not bool(features.isfinite().all()):
        raise ValueError("features: hold NaN or infinite values")
    return features


def _check_graph(tau: float, eps: float, solver: str) -> None:
    if not -1 <= tau < 1:
        raise ValueError(f"tau={tau}: a cosine similarity, at least -1 and below 1")
    if not 0 < eps < 1:
        raise ValueError(f"eps={eps}: must lie between 0 and 1")
    if solver not in ("auto", "dense", "lanczos"):
        raise ValueError(f"solver={solver!r}: choose 'auto', 'dense' or 'lanczos'")


def _joined(features: Tensor, tau: float) -> Tensor:
    unit = unit_rows(features)
    return unit @ unit.mT > tau


def _cut(joined: Tensor, free: np.ndarray, tau: float, eps: float, solver: Solver) -> np.ndarray | None:
    """The object of one stage, bool [H, W], given which tokens earlier stages left free; None without structure."""
    if not free.all():
        # the published code zeroes the features of the others: their similarities are 0
        alive = torch.from_numpy(free.ravel()).to(joined.device)
        both = alive[:, None] & alive
        joined = (joined & both) | (~both if tau < 0 else torch.zeros_like(both))
        inner = joined[alive][:, alive]
    else:
        inner = joined
    size = len(inner)
    edges = int(inner.sum()) - int(inner.diagonal().sum())
    if edges in (0, size * (size - 1)):
        return None
    vector = _eigenvectors(joined, eps, 1, solver)[1][:, 0].cpu().numpy()
    side = (vector > vector.mean() + TIE).reshape(free.shape)  # an entry at the mean is on no side by its rounding
    if side[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3:
        vector, side = -vector, ~side
    seed = np.unravel_index((vector > vector.max() - TIE).argmax(), free.shape)
    components, _ = ndimage.label(side)
    component: np.ndarray = components == components[seed]
    return component


def _eigenvectors(joined: Tensor, eps: float, count: int, solver: Solver) -> tuple[Tensor, Tensor]:
    """Smallest generalised eigenvalues after the first and their unit vectors, by the symmetric problem.

    With S = D^-1/2 it is that of S W S, whose largest eigenvector, D^1/2 1, is known and is projected out.
    """
    n = len(joined)
    if joined.device.type == "mps":  # has no float64
        values, vectors = _eigenvectors(joined.cpu(), eps, count, solver)
        return values.to(joined.device, torch.float32), vectors.to(joined.device, torch.float32)
    degree = eps * n + (1 - eps) * joined.sum(1, dtype=torch.float64)
    scale = degree.rsqrt()
    first = degree.sqrt() / degree.sum().sqrt()
    start = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(joined.device)
    start -= first * (first @ start)
    pairs = None
    if solver == "lanczos" or (solver == "auto" and n > DENSE_BELOW):
        pairs = _lanczos(_Graph(joined, scale, eps), first, start / start.norm(), count)
    if pairs is None:
        pairs = _dense(joined, scale, eps, first, start, count)
    vectors = scale[:, None] * pairs[1]
    vectors = vectors / vectors.norm(dim=0)
    size = vectors.abs()
    peak = vectors.gather(0, (size > size.amax(0) - TIE).int().argmax(0, keepdim=True))
    return 1 - pairs[0], vectors * peak.sign()


class _Graph:
    """S W S as an operator."""

    def __init__(self, joined: Tensor, scale: Tensor, eps: float) -> None:
        self._scale, self._eps = scale, eps
        held = len(joined) <= HELD_BELOW
        self._blocks = [joined.double()] if held else list(joined.split(BLOCK))

    def __call__(self, x: Tensor) -> Tensor:
        x = self._scale * x
        product = torch.cat([block.double() @ x for block in self._blocks])
        return self._scale * (self._eps * x.sum() + (1 - self._eps) * product)


def _lanczos(graph: _Graph, first: Tensor, start: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """Largest eigenpairs orthogonal to `first`, by Lanczos, fully reorthogonalised; None if it does not settle."""
    n = len(first)
    basis = torch.zeros(min(STEPS, n - 1) + 2, n, dtype=torch.float64, device=first.device)
    basis[0], basis[1] = first, start
    diagonal: list[float] = []
    off: list[float] = []
    for step in range(1, len(basis) - 1):
        z = graph(basis[step])
        diagonal.append(float(basis[step] @ z))
        for _ in range(2):  # once loses orthogonality to rounding, twice does not
            z -= (basis[: step + 1] @ z) @ basis[: step + 1]
        length = float(z.norm())
        ended = length < 1e-13 or step == n - 1
        if step >= count and (ended or step % 3 == 0):
            tri = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
            if off:
                side = torch.tensor(off, dtype=torch.float64)
                tri += side.diag(1) + side.diag(-1)
            values, ritz = torch.linalg.eigh(tri)
            residual = length * ritz[-1, -count:].abs()
            if ended or bool((residual < TOLERANCE).all()):
                vectors = basis[1 : step + 1].mT @ ritz[:, -count:].flip(1).to(first.device)
                return values[-count:].flip(0).to(first.device), vectors
        if ended:
            return None
        off.append(length)
        basis[step + 1] = z / length
    return None


def _dense(
    joined: Tensor, scale: Tensor, eps: float, first: Tensor, start: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    matrix = scale[:, None] * (eps + (1 - eps) * joined.double()) * scale
    values, vectors = torch.linalg.eigh(matrix - 3 * torch.outer(first, first))
    values, vectors = values.flip(0), vectors.flip(1)
    if count == 1:
        # the vector that Lanczos would find, should the eigenvalue occur more than once
        equal = vectors[:, (values - values[0]).abs() < TOLERANCE]
        chosen = equal @ (equal.mT @ start)
        return values[:1], (chosen / chosen.norm())[:, None]
    return values[:count], vectors[:, :count]
