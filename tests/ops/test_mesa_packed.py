"""Packed sequences equal each sequence alone, in outputs, states and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from unrolled.ops import MesaState, mesa

ENDS = [0, 5, 6, 6, 23, 31, 40]  # one step, none, and lengths that fall into different groups


def packed(*, decay: bool) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 40, 4, generator=g, dtype=torch.float64)
    v = torch.randn(1, 2, 40, 3, generator=g, dtype=torch.float64)
    gate = torch.rand(1, 2, 40, generator=g, dtype=torch.float64)
    gone = 0.8 + 0.2 * torch.rand(1, 2, 40, generator=g, dtype=torch.float64)
    return [x.requires_grad_() for x in ((q, k, v, gate, gone) if decay else (q, k, v, gate))]


@pytest.mark.parametrize("method", ["auto", "reference", "recurrent", "chunk", "cg"])
@pytest.mark.parametrize("decay", [False, True])
def test_packed_is_each_alone(method: str, decay: bool) -> None:
    leaves = packed(decay=decay)
    ridge = torch.tensor([0.4, 0.9], dtype=torch.float64, requires_grad=True)
    options = {"method": method, "ridge_decays": decay, "tolerance": 1e-14, "return_state": True}

    def run(*x: Tensor, **more: object) -> tuple[Tensor, MesaState]:
        q, k, v, gate, *gone = x
        out, state = mesa(q, k, v, ridge, gone[0] if gone else None, gate, **options, **more)
        return out, state

    out, state = run(*leaves, cu_seqlens=torch.tensor(ENDS))
    assert out.shape == (1, 2, 40, 3)
    together = torch.autograd.grad(out.sin().sum() + state.cross.sin().sum(), [*leaves, ridge])
    loss = torch.zeros((), dtype=torch.float64)
    for i, (a, b) in enumerate(itertools.pairwise(ENDS)):
        if a == b:
            assert (state.gram[i] == 0).all()
            continue
        alone, end = run(*(x[:, :, a:b] for x in leaves))
        torch.testing.assert_close(out[:, :, a:b], alone)
        for left, right in zip(state[:3], end[:3], strict=True):
            torch.testing.assert_close(left[i : i + 1], right)
        loss = loss + alone.sin().sum() + end.cross.sin().sum()
    for left, right in zip(together, torch.autograd.grad(loss, [*leaves, ridge]), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


def test_packed_pieces_continue_from_their_states() -> None:
    q, k, v, gate = (x.detach() for x in packed(decay=False))
    whole, residual = mesa(q, k, v, 0.4, None, gate, cu_seqlens=torch.tensor([0, 18, 40]), return_residual=True)
    assert residual.shape == (1, 2, 40)
    assert residual.max() < 1e-12
    first, second = [*range(10), *range(18, 30)], [*range(10, 18), *range(30, 40)]

    def part(index: list[int], ends: list[int], state: MesaState | None) -> tuple[Tensor, MesaState]:
        x = [z[:, :, index] for z in (q, k, v, gate)]
        ends_ = torch.tensor(ends)
        out, after = mesa(*x[:3], 0.4, None, x[3], cu_seqlens=ends_, state=state, return_state=True)
        return out, after

    a, state = part(first, [0, 10, 22], None)
    b, _ = part(second, [0, 8, 18], state)
    torch.testing.assert_close(torch.cat([a, b], 2), whole[:, :, first + second])


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([0, 30], "rise from 0 to the 40 steps"),
        ([1, 40], "rise from 0"),
        ([0, 20, 10, 40], "rise from 0"),
        ([40], "integers"),
        ([0.0, 40.0], "integers"),
        ([[0, 40]], "integers"),
    ],
)
def test_bad_boundaries_are_named(ends: list[float], message: str) -> None:
    q, k, v, _ = packed(decay=False)
    with pytest.raises(ValueError, match=f"cu_seqlens must.*{message}"):
        mesa(q, k, v, 0.4, cu_seqlens=torch.tensor(ends))


def test_packed_arguments_that_do_not_fit_are_named() -> None:
    q, k, v, _ = packed(decay=False)
    with pytest.raises(ValueError, match="a batch of one"):
        mesa(*(x.expand(2, -1, -1, -1) for x in (q, k, v)), 0.4, cu_seqlens=torch.tensor([0, 40]))
    with pytest.raises(ValueError, match="not both"):
        mesa(q, k, v, 0.4, cu_seqlens=torch.tensor([0, 40]), lengths=torch.tensor([40]))
    _, state = mesa(q, k, v, 0.4, return_state=True)
    with pytest.raises(ValueError, match="state must hold the 2 sequences"):
        mesa(q, k, v, 0.4, cu_seqlens=torch.tensor([0, 10, 40]), state=state)
