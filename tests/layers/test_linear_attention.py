"""Linear attention is a gradient step; the softmax twin shares its interface."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unrolled.layers.linear_attention import LinearSelfAttention, SoftmaxSelfAttention, linear_attention, rotated
from unrolled.tasks import constructed_tokens
from unrolled.theory.in_context import gradient_descent_predictions, gradient_step, in_context_loss


def states(b: int = 3, t: int = 9, d: int = 4) -> Tensor:
    return torch.randn(b, t, d, dtype=torch.float64)


def test_proposition_1_is_one_gradient_step_from_zero() -> None:
    s = states()
    layer = LinearSelfAttention.gradient_descent(state_dim=4, step_size=0.05, dtype=torch.float64)
    update = layer(constructed_tokens(s))
    assert (update[..., 4:] == 0).all()
    for t in range(9):
        phi = torch.zeros(3, 4, 4, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(in_context_loss(phi, s)[:, t].sum(), phi)
        torch.testing.assert_close(update[:, t, :4], (-0.05 * gradient @ s[:, t, :, None])[..., 0], rtol=0, atol=1e-14)
    torch.testing.assert_close(update[..., :4], gradient_descent_predictions(s, 0.05), rtol=0, atol=1e-14)


def test_proposition_1_is_one_gradient_step_from_any_map() -> None:
    s, initial = states(), torch.randn(4, 4, dtype=torch.float64)
    layer = LinearSelfAttention.gradient_descent(state_dim=4, step_size=0.05, initial=initial)
    tokens = constructed_tokens(s, initial)
    after = (tokens + layer(tokens))[..., :4]
    for t in range(9):
        phi = gradient_step(initial, s[:, :t], s[:, 1 : t + 1], 0.05)
        torch.testing.assert_close(after[:, t], (phi @ s[:, t, :, None])[..., 0], rtol=0, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(t=st.integers(1, 200), cut=st.integers(0, 200), dk=st.integers(1, 5), dv=st.integers(1, 5))
def test_chunks_and_carried_state_change_nothing(t: int, cut: int, dk: int, dv: int) -> None:
    q, k = torch.randn(2, 2, 3, t, dk, dtype=torch.float64)
    v = torch.randn(2, 3, t, dv, dtype=torch.float64)
    whole, state = linear_attention(q, k, v)
    torch.testing.assert_close(whole, (q @ k.mT).tril() @ v)
    torch.testing.assert_close(state, v.mT @ k)
    cut = min(cut, t - 1)
    if cut:
        first, carried = linear_attention(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut])
        second, _ = linear_attention(q[:, :, cut:], k[:, :, cut:], v[:, :, cut:], carried)
        torch.testing.assert_close(torch.cat([first, second], 2), whole)


@pytest.mark.parametrize("layer_type", [LinearSelfAttention, SoftmaxSelfAttention])
@pytest.mark.parametrize("cut", [1, 5, 8])
def test_prefill_then_decode_is_one_pass(layer_type: type, cut: int) -> None:
    layer = layer_type(12, 2, dim_head=5, dim_value=3).double()
    z = torch.randn(2, 9, 12, dtype=torch.float64)
    whole = layer(z)
    assert whole.shape == z.shape
    out, state = layer(z[:, :cut], return_state=True)
    pieces = [out]
    for t in range(cut, 9):
        out, state = layer(z[:, t : t + 1], state=state, return_state=True)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_a_float16_token_of_zeros_is_not_divided_by_its_norm() -> None:
    layer = LinearSelfAttention(8, 2, dim_head=4, normalize=True).half()
    z = torch.randn(1, 5, 8).half()
    z[0, 2] = 0
    assert layer(z).isfinite().all()
    assert (layer(z)[0, 2] == 0).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_sums_in_bfloat16_do_not_stop_growing(autocast: bool) -> None:
    q, k, v = (torch.ones(1, 1, 8192, 1).bfloat16() for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out, state = linear_attention(q, k, v)
        last, state = linear_attention(q[:, :, :1], k[:, :, :1], v[:, :, :1], state)
    assert out.dtype == last.dtype == torch.bfloat16
    assert float(out[0, 0, -1]) == 8192
    assert float(state) == 8193


def test_softmax_maps_are_those_of_the_forward_pass() -> None:
    layer = SoftmaxSelfAttention(6, 2, dim_head=3).double()
    z = torch.randn(2, 7, 6, dtype=torch.float64)
    maps = layer.attention(z)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2, 7, dtype=torch.float64))
    torch.testing.assert_close(layer.merge(maps @ layer.heads_of(layer.value(z))), layer(z))


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="heads"):
        LinearSelfAttention(4, 0, dim_head=2)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 6, dtype=torch.float64)
    scores = rotated(q.expand(9, 6), 100.0) @ rotated(k.expand(9, 6), 100.0).T
    for offset in range(-8, 9):
        torch.testing.assert_close(scores.diagonal(offset), scores.diagonal(offset)[:1].expand(9 - abs(offset)))
    assert scores[0].unique().numel() == 9  # every distance has its own
    torch.testing.assert_close(rotated(q.expand(9, 6), 100.0)[4:], rotated(q.expand(5, 6), 100.0, start=4))


def test_rotary_and_convolution_are_in_the_maps_that_are_shown() -> None:
    layer = SoftmaxSelfAttention(12, 2, rotary=100.0, width=4).double()
    z = torch.randn(2, 7, 12, dtype=torch.float64)
    values = layer.heads_of(layer.value(z))
    torch.testing.assert_close(layer.merge(layer.attention(z) @ values), layer(z))


def test_the_convolution_sees_no_later_token() -> None:
    layer = SoftmaxSelfAttention(12, 2, width=4).double()
    z = torch.randn(1, 7, 12, dtype=torch.float64)
    changed = z.clone()
    changed[:, 5:] += 1
    torch.testing.assert_close(layer(changed)[:, :5], layer(z)[:, :5])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"rotary": -1.0}, "rotary"), ({"rotary": 10.0, "dim_head": 3}, "dim_head"), ({"width": 0}, "width"),
     ({"width": 4, "causal": False}, "width")],
)  # fmt: skip
def test_what_does_not_fit_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SoftmaxSelfAttention(12, 2, **arguments)
