"""The mesa layers against the objectives and equations they state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.layers.linear_attention import LinearSelfAttention, SoftmaxSelfAttention
from unrolled.layers.mesa import MesaLayer, MesaNetBlock, MesaNetLayer
from unrolled.theory.in_context import context_weights, least_squares, ridge_regression

LAYERS: dict[str, Any] = {
    "mesa": lambda: MesaLayer(12, 2, dim_head=5, dim_value=3),
    "forgetful": lambda: MesaLayer(12, 2, dim_head=5, forgetful=True, normalize=True),
    "mesanet": lambda: MesaNetLayer(12, 2, dim_head=5),
    "mesanet values": lambda: MesaNetLayer(12, 2, dim_head=4, dim_value=6, width=3, conv_values=True),
    "block": lambda: MesaNetBlock(12, 2, dim_head=5),
}


def tokens(b: int = 3, n: int = 11) -> Tensor:
    return torch.randn(b, n, 12, dtype=torch.float64)


def test_each_head_reads_the_minimiser_of_its_objective() -> None:
    layer = MesaLayer(12, 2, dim_head=5, dim_value=3, ridge=0.3).double()
    z = tokens()
    q, k, v = (layer.heads_of(p(z)) for p in (layer.query, layer.key, layer.value))
    reads = [
        ridge_regression(k[:, :, : t + 1], v[:, :, : t + 1], layer.ridge[:, None]) @ q[:, :, t, :, None]
        for t in range(11)
    ]
    torch.testing.assert_close(layer(z), layer.merge(torch.cat(reads, -1).mT))


def test_a_large_ridge_rescaled_is_linear_self_attention() -> None:
    layer = MesaLayer(12, 2, dim_head=5, ridge=1e9).double()
    linear = LinearSelfAttention(12, 2, dim_head=5).double()
    linear.load_state_dict(layer.state_dict(), strict=False)
    z = tokens()
    torch.testing.assert_close(layer(z) * layer.ridge[0], linear(z), rtol=1e-6, atol=1e-6)


def test_mesanet_equations_step_by_step() -> None:
    layer = MesaNetLayer(12, 2, dim_head=5).double()
    nn.init.normal_(layer.gates.weight)
    nn.init.normal_(layer.raw_ridge)
    z = tokens()
    mixed = torch.cat([layer.query(z), layer.key(z)], -1)
    padded = F.pad(mixed, (0, 0, 3, 0))
    taps = layer.conv.weight[:, 0]  # [channels, 4]
    mixed = F.silu(sum(padded[:, i : i + 11] * taps[:, i] for i in range(4)))
    q, k = (F.normalize(layer.heads_of(x), dim=-1) for x in mixed.chunk(2, -1))
    v = layer.heads_of(layer.value(z))
    beta, gamma = layer.gates(z).sigmoid().transpose(1, 2).chunk(2, 1)
    gamma = gamma * (1 - 0.0025 * beta**2)
    g, h, outputs = torch.zeros(3, 2, 5, 5, dtype=z.dtype), torch.zeros(3, 2, 5, 5, dtype=z.dtype), []
    for t in range(11):
        g, h = (
            gamma[:, :, t, None, None] * s + beta[:, :, t, None, None] * x[:, :, t, :, None] * k[:, :, t, None, :]
            for s, x in ((g, v), (h, k))
        )
        ridge = 0.25 + F.softplus(layer.raw_ridge)
        system = h + torch.diag_embed(ridge)
        phi = (g @ torch.linalg.inv(system)).detach().requires_grad_()  # where the objective is least
        pairs = k[:, :, : t + 1].detach(), v[:, :, : t + 1].detach()
        weights = context_weights(gamma, beta, 11, z)[:, :, t, : t + 1].detach()
        (gradient,) = torch.autograd.grad(least_squares(phi, *pairs, ridge.detach(), weights).sum(), phi)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)
        o = g @ torch.linalg.solve(system, q[:, :, t])[..., None]
        outputs.append(o[..., 0] * o[..., 0].square().mean(-1, keepdim=True).add(torch.finfo(z.dtype).eps).rsqrt())
    torch.testing.assert_close(layer(z), layer.merge(torch.stack(outputs, 2)))


def test_the_ridge_starts_at_one() -> None:
    torch.testing.assert_close(LAYERS["mesanet"]().ridge, torch.ones(2, 5))
    torch.testing.assert_close(LAYERS["mesa"]().ridge, torch.ones(2))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("cut", [1, 2, 7])
def test_prefill_then_decode_is_one_pass(name: str, cut: int) -> None:
    layer = LAYERS[name]().double()
    z = tokens()
    whole = layer(z)
    assert whole.shape == z.shape
    out, state = layer(z[:, :cut], return_state=True)
    pieces = [out]
    for t in range(cut, 11):
        out, state = layer(z[:, t : t + 1], state=state, return_state=True)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_padded_prefill_decodes_like_each_sequence_alone(name: str) -> None:
    layer = LAYERS[name]().double()
    z, new = tokens(), tokens(n=1)
    lengths = torch.tensor([11, 1, 6])
    _, state = layer(z, lengths=lengths, return_state=True)
    step = layer(new, state=state)
    for i, length in enumerate(lengths.tolist()):
        alone = layer(torch.cat([z[i : i + 1, :length], new[i : i + 1]], 1))
        torch.testing.assert_close(step[i : i + 1], alone[:, -1:], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_learns(name: str) -> None:
    layer = LAYERS[name]()
    layer(torch.randn(2, 9, 12)).square().sum().backward()
    for parameter, value in layer.named_parameters():
        assert value.grad is not None, parameter
        assert torch.isfinite(value.grad).all(), parameter
        assert value.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_runs_and_stays_close(name: str) -> None:
    layer = LAYERS[name]()
    z = torch.randn(2, 9, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(z)
        out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), layer(z), rtol=0.1, atol=0.1)


def test_causality() -> None:
    for name, make in LAYERS.items():
        layer, z = make().double(), tokens()
        other = z.clone()
        other[:, 6:] += 1.0
        assert torch.equal(layer(z)[:, :6], layer(other)[:, :6]) or torch.allclose(
            layer(z)[:, :6], layer(other)[:, :6], atol=1e-12
        ), name


def test_bad_ridge_is_named() -> None:
    with pytest.raises(ValueError, match="ridge"):
        MesaLayer(4, 1, dim_head=2, ridge=0.0)


@pytest.mark.parametrize("make", [LAYERS["forgetful"], LAYERS["mesanet"], LAYERS["block"]])
def test_float16_padding_tokens_of_zeros_give_finite_updates(make: Any) -> None:
    layer = make().half()
    z = torch.randn(2, 5, 12).half()
    z[0] = 0
    assert torch.isfinite(layer(z)).all()
    assert (layer(z)[0] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e3, 1e4, 6e4])
@pytest.mark.parametrize("name", ["mesa", "forgetful", "mesanet"])
def test_large_float16_tokens_give_a_finite_update_or_an_error_that_says_overflow(name: str, scale: float) -> None:
    layer = LAYERS[name]().half()
    z = torch.randn(2, 5, 12).clamp(-1, 1).mul(scale).half()
    failure = ""
    try:
        assert torch.isfinite(layer(z)).all()
    except ValueError as error:
        failure = str(error)
    assert not failure or ("overflow" in failure and "bfloat16" in failure and scale > 1e2)


def test_an_update_beyond_float16_is_an_error() -> None:
    layer = MesaLayer(2, 1, dim_head=2, ridge=1.0).half()
    with torch.no_grad():
        for projection in (layer.query, layer.key, layer.value):
            projection.weight.copy_(torch.eye(2))
        layer.output.weight.copy_(4 * torch.eye(2))
    z = torch.full((1, 3, 2), 3e4).half()
    with pytest.raises(ValueError, match="the update overflows float16: scale z down"):
        layer(z)
    with pytest.raises(ValueError, match="the projections of z overflow"):
        MesaLayer(2, 1, dim_head=2).half()(torch.full((1, 3, 2), 6e4).half() * torch.tensor([1, -1]).half())
    assert torch.isfinite(layer.bfloat16()(z.bfloat16())).all()


def test_a_small_ridge_survives_float16() -> None:
    layer = MesaLayer(4, 1, dim_head=2, ridge=1e-8).half()
    torch.testing.assert_close(layer.ridge, torch.tensor([1e-8]), rtol=1e-2, atol=0)
    assert torch.isfinite(layer(torch.randn(1, 3, 4).half())).all()


WRONG_TOKENS: dict[str, tuple[Any, str]] = {
    "no tokens": (lambda: torch.zeros(2, 0, 12), "z must hold at least one sequence and one token"),
    "no sequences": (lambda: torch.zeros(0, 3, 12), "z must hold at least one sequence and one token"),
    "width": (lambda: torch.zeros(2, 3, 9), r"z must be tokens \[batch, n, 12\]"),
    "two dimensions": (lambda: torch.zeros(3, 12), r"z must be tokens \[batch, n, 12\]"),
    "integers": (lambda: torch.zeros(2, 3, 12, dtype=torch.long), "z must be a floating-point tensor"),
    "nan": (lambda: torch.full((2, 3, 12), torch.nan), "z holds tokens that are not finite"),
    "infinite": (lambda: torch.full((2, 3, 12), torch.inf), "z holds tokens that are not finite"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("wrong", WRONG_TOKENS)
def test_tokens_that_do_not_fit_are_named(name: str, wrong: str) -> None:
    make, message = WRONG_TOKENS[wrong]
    with pytest.raises(ValueError, match=message):
        LAYERS[name]()(make())


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_or_lengths_that_do_not_fit_are_named(name: str) -> None:
    layer, z = LAYERS[name](), torch.randn(3, 4, 12)
    _, state = layer(z, return_state=True)
    with pytest.raises(ValueError, match=r"state\.(gram|window) must be"):
        layer(z[:2], state=state)
    _, other = type(layer)(dim=12, heads=2, dim_head=9)(z, return_state=True)
    with pytest.raises(ValueError, match=r"state\.(gram|window) must be"):
        layer(z, state=other)
    foreign = MesaLayer(12, 2, dim_head=5) if "Net" in type(layer).__name__ else MesaNetLayer(12, 2, dim_head=5)
    with pytest.raises(ValueError, match="state must be a Mesa"):
        layer(z, state=foreign(z, return_state=True)[1])
    with pytest.raises(ValueError, match=r"lengths must lie in 0\.\.4"):
        layer(z, lengths=torch.tensor([5, 1, 1]))
    torch.testing.assert_close(layer(z, lengths=[4, 2, 1]), layer(z, lengths=torch.tensor([4, 2, 1])))


def test_a_state_of_other_taps_is_named() -> None:
    z = torch.randn(2, 4, 12)
    _, state = MesaNetLayer(12, 2, dim_head=5, width=3)(z, return_state=True)
    with pytest.raises(ValueError, match=r"state\.window must be \[2, 20, 3\]"):
        MesaNetLayer(12, 2, dim_head=5)(z, state=state)


@pytest.mark.parametrize("name", ["mesa", "forgetful", "mesanet", "mesanet values"])
def test_padding_may_hold_anything(name: str) -> None:
    layer, z = LAYERS[name]().double(), tokens()
    lengths = torch.tensor([11, 1, 6])
    padded = z.masked_fill((torch.arange(11) >= lengths[:, None])[..., None], torch.nan)
    torch.testing.assert_close(layer(padded, lengths=lengths), layer(z, lengths=lengths))
    padded[0, 3] = torch.nan
    with pytest.raises(ValueError, match="z holds tokens that are not finite"):
        layer(padded, lengths=lengths)


def test_a_parameter_that_diverged_is_named() -> None:
    layer = MesaNetLayer(12, 2, dim_head=5)
    nn.init.constant_(layer.gates.bias, torch.nan)
    with pytest.raises(ValueError, match=r"parameter gates\.bias is not finite"):
        layer(torch.randn(2, 3, 12))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (MesaLayer, {"dim_value": 0}, "dim_value must be positive"),
        (MesaNetBlock, {"dim_value": 0}, "dim_value must be positive"),
        (LinearSelfAttention, {"dim_value": 0}, "dim_value must be positive"),
        (MesaNetLayer, {"width": 0}, "width must be a whole number, at least 1"),
        (MesaNetLayer, {"width": 2.5}, "width must be a whole number, at least 1"),
        (SoftmaxSelfAttention, {"width": "4"}, "width must be a whole number, at least 1"),
        (SoftmaxSelfAttention, {"rotary": "x"}, "rotary='x': must be a positive number"),
        (SoftmaxSelfAttention, {"rotary": float("nan")}, "rotary=nan: must be a positive number"),
        (SoftmaxSelfAttention, {"rotary": 10.0, "dim_head": 3}, "dim_head=3 must be even"),
        (MesaLayer, {"method": "exact"}, "method must be one of auto"),
        (MesaNetBlock, {"method": "exact"}, "method must be one of auto"),
        (MesaNetLayer, {"method": "recurrent"}, "method must be one of auto"),
        (MesaLayer, {"ridge": float("inf")}, "ridge must be positive and finite"),
        (MesaNetBlock, {"mlp_ratio": 0.0}, "mlp_ratio must leave"),
    ],
)
def test_constructors_refuse_what_no_forward_pass_serves(kind: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"dim": 4, "heads": 1, "dim_head": 2} | changes)
