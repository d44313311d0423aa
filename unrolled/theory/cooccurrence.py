r"""Pointwise mutual information of co-occurring events, and the kernel that contrastive learning ends at.

With P(a, b) the probability that events a and b are seen together and P(a), P(b) its marginals,

    K_PMI(a, b) = log P(a, b) / (P(a) P(b)).

Two contrastive losses on a score s(a, b) have K_PMI + c as their optimum (arXiv 2405.07987, section 4): binary noise
contrastive estimation with c = log(p / (1 - p)), p the share of true pairs, and InfoNCE, whose loss ignores a constant.
A score f(a)^T f(b) is a positive semi-definite matrix: it can reach the optimum only if K_PMI + c is one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Exactness(NamedTuple):
    """Whether a joint distribution meets the paper's sufficient condition for f(a)^T f(b) = K_PMI(a, b) - log rho.

    Attributes:
        holds: all of it is met.
        delta: off-diagonal K_PMI spans [log rho, log rho + delta].
        floor: log rho, the smallest off-diagonal K_PMI.
        slack: smallest diagonal K_PMI less (n delta + log rho), >= 0 where the diagonal is large enough.
    """

    holds: bool
    delta: float
    floor: float
    slack: float


def pointwise_mutual_information(joint: Tensor) -> Tensor:
    """K_PMI [n, m] in nats, float64, of a joint distribution [n, m]; -inf where a pair never occurs.

    Args:
        joint: probabilities or counts, non-negative; divided by their sum.

    Raises:
        ValueError: not a matrix, negative or not finite entries, or an event that never occurs.
    """
    joint = normalized_joint(joint)
    rows, columns = joint.sum(1), joint.sum(0)
    if not bool((rows > 0).all()) or not bool((columns > 0).all()):
        never = int((rows <= 0).sum() + (columns <= 0).sum())
        raise ValueError(f"joint: {never} rows or columns are all zero; leave out events that never occur")
    return joint.log() - rows.log()[:, None] - columns.log()[None, :]


def normalized_joint(joint: Tensor) -> Tensor:
    """`joint` [n, m] as float64 probabilities that add to one.

    Raises:
        ValueError: not a matrix, negative or not finite entries, or all zero.
    """
    if joint.ndim != 2 or not joint.numel():
        raise ValueError(f"joint must be a matrix [n, m] of probabilities or counts, got shape {tuple(joint.shape)}")
    joint = joint.double()
    if not bool(torch.isfinite(joint).all()) or bool((joint < 0).any()):
        raise ValueError("joint must hold finite numbers >= 0: counts or probabilities")
    total = joint.sum()
    if not float(total) > 0:
        raise ValueError("joint is all zero: count at least one pair")
    out: Tensor = joint / total
    return out


def nce_offset(share_of_true_pairs: float) -> float:
    """c = log(p / (1 - p)) of binary noise contrastive estimation.

    Raises:
        ValueError: p outside (0, 1).
    """
    if not 0 < share_of_true_pairs < 1:
        raise ValueError(f"share_of_true_pairs must be in (0, 1), got {share_of_true_pairs}")
    return math.log(share_of_true_pairs / (1 - share_of_true_pairs))


def binary_nce_loss(scores: Tensor, joint: Tensor, share_of_true_pairs: float = 0.5) -> Tensor:
    """Expected cross-entropy of telling true pairs from pairs drawn independently, in nats, a scalar.

    Args:
        scores: s(a, b) [n, m].
        joint: P(a, b) [n, m].
        share_of_true_pairs: p, the prior of a true pair.
    """
    joint = normalized_joint(joint)
    independent = joint.sum(1)[:, None] * joint.sum(0)[None, :]
    share = share_of_true_pairs
    true = (joint * torch.nn.functional.softplus(-scores)).sum()
    false = (independent * torch.nn.functional.softplus(scores)).sum()
    return share * true + (1 - share) * false


def infonce_loss(scores: Tensor, joint: Tensor) -> Tensor:
    """Expected InfoNCE with unlimited negatives, E[-s(a, b) + log E_b' exp s(a, b')], in nats, a scalar.

    Its minimum is minus the mutual information of a and b.

    Args:
        scores: s(a, b) [n, m].
        joint: P(a, b) [n, m].
    """
    joint = normalized_joint(joint)
    rows, columns = joint.sum(1), joint.sum(0)
    partition = (scores + columns.log()[None, :]).logsumexp(1)
    return (rows * partition).sum() - (joint * scores).sum()


def mutual_information(joint: Tensor) -> float:
    """I(A; B) in nats of a joint distribution [n, m]."""
    joint = normalized_joint(joint)
    occurs = joint > 0
    independent = joint.sum(1)[:, None] * joint.sum(0)[None, :]
    value = float((joint[occurs] * (joint[occurs] / independent[occurs]).log()).sum())
    return max(0.0, value)  # rounding can leave independence just below zero


def offset_and_error(kernel: Tensor, target: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """The constant between two matrices and what it leaves over.

    Args:
        kernel: [n, m].
        target: [n, m].
        weights: [n, m] non-negative, equal ones if None.

    Returns:
        Mean of kernel - target, and the root mean square of what remains after it, as a share of the standard deviation
        of `target`: 0 is equal up to a constant, 1 is no better than a constant kernel.

    Raises:
        ValueError: shapes differ, or `target` is constant or not finite.
    """
    if kernel.shape != target.shape or (weights is not None and weights.shape != target.shape):
        raise ValueError(f"kernel {tuple(kernel.shape)} and target {tuple(target.shape)} must have one shape")
    kernel, target = kernel.double(), target.double()
    if not bool(torch.isfinite(target).all()):
        raise ValueError("target is not finite: pairs that never occur have PMI -inf; leave such events out")
    share = (
        torch.full_like(target, 1 / target.numel()) if weights is None else weights.double() / weights.double().sum()
    )
    spread = (share * (target - (share * target).sum()).square()).sum()
    if not float(spread) > 0:
        raise ValueError("target is constant, so that a relative error is undefined")
    gap = kernel - target
    offset = (share * gap).sum()
    return float(offset), float(((share * (gap - offset).square()).sum() / spread).sqrt())


def smallest_eigenvalue(kernel: Tensor, *, offset: float | None = None) -> float:
    """Smallest eigenvalue of kernel + offset [n, n] (symmetric), or, without an offset, of the best offset's limit.

    With None it is that of the kernel on vectors that add to zero, which no offset changes: if negative, kernel + c is
    not positive semi-definite for any c.
    """
    kernel = (kernel.double() + kernel.double().mT) / 2
    n = kernel.shape[0]
    if offset is not None:
        return float(torch.linalg.eigvalsh(kernel + offset)[0])
    ones = torch.ones(n, 1, dtype=kernel.dtype, device=kernel.device)
    basis = torch.linalg.qr(torch.cat([ones, torch.eye(n, n - 1).to(kernel)], dim=1)).Q[:, 1:]
    return float(torch.linalg.eigvalsh(basis.mT @ kernel @ basis)[0])


def smallest_offset(kernel: Tensor) -> float:
    """Smallest c >= 0 with kernel + c positive semi-definite (to 1e-9 of its norm); infinity if there is none.

    Args:
        kernel: [n, n], symmetric, finite.
    """
    slack = -1e-9 * float(kernel.double().abs().max()) * kernel.shape[0]
    if smallest_eigenvalue(kernel, offset=0.0) >= slack:
        return 0.0
    if smallest_eigenvalue(kernel) < slack:
        return math.inf
    high = 1.0
    while smallest_eigenvalue(kernel, offset=high) < slack:
        high *= 2
        if high > 1e9:
            return math.inf
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if smallest_eigenvalue(kernel, offset=middle) >= slack else (middle, high)
    return high


def exactness(joint: Tensor) -> Exactness:
    """The paper's sufficient condition on a symmetric joint [n, n] for a learnt kernel to be K_PMI exactly.

    Off-diagonal K_PMI lies in [log rho, log rho + delta] below zero, and P(z | z) / P(z) >= exp(n delta) rho.
    """
    kernel = pointwise_mutual_information(joint)
    n = kernel.shape[0]
    off = kernel[~torch.eye(n, dtype=torch.bool, device=kernel.device)]
    floor, top = float(off.min()), float(off.max())
    slack = float(kernel.diagonal().min()) - (n * (top - floor) + floor)
    return Exactness(top <= 0 and slack >= 0, top - floor, floor, slack)
