"""Delta-rule layer: each token takes one gradient step on the squared error of the newest pair alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.layers.linear_attention import AttentionLayer, unit, wide

_CHUNK = 32


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None, *, chunk_size: int = _CHUNK
) -> tuple[Tensor, Tensor]:
    r"""S_t q_t of every step, with S_t = S_{t-1} + beta_t (v_t - S_{t-1} k_t) k_t^T, exactly and chunk by chunk.

    Within a chunk that starts from S, the written values u_t = beta_t (v_t - S_{t-1} k_t) solve the unit lower
    triangular system

    $$ (I + \mathrm{diag}(\beta)\, \mathrm{tril}(K K^\top, -1))\, U = \mathrm{diag}(\beta) (V - K S^\top), $$

    so S after the chunk is S + U^T K and no state within it is formed (the WY form of arXiv 2406.06484). Time is linear
    in t. Arithmetic is in float32 at least, under autocast too.

    Args:
        q, k: [b, h, t, dk]. The rule is stable where beta |k|^2 < 2.
        v: [b, h, t, dv].
        beta: step sizes [b, h, t].
        state: S of earlier steps, [b, h, dv, dk]; zero if None.
        chunk_size: steps in a chunk; changes the cost and not the result.

    Returns:
        outputs [b, h, t, dv] in the dtype of q, and S after the last step [b, h, dv, dk].

    Raises:
        ValueError: no steps, or shapes that do not fit.
    """
    _check(q, k, v, beta, state)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be at least 1")
    dtype = q.dtype
    with torch.autocast(q.device.type, enabled=False):  # triangular systems are not solved in 16 bits
        before = None if state is None else wide(state)
        out, after = _chunkwise(wide(q), wide(k), wide(v), wide(beta), before, min(chunk_size, q.shape[2]))
    return out.to(dtype), after


def _chunkwise(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """`delta_rule` in the dtype of its arguments, which fit."""
    steps = q.shape[2]
    # a padded step has beta = 0 and k = 0: it writes nothing
    q, k, v = (F.pad(x, (0, 0, 0, -steps % chunk)).unflatten(2, (-1, chunk)) for x in (q, k, v))
    weighted = F.pad(beta, (0, -steps % chunk)).unflatten(2, (-1, chunk))[..., None]
    system = (weighted * (k @ k.mT)).tril(-1)  # the unit diagonal is implied
    written = torch.cat([weighted * v, weighted * k], dim=-1)
    solved = torch.linalg.solve_triangular(system, written, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    scores = (q @ k.mT).tril()
    s = q.new_zeros(*q.shape[:2], v.shape[-1], k.shape[-1]) if state is None else state
    out = []
    for c in range(q.shape[2]):
        u = values[:, :, c] - keys[:, :, c] @ s.mT
        out.append(q[:, :, c] @ s.mT + scores[:, :, c] @ u)
        s = s + u.mT @ k[:, :, c]
    return torch.cat(out, dim=2)[:, :, :steps], s


def delta_rule_reference(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`delta_rule` as it is defined, one step after the other: what the fast form is tested against."""
    _check(q, k, v, beta, state)
    s = q.new_zeros(*q.shape[:2], v.shape[-1], k.shape[-1]) if state is None else state
    out = []
    for t in range(q.shape[2]):
        error = v[:, :, t] - (s @ k[:, :, t, :, None])[..., 0]
        s = s + (beta[:, :, t, None] * error)[..., None] * k[:, :, t, None, :]
        out.append((s @ q[:, :, t, :, None])[..., 0])
    return torch.stack(out, dim=2), s


class DeltaLayer(AttentionLayer):
    r"""Attention by the delta rule (arXiv 2102.11174, 2406.06484).

    $$ \Delta e_t = \sum_h P_h S_{h,t} q_{h,t}, \quad
       S_{h,t} = S_{h,t-1} + \beta_{h,t} (v_{h,t} - S_{h,t-1} k_{h,t}) k_{h,t}^\top $$

    | symbol | attribute | shape |
    | --- | --- | --- |
    | W_q, W_k, W_v, P | `query`, `key`, `value`, `output` | as in `LinearSelfAttention` |
    | beta | sigmoid(`gates(z)`) | [b, heads, n] |
    | S | the state | [b, heads, dim_value, dim_head] |

    S_t is, exactly, S_{t-1} after one gradient step of size beta_t on 1/2 |v_t - S k_t|^2: the objective of
    `unrolled.theory.in_context.least_squares` with the newest pair alone, where the mesa layer minimises it over all
    pairs and linear attention takes one step on all pairs from zero. It returns the update; the residual is the
    caller's.

    Departures: queries and keys are l2-normalised, without the short convolution, feature map and output norm that
    published models add.

    Args:
        dim: token width.
        heads: number of heads.
        dim_head: width of queries and keys; `dim / heads` if None.
        dim_value: width of values; `dim_head` if None.
        normalize: l2-normalise queries and keys. Without it nothing keeps beta |k|^2 below 2.
        init_std: of all projections; PyTorch's default if None.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dim_head: int | None = None,
        dim_value: int | None = None,
        normalize: bool = True,
        init_std: float | None = None,
    ) -> None:
        super().__init__(dim, heads, dim_head=dim_head, dim_value=dim_value, init_std=init_std)
        self.gates = nn.Linear(dim, heads)
        self.normalize = normalize

    def forward(self, z: Tensor, *, state: Tensor | None = None, return_state: bool = False) -> Any:
        """Update of every token.

        Args:
            z: tokens [b, n, dim].
            state: S of earlier tokens, [b, heads, dim_value, dim_head].
            return_state: also return S after the last token.

        Returns:
            [b, n, dim], or that and the state.
        """
        q, k, v = self.heads_of(self.query(z)), self.heads_of(self.key(z)), self.heads_of(self.value(z))
        if self.normalize:
            q, k = unit(q), unit(k)
        out, state = delta_rule(q, k, v, self.gates(z).sigmoid().transpose(1, 2), state)
        update = self.merge(out)
        return (update, state) if return_state else update


def _check(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None) -> None:
    if q.ndim != 4 or q.shape != k.shape or v.shape[:3] != q.shape[:3] or beta.shape != q.shape[:3]:
        shown = ", ".join(str(tuple(x.shape)) for x in (q, k, v, beta))
        raise ValueError(f"q, k [b, h, t, dk], v [b, h, t, dv] and beta [b, h, t] must fit each other, not {shown}")
    if q.shape[2] == 0:
        raise ValueError("q: no steps; give at least one token")
    if state is not None and state.shape != (*q.shape[:2], v.shape[-1], k.shape[-1]):
        wanted = (*q.shape[:2], v.shape[-1], k.shape[-1])
        raise ValueError(f"state: must be {wanted}, not {tuple(state.shape)}")
