"""Token-statistics self-attention: the compression step of ToST, linear in the number of tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unrolled.layers.subspace import SubspaceAttention
from unrolled.ops.recording import knows_sizes


class TSSA(SubspaceAttention):
    r"""One gradient step on the variational rate, with memberships estimated first (arXiv 2412.17810, eq. 9 to 14).

    $$\mathrm{TSSA}(Z) = -W\,[\,D_k\, U_k^\top Z\, \mathrm{diag}(\pi_k)\,]_{k=1}^K, \qquad
      D_k = \mathrm{diag}\Big(\frac{1}{1 + s_k}\Big), \qquad
      s_k = \frac{1}{N_k} \sum_j \pi_{kj} (U_k^\top z_j)^2$$

    | symbol      | attribute or method | shape                                                                    |
    |-------------|---------------------|--------------------------------------------------------------------------|
    | U_1 ... U_K | `subspaces.weight`  | `[h * p, d]`, head k is rows k p to (k + 1) p, transposed                 |
    | W           | `output`            | `[d, h * p]` with bias; `output="tied"`: `scale` * [U_1 ... U_K]          |
    | pi          | `membership(z)`     | `[b, h, n]`, heads sum to 1; N_k is its sum over tokens                   |
    | 1 / 2 eta   | `temperature`       | `[h]`, learned                                                            |
    | s_k         |                     | `[b, h, p]`, second moment of group k along each direction                |

    pi is a softmax over heads of `temperature` * ||U_k^T z||^2, each direction first normalised over the tokens.

    Objective: `theory.variational_coding_rate`, an upper bound of the rate of the groups. With tied output and
    memberships held fixed the layer is *exactly* -N times its gradient at d / eps^2 = 1. It is approximate in two ways:
    memberships move with the tokens (2 % of the gradient's norm on 197 tokens with orthonormal subspaces), and the
    published W is learned.

    Departures: none in what is computed. No token is compared with another: cost and memory are linear in n. How: all
        heads share each product over tokens, which is h times wider than it need be, and the others' part of it is
        multiplied by 0; for the few heads of these models that is faster than a thin product for each.
    """

    def __init__(self, dim: int, heads: int, **kwargs: Any) -> None:
        """Build the layer; arguments and errors as in `SubspaceAttention`."""
        super().__init__(dim, heads, **kwargs)
        self.temperature = nn.Parameter(torch.ones(heads, **_placed(kwargs)))

    def reset_parameters(self) -> None:
        """Temperatures of 1; the linear maps initialise themselves."""
        nn.init.ones_(self.temperature)

    def membership(self, z: Tensor) -> Tensor:
        """pi `[b, h, n]`: how much of each token belongs to each head, for tokens `[b, n, d]` normalised as in
        `forward`.
        """
        squares = self.subspaces(z).square()
        return self._membership(squares, self._directions(squares))

    def _membership(self, squares: Tensor, directions: Tensor) -> Tensor:
        """From w^2 `[b, n, h * p]`: pi `[b, h, n]`."""
        # the sum over tokens as a product: a strided reduction is several times slower
        energy = squares.new_ones(1, squares.shape[-2]) @ squares
        inverse = self.temperature.repeat_interleave(self.dim_head) / above_zero(energy)
        logits = squares @ (inverse.to(squares.dtype) * directions).transpose(-2, -1)
        return logits.transpose(-2, -1).contiguous().softmax(-2)  # heads last would be several times slower

    def _directions(self, like: Tensor) -> Tensor:
        """`[h, h * p]`, 1 where a direction belongs to the head."""
        return own_directions(self.heads, self.dim_head, like)

    def forward(self, z: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compress.

        Args:
            z: tokens `[b, n, d]`, normalised by the caller.
            attn_mask: must be None: no token attends to another.
            is_causal: must be False; `CausalTSSA` is the causal form.

        Returns:
            `[b, n, d]`, the step to be added to the residual stream.

        Raises:
            ValueError: a mask is given.
        """
        self.refuse_masks(attn_mask, is_causal, "token statistics know no mask; use CausalTSSA, or MSSA")
        w = self.subspaces(z)
        squares = w.square()
        directions = self._directions(squares)
        pi = self._membership(squares, directions)
        size = above_zero(pi.sum(-1, keepdim=True))
        moments = ((pi.to(squares.dtype) @ squares) * (directions / size)).sum(-2, keepdim=True)
        coefficients = (pi.transpose(-2, -1).to(w.dtype) @ (-directions / (1 + moments)).to(w.dtype)).to(w.dtype)
        return self.merge(w * coefficients if torch.is_grad_enabled() else coefficients.mul_(w))


class TokenStatistics(NamedTuple):
    """What `CausalTSSA` remembers of all tokens so far: constant in their number.

    Attributes:
        energy: sum of w^2, `[b, h, p]`.
        moments: sum of pi w^2, `[b, h, p]`.
        size: sum of pi, `[b, h]`.
        length: number of tokens seen.
    """

    energy: Tensor
    moments: Tensor
    size: Tensor
    length: int


class CausalTSSA(SubspaceAttention):
    r"""TSSA with statistics of the tokens up to each one (arXiv 2412.17810, section 4.2, and its language model).

    $$s_{kj} = \frac{\sum_{i \le j} \pi_{ki} (U_k^\top z_i)^2}{\sum_{i \le j} \pi_{ki}}, \qquad
      \pi_{kj} = \mathrm{softmax}_k\Big(\theta_k \sum_l
      \Big[\frac{(U_k^\top z_j)_l^2}{\sum_{i \le j} (U_k^\top z_i)_l^2} + \beta_{kj}\Big]\Big)$$

    | symbol | attribute          | shape                                                                     |
    |--------|--------------------|---------------------------------------------------------------------------|
    | theta  | `temperature`      | `[h]`                                                                     |
    | beta   | `membership_bias`  | `[h, max_length]`, learned, one for each position                         |

    The other symbols are those of `TSSA`. The step at token j is that of `TSSA` on the tokens up to j, except that
    earlier memberships are not revised; the published form. Decoding keeps a `TokenStatistics`: constant time and
    memory a token.

    Objective: as `TSSA`; *approximate*, because earlier memberships are stale and beta has no place in it.

    Departures: none in what is computed.
    """

    def __init__(self, dim: int, heads: int, *, max_length: int, **kwargs: Any) -> None:
        """Build the layer; `max_length` is the number of positions, other arguments as in `SubspaceAttention`."""
        super().__init__(dim, heads, **kwargs)
        self.max_length = max_length
        self.temperature = nn.Parameter(torch.ones(heads, **_placed(kwargs)))
        self.membership_bias = nn.Parameter(torch.zeros(heads, max_length, **_placed(kwargs)))

    def reset_parameters(self) -> None:
        """Temperatures of 1, biases of 0; the linear maps initialise themselves."""
        nn.init.ones_(self.temperature)
        nn.init.zeros_(self.membership_bias)

    def forward(
        self, z: Tensor, *, state: TokenStatistics | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, TokenStatistics]:
        """Compress each token with what is known of itself and those before it.

        Args:
            z: tokens `[b, n, d]`, normalised by the caller; with `state`, the tokens that follow it.
            state: statistics of the tokens before `z`.
            return_state: return the statistics after `z` as well.

        Returns:
            `[b, n, d]`, and the new state if asked for.

        Raises:
            ValueError: more tokens than positions. The bias is learned position by position and has no values beyond.
        """
        start = 0 if state is None else state.length
        end = start + z.shape[-2]
        if knows_sizes(z) and end > self.max_length:
            raise ValueError(
                f"z: {end} tokens, but max_length={self.max_length}: shorten, or build with more positions"
            )
        w = _by_head(self, z)
        squares = w.square()
        energy = squares.cumsum(-3)
        if state is not None:
            energy = energy + state.energy.unsqueeze(-3)
        logits = (squares / above_zero(energy)).sum(-1) + self.dim_head * self.membership_bias[:, start:end].t()
        pi = (self.temperature * logits).softmax(-1)
        moments, size = (pi.unsqueeze(-1) * squares).cumsum(-3), pi.cumsum(-2)
        if state is not None:
            moments, size = moments + state.moments.unsqueeze(-3), size + state.size.unsqueeze(-2)
        gate = -1 / (1 + moments / above_zero(size).unsqueeze(-1))
        out = self.merge((w * pi.unsqueeze(-1) * gate).flatten(-2))
        if not return_state:
            return out
        return out, TokenStatistics(energy[..., -1, :, :], moments[..., -1, :, :], size[..., -1, :], end)


def _by_head(layer: SubspaceAttention, z: Tensor) -> Tensor:
    """U_k^T z as `[b, n, h, p]`: heads stay beside each other, so that nothing is transposed in memory."""
    return layer.subspaces(z).unflatten(-1, (layer.heads, layer.dim_head))


@torch.fx.wrap
def own_directions(heads: int, dim_head: int, like: Tensor) -> Tensor:
    """`[heads, heads * dim_head]`, 1 where a direction belongs to the head."""
    return torch.eye(heads, dtype=like.dtype, device=like.device).repeat_interleave(dim_head, 1)


@torch.fx.wrap
def above_zero(x: Tensor) -> Tensor:
    """`x` >= 0 as something that one may divide by."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def _placed(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: kwargs.get(key) for key in ("device", "dtype")}
