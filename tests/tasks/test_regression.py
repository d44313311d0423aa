"""Few-shot sequences: layout, answers, and what least squares makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unrolled.tasks import FewShotRegression
from unrolled.tasks.regression import EOS, PREFIX, X, Y
from unrolled.theory.in_context import least_squares_predictions, ridge_regression


def test_layout() -> None:
    plain = FewShotRegression().sample(3, seed=0)
    assert plain.tokens.shape == (3, 224, 10)
    assert plain.kinds.tolist() == [X, Y] * 112
    world = FewShotRegression(eos=True, prefix=20)
    batch = world.sample(3, seed=0)
    assert batch.kinds.tolist() == [PREFIX] * 20 + [X, Y, EOS] * 68
    assert world.pairs == 68
    assert (batch.tokens[:, batch.kinds >= EOS] == 0).all()
    torch.testing.assert_close(batch.tokens[:, batch.queries + 1], batch.answers)
    x = batch.tokens[:, batch.queries]
    torch.testing.assert_close(batch.answers, x @ batch.maps[:, 0].mT)
    assert torch.equal(world.sample(3, seed=0).tokens, batch.tokens)


def test_learned_tokens_are_put_in_and_get_gradients() -> None:
    batch = FewShotRegression(eos=True, prefix=4, steps=40).sample(2, seed=0)
    eos, prefix = torch.randn(10, requires_grad=True), torch.randn(4, 10, requires_grad=True)
    tokens = batch.with_tokens(eos, prefix)
    torch.testing.assert_close(tokens[:, batch.kinds == EOS], eos.expand(2, 12, 10))
    torch.testing.assert_close(tokens[1, :4], prefix)
    torch.testing.assert_close(tokens[:, batch.queries], batch.tokens[:, batch.queries])
    tokens.sum().backward()
    assert eos.grad is not None
    assert prefix.grad is not None
    assert eos.grad[0] == 24


def test_two_tasks_switch_at_a_pair() -> None:
    batch = FewShotRegression(steps=228, switch_at=81).sample(2, seed=0)
    assert batch.task.tolist() == [0] * 41 + [1] * 73
    x = batch.tokens[:, batch.queries]
    torch.testing.assert_close(batch.answers[:, 50], (batch.maps[:, 1] @ x[:, 50, :, None])[..., 0])


def test_a_switch_between_pairs_leaves_room_for_the_learned_tokens() -> None:
    world = FewShotRegression(steps=60, eos=True, prefix=6, switch_at=31)
    batch = world.sample(2, seed=0)
    # pairs begin at 6, 9, ...; the first one from 31 on is that at 33
    assert batch.queries[batch.task == 1][0] == 33
    assert batch.kinds.tolist() == [PREFIX] * 6 + [X, Y, EOS] * 18
    x = batch.tokens[:, batch.queries]
    expected = (batch.maps[:, batch.task] @ x[..., None])[..., 0]
    torch.testing.assert_close(batch.answers, expected)
    assert (batch.maps[:, 0] - batch.maps[:, 1]).abs().max() > 0.1
    for switch_at in (7, 57):
        assert set(
            FewShotRegression(steps=60, eos=True, prefix=6, switch_at=switch_at).sample(1, seed=0).task.tolist()
        ) == {0, 1}


def test_noise_falls_on_answers_and_their_tokens_alike_and_on_nothing_else() -> None:
    batch = FewShotRegression(noise=0.5).sample(200, seed=0)
    x = batch.tokens[:, batch.queries]
    torch.testing.assert_close(batch.tokens[:, batch.queries + 1], batch.answers)
    assert float((batch.answers - x @ batch.maps[:, 0].mT).std()) == pytest.approx(0.5, rel=0.02)
    quiet = FewShotRegression().sample(200, seed=0)
    assert torch.equal(quiet.tokens[:, quiet.queries], x)


def test_spurious_pairs_cost_what_the_published_numbers_show() -> None:
    world = FewShotRegression()
    batch = world.sample(400, seed=0, dtype=torch.float64)
    predictions = torch.zeros(400, 224, 10, dtype=torch.float64)
    predictions[:, :138] = least_squares_predictions(batch.tokens[:, :138], 1e-2)
    losses = batch.pair_losses(predictions)
    assert losses[0] == pytest.approx(1.667, abs=0.1)  # |y|^2 / 2 of ten U(-1, 1) coordinates
    assert losses[:8].max() > 2 * losses[0]  # the early ascent
    assert losses[29] == pytest.approx(0.68, abs=0.04)
    assert losses[67] == pytest.approx(0.53, abs=0.03)
    x, y = batch.tokens[:, batch.queries], batch.answers
    clean = ridge_regression(x[:, :30], y[:, :30], 1e-2) @ x[:, 30, :, None]
    assert 0.5 * (clean[..., 0] - y[:, 30]).square().sum(-1).mean() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "v2"}, "variant"),
        ({"steps": 20, "prefix": 19}, "steps must leave room"),
        ({"switch_at": 300}, "switch_at"),
        ({"switch_at": 223}, "each task a pair"),
        ({"switch_at": 20, "prefix": 20, "eos": True}, "each task a pair"),
        ({"dim": 0}, "dim"),
        ({"noise": -0.1}, "noise"),
    ],
)
def test_bad_worlds_are_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShotRegression(**options)
