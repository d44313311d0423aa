"""Contract-and-broadcast self-attention: compress all tokens by contracting a few representatives."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.layers.subspace import SubspaceAttention
from unrolled.ops.recording import is_recording


class CBSA(SubspaceAttention):
    r"""One approximate gradient step on the rate of a few representatives, carried back to all tokens
    (arXiv 2509.16875, section 3).

    $$A_k = \mathrm{softmax}(\bar W_k^\top W_k / \sqrt p), \qquad Q_k = \bar W_k + \tau_k W_k A_k^\top, \qquad
      \mathrm{CBSA}(Z) = W\,[\,\kappa_k\, \mathrm{SSA}(Q_k)\, A_k\,]_{k=1}^K$$

    with W_k = U_k^T Z the projected tokens, and the pooled tokens written with a bar: their mean over each cell of a
    grid. SSA is softmax attention with query, key and value Q_k.

    | symbol      | attribute             | shape                                                                |
    |-------------|-----------------------|----------------------------------------------------------------------|
    | U_1 ... U_K | `subspaces.weight`    | `[h * p, d]`, head k is rows k p to (k + 1) p, transposed            |
    | W           | `output`              | `[d, h * p]` with bias; `output="tied"`: [U_1 ... U_K]               |
    | A           | `assignment(z)`       | `[b, h, m, n]`, m representatives, rows sum to 1                     |
    | tau         | `step_representative` | `[h]`, learned, of either sign                                       |
    | kappa       | `step_token`          | `[h]`, learned, of either sign                                       |

    Objective: `theory.representative_coding_rate`. With A held fixed its gradient is *exactly* A^T times the rate's
    gradient at the representatives. That one is *approximated* as in `MSSA`, and its first-order term (the shrinking
    one) is dropped, which a negative kappa makes up for: on 197 unit-norm tokens, orthonormal subspaces and 16
    representatives the step with tied output, tau = 0 and kappa = -1 has cosine 0.88 to 0.94 with the negative
    gradient at eps 1, 0.82 to 0.91 at eps 0.1, and R^c of all tokens falls with that of the representatives.

    Departures: the published code pools all tokens but the last, which takes the class token for the first patch and
        shifts the grid by one; here the patches are pooled, and a grid with fewer rows or columns than the pooled one
        is not enlarged. `pooled="leading"` is the published form, for weights that were trained with it. Grids need not
        be square.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        representatives: int = 8,
        prefix_tokens: int = 1,
        pooled: Literal["patches", "leading"] = "patches",
        **kwargs: Any,
    ) -> None:
        """Build the layer.

        Args:
            dim: d, width of the tokens.
            heads: K, number of subspaces.
            representatives: side of the pooled grid; m is its square.
            prefix_tokens: leading tokens that are not on the grid (the class token).
            pooled: what the representatives are means of: `"patches"`, or `"leading"`, as many tokens from the first
                on, prefix included, as there are patches.
            **kwargs: further arguments of `SubspaceAttention`.

        Raises:
            ValueError: heads do not divide the width, or an option is unknown.
        """
        super().__init__(dim, heads, **kwargs)
        if representatives < 1:
            raise ValueError(f"representatives={representatives}: must be at least 1")
        if pooled not in ("patches", "leading"):
            raise ValueError(f"pooled={pooled!r}: choose 'patches' or 'leading'")
        self.representatives, self.prefix_tokens, self.pooled = representatives, prefix_tokens, pooled
        placed = {key: kwargs.get(key) for key in ("device", "dtype")}
        self.step_representative = nn.Parameter(torch.empty(heads, **placed))
        self.step_token = nn.Parameter(torch.empty(heads, **placed))
        self.grid: tuple[int, int] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Steps start at N(0, 1), as published; the linear maps initialise themselves."""
        nn.init.normal_(self.step_representative)
        nn.init.normal_(self.step_token)

    def forward(self, z: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compress.

        Args:
            z: tokens `[b, n, d]`, normalised by the caller: `prefix_tokens`, then a grid row by row. Its shape is the
                attribute `grid` where a model has set it and it fits, else a square.
            attn_mask: must be None: representatives are pooled over all tokens.
            is_causal: must be False.

        Returns:
            `[b, n, d]`, the step to be added to the residual stream.

        Raises:
            ValueError: a mask is given, or the tokens form no known grid.
        """
        self.refuse_masks(attn_mask, is_causal, "representatives are pooled over all tokens; use MSSA for masks")
        w, representatives = self._pool(z)
        assignment = (representatives @ w.transpose(-2, -1) * self.dim_head**-0.5).softmax(-1)
        contracted = representatives + self.step_representative[:, None, None] * (assignment @ w)
        contraction = F.scaled_dot_product_attention(contracted, contracted, contracted)
        y = assignment.transpose(-2, -1) @ (self.step_token[:, None, None] * contraction).to(w.dtype)
        return self.merge(y.transpose(-3, -2).flatten(-2))

    def assignment(self, z: Tensor) -> Tensor:
        """A `[b, h, m, n]`: of which tokens each representative is made; A^T carries its change back to them."""
        w, representatives = self._pool(z)
        return (representatives @ w.transpose(-2, -1) * self.dim_head**-0.5).softmax(-1)

    def _pool(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Projected tokens `[b, h, n, p]` and their means over the cells of the pooled grid `[b, h, m, p]`."""
        w = self.subspaces(z)
        rows, columns = self._grid(z.shape[-2] - self.prefix_tokens)
        leading = self.pooled == "leading"
        patches = w[..., : rows * columns, :] if leading else w[..., self.prefix_tokens :, :]
        return self.split(w), self.split(pool_cells(patches, rows, columns, self.representatives, leading))

    def _grid(self, patches: int) -> tuple[int, int]:
        grid = self.grid
        if grid is not None and not isinstance(grid[0], int):
            self.grid = None  # symbols of a recording must not outlive it
            return grid
        if grid is not None and (not isinstance(patches, int) or math.prod(grid) == patches):
            return grid
        side = math.isqrt(max(patches, 0)) if isinstance(patches, int) else 0
        if side < 1 or side**2 != patches:
            raise ValueError(f"z: {patches} patch tokens are no square; set the layer's `grid` to (rows, columns)")
        return side, side


@torch.fx.wrap
def pool_cells(patches: Tensor, rows: int, columns: int, side: int, enlarge: bool) -> Tensor:
    """Means of patch tokens `[b, rows * columns, d]` over the cells of a grid of `side` x `side`.

    Args:
        patches: row by row.
        rows: of the patches.
        columns: of them.
        side: rows and columns of the cells.
        enlarge: also where there are fewer patches than cells; otherwise there are as many cells as patches then.

    Returns:
        `[b, cells, d]`.
    """
    if not isinstance(rows, int):  # symbols of `torch.export`: a graph has as many cells for every size
        torch._check(rows >= side)
        torch._check(columns >= side)
        enlarge = True
    cells = (side, side) if enlarge else (min(side, rows), min(side, columns))
    if isinstance(rows, int) and cells == (rows, columns):
        return patches
    if isinstance(rows, int) and is_recording(patches):  # ONNX has no means over cells of unequal sizes
        means = torch.kron(_means(rows, cells[0]), _means(columns, cells[1]))
        return means.to(patches) @ patches
    grid = patches.transpose(-2, -1).unflatten(-1, (rows, columns))
    return F.adaptive_avg_pool2d(grid, cells).flatten(-2).transpose(-2, -1)


def _means(count: int, cells: int) -> Tensor:
    """`[cells, count]`, whose product with so many values are their means over the cells, as PyTorch divides them."""
    first = torch.arange(cells) * count // cells
    last = (torch.arange(1, cells + 1) * count - 1) // cells
    index = torch.arange(count)
    inside = (index >= first[:, None]) & (index <= last[:, None])
    return inside / inside.sum(1, keepdim=True)
