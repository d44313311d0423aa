"""The objectives against independent formulas, autograd and their limits."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled import theory
from unrolled.theory.coding_rate import shrunk

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def orthonormal(heads: int, d: int, p: int) -> torch.Tensor:
    q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]
    return q[:, : heads * p].reshape(d, heads, p).permute(1, 0, 2)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, eps=st.floats(0.05, 3.0), seed=st.integers(0, 2**16))
def test_coding_rate_is_the_determinant_of_either_gram_matrix(shape, eps, seed):
    n, d = shape
    z = torch.randn(3, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    alpha = d / (n * eps**2)
    rate = theory.coding_rate(z, eps)
    for gram in (z @ z.mT, z.mT @ z):
        identity = torch.eye(gram.shape[-1], dtype=z.dtype)
        torch.testing.assert_close(rate, 0.5 * torch.linalg.slogdet(identity + alpha * gram)[1], rtol=1e-10, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, p=st.integers(1, 4), heads=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_subspace_rate_is_the_sum_over_heads_of_projected_rates(shape, p, heads, seed):
    n, d = shape
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2, n, d, dtype=torch.float64, generator=g)
    u = torch.randn(heads, d, p, dtype=torch.float64, generator=g)
    separately = sum(theory.coding_rate(z @ u[k], 0.5) for k in range(heads))
    torch.testing.assert_close(theory.subspace_coding_rate(z, u, 0.5), separately, rtol=1e-10, atol=1e-10)


def test_the_rate_does_not_change_under_rotation_or_reordering_of_tokens():
    z = torch.randn(7, 5, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    torch.testing.assert_close(theory.coding_rate(z @ rotation, 0.3), theory.coding_rate(z, 0.3))
    torch.testing.assert_close(theory.coding_rate(z[torch.randperm(7)], 0.3), theory.coding_rate(z, 0.3))


def test_rate_reduction_is_large_for_separated_subspaces_and_small_for_one():
    bases = orthonormal(2, 8, 4)
    codes = torch.randn(2, 50, 4, dtype=torch.float64)
    separated = torch.cat([codes[k] @ bases[k].T for k in range(2)])
    together = torch.cat([codes[k] @ bases[0].T for k in range(2)])
    assert theory.rate_reduction(separated, bases, 0.1) > theory.rate_reduction(together, bases, 0.1) + 1


def test_known_value():
    z = torch.eye(4, dtype=torch.float64)
    assert float(theory.coding_rate(z, 0.5)) == pytest.approx(2 * math.log(1 + 1 / 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_tokens_and_rank_deficiency_are_finite_with_finite_gradients(dtype):
    zero = torch.zeros(2, 5, 8, dtype=dtype, requires_grad=True)
    rank_one = (torch.ones(2, 64, 1) * torch.linspace(1, 300, 48)).to(dtype)
    for z in (zero, rank_one):
        rate = theory.coding_rate(z, 1e-3)
        assert rate.dtype == torch.float32
        assert torch.isfinite(rate).all()
    theory.coding_rate(theory.normalize_tokens(zero), 0.1).sum().backward()
    assert torch.isfinite(zero.grad).all()
    assert theory.coding_rate(zero, 0.1).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_tokens_are_normalised_in_half_precision_too(dtype):
    z = torch.tensor([[1e-3, -1e-3, 1e-3, 1e-3], [0, 0, 0, 0]], dtype=dtype)
    unit = theory.normalize_tokens(z)
    assert unit.dtype == dtype
    torch.testing.assert_close(unit.float(), torch.tensor([[0.5, -0.5, 0.5, 0.5], [0, 0, 0, 0]]), rtol=1e-2, atol=0)


def test_huge_rank_deficient_tokens_keep_their_rate_in_float32():
    z = torch.randn(200, 2) @ torch.randn(2, 100) * 1e3
    singular = torch.linalg.svdvals(z.double())
    exact = 0.5 * torch.log1p(100 / (200 * 1e-6) * singular**2).sum()
    torch.testing.assert_close(theory.coding_rate(z, 1e-3).double(), exact, rtol=1e-3, atol=0)


def test_gradient_in_closed_form_is_that_of_autograd():
    z = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    u = torch.randn(3, 6, 4, dtype=torch.float64)
    (by_autograd,) = torch.autograd.grad(theory.subspace_coding_rate(z, u, 0.4).sum(), z)
    closed = theory.subspace_coding_rate_gradient(z.detach(), u, 0.4)
    torch.testing.assert_close(closed, by_autograd, rtol=1e-10, atol=1e-10)


def test_sparse_rate_reduction_counts_or_sums_entries():
    z = torch.tensor([[1.0, 0.0], [0.0, -3.0]], dtype=torch.float64)
    u = torch.eye(2, dtype=torch.float64)[None]
    base = theory.rate_reduction(z, u, 0.5)
    assert float(base - theory.sparse_rate_reduction(z, u, 0.5, 0.1)) == pytest.approx(0.2)
    assert float(base - theory.sparse_rate_reduction(z, u, 0.5, 0.1, norm="l1")) == pytest.approx(0.4)


def test_proximal_steps_descend_the_lasso():
    d = torch.randn(6, 9, dtype=torch.float64)
    x = torch.randn(11, 6, dtype=torch.float64)
    step = 1 / torch.linalg.matrix_norm(d, 2) ** 2
    z = torch.rand(11, 9, dtype=torch.float64)
    values = [theory.lasso(z, x, d, 0.3)]
    for _ in range(20):
        z = theory.proximal_step(z, x, d, float(step), 0.3)
        values.append(theory.lasso(z, x, d, 0.3))
    assert all(after <= before + 1e-12 for before, after in pairwise(values))


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda z, u: theory.coding_rate(z, 0.0), "eps"),
        (lambda z, u: theory.coding_rate(z.long(), 0.1), "z:"),
        (lambda z, u: theory.coding_rate(z[:0], 0.1), "z:"),
        (lambda z, u: theory.subspace_coding_rate(z, u[:, :3], 0.1), "subspaces"),
        (lambda z, u: theory.sparse_rate_reduction(z, u, 0.1, -1.0), "sparsity"),
        (lambda z, u: theory.sparse_rate_reduction(z, u, 0.1, 1.0, norm="l7"), "norm"),
    ],
)
def test_bad_arguments_are_named(call, names):
    with pytest.raises(ValueError, match=names):
        call(torch.randn(5, 4), torch.randn(2, 4, 2))


@pytest.mark.parametrize("size", [1.0, 30.0, 1e3, 1e5, 1e12])
@pytest.mark.parametrize("eps", [0.5, 0.01])
def test_gradient_of_large_tokens_of_low_rank_needs_no_luck(size: float, eps: float) -> None:
    g = torch.Generator().manual_seed(0)
    w = size * torch.randn(3, 100, 5, generator=g, dtype=torch.float64) @ torch.randn(5, 32, generator=g).double()
    alpha = 32 / (100 * eps**2)
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    s[:, 5:] = 0
    want = (u * (s / (1 + alpha * s.square()))[:, None]) @ vt
    found = shrunk(w, alpha)
    assert bool(found.isfinite().all())
    if alpha * float(s.max()) ** 2 < 1e13:  # beyond, the identity has no digit left
        assert float((found - want).norm() / want.norm()) < 1e-2
    single = shrunk(w.float(), alpha)
    assert single.dtype == torch.float32
    if alpha * float(s.max()) ** 2 < 1e5:  # beyond, the rounding of the tokens themselves is what one sees
        assert float((single - want).norm() / want.norm()) < 1e-2


def test_large_finite_tokens_have_a_rate() -> None:
    z = torch.randn(20, 6) * 1e25  # their squares overflow float32
    want = theory.coding_rate(z.double(), 0.5)
    assert float(theory.coding_rate(z, 0.5)) == pytest.approx(float(want), rel=1e-5)
