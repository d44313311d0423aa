"""PMI and the optimum of contrastive losses: checked by gradients, eigenvalues and hand-made joints."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unrolled.theory.cooccurrence import (
    binary_nce_loss,
    exactness,
    infonce_loss,
    mutual_information,
    nce_offset,
    offset_and_error,
    pointwise_mutual_information,
    smallest_eigenvalue,
    smallest_offset,
)


def _joint(n: int, seed: int, *, m: int | None = None) -> Tensor:
    joint = torch.rand(n, m or n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05
    return joint / joint.sum()


def test_independent_events_have_no_information_and_certain_ones_all_of_it() -> None:
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    assert pointwise_mutual_information(p[:, None] * p[None, :]).abs().max() < 1e-12
    found = pointwise_mutual_information(torch.diag(p))
    assert torch.allclose(found.diagonal(), -p.log())
    assert float(found[0, 1]) == -math.inf
    assert mutual_information(torch.diag(p)) == pytest.approx(float(-(p * p.log()).sum()))


@given(n=st.integers(2, 6), m=st.integers(2, 6), seed=st.integers(0, 1000), share=st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_both_losses_are_stationary_at_pmi_plus_a_constant(n: int, m: int, seed: int, share: float) -> None:
    joint = _joint(n, seed, m=m)
    kernel = pointwise_mutual_information(joint)
    at = (kernel + nce_offset(share)).requires_grad_()
    (gradient,) = torch.autograd.grad(binary_nce_loss(at, joint, share), at)
    assert gradient.abs().max() < 1e-12
    at = (kernel + 1.7).requires_grad_()
    loss = infonce_loss(at, joint)
    (gradient,) = torch.autograd.grad(loss, at)
    assert gradient.abs().max() < 1e-12
    assert loss.item() == pytest.approx(-mutual_information(joint), abs=1e-12)
    moved = kernel + 0.3 * torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert float(infonce_loss(moved, joint)) >= loss.item() - 1e-12
    assert float(binary_nce_loss(moved, joint, 0.5)) >= float(binary_nce_loss(kernel, joint, 0.5)) - 1e-12


@given(seed=st.integers(0, 1000), shift=st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_the_offset_is_found_and_removed(seed: int, shift: float) -> None:
    kernel = pointwise_mutual_information(_joint(5, seed))
    offset, error = offset_and_error(kernel + shift, kernel)
    assert offset == pytest.approx(shift, abs=1e-9)
    assert error == pytest.approx(0, abs=1e-9)
    assert offset_and_error(torch.zeros(5, 5), kernel)[1] == pytest.approx(1)


@given(n=st.integers(3, 8), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_smallest_offset_is_enough_and_none_where_none_can_be(n: int, seed: int) -> None:
    x = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gram = x @ x.mT
    for kernel in (gram, gram - 1.0, (x + x.mT) / 2):
        offset = smallest_offset(kernel)
        assert (offset == math.inf) == (smallest_eigenvalue(kernel) < -1e-8)
        if offset < math.inf:
            assert smallest_eigenvalue(kernel, offset=offset) > -1e-6
    assert smallest_offset(gram) == 0
    assert smallest_offset(gram - 1.0) <= 1 + 1e-6


@given(n=st.integers(2, 8), share=st.floats(0.5, 0.99))
@settings(max_examples=20, deadline=None)
def test_the_papers_condition_makes_the_kernel_positive_semi_definite(n: int, share: float) -> None:
    # each event is met with itself more often than by chance, with all others equally
    joint = torch.full((n, n), (1 - share) / (n * (n - 1)), dtype=torch.float64).fill_diagonal_(share / n)
    found = exactness(joint)
    assert found.holds
    assert found.delta == pytest.approx(0, abs=1e-12)
    kernel = pointwise_mutual_information(joint)
    assert smallest_eigenvalue(kernel, offset=-found.floor) > -1e-9
    # where events avoid themselves no constant helps
    avoid = torch.full((3, 3), 0.15, dtype=torch.float64).fill_diagonal_(0.1 / 3)
    assert not exactness(avoid).holds
    assert smallest_offset(pointwise_mutual_information(avoid)) == math.inf


def test_bad_input_is_refused_by_name() -> None:
    for joint, match in (
        (torch.ones(3), "matrix"),
        (-torch.ones(2, 2), ">= 0"),
        (torch.zeros(2, 2), "all zero"),
        (torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "never occur"),
        (torch.tensor([[1.0, math.nan]]), "finite"),
    ):
        with pytest.raises(ValueError, match=match):
            pointwise_mutual_information(joint)
    with pytest.raises(ValueError, match="share_of_true_pairs"):
        nce_offset(1.0)
    with pytest.raises(ValueError, match="constant"):
        offset_and_error(torch.zeros(2, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="shape"):
        offset_and_error(torch.zeros(2, 3), torch.ones(2, 2))
    with pytest.raises(ValueError, match="finite"):
        offset_and_error(torch.zeros(2, 2), torch.full((2, 2), -math.inf))
