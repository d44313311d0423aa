"""The delta rule: one gradient step on the newest pair, chunkwise as step by step, forward, backward and decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unrolled.layers.delta import DeltaLayer, delta_rule, delta_rule_reference
from unrolled.models.sequence import LanguageConfig, LanguageModel
from unrolled.theory.in_context import gradient_step


def _sequence(steps: int, seed: int, *, dk: int = 4, dv: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, 2, steps, dk, generator=g, dtype=torch.float64) for _ in range(2))
    v = torch.randn(2, 2, steps, dv, generator=g, dtype=torch.float64)
    beta = torch.rand(2, 2, steps, generator=g, dtype=torch.float64)
    return q, torch.nn.functional.normalize(k, dim=-1), v, beta


@given(steps=st.integers(1, 40), chunk=st.integers(1, 41), start=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_chunks_of_any_size_give_what_single_steps_give(steps: int, chunk: int, start: bool, seed: int) -> None:
    q, k, v, beta = _sequence(steps, seed)
    state = torch.randn(2, 2, 3, 4, dtype=torch.float64) if start else None
    out, after = delta_rule(q, k, v, beta, state, chunk_size=chunk)
    want, want_after = delta_rule_reference(q, k, v, beta, state)
    torch.testing.assert_close(out, want, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(after, want_after, atol=1e-11, rtol=1e-11)


@given(steps=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_step_is_a_gradient_step_on_the_newest_pairs_squared_error(steps: int, seed: int) -> None:
    q, k, v, beta = _sequence(steps, seed)
    _, before = (
        delta_rule(*(x[:, :, :-1] for x in (q, k, v, beta)))
        if steps > 1
        else (None, torch.zeros_like(v[..., :1, :].mT @ k[..., :1, :]))
    )
    _, after = delta_rule(q, k, v, beta)
    size = float(beta[0, 0, -1])
    stepped = gradient_step(before[0, 0], k[0, 0, -1:], v[0, 0, -1:], size)
    torch.testing.assert_close(after[0, 0], stepped, atol=1e-11, rtol=1e-11)


def test_with_full_steps_and_orthonormal_keys_it_recalls_what_was_written_last() -> None:
    k = torch.eye(4, dtype=torch.float64).repeat(2, 1)[None, None]
    v = torch.randn(1, 1, 8, 3, dtype=torch.float64)
    _, state = delta_rule(k, k, v, torch.ones(1, 1, 8, dtype=torch.float64))
    torch.testing.assert_close((state @ k[:, :, :4].mT).mT, v[:, :, 4:])


def test_gradients_are_those_of_single_steps() -> None:
    inputs = [x.requires_grad_() for x in _sequence(11, 0)]
    fast, slow = (f(*inputs)[0] for f in (delta_rule, delta_rule_reference))
    weight = torch.randn_like(fast)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), inputs),
        torch.autograd.grad((slow * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_decoding_token_by_token_gives_what_one_pass_gives() -> None:
    config = LanguageConfig(vocab_size=11, layers=("softmax", "delta"), dim=16, heads=2, max_length=64)
    model = LanguageModel(config).double().eval()
    tokens = torch.randint(11, (2, 40))
    prompt = tokens[:, :7]
    assert torch.equal(model.generate(prompt, 9), model.generate(prompt, 9, cache=False))
    whole = model(tokens)
    first, state = model(tokens[:, :33], return_state=True)
    second = model(tokens[:, 33:], state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    _, other = LanguageModel(config)(tokens[:1, :3], return_state=True)
    with pytest.raises(ValueError, match="state"):
        model(tokens, state=other)


def test_no_token_sees_a_later_one() -> None:
    layer = DeltaLayer(8, 2, dim_head=4)
    z = torch.randn(1, 40, 8)
    changed = z.clone()
    changed[:, 20:] = 9
    torch.testing.assert_close(layer(z)[:, :20], layer(changed)[:, :20])
    assert not torch.allclose(layer(z)[:, 20:], layer(changed)[:, 20:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_dtypes_are_served_with_a_float32_state(dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in _sequence(70, 0)]
    out, state = delta_rule(*inputs)
    want, after = delta_rule_reference(*(x.double() for x in inputs))
    assert (out.dtype, state.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(state.double(), after, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.double(), want, atol=1e-2, rtol=1e-2)
    pieces = [delta_rule(*(x[:, :, :40] for x in inputs))]
    pieces.append(delta_rule(*(x[:, :, 40:] for x in inputs), pieces[0][1]))
    torch.testing.assert_close(torch.cat([piece for piece, _ in pieces], 2), out, atol=1e-2, rtol=1e-2)


def test_it_trains_under_autocast() -> None:
    layer = DeltaLayer(8, 2, dim_head=4)
    z = torch.randn(2, 40, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(z)
        out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), layer(z), rtol=0.1, atol=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_float16_token_of_zeros_is_not_divided_by_its_norm() -> None:
    layer = DeltaLayer(8, 2, dim_head=4).half()
    z = torch.randn(1, 5, 8).half()
    z[0, 2] = 0
    assert layer(z).isfinite().all()
    assert (layer(z)[0, 2] == 0).all()


def test_shapes_that_do_not_fit_are_named() -> None:
    q, k, v, beta = _sequence(3, 0)
    with pytest.raises(ValueError, match="beta"):
        delta_rule(q, k, v, beta[:, :, :2])
    with pytest.raises(ValueError, match="no steps"):
        delta_rule(q[:, :, :0], k[:, :, :0], v[:, :, :0], beta[:, :, :0])
    with pytest.raises(ValueError, match="state"):
        delta_rule(q, k, v, beta, torch.zeros(2, 2, 4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="chunk_size"):
        delta_rule(q, k, v, beta, chunk_size=0)
