"""The forms of MSSA's step against -grad R^c, and subspaces that stay orthogonal while everything trains."""

import copy

import pytest
import torch
from torch.nn import functional as F

from tests.layers.test_mssa import mixture
from unrolled import theory
from unrolled.layers import CBSA, MSSA, TSSA
from unrolled.models import CRATE, MaskedAutoencoder, create_model
from unrolled.models.sequence_blocks import CausalMSSA

EPS = (1.0, 0.5, 0.1)
# the table in MSSA's docstring: form -> cosines at EPS for unit tokens, and for tokens of norm sqrt(d)
MEASURED = {
    "softmax": ((-0.24, -0.23, -0.21), (-0.93, -0.91, -0.91)),
    "negated": ((0.24, 0.23, 0.21), (0.93, 0.91, 0.91)),
    "derived": ((0.995, 0.982, 0.934), (0.42, 0.42, 0.42)),
    "neumann": ((0.998, -0.18, -0.78), (-0.78, -0.78, -0.78)),
    "exact": ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
}


def tied(form: str, eps: float, bases: torch.Tensor, scale: float = 1.0) -> MSSA:
    heads, d, p = bases.shape
    needed = eps if form in ("neumann", "exact") else None
    layer = MSSA(d, heads, dim_head=p, output="tied", compression=form, eps=needed, scale=scale, dtype=torch.float64)
    with torch.no_grad():
        layer.subspaces.weight.copy_(bases.mT.flatten(0, 1))
    return layer


@pytest.mark.parametrize("form", MEASURED)
@pytest.mark.parametrize("long", [False, True])
@torch.no_grad()
def test_cosines_with_the_negative_gradient_are_those_documented(form, long):
    for eps, expected in zip(EPS, MEASURED[form][long], strict=True):
        cosines = []
        for seed in range(3):
            z, bases = mixture(heads=4, p=8, n=197, noise=0.1, seed=seed)
            z = theory.normalize_tokens(z) * (32**0.5 if long else 1)
            descent = -theory.subspace_coding_rate_gradient(z, bases, eps)
            step = tied(form, eps, bases)(z[None])[0]
            cosines.append(float(F.cosine_similarity(step.flatten(), descent.flatten(), dim=0)))
            rates = [theory.subspace_coding_rate(at, bases, eps) for at in (z, z + 1e-3 * step)]
            assert (rates[1] < rates[0]) == (expected > 0)
        assert sum(cosines) / 3 == pytest.approx(expected, abs=0.01)


@torch.no_grad()
def test_the_published_sign_raises_the_rate_and_the_corrected_one_lowers_it():
    """The whole step, at the norm LayerNorm gives: Z + MSSA(Z) against Z - MSSA(Z)."""
    z, bases = mixture(heads=4, p=8, n=197, noise=0.1, seed=0)
    z = theory.normalize_tokens(z) * 32**0.5
    rate = theory.subspace_coding_rate
    before = rate(z, bases, 0.5)
    assert rate(z + tied("softmax", 0.5, bases)(z[None])[0], bases, 0.5) > before + 10
    assert rate(z + tied("negated", 0.5, bases)(z[None])[0], bases, 0.5) < before - 10


@pytest.mark.parametrize("seed", range(2))
def test_exact_is_the_gradient_even_if_subspaces_are_not_orthonormal(seed):
    torch.manual_seed(seed)
    bases, z = torch.randn(3, 10, 4, dtype=torch.float64), torch.randn(2, 7, 10, dtype=torch.float64)
    alpha = 4 / (7 * 0.3**2)
    step = tied("exact", 0.3, bases, scale=alpha)(z)
    torch.testing.assert_close(step, -theory.subspace_coding_rate_gradient(z, bases, 0.3))
    # the inverse is the limit of Neumann's sum: first order agrees to second order in alpha
    small = [tied(form, 100.0, bases)(z) for form in ("neumann", "exact")]
    order = float((4 / (7 * 100.0**2) * z.square().sum() * bases.square().sum()) ** 2)
    assert float((small[0] - small[1]).detach().abs().max()) < order


@torch.no_grad()
def test_on_orthonormal_subspaces_the_exact_step_shrinks_each_singular_value_as_the_theory_says():
    z, bases = mixture(heads=4, p=8, n=50, noise=0.1, seed=0)
    eps, kappa_alpha = 0.3, 0.7
    alpha = 8 / (50 * eps**2)
    after = z + tied("exact", eps, bases, scale=kappa_alpha)(z[None])[0]
    for basis in bases:
        s = torch.linalg.svdvals(z @ basis)
        torch.testing.assert_close(torch.linalg.svdvals(after @ basis), s * (1 - kappa_alpha / (1 + alpha * s**2)))
    assert theory.subspace_coding_rate(after, bases, eps) < theory.subspace_coding_rate(z, bases, eps)


@torch.no_grad()
def test_with_orthogonal_subspaces_that_span_the_space_the_heads_rate_bounds_the_rate():
    """Fischer: R at eps is at most R^c at eps sqrt(p / d), and equal when heads are uncorrelated."""
    z, bases = mixture(heads=4, p=8, n=60, noise=0.2, seed=1)
    assert float(theory.orthogonality_penalty(bases)) < 1e-20
    eps = 0.4
    inner = eps * (8 / 32) ** 0.5
    assert theory.coding_rate(z, eps) < theory.subspace_coding_rate(z, bases, inner)
    alone = torch.block_diag(*(z[15 * k : 15 * k + 15] @ bases[k] for k in range(4))) @ bases.mT.flatten(0, 1)
    torch.testing.assert_close(theory.coding_rate(alone, eps), theory.subspace_coding_rate(alone, bases, inner))


