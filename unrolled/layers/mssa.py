"""Multi-head subspace self-attention: the compression step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.layers.subspace import SubspaceAttention


class MSSA(SubspaceAttention):
    r"""One approximate gradient step on the compression term R^c (arXiv 2306.01129, eq. 11 to 16).

    $$\mathrm{MSSA}(Z) = W\,[\,\mathrm{SSA}_1(Z); \dots; \mathrm{SSA}_K(Z)\,], \qquad
      \mathrm{SSA}_k(Z) = U_k^\top Z\,\mathrm{softmax}\big((U_k^\top Z)^\top (U_k^\top Z) / \sqrt p\big)$$

    | symbol      | attribute                | shape          |
    |-------------|--------------------------|----------------|
    | U_1 ... U_K | `subspaces.weight`       | `[h * p, d]`, head k is rows k p to (k + 1) p, transposed: U_k^T |
    | W           | `output.weight`          | `[d, h * p]`; with `output="tied"` it is `scale` * [U_1 ... U_K] |
    | K, p        | `heads`, `dim_head`      | integers; h * p may differ from d |

    Objective: `theory.subspace_coding_rate`, descended *approximately*. With tied output the derived step
    Z + kappa alpha (MSSA(Z) - Z) lowers R^c; on 197 unit-norm tokens near orthonormal subspaces its cosine with
    -grad R^c is 0.995, 0.982 and 0.934 at eps 1, 0.5 and 0.1. It is 0.4 for tokens of norm sqrt(d), which attend
    mostly to themselves. The residual form Z + MSSA(Z) of the published model drops the shrinking term
    -kappa alpha Z, and then R^c rises.

    Departures from the derivation, all of them the published model's own: a learned, biased W replaces p / (N eps^2)
    [U_1 ... U_K] (`output="learned"`; the derivation's is `"tied"`); logits are divided by sqrt(p); the U_k are not
    kept orthonormal. A single projection serves as query, key and value, so attention runs in PyTorch's fused kernel
    with q = k = v. As in the published model, one head of full width has no W at all.
    """

    def __init__(self, dim: int, heads: int, **kwargs: Any) -> None:
        """Build the layer; arguments and errors as in `SubspaceAttention`."""
        super().__init__(dim, heads, **kwargs)
        if self.output is not None and heads == 1 and self.dim_head == dim:
            self.output = nn.Identity()

    def forward(self, z: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compress.

        Args:
            z: tokens `[b, n, d]`, normalised by the caller.
            attn_mask: boolean (true = attend) or additive, broadcastable to `[b, h, n, n]`.
            is_causal: each token attends to itself and those before it.

        Returns:
            `[b, n, d]`, the step to be added to the residual stream.
        """
        w = self.project(z)
        y = F.scaled_dot_product_attention(w, w, w, attn_mask=attn_mask, is_causal=is_causal)
        return self.merge(y.transpose(-3, -2).flatten(-2))

    def attention(self, z: Tensor, *, query: int | slice | None = None, is_causal: bool = False) -> Tensor:
        """Attention weights, computed only when asked for.

        Args:
            z: tokens `[b, n, d]`, normalised by the caller.
            query: only these query tokens, e.g. `0` for the class token; default all. An `[n, n]` map is then never
                built.
            is_causal: mask the future, as in `forward`.

        Returns:
            `[b, h, q, n]`, rows sum to 1; q = 1 for an integer `query`.
        """
        w = self.project(z)
        n = w.shape[-2]
        rows = torch.arange(n, device=w.device)
        if query is not None:
            rows = rows[query].reshape(-1)
        logits = w[..., rows, :] @ w.mT * self.dim_head**-0.5
        if is_causal:
            logits = logits.masked_fill(torch.arange(n, device=w.device) > rows[:, None], float("-inf"))
        return logits.softmax(-1)
