r"""What linear-time attention descends: the variational rate of ToST, and the rate of a few representatives of CBSA.

Sources: Token Statistics Transformer, arXiv 2412.17810, sections 3.1 and 3.2; Contract-and-Broadcast Self-Attention,
arXiv 2509.16875, section 3. Tokens are rows, `z = Z^T`.

| symbol | argument     | shape / unit                                                                     |
|--------|--------------|----------------------------------------------------------------------------------|
| Z^T    | `z`          | `[..., n, d]`                                                                    |
| U_[K]  | `subspaces`  | `[h, d, p]`                                                                      |
| pi_k   | `membership` | `[..., h, n]`, >= 0: how much of each token belongs to group k; heads sum to 1   |
| N_k    |              | sum of pi_k over tokens, the size of group k                                     |
| A_k    | `weights`    | `[..., h, m, n]`, rows sum to 1: each of m representatives as a mean of tokens   |
| eps    | `eps`        | distortion; f(x) = log(1 + d / eps^2 x)                                          |

Half precision is computed in float32. Rates are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unrolled.theory.coding_rate import check_subspaces, check_tokens, full_precision, half_logdet


def membership_coding_rate(z: Tensor, subspaces: Tensor, membership: Tensor, eps: float) -> Tensor:
    r"""sum_k N_k / (2 N) logdet(I + d / (N_k eps^2) W_k diag(pi_k) W_k^T) with W_k = U_k^T Z: every group coded alone.

    Args:
        z: tokens `[..., n, d]`.
        subspaces: `[h, d, p]`.
        membership: pi `[..., h, n]`.
        eps: distortion, > 0.

    Returns:
        `[...]`, heads summed.

    Raises:
        ValueError: shapes do not fit, or `eps` is not positive.
    """
    z, w, pi = _groups(z, subspaces, membership, eps)
    n, d = z.shape[-2:]
    size = pi.sum(-1)
    with full_precision(z):
        scaled = w * (pi / size.unsqueeze(-1)).sqrt().unsqueeze(-1)
        return (size / n * half_logdet(scaled, d / eps**2)).sum(-1)


def variational_coding_rate(z: Tensor, subspaces: Tensor, membership: Tensor, eps: float) -> Tensor:
    r"""sum_k N_k / (2 N) sum_i f([W_k diag(pi_k) W_k^T]_ii / N_k): an upper bound of `membership_coding_rate`.

    It needs second moments only, no Gram matrix, and is tight where they are uncorrelated (Hadamard's inequality).
    With membership held fixed its gradient at token j is 1 / N sum_k pi_kj U_k D_k U_k^T z_j, where D_k is the
    diagonal of f' at the moments: the TSSA layer. Arguments and errors as in `membership_coding_rate`.
    """
    z, w, pi = _groups(z, subspaces, membership, eps)
    n, d = z.shape[-2:]
    size = pi.sum(-1)
    with full_precision(z):
        moments = torch.einsum("...hn,...hnp->...hp", pi, w.square()) / size.unsqueeze(-1)
        return (0.5 * size / n * (d / eps**2 * moments).log1p().sum(-1)).sum(-1)


def representative_coding_rate(z: Tensor, subspaces: Tensor, weights: Tensor, eps: float) -> Tensor:
    r"""sum_k 1/2 logdet(I + p / (m eps^2) Q_k^T Q_k) with Q_k = U_k^T Z A_k^T: the rate of m representatives a head.

    With A held fixed its gradient is the gradient at the representatives, carried back to the tokens by A^T: contract,
    then broadcast, the CBSA layer.

    Args:
        z: tokens `[..., n, d]`.
        subspaces: `[h, d, p]`.
        weights: A `[..., h, m, n]`.
        eps: distortion, > 0.

    Returns:
        `[...]`, heads summed.
    """
    z = check_tokens(z, eps)
    subspaces = check_subspaces(z, subspaces)
    if weights.dim() < 3 or weights.shape[-3] != subspaces.shape[0] or weights.shape[-1] != z.shape[-2]:
        wanted = f"[..., {subspaces.shape[0]}, m, {z.shape[-2]}]"
        raise ValueError(f"weights: needs {wanted} to fit subspaces and z, got {tuple(weights.shape)}")
    m, p = weights.shape[-2], subspaces.shape[-1]
    with full_precision(z):
        representatives = weights.to(z.dtype) @ torch.einsum("...nd,hdp->...hnp", z, subspaces)
        return half_logdet(representatives, p / (m * eps**2)).sum(-1)


def _groups(z: Tensor, subspaces: Tensor, membership: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Checked tokens, their projections `[..., h, n, p]`, and membership in their dtype."""
    z = check_tokens(z, eps)
    subspaces = check_subspaces(z, subspaces)
    if membership.dim() < 2 or membership.shape[-2:] != (subspaces.shape[0], z.shape[-2]):
        wanted = f"[..., {subspaces.shape[0]}, {z.shape[-2]}]"
        raise ValueError(f"membership: needs {wanted} to fit subspaces and z, got {tuple(membership.shape)}")
    with full_precision(z):
        return z, torch.einsum("...nd,hdp->...hnp", z, subspaces), membership.to(z.dtype)
