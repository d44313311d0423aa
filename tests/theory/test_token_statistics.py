"""The variational rate bounds the rate it stands in for; representatives carry their gradient back to the tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unrolled import theory

sizes = st.tuples(st.integers(1, 12), st.integers(2, 8), st.integers(1, 3), st.integers(0, 2**31 - 1))


def random_case(n, d, h, seed):
    g = torch.Generator().manual_seed(seed)
    z, bases = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((2, n, d), (h, d, max(1, d // 2))))
    return z, bases, torch.randn(2, h, n, generator=g, dtype=torch.float64).softmax(1)


@given(sizes, st.floats(0.05, 5))
def test_the_variational_rate_is_an_upper_bound(size, eps):
    z, bases, pi = random_case(*size)
    bound = theory.variational_coding_rate(z, bases, pi, eps)
    assert (bound >= theory.membership_coding_rate(z, bases, pi, eps) - 1e-9).all()


def test_the_bound_is_tight_where_second_moments_are_uncorrelated():
    z = torch.eye(6, dtype=torch.float64).repeat(3, 1)[None] * torch.linspace(1, 2, 6)
    bases = torch.eye(6, dtype=torch.float64).unflatten(-1, (2, 3)).movedim(1, 0)
    pi = torch.rand(1, 2, 18, dtype=torch.float64).softmax(1)
    bound, rate = (f(z, bases, pi, 0.3) for f in (theory.variational_coding_rate, theory.membership_coding_rate))
    torch.testing.assert_close(bound, rate, rtol=1e-12, atol=0)


def test_one_group_with_a_full_basis_is_the_coding_rate():
    z, basis = torch.randn(7, 5).double(), torch.linalg.qr(torch.randn(5, 5).double())[0][None]
    rate = theory.membership_coding_rate(z, basis, torch.ones(1, 7), 0.4)
    torch.testing.assert_close(rate, theory.coding_rate(z, 0.4), rtol=1e-10, atol=0)


@given(sizes, st.floats(0.1, 2))
def test_the_gradient_at_representatives_is_broadcast_by_their_weights(size, eps):
    z, bases, _ = random_case(*size)
    weights = torch.randn(2, size[2], 3, size[0]).double().softmax(-1)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(theory.representative_coding_rate(z, bases, weights, eps).sum(), z)
    expected = torch.zeros_like(gradient)
    for k in range(size[2]):
        contracted = theory.subspace_coding_rate_gradient(weights[:, k] @ z, bases[k : k + 1], eps)
        expected += weights[:, k].mT @ contracted
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-8, atol=1e-10)


def test_every_token_its_own_representative_is_the_subspace_rate():
    z, bases, _ = random_case(5, 6, 2, 0)
    rate = theory.representative_coding_rate(z, bases, torch.eye(5).expand(2, 2, 5, 5), 0.5)
    torch.testing.assert_close(rate, theory.subspace_coding_rate(z, bases, 0.5), rtol=1e-10, atol=0)


def test_bad_shapes_are_named():
    z, bases, pi = random_case(5, 6, 2, 0)
    with pytest.raises(ValueError, match=r"membership: needs \[..., 2, 5\]"):
        theory.variational_coding_rate(z, bases, pi.mT, 0.1)
    with pytest.raises(ValueError, match=r"weights: needs \[..., 2, m, 5\]"):
        theory.representative_coding_rate(z, bases, torch.ones(3, 4, 5), 0.1)
    with pytest.raises(ValueError, match="eps=0"):
        theory.variational_coding_rate(z, bases, pi, 0)
