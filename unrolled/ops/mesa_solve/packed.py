"""Packed batches for the mesa solve: sequences of different lengths laid end to end along the steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def check_boundaries(cu_seqlens: Tensor, q: Tensor) -> list[int]:
    """The boundaries as integers.

    Raises:
        ValueError: they are not integers that rise from 0 to the number of steps, or the batch is not one.
    """
    cu_seqlens = torch.as_tensor(cu_seqlens)
    if q.ndim != 4 or q.shape[0] != 1:
        raise ValueError(f"cu_seqlens packs sequences into a batch of one, but q is {list(q.shape)}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.is_floating_point() or cu_seqlens.is_complex():
        raise ValueError(
            f"cu_seqlens must be integers [sequences + 1], not {list(cu_seqlens.shape)} {cu_seqlens.dtype}"
        )
    ends: list[int] = cu_seqlens.tolist()
    if ends[0] != 0 or ends[-1] != q.shape[2] or any(a > b for a, b in itertools.pairwise(ends)):
        raise ValueError(f"cu_seqlens must rise from 0 to the {q.shape[2]} steps of q")
    return ends


def solve_packed(
    solve: Callable[..., Any],
    cu_seqlens: Tensor,
    per_step: tuple[Tensor | None, ...],
    state: Any,
    return_state: bool,
    return_residual: bool,
) -> Any:
    """Unpack, solve sequences of like lengths together (padded to less than twice their length), pack again.

    Args:
        solve: (q, k, v, decay, input_gate, lengths=, state=) -> as `mesa` returns for the same two flags.
        cu_seqlens: [s + 1] boundaries.
        per_step: q, k, v [1, h, t, ...], decay, input_gate [1, h, t] or None.
        state: of s sequences, a `MesaState` or None.
        return_state: the result holds a state.
        return_residual: the result holds residuals.
    """
    q = per_step[0]
    assert q is not None
    ends = check_boundaries(cu_seqlens, q)
    lengths = torch.tensor([b - a for a, b in itertools.pairwise(ends)], device=q.device)
    starts = torch.tensor(ends[:-1], device=q.device)
    if state is not None and state.gram.shape[0] != len(lengths):
        raise ValueError(f"state must hold the {len(lengths)} sequences of cu_seqlens, not {state.gram.shape[0]}")
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths.tolist()):
        groups.setdefault(length.bit_length(), []).append(i)
    where, states = [], []
    packed: list[list[Tensor]] = [[], []]  # outputs, residuals
    for members in groups.values():
        chosen = torch.tensor(members, device=q.device)
        steps = torch.arange(max(1, int(lengths[chosen].max())), device=q.device)
        valid = steps < lengths[chosen, None]  # [s, t]
        index = (starts[chosen, None] + steps).clamp_max(ends[-1] - 1)
        parts = [None if x is None else x[0, :, index].transpose(0, 1) for x in per_step]
        result = solve(
            *parts,
            lengths=lengths[chosen],
            state=None if state is None else type(state)(*(None if x is None else x[chosen] for x in state)),
        )
        result = result if isinstance(result, tuple) else (result,)
        where.append(index[valid])
        packed[0].append(result[0].transpose(1, 2)[valid])  # [steps, h, dv]
        if return_state:
            states.append(result[1])
        if return_residual:
            packed[1].append(result[-1].transpose(1, 2)[valid])
    order = torch.cat(where).argsort()
    out = [torch.cat(x)[order].transpose(0, 1)[None] for x in packed if x]
    if return_state:
        back = torch.tensor([i for members in groups.values() for i in members], device=q.device).argsort()
        fields = [[getattr(s, name) for s in states] for name in states[0]._fields]
        joined = [None if any(x is None for x in field) else torch.cat(field)[back] for field in fields]
        out.insert(1, type(states[0])(*joined))
    return out[0] if len(out) == 1 else tuple(out)
