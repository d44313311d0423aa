"""Multi-head subspace self-attention: the compression step."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.layers.subspace import SubspaceAttention
from unrolled.theory.coding_rate import shrunk

Compression = Literal["softmax", "negated", "derived", "neumann", "exact"]
COMPRESSIONS = ("softmax", "negated", "derived", "neumann", "exact")


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

    Other forms of the step, `compression`; with W_k = U_k^T Z and alpha = p / (N eps^2), each head contributes

    | `compression` | contribution of head k        | cosine, unit tokens   | tokens of norm sqrt(d) | source         |
    |---------------|-------------------------------|-----------------------|------------------------|----------------|
    | `"softmax"`   | SSA_k(Z), the published       | -0.24, -0.23, -0.21   | -0.93, -0.91, -0.91    | as published   |
    | `"negated"`   | -SSA_k(Z)                     | 0.24, 0.23, 0.21      | 0.93, 0.91, 0.91       | 2411.17182     |
    | `"derived"`   | SSA_k(Z) - W_k                | 0.995, 0.982, 0.934   | 0.42, 0.42, 0.42       | the derivation |
    | `"neumann"`   | -(W_k - alpha W_k W_k^T W_k)  | 0.998, -0.18, -0.78   | -0.78, -0.78, -0.78    | before softmax |
    | `"exact"`     | -(I + alpha W_k W_k^T)^-1 W_k | 1.000, 1.000, 1.000   | 1.000, 1.000, 1.000    | eq. 10         |

    The cosines are with -grad R^c, for tied output on the tokens above, at eps 1, 0.5, 0.1 (means of 3 draws).
    `"softmax"` added to Z ascends: it keeps the second-order term of the expansion and drops the first, which is
    larger; `"negated"` corrects that sign, and is nearly the gradient for tokens as LayerNorm leaves them. `"neumann"`
    is meant for alpha ||W_k||^2 < 1; beyond, it ascends. `"exact"` is the gradient to rounding, and with orthonormal
    subspaces and `scale` at most 1 it enlarges no singular value of W_k. A learned W may undo any sign. `attention`
    gives the softmax weights whatever the form.
    """

    def __init__(
        self, dim: int, heads: int, *, compression: Compression = "softmax", eps: float | None = None, **kwargs: Any
    ) -> None:
        """Build the layer.

        Args:
            dim: d, width of the tokens.
            heads: K, number of subspaces.
            compression: the form of the step, see the table.
            eps: distortion of the coding rate, for `"neumann"` and `"exact"`, which need it.
            **kwargs: further arguments of `SubspaceAttention`.

        Raises:
            ValueError: as `SubspaceAttention`; an unknown form; `eps` is missing, not positive, or of no use.
        """
        super().__init__(dim, heads, **kwargs)
        if compression not in COMPRESSIONS:
            raise ValueError(f"compression={compression!r}: choose one of {', '.join(map(repr, COMPRESSIONS))}")
        if (eps is not None) != (compression in ("neumann", "exact")):
            raise ValueError(
                f"eps={eps}: compression='neumann' and 'exact' need a distortion, the others have none; "
                f"compression is {compression!r}"
            )
        if eps is not None and not eps > 0:
            raise ValueError(f"eps={eps}: must be positive")
        self.compression, self.eps = compression, eps
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

        Raises:
            ValueError: a mask is given to a form of the step that is about all tokens at once.
        """
        w = self.project(z)
        if self.eps is not None:
            why = f"compression={self.compression!r} is a gradient in all tokens at once; use 'softmax', 'negated' or "
            self.refuse_masks(attn_mask, is_causal, f"{why}'derived' with masks")
            y = self._gradient(w)
        else:
            y = self.signed(F.scaled_dot_product_attention(w, w, w, attn_mask=attn_mask, is_causal=is_causal), w)
        return self.merge(y.transpose(-3, -2).flatten(-2))

    def signed(self, attended: Tensor, w: Tensor) -> Tensor:
        """What softmax attention `[b, h, n, p]` on the projections `w` contributes to the step."""
        if self.compression == "negated":
            return -attended
        return attended - w if self.compression == "derived" else attended

    def _gradient(self, w: Tensor) -> Tensor:
        """-grad R^c in the heads' coordinates over alpha, exact or to first order, for `w` [b, h, n, p]."""
        assert self.eps is not None
        n, p = w.shape[-2:]
        with torch.autocast(w.device.type, enabled=False):
            full = w.float() if w.dtype in (torch.float16, torch.bfloat16) else w
            alpha = p / (n * self.eps**2)
            step = full @ (alpha * (full.mT @ full)) - full if self.compression == "neumann" else -shrunk(full, alpha)
            return step.to(w.dtype)

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
        form = "" if self.compression == "softmax" else f", compression={self.compression}"
        return super().extra_repr() + form + ("" if self.eps is None else f", eps={self.eps}")
