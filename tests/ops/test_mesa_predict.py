"""The forward pass that solves for no x: what it returns equals the pass that does, and it steps back where it must."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unrolled.ops import MesaState, mesa, mesa_solve
from unrolled.ops.mesa_solve.chunk import Carry, Problem, cholesky
from unrolled.ops.mesa_solve.predict import predict


def problem(n: int = 5, t: int = 23, d: int = 4, e: int = 3, *, gate: bool = True) -> tuple[Tensor, Problem, Carry]:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, n, t, d, generator=g, dtype=torch.float64)
    v = torch.randn(n, t, e, generator=g, dtype=torch.float64)
    gates = torch.rand(n, t, generator=g, dtype=torch.float64) if gate else None
    ridge = 0.5 + torch.rand(n, d, generator=g, dtype=torch.float64)
    past = torch.randn(n, 6, e + d, generator=g, dtype=torch.float64)
    statistics = past.mT @ past[..., e:]  # of six earlier pairs [v; k]
    scale = 0.5 + torch.rand(n, generator=g, dtype=torch.float64)
    return q, Problem(k, v, gates, None, ridge, ridge_decays=False), Carry(statistics, scale)


def through(q: Tensor, x: Problem, carry: Carry, method: str) -> tuple[Tensor, MesaState]:
    e = x.values.shape[-1]
    state = MesaState(carry.statistics[None, :, e:], carry.statistics[None, :, :e], carry.ridge_scale[None])
    gate = None if x.gate is None else x.gate[None]
    out, after = mesa(
        q[None], x.keys[None], x.values[None], x.ridge, None, gate, method=method, state=state, return_state=True
    )
    return out[0], after


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 5, 8, 23, 24])
def test_outputs_and_state_equal_the_reference(chunk: int, gate: bool) -> None:
    q, x, carry = problem(gate=gate)
    truth, state = through(q, x, carry, "reference")
    for per_segment in (1, 2, 3, 40):  # sequences cut into several blocks, and several sequences in one
        found = predict(x, q, carry, min(chunk, 23), per_segment)
        assert found is not None
        torch.testing.assert_close(found[0], truth, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found[1].statistics[:, 3:], state.gram[0])
        torch.testing.assert_close(found[1].statistics[:, :3], state.cross[0])


def test_it_serves_inference_and_gives_what_training_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def watched(*arguments: object) -> object:
        used.append(True)
        return predict(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(mesa_solve, "predict", watched)
    q, k, v = torch.randn(3, 2, 2, 130, 8)
    plain = mesa(q, k, v, 0.5)
    assert used == [True]
    trained = mesa(q.requires_grad_(), k, v, 0.5)
    certified = mesa(q.detach(), k, v, 0.5, return_residual=True)[0]
    assert used == [True]
    torch.testing.assert_close(plain, trained, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain, certified, rtol=1e-5, atol=1e-6)


def test_it_steps_back_where_solutions_need_refinement() -> None:
    q, x, carry = problem()
    stiff = Problem(x.keys, x.values, x.gate, None, x.ridge * 1e-6, ridge_decays=False)
    assert predict(stiff, q, Carry(torch.zeros_like(carry.statistics), carry.ridge_scale), 8, 4) is None


@pytest.mark.parametrize("width", [63, 64, 65, 130])
def test_factors_in_halves_are_the_factors(width: int) -> None:
    root = torch.randn(2, 3, width, width + 5, dtype=torch.float64)
    matrix = root @ root.mT
    lower = cholesky(matrix)
    torch.testing.assert_close(lower, torch.linalg.cholesky(matrix), rtol=1e-9, atol=1e-9)
    assert lower.triu(1).abs().max() == 0


@pytest.mark.parametrize("rank", [1, 40])
def test_a_singular_matrix_among_sound_ones_is_factored_with_the_least_diagonal(rank: int) -> None:
    root = torch.randn(64, 80)
    sound, thin = root @ root.T, torch.randn(64, rank)
    lower = cholesky(torch.stack([sound, thin @ thin.T]))
    assert torch.isfinite(lower).all()
    torch.testing.assert_close(lower[0] @ lower[0].T, sound, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(lower[1] @ lower[1].T, thin @ thin.T, rtol=1e-3, atol=1e-3)


def test_a_graph_can_be_run_backward_again_but_not_differentiated_twice() -> None:
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 1, 6, 3, dtype=torch.float64))
    out = mesa(q, k, v, 0.5, method="chunk", chunk_size=4)
    first = torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match='method="reference" for second derivatives'):
        torch.autograd.grad(mesa(q, k, v, 0.5, method="chunk").sum(), q, create_graph=True)
    assert torch.autograd.gradgradcheck(lambda *x: mesa(*x, 0.5, method="reference"), (q, k, v))
