"""Bad arguments are named; hard ones get a finite answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unrolled.ops import MesaState, mesa

METHODS = ("reference", "recurrent", "chunk", "cg")


def arguments(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "q": torch.randn(2, 3, 5, 4),
        "k": torch.randn(2, 3, 5, 4),
        "v": torch.randn(2, 3, 5, 6),
        "ridge": 1.0,
    } | changes


BAD = {
    "zero ridge": ({"ridge": 0.0}, "ridge must be positive"),
    "negative ridge": ({"ridge": torch.tensor([1.0, -1.0, 1.0])}, "ridge must be positive"),
    "nan ridge": ({"ridge": float("nan")}, "ridge must be positive"),
    "ridge heads": ({"ridge": torch.ones(2)}, "ridge must be a float"),
    "zero decay": ({"decay": torch.zeros(2, 3, 5)}, "decay must lie in"),
    "growth": ({"decay": torch.full((2, 3, 5), 1.1)}, "decay must lie in"),
    "nan decay": ({"decay": torch.full((2, 3, 5), torch.nan)}, "decay must lie in"),
    "decay shape": ({"decay": torch.ones(2, 3, 4)}, "decay must be"),
    "negative gate": ({"input_gate": -torch.ones(2, 3, 5)}, "input_gate must be"),
    "heads": ({"k": torch.randn(2, 2, 5, 4)}, "k must have the shape of q"),
    "value heads": ({"v": torch.randn(2, 2, 5, 4)}, "v must agree"),
    "empty": ({n: torch.randn(2, 3, 0, 4) for n in "qkv"}, "at least one step"),
    "three dimensions": ({"q": torch.randn(2, 5, 4)}, "q must be"),
    "integers": ({"v": torch.ones(2, 3, 5, 6, dtype=torch.long)}, "v must be a floating-point"),
    "method": ({"method": "exact"}, "method must be one of"),
    "chunk": ({"chunk_size": 0}, "chunk_size must be"),
    "steps": ({"method": "cg", "steps": -1}, "steps must be"),
    "lengths": ({"lengths": torch.tensor([6, 1])}, "lengths must lie"),
    "lengths shape": ({"lengths": torch.tensor([1])}, "lengths must be"),
    "unserved": ({"method": "recurrent", "decay": torch.full((2, 3, 5), 0.9)}, 'method="chunk"'),
    "state width": (
        {"state": MesaState(torch.zeros(2, 3, 5, 5), torch.zeros(2, 3, 6, 5), torch.ones(2, 3))},
        r"state\.gram must be",
    ),
    "text ridge": ({"ridge": "1"}, "ridge must be a positive number or tensor, not str"),
    "no ridge": ({"ridge": None}, "ridge must be a positive number or tensor, not NoneType"),
    "complex ridge": ({"ridge": torch.tensor(1 + 1j)}, "ridge must be real"),
    "denormal ridge": ({"ridge": 1e-42}, "ridge holds 1e-42, which torch.float32 cannot divide by"),
    "underflowing ridge": ({"ridge": torch.tensor(1e-50, dtype=torch.float64)}, "ridge holds 1e-50"),
    "underflowing number": ({"ridge": 1e-50}, "ridge holds 1e-50"),
    "barely normal ridge": ({"ridge": 1.2e-38}, "ridge, 1.2e-38 at its smallest, is too small"),
    "number decay": ({"decay": 0.9}, "decay must be a tensor"),
    "list gate": ({"input_gate": [1.0]}, "input_gate must be a tensor"),
    "array": ({"q": torch.ones(2, 3, 5, 4).numpy()}, "q must be a tensor"),
    "state type": ({"state": "x"}, "state must be a MesaState, .* not str"),
    "plain tuple state": ({"state": (torch.zeros(2, 3, 4, 4),) * 3}, "state must be a MesaState, .* not tuple"),
    "empty state": ({"state": MesaState(None, None, None)}, r"state\.gram must be"),  # type: ignore[arg-type]
    "infinite": ({"q": torch.full((2, 3, 5, 4), torch.inf)}, "q holds values that are not finite"),
    "overflow": (
        {n: torch.full((2, 3, 5, 4), 1e200, dtype=torch.float64) for n in "qkv"},
        "overflow torch.float64",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        mesa(**arguments(**changes))


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_saturates_instead_of_overflowing(method: str) -> None:
    inputs = arguments(ridge=1e-3, method=method)
    inputs |= {n: (inputs[n] * (6e4 if n == "v" else 1)).half().clamp(-65504, 65504) for n in "qkv"}
    out = mesa(**inputs)
    assert out.dtype == torch.float16
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeated_keys_and_a_tiny_ridge_are_right(method: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, v = torch.randn(2, 1, 2, 300, 16).to(dtype)
    k = torch.randn(1, 2, 1, 16).expand(1, 2, 300, 16).to(dtype).clone()
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = mesa(*leaves, 1e-6, method=method)
    count = torch.arange(1, 301, dtype=torch.float64)[:, None]
    size = k[:, :, :1].double().square().sum(-1, keepdim=True)
    seen = (q.double() * k.double()).sum(-1, keepdim=True) / (size + 1e-6 / count)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.double(), seen * v.double().cumsum(2) / count, rtol=tolerance, atol=tolerance)
    out.float().sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in leaves if x.grad is not None)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_ridge_forgotten_under_repeated_keys_is_refused(method: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, v = torch.randn(2, 1, 2, 300, 16).to(dtype)
    k = torch.randn(1, 2, 1, 16).expand(1, 2, 300, 16).to(dtype)
    decay = torch.full((1, 2, 300), 0.7)  # 0.7^300 is 3e-47
    for grad in (False, True):
        with pytest.raises(ValueError, match=r"ridge, 1e-06 .* or what the decays leave of it, is too small"):
            mesa(q.clone().requires_grad_(grad), k, v, 1e-6, decay, method=method, ridge_decays=True)


@pytest.mark.parametrize(
    ("floor", "ridge_decays"), [(1e-30, False), (1e-6, False), (0.05, False), (1e-3, True), (0.05, True)]
)
def test_resets_in_the_middle_of_a_chunk(floor: float, ridge_decays: bool) -> None:
    q, k, v = torch.randn(3, 1, 2, 40, 4, dtype=torch.float64)
    decay = torch.full((1, 2, 40), 0.99, dtype=torch.float64)
    decay[:, :, [7, 8, 25]] = floor
    gate = torch.rand(1, 2, 40, dtype=torch.float64)
    options: dict[str, Any] = {"ridge_decays": ridge_decays}
    decay.requires_grad_()
    truth = mesa(q, k, v, 0.5, decay, gate, method="reference", **options)
    out = mesa(q, k, v, 0.5, decay, gate, method="chunk", chunk_size=16, **options)
    torch.testing.assert_close(out, truth, rtol=1e-8, atol=1e-8)
    slow, fast = (torch.autograd.grad(o.sum(), decay)[0] for o in (truth, out))
    torch.testing.assert_close(fast, slow, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("floor", [1e-37, 1e-12])
def test_a_ridge_forgotten_at_once_is_refused_and_its_residual_shows_it(floor: float) -> None:
    q, k, v = torch.randn(3, 1, 2, 40, 4)
    decay = torch.full((1, 2, 40), 0.5)
    decay[:, :, [7, 8, 25]] = floor
    for chunk_size in (1, 5, 16):
        options: dict[str, Any] = {"ridge_decays": True, "method": "chunk", "chunk_size": chunk_size}
        with pytest.raises(ValueError, match="what the decays leave of it"):
            mesa(q, k, v, 0.5, decay, **options)
        out, residual = mesa(q, k, v, 0.5, decay, return_residual=True, **options)
        assert out.shape == q.shape
        assert not residual.max() <= 1e-3  # nor is it where a pivot is zero on this machine


@pytest.mark.parametrize("ridge", [1e-2, 1e-4])
def test_a_small_ridge_costs_no_more_digits_than_a_dense_solve(ridge: float) -> None:
    q, k, v = torch.randn(3, 1, 4, 150, 16)
    truth = mesa(q.double(), k.double(), v.double(), ridge, method="reference")
    dense = (mesa(q, k, v, ridge, method="reference") - truth).abs().max()
    for method in ("recurrent", "chunk", "cg"):
        assert (mesa(q, k, v, ridge, method=method) - truth).abs().max() < 2 * dense


@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 2, 5])])
def test_a_state_of_another_kind_is_named(cu_seqlens: torch.Tensor | None) -> None:
    inputs = arguments(state={"gram": 1}, cu_seqlens=cu_seqlens)
    with pytest.raises(ValueError, match="state must be a MesaState, as return_state=True gives"):
        mesa(**inputs)


@pytest.mark.parametrize("method", ["reference", "chunk", "cg"])
def test_decay_and_gate_of_padding_may_hold_anything(method: str) -> None:
    lengths = torch.tensor([3, 5])
    decay, gate = torch.full((2, 3, 5), 0.9), torch.rand(2, 3, 5)
    plain = mesa(**arguments(decay=decay, input_gate=gate, lengths=lengths, method=method))
    decay[0, :, 3:], gate[0, :, 3:] = 0.0, torch.nan
    torch.testing.assert_close(mesa(**arguments(decay=decay, input_gate=gate, lengths=lengths, method=method)), plain)


def test_padding_does_not_choose_the_method() -> None:
    lengths, decay = torch.tensor([3, 5]), torch.full((2, 3, 5), 0.999)
    plain = mesa(**arguments(decay=decay, lengths=lengths))
    for padding in (1e-30, torch.nan, -1.0):
        decay[0, :, 3:] = padding
        assert torch.equal(mesa(**arguments(decay=decay, lengths=lengths)), plain)


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_an_answer_without_meaning_is_refused_and_its_residual_shows_it(method: str) -> None:
    q, v = torch.randn(2, 1, 2, 100, 4)
    k = torch.randn(1, 2, 1, 4).expand(1, 2, 100, 4)
    with pytest.raises(ValueError, match=r"ridge, 1e-13 .* is too small for these keys, even in torch.float64"):
        mesa(q, k, v, 1e-13, method=method)
    _, residual = mesa(q, k, v, 1e-13, method=method, return_residual=True)
    assert residual.max() > 1e-2
    _, residual = mesa(q, k, v, 1.0, method=method, return_residual=True)
    assert residual.max() < 1e-4


def test_a_ridge_given_as_a_number_keeps_its_digits() -> None:
    inputs = {name: x.double() for name, x in arguments().items() if name != "ridge"}
    assert torch.equal(mesa(**inputs, ridge=0.1), mesa(**inputs, ridge=torch.tensor(0.1, dtype=torch.float64)))
