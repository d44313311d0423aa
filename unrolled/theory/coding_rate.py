r"""Coding rates and the sparse rate reduction objective.

Source: White-Box Transformers via Sparse Rate Reduction, arXiv 2306.01129, sections 2.1 to 2.4. The paper writes tokens
as columns, `Z` in R^{d x N}; here they are rows, so `z = Z^T` with shape `[..., n, d]`.

| symbol    | argument     | shape / unit                                                    |
|-----------|--------------|-----------------------------------------------------------------|
| Z^T       | `z`          | `[..., n, d]`, n tokens of d features, any leading batch        |
| U_[K]     | `subspaces`  | `[h, d, p]`, one basis of p directions in R^d per head          |
| epsilon   | `eps`        | distortion: rates count nats needed to code tokens to within it |
| D         | `dictionary` | `[d, m]`, columns are atoms                                     |
| lambda    | `sparsity`   | weight of the l1 (or l0) term                                   |
| eta       | `step_size`  | step of the proximal gradient                                   |

Half precision is computed in float32; float32 and float64 stay what they are. Rates are in nats.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from unrolled.ops.rows import unit_rows


def coding_rate(z: Tensor, eps: float) -> Tensor:
    r"""R(Z) = 1/2 logdet(I + d / (N eps^2) Z^T Z): nats needed to code all tokens to precision `eps`.

        >>> import torch
        >>> round(float(coding_rate(torch.eye(4), eps=0.5)), 3)  # four directions: 4 / 2 log(1 + 1 / 0.25)
        3.219

    Args:
        z: tokens `[..., n, d]`.
        eps: distortion, > 0. There is no default: published code differs in whether its constant is eps or eps^2.

    Returns:
        `[...]`, one rate for each set of tokens, float32 at least.

    Raises:
        ValueError: `z` is no floating tensor with tokens, or `eps` is not positive.
    """
    z = check_tokens(z, eps)
    n, d = z.shape[-2:]
    with full_precision(z):
        return half_logdet(z, d / (n * eps**2))


def subspace_coding_rate(z: Tensor, subspaces: Tensor, eps: float) -> Tensor:
    r"""R^c(Z | U) = sum_k 1/2 logdet(I + p / (N eps^2) (U_k^T Z)^T (U_k^T Z)): the rate after projecting on each head.

    Args:
        z: tokens `[..., n, d]`.
        subspaces: bases `[h, d, p]`; they need not be orthonormal.
        eps: distortion, > 0.

    Returns:
        `[...]`, heads summed.

    Raises:
        ValueError: shapes do not fit, or `eps` is not positive.
    """
    z = check_tokens(z, eps)
    subspaces = check_subspaces(z, subspaces)
    n, p = z.shape[-2], subspaces.shape[-1]
    with full_precision(z):
        projected = torch.einsum("...nd,hdp->...hnp", z, subspaces)
        return half_logdet(projected, p / (n * eps**2)).sum(-1)


def subspace_coding_rate_gradient(z: Tensor, subspaces: Tensor, eps: float) -> Tensor:
    r"""The gradient of R^c with respect to `z`, in closed form (arXiv 2306.01129, eq. 10).

    With alpha = p / (N eps^2) and W_k = U_k^T Z it is alpha sum_k U_k (I + alpha W_k W_k^T)^{-1} W_k.

    Returns:
        `[..., n, d]`; `z - kappa * gradient` is the exact compression step that MSSA approximates.

    Raises:
        ValueError: as `subspace_coding_rate`.
    """
    z = check_tokens(z, eps)
    subspaces = check_subspaces(z, subspaces)
    n, p = z.shape[-2], subspaces.shape[-1]
    alpha = p / (n * eps**2)
    with full_precision(z):
        projected = torch.einsum("...nd,hdp->...hnp", z, subspaces)
        return alpha * torch.einsum("...hnp,hdp->...nd", shrunk(projected, alpha), subspaces)


def shrunk(w: Tensor, alpha: float) -> Tensor:
    """(I + alpha W W^T)^-1 W for rows `w` [..., n, p]: what R^c's gradient makes of one head's tokens, over alpha.

    Solved in float64: beside large tokens the identity drowns in a float32 Gram matrix, which may then have no Cholesky
    factor at all. Where even float64 has no digits for it, the identity counts as that rounding.
    """
    wide = w.double() if w.device.type != "mps" else w
    gram = alpha * (wide.mT @ wide)
    p = gram.shape[-1]
    floor = p * torch.finfo(wide.dtype).eps * gram.detach().diagonal(dim1=-2, dim2=-1).sum(-1)
    identity = torch.eye(p, dtype=wide.dtype, device=wide.device)
    factor = torch.linalg.cholesky(gram + (1 + floor)[..., None, None] * identity)
    return torch.cholesky_solve(wide.mT, factor).mT.to(w.dtype)


def orthogonality_penalty(subspaces: Tensor) -> Tensor:
    r"""How far the bases are from orthonormal and from each other: sum over h, k of ||U_h^T U_k - delta_hk I||_F^2.

    It is 0 where the theory's assumption holds: then R^c falls head by head, a step on one leaving the others' tokens
    as they are; and where the subspaces together span R^d, R^c at p / d times eps^2 is at least R (Fischer's
    inequality), with equality for heads that are uncorrelated.

    Args:
        subspaces: bases `[h, d, p]`.

    Returns:
        A number, to be weighted and added to a loss. At least h p - d where the bases have no room.

    Raises:
        ValueError: not three dimensions.
    """
    if subspaces.dim() != 3:
        raise ValueError(f"subspaces: needs [h, d, p], got {tuple(subspaces.shape)}")
    frame = subspaces.movedim(0, -2).flatten(-2)  # [d, h p]
    overlap = frame.mT @ frame
    return (overlap - torch.eye(len(overlap), dtype=overlap.dtype, device=overlap.device)).square().sum()


def rate_reduction(z: Tensor, subspaces: Tensor, eps: float) -> Tensor:
    """R(Z) - R^c(Z | U): how much cheaper the tokens are to code head by head.

    Shapes and errors as in `subspace_coding_rate`.
    """
    return coding_rate(z, eps) - subspace_coding_rate(z, subspaces, eps)


def sparse_rate_reduction(
    z: Tensor, subspaces: Tensor, eps: float, sparsity: float, norm: Literal["l0", "l1"] = "l0"
) -> Tensor:
    """R(Z) - R^c(Z | U) - sparsity * ||Z||: what a white-box layer ascends (arXiv 2306.01129, eq. 1).

    Args:
        z: tokens `[..., n, d]`.
        subspaces: `[h, d, p]`.
        eps: distortion, > 0.
        sparsity: lambda, >= 0.
        norm: `"l0"` counts non-zero entries, `"l1"` is its relaxation.

    Returns:
        `[...]`, one value for each set of tokens.

    Raises:
        ValueError: an unknown norm, a negative sparsity, or as `subspace_coding_rate`.
    """
    if norm not in ("l0", "l1"):
        raise ValueError(f"norm={norm!r}: choose 'l0' or 'l1'")
    if sparsity < 0:
        raise ValueError(f"sparsity={sparsity}: must be >= 0")
    penalty = (z != 0).sum((-2, -1)) if norm == "l0" else z.abs().sum((-2, -1))
    return rate_reduction(z, subspaces, eps) - sparsity * penalty


def lasso(z: Tensor, target: Tensor, dictionary: Tensor, sparsity: float) -> Tensor:
    """1/2 ||target - D z||^2 + sparsity ||z||_1, summed over tokens: the objective of the sparsification step.

    Args:
        z: codes `[..., n, m]`, the non-negative variable.
        target: tokens `[..., n, d]` to be coded.
        dictionary: `[d, m]`.
        sparsity: lambda.

    Returns:
        `[...]`.
    """
    residual = target - z @ dictionary.mT
    return 0.5 * residual.square().sum((-2, -1)) + sparsity * z.abs().sum((-2, -1))


def proximal_step(z: Tensor, target: Tensor, dictionary: Tensor, step_size: float, sparsity: float) -> Tensor:
    """One proximal gradient step on `lasso` over z >= 0: ReLU(z + eta D^T (target - D z) - eta lambda).

    Started at `z = target` (a square dictionary), it is the ISTA block (arXiv 2306.01129, eq. 17).

    Returns:
        `[..., n, m]`, the next codes.
    """
    residual = target - z @ dictionary.mT
    return torch.relu(z + step_size * (residual @ dictionary) - step_size * sparsity)


def normalize_tokens(z: Tensor) -> Tensor:
    """Every token `[..., d]` divided by its l2 norm; zero tokens stay zero instead of becoming NaN."""
    full = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z  # the squares of small halves underflow
    return unit_rows(full).to(z.dtype)


def half_logdet(w: Tensor, alpha: float) -> Tensor:
    """1/2 logdet(I + alpha W W^T) for rows `w` [..., n, p], through the smaller of the two equal determinants.

    Rounding perturbs the eigenvalues of the Gram matrix by about machine epsilon times its trace. While that is small
    against the identity, a Cholesky factor is accurate and fast. Where it is not (large tokens, tiny eps), a
    rank-deficient matrix would be credited with noise; singular values, in float64, do not square the error.
    """
    trace = alpha * w.detach().square().sum((-2, -1))
    if not bool(trace.isfinite().all()) and not bool(w.isfinite().all()):  # squares alone may overflow
        raise ValueError("z: holds NaN or infinite values; find and remove those tokens first")
    if bool((trace * torch.finfo(w.dtype).eps > 1e-2).any()):
        wide = w.double() if w.device.type != "mps" else w.cpu().double()
        return 0.5 * (alpha * torch.linalg.svdvals(wide).square()).log1p().sum(-1).to(w)
    n, p = w.shape[-2:]
    gram = alpha * (w @ w.mT if n <= p else w.mT @ w)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.cholesky(gram + identity).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def check_tokens(z: Tensor, eps: float) -> Tensor:
    """Tokens [..., n, d], checked with the distortion."""
    if not z.is_floating_point() or z.dim() < 2 or 0 in z.shape[-2:]:
        raise ValueError(f"z: needs a floating tensor [..., n, d] with n, d >= 1, got {z.dtype} {tuple(z.shape)}")
    if not eps > 0:
        raise ValueError(f"eps={eps}: must be positive")
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def check_subspaces(z: Tensor, subspaces: Tensor) -> Tensor:
    """Subspaces [h, d, p] that fit the tokens."""
    if subspaces.dim() != 3 or subspaces.shape[1] != z.shape[-1]:
        raise ValueError(f"subspaces: needs [h, {z.shape[-1]}, p] to fit z, got {tuple(subspaces.shape)}")
    return subspaces.to(z.dtype)


def full_precision(z: Tensor) -> torch.autocast:
    """Within it nothing is computed in 16 bits under autocast."""
    return torch.autocast(device_type=z.device.type, enabled=False)
