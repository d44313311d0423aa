"""The mixture of subspaces: its score is the gradient of its density, its denoiser the best, its limit of MSSA true."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.layers.mssa import MSSA
from unrolled.theory.denoising import SubspaceMixture, random_subspaces

mixtures = st.builds(
    lambda heads, p, room, orthogonal, signal, noise, seed: SubspaceMixture(
        subspaces=random_subspaces(
            heads, heads * p + room if orthogonal else p + room, p, orthogonal=orthogonal, seed=seed
        ),
        signal=signal,
        noise=noise,
    ),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 3),
    st.booleans(),
    st.floats(0.3, 3),
    st.floats(0.05, 2),
    st.integers(0, 1000),
)


@settings(max_examples=25, deadline=None)
@given(mixtures)
def test_the_score_is_the_gradient_of_the_log_density(mixture: SubspaceMixture) -> None:
    z = mixture.sample(5, torch.Generator().manual_seed(0))[1].requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(z).sum(), z)
    # in units of what the denoiser adds: rounding of the distances is divided by sigma^2 in both
    step = mixture.noise**2
    torch.testing.assert_close(step * mixture.score(z), step * gradient, rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(mixtures)
def test_the_log_density_is_that_of_a_mixture_of_full_gaussians(mixture: SubspaceMixture) -> None:
    u = mixture.subspaces
    covariance = mixture.signal**2 * u @ u.mT + mixture.noise**2 * torch.eye(u.shape[1], dtype=u.dtype)
    gaussians = torch.distributions.MultivariateNormal(torch.zeros(len(u), u.shape[1], dtype=u.dtype), covariance)
    z = mixture.sample(5, torch.Generator().manual_seed(1))[1]
    expected = gaussians.log_prob(z[:, None]).logsumexp(-1) - math.log(len(u))
    torch.testing.assert_close(mixture.log_density(z), expected, rtol=1e-7, atol=1e-7)


def test_the_density_integrates_to_one() -> None:
    mixture = SubspaceMixture(subspaces=random_subspaces(3, 2, 1, orthogonal=False), signal=0.8, noise=0.3)
    axis = torch.linspace(-6, 6, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    assert float(mixture.log_density(grid).exp().sum()) * (12 / 400) ** 2 == pytest.approx(1, abs=1e-6)


def test_the_denoiser_is_the_mean_of_the_clean_points_by_monte_carlo() -> None:
    """Clean points weighted by how likely noise carries them to z average to the closed form."""
    mixture = SubspaceMixture(subspaces=random_subspaces(3, 4, 1, orthogonal=False, seed=2), noise=0.6)
    clean = mixture.sample(400_000, torch.Generator().manual_seed(0))[0]
    for z in mixture.sample(4, torch.Generator().manual_seed(5))[1]:
        weight = (-(clean - z).square().sum(-1) / (2 * mixture.noise**2)).softmax(0)
        error = 1 / float(weight.square().sum()) ** 0.5  # one over the root of the effective number of draws
        assert float((weight @ clean - mixture.denoised(z)).abs().max()) < 4 * error


def test_no_multiple_of_it_denoises_better() -> None:
    mixture = SubspaceMixture(subspaces=random_subspaces(4, 16, 4, seed=1), noise=0.5)
    clean, noisy, labels = mixture.sample(20_000, torch.Generator().manual_seed(0))
    best = mixture.denoised(noisy)
    error = float((best - clean).square().sum(-1).mean())
    for other in (0.97 * best, 1.03 * best, mixture.shrinkage * noisy, noisy, 0 * noisy):
        assert error < float((other - clean).square().sum(-1).mean())
    known = torch.einsum("ndp,nep,ne->nd", mixture.subspaces[labels], mixture.subspaces[labels], noisy)
    assert float((mixture.shrinkage * known - clean).square().sum(-1).mean()) < error  # knowing the subspace helps
    torch.testing.assert_close(mixture.memberships(noisy).sum(-1), torch.ones(20_000, dtype=torch.float64))


def test_one_subspace_is_a_projection_and_a_shrinkage() -> None:
    u = random_subspaces(1, 6, 2)
    mixture = SubspaceMixture(subspaces=u, signal=2.0, noise=1.0)
    z = mixture.sample(3)[1]
    torch.testing.assert_close(mixture.denoised(z), 0.8 * z @ u[0] @ u[0].T)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_attention_among_many_tokens_tends_to_the_closed_form(orthogonal: bool) -> None:
    u = random_subspaces(3, 6, 2, orthogonal=orthogonal, seed=3)
    mixture, tau = SubspaceMixture(subspaces=u, noise=0.3), 3.0
    layer = MSSA(6, 3, output="tied", dtype=torch.float64)
    layer.subspaces.weight.data = u.mT.flatten(0, 1)
    unit = (2**0.5 / tau) ** 0.5  # the layer divides by sqrt(p); scaling its tokens sets the temperature
    asked = mixture.sample(200, torch.Generator().manual_seed(9))[1]
    expected = mixture.attended(asked, tau)
    errors = []
    for tokens in (2000, 128_000):
        z = torch.cat([asked, mixture.sample(tokens, torch.Generator().manual_seed(0))[1]])
        with torch.no_grad():
            w = layer.project(unit * z[None])
            attended = torch.nn.functional.scaled_dot_product_attention(w[..., :200, :], w, w)
            found = layer.merge(attended.transpose(-3, -2).flatten(-2))[0] / unit
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 3


def test_its_gate_is_a_sigmoid_for_orthogonal_subspaces() -> None:
    u = random_subspaces(4, 8, 2)
    mixture, tau = SubspaceMixture(subspaces=u, noise=0.2), 0.7
    z = mixture.sample(6, torch.Generator().manual_seed(0))[1]
    w = torch.einsum("nd,hdp->nhp", z, u)
    gate = torch.sigmoid(w.square().sum(-1) / (2 * tau**2) - math.log(3))
    gain = (gate * 1.0 + 0.2**2) / tau
    torch.testing.assert_close(mixture.attended(z, tau), torch.einsum("nh,nhp,hdp->nd", gain, w, u))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="orthonormal"):
        SubspaceMixture(subspaces=torch.ones(2, 4, 2))
    with pytest.raises(ValueError, match="subspaces"):
        SubspaceMixture(subspaces=torch.eye(4))
    good = random_subspaces(2, 4, 2)
    with pytest.raises(ValueError, match="noise=0"):
        SubspaceMixture(subspaces=good, noise=0)
    with pytest.raises(ValueError, match="z: needs points"):
        SubspaceMixture(subspaces=good).score(torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="temperature"):
        SubspaceMixture(subspaces=good).attended(torch.zeros(3, 4, dtype=torch.float64), 0)
    with pytest.raises(ValueError, match="do not fit"):
        random_subspaces(3, 4, 2)
