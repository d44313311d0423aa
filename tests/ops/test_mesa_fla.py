"""What the kernel of flash-linear-attention is handed, with a stand-in that computes by that package's conventions."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from unrolled.errors import MissingExtra
from unrolled.ops import mesa, mesa_plan
from unrolled.ops.mesa_solve import fla as mesa_fla


def dense(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, lamb: Tensor) -> Tensor:
    """H_t and G_t step by step in that package's layout [b, t, h, d], log decay and unscaled queries."""
    q, k, v, g, beta, lamb = (x.double() for x in (q, k, v, g, beta, lamb))
    gram = torch.zeros(*q.shape[:1], *q.shape[2:], q.shape[-1], dtype=torch.float64)
    cross, out = gram.clone(), torch.empty_like(q)
    for t in range(q.shape[1]):
        forget, weighed = g[:, t, :, None, None].exp(), k[:, t] * beta[:, t, :, None]
        gram = gram * forget + weighed[..., :, None] * k[:, t, :, None, :]
        cross = cross * forget + weighed[..., :, None] * v[:, t, :, None, :]
        x = torch.linalg.solve(gram + torch.diag_embed(lamb), q[:, t])
        out[:, t] = (x[..., None] * cross).sum(-2)
    return out


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def chunk_mesa_net(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        lamb: Tensor,
        h_kk_init: Tensor | None = None,
        h_kv_init: Tensor | None = None,
        output_final_state: bool = False,
        max_CG_iteration: int = 30,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, None, None]:
        assert h_kk_init is h_kv_init is cu_seqlens is None
        seen.append({"q": q, "g": g, "beta": beta, "lamb": lamb, "steps": max_CG_iteration})
        return dense(q, k, v, g, beta, lamb).to(q.dtype), None, None

    for name in ("fla", "fla.ops", "fla.ops.mesa_net"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["fla.ops.mesa_net"].chunk_mesa_net = chunk_mesa_net  # type: ignore[attr-defined]
    monkeypatch.setattr(mesa_fla, "_on_gpu", lambda x: True)
    return seen


def arguments(**changes: Any) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.nn.functional.normalize(torch.randn(3, 2, 3, 9, 4, generator=g), dim=-1).bfloat16()
    return {"q": q, "k": k, "v": v, "ridge": 0.3 + torch.rand(3, 4, generator=g)} | changes


def test_conventions_agree(calls: list[dict[str, Any]]) -> None:
    decay, gate = 0.8 + 0.2 * torch.rand(2, 3, 9), torch.rand(2, 3, 9)
    given = arguments(decay=decay, input_gate=gate)
    out = mesa(**given, method="fla", steps=12)
    assert out.shape == (2, 3, 9, 4)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, mesa(**given, method="reference"), rtol=1e-2, atol=1e-2)
    (call,) = calls
    assert call["q"].shape == (2, 9, 3, 4)
    torch.testing.assert_close(call["q"], given["q"].transpose(1, 2))  # not scaled
    torch.testing.assert_close(call["g"].exp(), decay.transpose(1, 2))
    torch.testing.assert_close(call["beta"], gate.transpose(1, 2))
    torch.testing.assert_close(call["lamb"], given["ridge"])
    assert call["steps"] == 12


def test_nothing_decays_and_every_gate_is_open_by_default(calls: list[dict[str, Any]]) -> None:
    out = mesa(**arguments(ridge=0.5), method="fla", lengths=torch.tensor([9, 4]))
    torch.testing.assert_close(
        out, mesa(**arguments(ridge=0.5), method="chunk", lengths=torch.tensor([9, 4])), rtol=1e-2, atol=1e-2
    )
    assert (out[1, :, 4:] == 0).all()
    assert (calls[0]["g"] == 0).all()
    assert (calls[0]["beta"] == 1).all()
    assert (calls[0]["lamb"] == 0.5).all()
    assert calls[0]["steps"] == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v": torch.zeros(2, 3, 9, 5, dtype=torch.bfloat16)}, "one width, not 4 and 5"),
        ({n: torch.zeros(1, 1, 2, 129).bfloat16() for n in "qkv"} | {"ridge": 1.0}, "up to 128"),
        ({"v": torch.zeros(2, 3, 9, 4)}, "bfloat16"),
        ({"return_state": True}, "return_state"),
        ({"return_residual": True}, "return_residual"),
        ({"chunk_size": 4}, "chunk_size"),
        ({"tolerance": 1e-4}, "tolerance"),
        ({"decay": torch.full((2, 3, 9), 0.9), "ridge_decays": True}, "ridge_decays"),
    ],
)
def test_what_it_cannot_serve_is_named(calls: list[dict[str, Any]], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mesa(**arguments(**changes), method="fla")
    assert not calls


def test_what_is_not_finite_is_an_error(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = sys.modules["fla.ops.mesa_net"]
    monkeypatch.setattr(kernel, "chunk_mesa_net", lambda q, **rest: (q * torch.nan, None, None))
    with pytest.raises(ValueError, match=r'not finite.*method="chunk"'):
        mesa(**arguments(), method="fla")


def test_a_state_is_not_served(calls: list[dict[str, Any]]) -> None:
    _, state = mesa(**arguments(), return_state=True)
    with pytest.raises(ValueError, match="state"):
        mesa(**arguments(), method="fla", state=state)


def test_a_cpu_is_refused(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesa_fla, "_on_gpu", lambda x: x.device.type == "cuda")
    with pytest.raises(ValueError, match="GPUs only"):
        mesa(**arguments(), method="fla")


@pytest.mark.skipif(importlib.util.find_spec("fla") is not None, reason="fla is installed")
def test_the_missing_package_is_named_and_auto_never_needs_it() -> None:
    with pytest.raises(MissingExtra, match="pip install flash-linear-attention"):
        mesa(**arguments(), method="fla")
    given = arguments()
    assert mesa_plan(given["q"], given["v"]).method == "chunk"