def test_penalty_is_the_sum_over_pairs_of_heads_and_trains_subspaces_apart():
    torch.manual_seed(0)
    layer = MSSA(12, 3)
    u = layer.bases()
    pairs = ((u[h].mT @ u[k] - (h == k) * torch.eye(4)).square().sum() for h in range(3) for k in range(3))
    torch.testing.assert_close(theory.orthogonality_penalty(u), sum(pairs))
    crowded = torch.nn.functional.normalize(torch.randn(3, 8, 4), dim=1)
    assert float(theory.orthogonality_penalty(crowded)) >= 3 * 4 - 8
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        theory.orthogonality_penalty(layer.bases()).backward()
        optimizer.step()
    assert float(theory.orthogonality_penalty(layer.bases()).detach()) < 1e-4
    with pytest.raises(ValueError, match="subspaces"):
        theory.orthogonality_penalty(torch.eye(3))


@pytest.mark.parametrize("kind", [MSSA, TSSA, CBSA])
def test_orthogonal_subspaces_stay_so_while_training_with_weight_decay(kind):
    torch.manual_seed(0)
    layer = kind(16, 3, dim_head=4, orthogonal=True)
    before = layer.bases().detach()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(10):
        optimizer.zero_grad()
        (layer(torch.randn(2, 10, 16)) - 1).square().mean().backward()
        optimizer.step()
    u = layer.bases().detach()
    assert float((u - before).abs().max()) > 0.1
    for h in range(3):
        for k in range(3):
            torch.testing.assert_close(u[h].mT @ u[k], (h == k) * torch.eye(4), atol=1e-5, rtol=0)
    assert "orthogonal" in repr(layer)


def test_gradients_through_orthogonal_subspaces_are_right():
    layer = MSSA(6, 2, dim_head=2, orthogonal=True, compression="exact", eps=1.0, output="tied", dtype=torch.float64)
    z = torch.randn(1, 4, 6, dtype=torch.float64)
    raw = layer.subspaces.parametrizations.weight.original
    scaled = copy.deepcopy(layer)
    with torch.no_grad():
        scaled.subspaces.parametrizations.weight.original.mul_(3)
    torch.testing.assert_close(scaled(z), layer(z))  # only the span and its order matter

    def run(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"subspaces.parametrizations.weight.original": weight}, (z,))

    assert torch.autograd.gradcheck(run, (raw.detach().clone().requires_grad_(),))


def test_models_take_the_options_and_come_back_with_them(tmp_path):
    options = {"orthogonal": True, "compression": "exact", "eps": 0.5, "output": "tied"}
    model = CRATE(image_size=8, patch_size=4, num_classes=3, dim=16, depth=2, heads=4, **options).eval()
    for block in model.blocks:
        assert float(theory.orthogonality_penalty(block.attn.bases()).detach()) < 1e-8
        assert (block.attn.compression, block.attn.eps) == ("exact", 0.5)
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(CRATE.from_pretrained(tmp_path).eval()(images), model(images))
    before = model.blocks[0].attn.bases().detach()
    model.init_weights()
    assert not torch.allclose(model.blocks[0].attn.bases(), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images).isfinite().all()
    masked = MaskedAutoencoder(image_size=8, patch_size=4, dim=16, depth=1, heads=4, **options)
    assert masked.decoder_blocks[0].attn.compression == "exact"
    masked(images, 0.5).loss.backward()


def test_untrained_controls_of_orthogonal_models_are_orthogonal():
    from unrolled.instruments.control import untrained_control

    model = create_model("crate_nano_patch2_8", depth=1, orthogonal=True)
    control = untrained_control(model, 3)
    assert float(theory.orthogonality_penalty(control.blocks[0].attn.bases()).detach()) < 1e-6
    assert not torch.allclose(control.blocks[0].attn.bases(), model.blocks[0].attn.bases())


def test_causal_forms_decode_as_they_read():
    for form in ("negated", "derived"):
        layer = CausalMSSA(8, 2, compression=form)
        z = torch.randn(1, 5, 8)
        torch.testing.assert_close(layer(z), MSSA.forward(layer, z, is_causal=True))
        first, state = layer(z[:, :3], return_state=True)
        torch.testing.assert_close(torch.cat([first, layer(z[:, 3:], state=state)], 1), layer(z))
    with pytest.raises(ValueError, match="causal"):
        CausalMSSA(8, 2, compression="exact", eps=1.0)
    with pytest.raises(ValueError, match="is_causal"):
        MSSA(8, 2, compression="exact", eps=1.0)(torch.randn(1, 3, 8), is_causal=True)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: MSSA(8, 2, compression="inverse"), "compression='inverse'"),
        (lambda: MSSA(8, 2, compression="exact"), "eps=None"),
        (lambda: MSSA(8, 2, eps=0.1), "eps=0.1"),
        (lambda: MSSA(8, 2, compression="exact", eps=-1.0), "eps=-1.0"),
        (lambda: MSSA(8, 3, dim_head=4, orthogonal=True), "orthogonal"),
        (lambda: create_model("crate_nano_patch2_8", attention="tssa", compression="negated"), "compression"),
        (lambda: create_model("crate_nano_patch2_8", attention="mhsa", orthogonal=True), "orthogonal"),
    ],
)
def test_bad_options_are_named(build, name):
    with pytest.raises(ValueError, match=name):
        build()
