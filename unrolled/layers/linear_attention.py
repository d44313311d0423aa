"""Causal self-attention without and with softmax, for sequences of tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.layers.convolution import ShortConvolution
from unrolled.layers.heads import head_width

_CHUNK = 64


def linear_attention(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """sum_{s <= t} v_s (k_s . q_t), and the sum of v_s k_s^T over all steps.

    Chunkwise: time and memory are linear in t. The sums are kept in float32 at least, under autocast too: in bfloat16
    they would stop growing once a step adds less than a 256th of them.

    Args:
        q, k: [b, h, t, dk].
        v: [b, h, t, dv].
        state: [b, h, dv, dk] of earlier steps.

    Returns:
        outputs [b, h, t, dv] in the dtype of q, and the state after the last step [b, h, dv, dk].
    """
    dtype = q.dtype
    with torch.autocast(q.device.type, enabled=False):
        out, total = _chunkwise(wide(q), wide(k), wide(v), None if state is None else wide(state))
    return out.to(dtype), total


def _chunkwise(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """`linear_attention` in the dtype of its arguments."""
    steps = q.shape[2]
    if steps <= _CHUNK:
        out, total = (q @ k.mT).tril() @ v, v.mT @ k
        return (out, total) if state is None else (out + q @ state.mT, total + state)
    chunk = _CHUNK
    q, k, v = (F.pad(x, (0, 0, 0, -steps % chunk)).unflatten(2, (-1, chunk)) for x in (q, k, v))
    growth = v.mT @ k  # [b, h, c, dv, dk]
    totals = growth.cumsum(2)
    before = totals - growth
    if state is not None:
        before, totals = before + state[:, :, None], totals + state[:, :, None]
    out = (q @ k.mT).tril() @ v + q @ before.mT
    return out.flatten(2, 3)[:, :, :steps], totals[:, :, -1]


def unit(x: Tensor) -> Tensor:
    """l2-normalised over the last dimension; the norm in float32, for float16 holds neither its square nor its eps."""
    return F.normalize(wide(x), dim=-1).to(x.dtype)


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class AttentionLayer(nn.Module):
    """Projections shared by the attention layers: `query`, `key`, `value` to heads, `output` back; no biases."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dim_head: int | None = None,
        dim_value: int | None = None,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        dim_head = head_width(dim, heads, dim_head)
        if dim_value is not None and dim_value < 1:
            raise ValueError(f"dim_value must be positive, or None for dim_head, not {dim_value}")
        self.dim, self.heads, self.dim_head = dim, heads, dim_head
        self.dim_value = dim_head if dim_value is None else dim_value
        self.query = nn.Linear(dim, heads * dim_head, bias=False)
        self.key = nn.Linear(dim, heads * dim_head, bias=False)
        self.value = nn.Linear(dim, heads * self.dim_value, bias=False)
        self.output = nn.Linear(heads * self.dim_value, dim, bias=False)
        self.init_std = init_std
        AttentionLayer.reset_parameters(self)  # not a subclass's, whose parameters are not there yet

    def reset_parameters(self) -> None:
        """Draw the projections with `init_std`; without one they initialise themselves."""
        if self.init_std is not None:
            for layer in (self.query, self.key, self.value, self.output):
                nn.init.normal_(layer.weight, std=self.init_std)

    def heads_of(self, projected: Tensor) -> Tensor:
        """[b, n, heads * width] -> [b, heads, n, width]."""
        heads: Tensor = projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads

    def merge(self, per_head: Tensor) -> Tensor:
        """[b, heads, n, dim_value] -> [b, n, dim] through `output`."""
        merged: Tensor = self.output(per_head.transpose(1, 2).flatten(2))
        return merged


