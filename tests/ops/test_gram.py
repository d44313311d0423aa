from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.ops.gram import (
    LinearMoments,
    center_gram,
    from_triangle,
    gram,
    hsic,
    linear_hsic,
    rbf_gram,
    triangle,
    triangle_relabelling,
    u_center,
)


def features(n: int, d: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 700])
def test_gram_is_the_product_of_all_rows(n: int) -> None:
    x = features(n, 7)
    k = gram(x)
    torch.testing.assert_close(k, x @ x.T)
    assert torch.equal(k, k.T)


def test_rbf_gram_matches_distances() -> None:
    x = features(40, 5) + 100
    torch.testing.assert_close(rbf_gram(x, 1.7), torch.exp(-(torch.cdist(x, x) ** 2) / (2 * 1.7**2)))
    with pytest.raises(ValueError, match="sigma"):
        rbf_gram(x, 0.0)


def test_biased_hsic_is_the_trace_with_centring_matrices() -> None:
    x, y = features(30, 4), features(30, 6, seed=1)
    k, l = x @ x.T, y @ y.T
    h = torch.eye(30, dtype=torch.float64) - 1 / 30
    torch.testing.assert_close(hsic(k, l), torch.trace(k @ h @ l @ h))


def test_unbiased_hsic_is_the_u_statistic_over_distinct_quadruples() -> None:
    x, y = features(7, 3), features(7, 2, seed=1)
    k, l = x @ x.T, y @ y.T
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(7), 4)]
    torch.testing.assert_close(hsic(k, l, unbiased=True), torch.stack(terms).mean())


def test_u_centred_matrices_have_zero_diagonal_and_row_sums() -> None:
    k = u_center(gram(features(20, 4)))
    assert k.diagonal().abs().max() == 0
    torch.testing.assert_close(k.sum(1), torch.zeros(20, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 4"):
        u_center(torch.eye(3))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(4, 30), dx=st.integers(1, 40), dy=st.integers(1, 12), unbiased=st.booleans(), seed=st.integers(0, 99)
)
def test_hsic_from_features_equals_hsic_from_kernels(n: int, dx: int, dy: int, unbiased: bool, seed: int) -> None:
    x, y = features(n, dx, seed=seed) + 3, features(n, dy, seed=seed + 1)
    expected = hsic(gram(x), gram(y), unbiased=unbiased)
    torch.testing.assert_close(
        linear_hsic(x - x.mean(0), y - y.mean(0), unbiased=unbiased), expected, rtol=1e-9, atol=1e-9
    )


@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 40), pieces=st.integers(1, 5), offset=st.sampled_from([0.0, 5.0]), seed=st.integers(0, 99))
def test_one_pass_moments_equal_the_gram_form(n: int, pieces: int, offset: float, seed: int) -> None:
    x, y = features(n, 5, seed=seed) + offset, features(n, 3, seed=seed + 1) - offset
    moments = LinearMoments()
    for bx, by in zip(x.tensor_split(pieces), y.tensor_split(pieces), strict=True):
        moments.update(bx, by)
    for unbiased in (False, True):
        expected = [float(hsic(gram(u), gram(v), unbiased=unbiased)) for u, v in ((x, y), (x, x), (y, y))]
        assert moments.hsic(unbiased=unbiased) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_moments_of_parts_merge_and_centres_must_agree() -> None:
    x, y = features(50, 4) + 1e4, features(50, 3, seed=1)
    center = x[0].clone()
    whole, first, second = (LinearMoments(center_x=center) for _ in range(3))
    whole.update(x, y)
    first.update(x[:20], y[:20])
    second.update(x[20:], y[20:])
    first.merge(second)
    assert first.hsic(unbiased=True) == pytest.approx(whole.hsic(unbiased=True), rel=1e-9)
    exact = float(hsic(gram(x - x.mean(0)), gram(y), unbiased=True))
    assert whole.hsic(unbiased=True)[0] == pytest.approx(exact, rel=1e-6)
    with pytest.raises(ValueError, match="center_x"):
        first.merge(LinearMoments())
    with pytest.raises(ValueError, match="widths changed"):
        whole.update(x[:, :2], y)


def test_triangle_round_trip_and_relabelling() -> None:
    k = gram(features(9, 3)).fill_diagonal_(0)
    torch.testing.assert_close(from_triangle(triangle(k), 9), k)
    order = torch.randperm(9)
    assert torch.equal(triangle(k[order][:, order]), triangle(k)[triangle_relabelling(order)])


def test_centring_a_kernel_is_centring_the_features() -> None:
    x = features(12, 3) + 2
    torch.testing.assert_close(center_gram(gram(x)), gram(x - x.mean(0)))
