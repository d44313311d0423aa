"""Every method of `mesa` against the dense reference: outputs, gradients, states, odd sizes, dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from unrolled.ops import MesaState, mesa, mesa_plan

SETTINGS = {  # name -> (decay, ridge decays)
    "plain": (False, False),
    "ridge decays": (True, True),
    "ridge fixed": (True, False),
}
CASES = [
    (method, name)
    for method in ("recurrent", "chunk", "cg")
    for name in SETTINGS
    if not (method == "recurrent" and name == "ridge fixed")
]
TIGHT: dict[str, Any] = {"tolerance": 1e-14}


def problem(
    b: int = 2,
    h: int = 2,
    t: int = 13,
    dk: int = 5,
    dv: int = 3,
    *,
    decay: bool = False,
    gate: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    slowest: float = 0.6,
) -> dict[str, Tensor | None]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "q": normal(b, h, t, dk),
        "k": normal(b, h, t, dk),
        "v": normal(b, h, t, dv),
        "ridge": (0.3 + torch.rand(h, dk, generator=g, dtype=torch.float64)).to(dtype),
        "decay": (slowest + (1 - slowest) * torch.rand(b, h, t, generator=g, dtype=torch.float64)).to(dtype)
        if decay
        else None,
        "input_gate": torch.rand(b, h, t, generator=g, dtype=torch.float64).to(dtype) if gate else None,
    }


def gradients(
    inputs: dict[str, Tensor | None], names: tuple[str, ...] = (), **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {n: None if x is None else x.detach().clone().requires_grad_() for n, x in inputs.items()}
    out = mesa(**leaves, **options)
    out = out[0] if isinstance(out, tuple) else out
    wave = torch.linspace(0.1, 9.7, out.numel(), dtype=torch.float64).sin().view(out.shape)
    (out.double() * wave).sum().backward()
    return out.detach(), {n: x.grad for n, x in leaves.items() if x is not None and x.grad is not None}


def assert_same(
    left: tuple[Tensor, dict[str, Tensor]], right: tuple[Tensor, dict[str, Tensor]], tolerance: float
) -> None:
    torch.testing.assert_close(left[0], right[0], rtol=tolerance, atol=tolerance, check_dtype=False)
    assert left[1].keys() == right[1].keys()
    for name, grad in left[1].items():
        other = right[1][name].to(grad.dtype)
        scale = tolerance * (1 + float(other.abs().max()))
        torch.testing.assert_close(grad, other, rtol=tolerance, atol=scale, msg=lambda m, n=name: f"d{n}: {m}")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("method", ["reference", "recurrent", "chunk", "cg", "auto"])
def test_published_definitions(shared: Any, method: str, dtype: torch.dtype, tolerance: float) -> None:
    golden = load_file(shared / "golden" / "mesa.safetensors")
    q, k, v, lam, ridge, gamma, beta = (golden[n].to(dtype) for n in ("q", "k", "v", "lam", "ridge", "gamma", "beta"))
    out = mesa(q, k, v, 1 / lam, method=method)
    assert (out - golden["out_mesa"]).abs().max() < tolerance
    if method != "recurrent":
        out = mesa(q, k, v, ridge, gamma, beta, method=method)
        assert (out - golden["out_mesanet"]).abs().max() < tolerance


@pytest.mark.parametrize("chunk_size", range(1, 15))
@pytest.mark.parametrize(("method", "name"), CASES)
def test_outputs_and_gradients_equal_the_reference(method: str, name: str, chunk_size: int) -> None:
    decay, ridge_decays = SETTINGS[name]
    inputs = problem(t=13, decay=decay)
    truth = gradients(inputs, method="reference", ridge_decays=ridge_decays)
    fast = gradients(inputs, method=method, ridge_decays=ridge_decays, chunk_size=chunk_size, **TIGHT)
    assert_same(fast, truth, 1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize(("method", "name"), CASES)
def test_short_dtypes_keep_float32_statistics(method: str, name: str, dtype: torch.dtype, tolerance: float) -> None:
    decay, ridge_decays = SETTINGS[name]
    inputs = problem(t=37, dk=7, dv=4, decay=decay, dtype=dtype, slowest=0.9)
    wide = {n: None if x is None else x.double() for n, x in inputs.items()}
    truth = gradients(wide, method="reference", ridge_decays=ridge_decays)
    fast = gradients(inputs, method=method, ridge_decays=ridge_decays, chunk_size=8)
    assert fast[0].dtype == dtype
    assert_same(fast, truth, tolerance)


@settings(max_examples=25, deadline=None)
@given(
    t=st.integers(1, 40),
    dk=st.integers(1, 9),
    dv=st.integers(1, 9),
    chunk_size=st.integers(1, 41),
    name=st.sampled_from(sorted(SETTINGS)),
    gate=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_any_size(t: int, dk: int, dv: int, chunk_size: int, name: str, gate: bool, seed: int) -> None:
    decay, ridge_decays = SETTINGS[name]
    inputs = problem(1, 2, t, dk, dv, decay=decay, gate=gate, seed=seed)
    truth = gradients(inputs, method="reference", ridge_decays=ridge_decays)
    fast = gradients(inputs, method="chunk", ridge_decays=ridge_decays, chunk_size=chunk_size, **TIGHT)
    assert_same(fast, truth, 1e-8)


@pytest.mark.parametrize(("method", "name"), CASES)
def test_gradcheck_with_state(method: str, name: str) -> None:
    decay, ridge_decays = SETTINGS[name]
    inputs = problem(1, 2, 5, 3, 2, decay=decay)
    leaves = [None if x is None else x.requires_grad_() for x in inputs.values()]
    root = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    gram = (root @ root.mT).requires_grad_()
    cross = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(1, 2, dtype=torch.float64).add(0.5).requires_grad_()

    def outputs(*x: Tensor) -> tuple[Tensor, ...]:
        state = MesaState((x[-3] + x[-3].mT) / 2, x[-2], x[-1])
        out, last = mesa(
            *x[:-3], state=state, method=method, chunk_size=2, ridge_decays=ridge_decays, return_state=True, **TIGHT
        )
        return out, last.gram, last.cross, last.ridge_scale

    # along one random direction instead of entry by entry
    assert torch.autograd.gradcheck(outputs, (*leaves, gram, cross, scale), fast_mode=True)


@pytest.mark.parametrize("ridge", [0.7, torch.tensor([0.5, 2.0], dtype=torch.float64)])
def test_ridge_shapes(ridge: Tensor | float) -> None:
    inputs = {**problem(), "ridge": ridge}
    out = mesa(**inputs, method="chunk", chunk_size=4)
    full = torch.as_tensor(ridge, dtype=torch.float64).reshape(-1, 1).expand(2, 5)
    torch.testing.assert_close(out, mesa(**{**inputs, "ridge": full}, method="reference"))


def test_ridge_gradient_has_the_shape_of_the_ridge() -> None:
    ridge = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    inputs = {**problem(), "ridge": ridge}
    fast = torch.autograd.grad(mesa(**inputs, method="chunk").sum(), ridge)[0]
    truth = torch.autograd.grad(mesa(**inputs, method="reference").sum(), ridge)[0]
    torch.testing.assert_close(fast, truth)


def test_a_closed_gate_still_has_a_gradient() -> None:
    inputs = problem()
    assert inputs["input_gate"] is not None
    inputs["input_gate"][:, :, ::3] = 0.0
    assert_same(gradients(inputs, method="chunk", chunk_size=4), gradients(inputs, method="reference"), 1e-10)


def test_autocast_does_not_reach_the_statistics() -> None:
    inputs = problem(t=20, dtype=torch.float32)
    plain = gradients(inputs, method="chunk")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = gradients(inputs, method="chunk")
    assert_same(mixed, plain, 0.0)


def test_plan_names_its_reason() -> None:
    inputs = problem(t=64, decay=True, slowest=0.99, dtype=torch.float32)
    q, v, decay = inputs["q"], inputs["v"], inputs["decay"]
    assert q is not None
    assert v is not None
    assert decay is not None
    assert mesa_plan(q, v).method == "chunk"
    assert mesa_plan(q, v, decay).method == "chunk"
    assert mesa_plan(q, v, decay.pow(100)).method == "cg"
    assert mesa_plan(q[:, :, :1], v[:, :, :1], return_state=True).method == "recurrent"
    assert "Woodbury" in mesa_plan(q, v).reason