class LinearSelfAttention(AttentionLayer):
    r"""Linear self-attention (arXiv 2309.05858, equation 2).

    $$ \Delta e_t = \sum_h P_h V_{h,t} K_{h,t}^\top q_{h,t},
       \quad V_{h,t} = (W_v e_1 \dots W_v e_t),\; K_{h,t} = (W_k e_1 \dots W_k e_t),\; q_{h,t} = W_q e_t $$

    | symbol | attribute | shape |
    | --- | --- | --- |
    | W_q, W_k | `query.weight`, `key.weight` | [heads * dim_head, dim] |
    | W_v | `value.weight` | [heads * dim_value, dim] |
    | P | `output.weight` | [dim, heads * dim_value] |

    With the weights of Proposition 1 (`gradient_descent`) it is, exactly, one gradient step on
    `unrolled.theory.in_context.in_context_loss`. It returns the update; the residual is the caller's.
    Departures: none; like the published code it does not scale by 1 / sqrt(dim_head).

    Args:
        dim: token width.
        heads: number of heads.
        dim_head: width of queries and keys; `dim / heads` if None.
        dim_value: width of values; `dim_head` if None.
        normalize: l2-normalise queries and keys, as the paper's language models do.
        init_std: of all projections; PyTorch's default if None.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dim_head: int | None = None,
        dim_value: int | None = None,
        normalize: bool = False,
        init_std: float | None = None,
    ) -> None:
        super().__init__(dim, heads, dim_head=dim_head, dim_value=dim_value, init_std=init_std)
        self.normalize = normalize

    def forward(self, z: Tensor, *, state: Tensor | None = None, return_state: bool = False) -> Any:
        """Update of every token, causal with the diagonal.

        Args:
            z: tokens [b, n, dim].
            state: [b, heads, dim_value, dim_head] of earlier tokens.
            return_state: also return the state after the last token.

        Returns:
            [b, n, dim], or that and the state.
        """
        q, k, v = self.heads_of(self.query(z)), self.heads_of(self.key(z)), self.heads_of(self.value(z))
        if self.normalize:
            q, k = unit(q), unit(k)
        out, state = linear_attention(q, k, v, state)
        update = self.merge(out)
        return (update, state) if return_state else update

    @classmethod
    def gradient_descent(
        cls, *, state_dim: int, step_size: float, initial: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> LinearSelfAttention:
        """One head with the weights of Proposition 1: a gradient step on the sequence's own least squares.

        Args:
            state_dim: d, width of one state.
            step_size: eta.
            initial: Phi_0, [d, d]. Tokens are then [Phi_0 s_t, s_t, s_{t-1}]. None stands for Phi_0 = 0 and the four
                channels [0, s_t, s_t, s_{t-1}] of the experiments; see `unrolled.tasks.constructed_tokens`.
            dtype: of the weights; that of `initial` or PyTorch's default if None.

        Returns:
            a layer whose update adds eta * sum_{t'} (s_{t'} - Phi_0 s_{t'-1}) (s_{t'-1} . s_t) to the first channel.
        """
        channels = 4 if initial is None else 3
        layer = cls(channels * state_dim, 1, dim_head=state_dim)
        layer.to(dtype or (torch.get_default_dtype() if initial is None else initial.dtype))
        identity = torch.eye(state_dim, dtype=layer.query.weight.dtype)
        with torch.no_grad():
            for projection in (layer.query, layer.key, layer.value, layer.output):
                projection.weight.zero_()
            layer.query.weight[:, -2 * state_dim : -state_dim] = identity
            layer.key.weight[:, -state_dim:] = identity
            layer.value.weight[:, state_dim : 2 * state_dim] = step_size * identity
            if initial is not None:
                layer.value.weight[:, -state_dim:] = -step_size * initial
            layer.output.weight[:state_dim] = identity
        return layer


class SoftmaxSelfAttention(AttentionLayer):
    r"""Causal softmax attention with the interface of `LinearSelfAttention`, its twin in every comparison.

    $$ \Delta e_t = \sum_h P_h V_{h,t}\, \mathrm{softmax}(K_{h,t}^\top q_{h,t} / \sqrt{d_h}) $$

    With `rotary`, query and key of step t are turned by t times the angles of arXiv 2104.09864, so that their product
    depends on how far apart they are. With `width`, they pass a causal convolution first (`conv`), as in
    `MesaNetLayer`, without an activation.

    Args:
        dim, heads, dim_head, dim_value, init_std: of `LinearSelfAttention`.
        causal: False lets every token see all of them, and there is then no state.
        rotary: base of the angles, 10,000 in the paper; None leaves queries and keys as they are.
        width: taps of the convolution; None for none.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dim_head: int | None = None,
        dim_value: int | None = None,
        causal: bool = True,
        rotary: float | None = None,
        width: int | None = None,
        init_std: float | None = None,
    ) -> None:
        super().__init__(dim, heads, dim_head=dim_head, dim_value=dim_value, init_std=init_std)
        if rotary is not None and not (isinstance(rotary, int | float) and 0 < rotary < math.inf):
            raise ValueError(f"rotary={rotary!r}: must be a positive number, such as 10000.0")
        if rotary is not None and self.dim_head % 2:
            raise ValueError(f"rotary={rotary}: turns pairs, so dim_head={self.dim_head} must be even")
        if width is not None and not causal:
            raise ValueError(f"width={width}: the convolution is causal; leave it out where attention is not")
        self.causal, self.rotary = causal, rotary
        self.conv = None if width is None else ShortConvolution(2 * heads * self.dim_head, width)

    def forward(self, z: Tensor, *, state: tuple[Tensor, ...] | None = None, return_state: bool = False) -> Any:
        """Update of every token.

        Args:
            z: tokens [b, n, dim].
            state: keys [b, heads, m, dim_head] and values [b, heads, m, dim_value] of the m earlier tokens; with a
                convolution also its window, [b, 2 heads dim_head, width - 1].
            return_state: also return the state after all tokens so far.

        Returns:
            [b, n, dim], or that and the state.
        """
        if not self.causal and (state is not None or return_state):
            raise ValueError("state: attention that is not causal has none; decode with a causal model")
        q, k, window = self._queries_and_keys(z, state)
        v = self.heads_of(self.value(z))
        if state is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=z.device).tril(k.shape[2] - q.shape[2])
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        update = self.merge(out)
        return (update, (k, v) if window is None else (k, v, window)) if return_state else update

    def attention(self, z: Tensor) -> Tensor:
        """Attention maps [b, heads, n, n], rows summing to one."""
        q, k, _ = self._queries_and_keys(z, None)
        scores: Tensor = q @ k.mT * self.dim_head**-0.5
        if not self.causal:
            return scores.softmax(-1)
        future = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool, device=z.device).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1)

    def _queries_and_keys(self, z: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of new tokens, [b, heads, n, dim_head] each, and the window of the convolution, if there is one."""
        q, k, window = self.query(z), self.key(z), None
        if self.conv is not None:
            joined, window = self.conv(torch.cat([q, k], dim=-1), window=None if state is None else state[2])
            q, k = joined.chunk(2, dim=-1)
        q, k = self.heads_of(q), self.heads_of(k)
        if self.rotary is not None:
            start = 0 if state is None else state[0].shape[2]
            q, k = rotated(q, self.rotary, start), rotated(k, self.rotary, start)
        return q, k, window


def rotated(x: Tensor, base: float, start: int = 0) -> Tensor:
    """Rotary positions (arXiv 2104.09864, equation 15): channels i and i + d/2 turned by t base^(-2i/d).

    Args:
        x: [..., n, d] at the steps start .. start + n - 1, d even.
        base: of the angles.
        start: the first step.

    Returns:
        [..., n, d], of the same lengths as `x`; angles are computed in float32 at least.
    """
    steps, half = x.shape[-2], x.shape[-1] // 2
    kind = torch.promote_types(x.dtype, torch.float32)
    rates = base ** (-torch.arange(half, dtype=kind, device=x.device) / half)
    angles = torch.arange(start, start + steps, dtype=kind, device=x.device)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
