"""What is read off a linear layer's weights is what they compute, however they are factored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.layers.linear_attention import LinearSelfAttention
from unrolled.studies.mesa.weights import structure


@given(size=st.floats(1e-3, 10.0), dim=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_the_construction_is_recognised_with_its_step_size(size: float, dim: int) -> None:
    found = structure(LinearSelfAttention.gradient_descent(state_dim=dim, step_size=size), dim)
    assert found.step_size == pytest.approx(size, rel=1e-6)
    assert (found.cosine, found.cosine_with_initial) == (pytest.approx(1.0), pytest.approx(1.0))
    assert found.initial == 0
    assert found.query_key_on_diagonals == found.output_value_on_diagonals == pytest.approx(1.0)
    # d entries of each of two products of (4 d)^2 entries
    assert found.nonzero == pytest.approx(1 / (16 * dim))


@given(size=st.floats(1e-3, 10.0), dim=st.integers(2, 6), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_step_from_initial_weights_is_recognised_with_them(size: float, dim: int, seed: int) -> None:
    initial = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    layer = LinearSelfAttention.gradient_descent(state_dim=dim, step_size=size, dtype=torch.float64)
    with torch.no_grad():  # tokens [0, s_t, s_t, s_{t-1}] have no Phi_0 s_t, but what it takes off the targets
        layer.value.weight[:, -dim:] = -size * initial
    found = structure(layer, dim)
    assert found.cosine_with_initial == pytest.approx(1.0)
    assert found.cosine == pytest.approx((1 + float(initial.square().sum()) / dim) ** -0.5)
    assert found.initial == pytest.approx(float(initial.norm()) / dim**0.5)
    assert found.step_size == pytest.approx(size)


def test_the_reading_does_not_depend_on_how_the_weights_are_factored() -> None:
    torch.manual_seed(0)
    layer = LinearSelfAttention(12, 2, dim_head=5)
    before = structure(layer, 3)
    turn = torch.randn(5, 5)
    with torch.no_grad():  # another basis of the first head's keys, and a scale moved from values to the output
        layer.query.weight[:5] = turn.mT @ layer.query.weight[:5]
        layer.key.weight[:5] = torch.linalg.inv(turn) @ layer.key.weight[:5]
        layer.value.weight *= 3
        layer.output.weight /= 3
    after = structure(layer, 3)
    assert after.cosine == pytest.approx(before.cosine, abs=1e-5)
    assert after.cosine_with_initial == pytest.approx(before.cosine_with_initial, abs=1e-5)
    assert after.step_size == pytest.approx(before.step_size, abs=1e-5)


def test_random_weights_are_no_gradient_step() -> None:
    torch.manual_seed(0)
    found = structure(LinearSelfAttention(40, 2, dim_head=20), 10)
    assert abs(found.cosine) < 0.1
    assert found.query_key_on_diagonals == pytest.approx(0.1, abs=0.03)
    assert found.nonzero == 1
    with pytest.raises(ValueError, match="layer"):
        structure(LinearSelfAttention(30, 1, dim_head=10), 10)
