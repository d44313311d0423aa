"""What every attention over subspaces has: a projection on each head's subspace, and a way back."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from unrolled.layers.heads import head_width


class SubspaceAttention(nn.Module):
    """The parameters of `MSSA`, `TSSA` and `CBSA`, which differ in what happens between projection and output.

    With `orthogonal` the U_k are orthonormal and orthogonal to each other whatever the optimiser does, as the theory
    assumes: U_k^T U_k = I, U_h^T U_k = 0. The weight used is the orthonormal factor of a QR decomposition of a free
    matrix of the same shape, `subspaces.parametrizations.weight.original`, so gradients follow the manifold and weight
    decay changes nothing. It is taken anew whenever `subspaces.weight` is read, once a call (twice with tied output).
    `theory.orthogonality_penalty` is the soft form.

    | symbol      | attribute         | shape                                                                          |
    |-------------|-------------------|--------------------------------------------------------------------------------|
    | U_1 ... U_K | `subspaces.weight`| `[h * p, d]`, head k is rows k p to (k + 1) p, transposed: U_k^T               |
    | b           | `subspaces.bias`  | `[h * p]`; None unless `projection_bias`                                       |
    | W           | `output`          | `[d, h * p]`; None with `output="tied"`, and then `scale` * [U_1 ... U_K] is W |
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dim_head: int | None = None,
        output: Literal["learned", "tied"] = "learned",
        bias: bool = True,
        projection_bias: bool = False,
        scale: float = 1.0,
        dropout: float = 0.0,
        orthogonal: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the layer.

        Args:
            dim: d, width of the tokens.
            heads: K, number of subspaces.
            dim_head: p, dimension of each; default `dim / heads`.
            output: `"learned"` W, or `"tied"` to the subspaces.
            bias: of the learned output.
            projection_bias: add a learned vector to the projections, as published ToSTs do: what stands for U_k^T z in
                the layer's formula is then U_k^T z + b_k.
            scale: factor of the tied output, the paper's kappa p / (N eps^2).
            dropout: on the learned output, in training.
            orthogonal: keep all subspaces orthonormal and mutually orthogonal; they then start as a random such frame.
            device: where to put the parameters.
            dtype: their type.

        Raises:
            ValueError: heads do not divide the width, an option is unknown, or orthogonal subspaces have no room.
        """
        super().__init__()
        width = head_width(dim, heads, dim_head)
        if output not in ("learned", "tied"):
            raise ValueError(f"output={output!r}: choose 'learned' or 'tied'")
        self.dim, self.heads, self.dim_head = dim, heads, width
        self.scale = scale
        inner = self.heads * self.dim_head
        if orthogonal and inner > dim:
            raise ValueError(
                f"orthogonal: {heads} subspaces of {self.dim_head} dimensions do not fit in dim={dim}; lower dim_head"
            )
        linear = _OrthonormalRows if orthogonal else nn.Linear
        self.subspaces = linear(dim, inner, bias=projection_bias, device=device, dtype=dtype)
        self.output: nn.Module | None = None
        if output == "learned":
            self.output = nn.Linear(inner, dim, bias=bias, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def project(self, z: Tensor) -> Tensor:
        """U_k^T z for every head: `[b, n, d]` -> `[b, h, n, p]`."""
        return self.split(self.subspaces(z))

    def split(self, w: Tensor) -> Tensor:
        """Projected tokens `[b, n, h * p]` by head: `[b, h, n, p]`."""
        return w.unflatten(-1, (self.heads, self.dim_head)).transpose(-3, -2)

    def merge(self, y: Tensor) -> Tensor:
        """What the heads computed, side by side `[b, n, h * p]`, back to tokens `[b, n, d]`."""
        if self.output is None:
            return self.scale * F.linear(y, self.subspaces.weight.mT)
        return self.dropout(self.output(y))

    def refuse_masks(self, attn_mask: Tensor | None, is_causal: bool, why: str) -> None:
        """Raise `ValueError` if there is a mask, saying why there must be none."""
        _refuse_masks(attn_mask, is_causal, why)

    def bases(self) -> Tensor:
        """The subspaces as `theory` takes them: `[h, d, p]`."""
        return self.subspaces.weight.unflatten(0, (self.heads, self.dim_head)).mT

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        tied = f", output=tied, scale={self.scale}" if self.output is None else ""
        orthogonal = ", orthogonal" if is_parametrized(self.subspaces) else ""
        return f"dim={self.dim}, heads={self.heads}, dim_head={self.dim_head}{tied}{orthogonal}"


@torch.fx.wrap  # in a graph, arguments with defaults are known when it runs
def _refuse_masks(attn_mask: Tensor | None, is_causal: bool, why: str) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError(f"attn_mask, is_causal: {why}")


class _OrthonormalRows(nn.Linear):
    """A linear map whose rows are orthonormal: `[U_1 ... U_K]^T`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        register_parametrization(self, "weight", _Orthonormalize())

    def reset_parameters(self) -> None:
        """A frame drawn uniformly."""
        nn.init.orthogonal_(next(self.parameters()))  # the free matrix, under either name


class _Orthonormalize(nn.Module):
    """Rows `[m, d]` of full rank to the orthonormal rows that Gram and Schmidt would make of them."""

    def forward(self, weight: Tensor) -> Tensor:
        """The same shape and dtype, computed in float32 at least."""
        with torch.autocast(weight.device.type, enabled=False):
            full = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
            q, r = torch.linalg.qr(full.mT)
            # the sign is chosen so that rows which are orthonormal already stay what they are
            return (q * torch.where(r.diagonal().detach() < 0, -1, 1)).mT.to(weight.dtype)
