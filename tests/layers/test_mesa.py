"""The mesa layers against the objectives and equations they state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.layers.linear_attention import LinearSelfAttention
from unrolled.layers.mesa import MesaLayer, MesaNetBlock, MesaNetLayer
from unrolled.theory.in_context import ridge_regression

LAYERS: dict[str, Any] = {
    "mesa": lambda: MesaLayer(dim=12, heads=2, dim_head=5, dim_value=3),
    "forgetful": lambda: MesaLayer(dim=12, heads=2, dim_head=5, forgetful=True, normalize=True),
    "mesanet": lambda: MesaNetLayer(dim=12, heads=2, dim_head=5),
    "mesanet values": lambda: MesaNetLayer(dim=12, heads=2, dim_head=4, dim_value=6, width=3, conv_values=True),
    "block": lambda: MesaNetBlock(dim=12, heads=2, dim_head=5),
}


def tokens(b: int = 3, n: int = 11) -> Tensor:
    return torch.randn(b, n, 12, dtype=torch.float64)


def test_each_head_reads_the_minimiser_of_its_objective() -> None:
    layer = MesaLayer(dim=12, heads=2, dim_head=5, dim_value=3, ridge=0.3).double()
    z = tokens()
    q, k, v = (layer.heads_of(p(z)) for p in (layer.query, layer.key, layer.value))
    reads = [
        ridge_regression(k[:, :, : t + 1], v[:, :, : t + 1], layer.ridge[:, None]) @ q[:, :, t, :, None]
        for t in range(11)
    ]
    torch.testing.assert_close(layer(z), layer.merge(torch.cat(reads, -1).mT))


def test_a_large_ridge_rescaled_is_linear_self_attention() -> None:
    layer = MesaLayer(dim=12, heads=2, dim_head=5, ridge=1e9).double()
    linear = LinearSelfAttention(dim=12, heads=2, dim_head=5).double()
    linear.load_state_dict(layer.state_dict(), strict=False)
    z = tokens()
    torch.testing.assert_close(layer(z) * layer.ridge[0], linear(z), rtol=1e-6, atol=1e-6)


def test_mesanet_equations_step_by_step() -> None:
    layer = MesaNetLayer(dim=12, heads=2, dim_head=5).double()
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
        system = h + torch.diag_embed(0.25 + F.softplus(layer.raw_ridge))
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
        MesaLayer(dim=4, heads=1, dim_head=2, ridge=0.0)
