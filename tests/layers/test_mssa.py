"""MSSA equals explicit softmax attention with q = k = v, and its tied form descends the compression term."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unrolled import theory
from unrolled.layers import MSSA


def explicit(layer: MSSA, z: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The slow twin: softmax of Gram matrices, head by head."""
    outputs = []
    for basis in layer.bases():
        w = z @ basis
        logits = w @ w.mT / layer.dim_head**0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        outputs.append(logits.softmax(-1) @ w)
    if layer.output is None:
        return layer.scale * sum(out @ basis.mT for out, basis in zip(outputs, layer.bases(), strict=True))
    return layer.output(torch.cat(outputs, -1))


@pytest.mark.parametrize("shape", [(1, 1, 6), (2, 5, 12), (2, 17, 24)])
@pytest.mark.parametrize("output", ["learned", "tied"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 0.05)]
)
def test_output_and_gradients_equal_explicit_attention(shape, output, causal, dtype, tolerance):
    layer = MSSA(shape[-1], 3, dim_head=5, output=output, scale=0.7, dtype=dtype)
    exact = copy.deepcopy(layer).double()
    z = torch.randn(shape, dtype=dtype)
    a, b = z.clone().requires_grad_(), z.double().clone().requires_grad_()
    mask = torch.ones(shape[1], shape[1], dtype=torch.bool).tril() if causal else None
    out, reference = layer(a, is_causal=causal), explicit(exact, b, mask)
    torch.testing.assert_close(out.double(), reference, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(reference)
    out.backward(weights.to(dtype))
    reference.backward(weights)
    scale = float(b.grad.abs().max()) + 1
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=tolerance, atol=tolerance * scale)
    expected = exact.subspaces.weight.grad
    scale = float(expected.abs().max()) + 1
    torch.testing.assert_close(layer.subspaces.weight.grad.double(), expected, rtol=tolerance, atol=tolerance * scale)


def test_attention_maps_are_what_the_layer_uses():
    layer = MSSA(12, 3, output="tied")
    z = torch.randn(2, 7, 12)
    maps = layer.attention(z)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 7))
    mixed = (maps @ layer.project(z)).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(F.linear(mixed, layer.subspaces.weight.mT), layer(z), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.attention(z, query=0), maps[:, :, :1])
    torch.testing.assert_close(layer.attention(z, query=slice(2, 5)), maps[:, :, 2:5])
    assert layer.attention(z, is_causal=True).triu(1).eq(0).all()


def test_boolean_masks_hide_tokens():
    layer = MSSA(8, 2)
    z = torch.randn(1, 6, 8)
    hidden = torch.ones(6, 6, dtype=torch.bool)
    hidden[:, 4:] = False
    other = z.clone()
    other[:, 4:] = 9.0
    torch.testing.assert_close(layer(z, attn_mask=hidden)[:, :4], layer(other, attn_mask=hidden)[:, :4])


def mixture(heads: int, p: int, n: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens near `heads` orthogonal subspaces, and their bases `[h, d, p]`."""
    g = torch.Generator().manual_seed(seed)
    d = heads * p
    q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=g))[0]
    bases = q.reshape(d, heads, p).permute(1, 0, 2)
    members = torch.randint(heads, (n,), generator=g)
    codes = torch.randn(n, p, dtype=torch.float64, generator=g)
    clean = torch.einsum("np,ndp->nd", codes, bases[members])
    return clean + noise * torch.randn(n, d, dtype=torch.float64, generator=g), bases


def compression_step(norm: float, eps: float, seed: int) -> tuple[float, float, float, float]:
    """Cosine of MSSA(Z) - Z with -grad R^c at that token norm; R^c before, a tenth of it on, and at Z + MSSA(Z)."""
    z, bases = mixture(heads=4, p=8, n=197, noise=0.1, seed=seed)
    z = theory.normalize_tokens(z) * norm
    layer = MSSA(32, 4, output="tied", dtype=torch.float64)
    with torch.no_grad():
        layer.subspaces.weight.copy_(bases.permute(0, 2, 1).reshape(32, 32))
        mssa = layer(z[None])[0]
    # Z_half = (1 - kappa alpha) Z + kappa alpha MSSA(Z): the derived step is along MSSA(Z) - Z
    step = mssa - z
    descent = -theory.subspace_coding_rate_gradient(z, bases, eps)
    cosine = F.cosine_similarity(step.flatten(), descent.flatten(), dim=0)
    rates = [theory.subspace_coding_rate(at, bases, eps) for at in (z, z + 0.1 * step, z + mssa)]
    return float(cosine), *map(float, rates)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("eps", "least"), [(1.0, 0.99), (0.5, 0.97), (0.1, 0.90)])
def test_tied_mssa_approximately_descends_the_compression_term(seed, eps, least):
    """Approximate: softmax replaces the inverse. Measured on unit tokens: cosine 0.995, 0.982, 0.934 for these eps."""
    cosine, before, after, _ = compression_step(norm=1.0, eps=eps, seed=seed)
    assert after < before
    assert cosine > least


def test_where_the_approximation_ends():
    """Long tokens attend to themselves, MSSA(Z) - Z vanishes, and the cosine falls to 0.4 (the docstring says so).

    With the residual coefficient 1 of the published model, Z + MSSA(Z) raises R^c even on unit tokens.
    """
    cosine, before, after, residual_one = compression_step(norm=32**0.5, eps=0.5, seed=0)
    assert cosine < 0.6
    assert after < before < residual_one
    _, before, _, residual_one = compression_step(norm=1.0, eps=0.5, seed=0)
    assert residual_one > before


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"heads": 3}, "heads=3"), ({"heads": 0}, "heads=0"), ({"heads": 2, "output": "x"}, "output")],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        MSSA(16, **arguments)


def test_one_full_head_has_no_output_matrix():
    assert isinstance(MSSA(8, 1).output, nn.Identity)
    assert isinstance(MSSA(8, 1, dim_head=4).output, nn.Linear)


def test_the_exact_step_of_large_tokens_of_low_rank_exists():
    layer = MSSA(64, 2, compression="exact", eps=0.1, output="tied").double()
    with torch.no_grad():
        for norm in (1.0, 1e3, 1e6):
            z = torch.randn(1, 100, 5, dtype=torch.float64) @ torch.randn(5, 64, dtype=torch.float64)
            z = norm * z / z.norm(dim=-1, keepdim=True)
            assert bool(layer.double()(z).isfinite().all())
            assert bool(layer.float()(z.float()).isfinite().all())
            assert bool(layer.bfloat16()(z.bfloat16()).isfinite().all())
