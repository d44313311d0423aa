"""Multi-head subspace self-attention: the compression step."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MSSA(nn.Module):
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

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dim_head: int | None = None,
        output: Literal["learned", "tied"] = "learned",
        scale: float = 1.0,
        dropout: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the layer.

        Args:
            dim: d, width of the tokens.
            heads: K, number of subspaces.
            dim_head: p, dimension of each; default `dim / heads`.
            output: `"learned"` W with bias, or `"tied"` to the subspaces.
            scale: factor of the tied output, the paper's kappa p / (N eps^2).
            dropout: on the learned output, in training.
            device: where to put the parameters.
            dtype: their type.

        Raises:
            ValueError: heads do not divide the width, or an option is unknown.
        """
        super().__init__()
        if heads < 1 or dim < 1:
            raise ValueError(f"dim={dim}, heads={heads}: both must be at least 1")
        if dim_head is None and dim % heads:
            raise ValueError(f"heads={heads} does not divide dim={dim}: change one of them, or give dim_head")
        if output not in ("learned", "tied"):
            raise ValueError(f"output={output!r}: choose 'learned' or 'tied'")
        self.dim, self.heads, self.dim_head = dim, heads, dim_head or dim // heads
        self.scale = scale
        inner = self.heads * self.dim_head
        self.subspaces = nn.Linear(dim, inner, bias=False, device=device, dtype=dtype)
        self.output: nn.Module | None = None
        if output == "learned":
            bare = heads == 1 and inner == dim
            self.output = nn.Identity() if bare else nn.Linear(inner, dim, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def project(self, z: Tensor) -> Tensor:
        """U_k^T z for every head: `[b, n, d]` -> `[b, h, n, p]`."""
        return self.subspaces(z).unflatten(-1, (self.heads, self.dim_head)).transpose(-3, -2)

    def bases(self) -> Tensor:
        """The subspaces as `theory` takes them: `[h, d, p]`."""
        return self.subspaces.weight.unflatten(0, (self.heads, self.dim_head)).mT

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
        y = y.transpose(-3, -2).flatten(-2)
        if self.output is None:
            return self.scale * F.linear(y, self.subspaces.weight.mT)
        return self.dropout(self.output(y))

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

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        tied = f", output=tied, scale={self.scale}" if self.output is None else ""
        return f"dim={self.dim}, heads={self.heads}, dim_head={self.dim_head}{tied}"
