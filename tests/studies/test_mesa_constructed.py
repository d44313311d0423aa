"""Models on constructed tokens: recipes, trainings that are kept, resumed and shared, and their held-out losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.layers import LinearSelfAttention
from unrolled.studies.cells import Context
from unrolled.studies.mesa import constructed
from unrolled.studies.mesa.constructed import (
    FAST,
    PAPER_STEPS,
    Constructed,
    Recipe,
    constructed_recipe,
    model_predictions,
    new_model,
    step_predictions,
    train,
)
from unrolled.studies.mesa.held_out import TUNE_SEED, best_gradient_step, best_step_size
from unrolled.tasks import LinearDynamics, Sequences, constructed_tokens, sequence_loss
from unrolled.theory.in_context import gradient_descent_predictions

NETWORK = Constructed(recipe=Recipe(steps=8, batch_size=4), seed=0, dim=3, points=2, moments=True)


def test_recipes_have_the_published_shapes_and_rates() -> None:
    assert set(FAST) == set(PAPER_STEPS)
    mesa = constructed_recipe("mesa", steps=5000, batch_size=256, published=True)
    assert (mesa.kind, mesa.heads, mesa.lr, mesa.warmup) == ("mesa", 4, 4e-4, None)
    assert mesa.extent == "5000 steps of 256"
    six = constructed_recipe("6", steps=100, batch_size=8)
    assert (six.layers, six.heads, six.dim_head) == (6, 4, 20)
    assert "paper: 15000 of 256" in six.extent
    assert "warm-up" in six.extent
    two = constructed_recipe("2", steps=1000, batch_size=256)
    assert (two.optimizer, two.lr, two.clip_value) == ("muon", 1e-2, 0.1)
    assert two.extent.startswith("1000 steps of 256 by Muon (paper: 5000 of 256)")
    for name, batch in (("2", 32), ("6", 256)):
        assert constructed_recipe(name, steps=10, batch_size=batch).optimizer == "adamw"
    assert constructed_recipe("2", steps=10, batch_size=256, published=True).optimizer == "adamw"
    with pytest.raises(ValueError, match="name='3'"):
        constructed_recipe("3", steps=1, batch_size=1)


def test_progress_names_the_model_and_not_every_number_of_its_recipe() -> None:
    assert NETWORK.name == "1 linear layer, orthogonal 3, 8 steps of 4 (paper: 5000 of 256), seed 0"


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    world = LinearDynamics(dim=3, steps=10)
    before = torch.random.get_rng_state()
    one, two, other = (train(world, Recipe(steps=3, batch_size=4), seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    tokens = constructed_tokens(world.sample(2, seed=9).inputs)
    assert torch.equal(one(tokens), two(tokens))
    assert not torch.equal(one(tokens), other(tokens))


def test_an_interrupted_training_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, context = Context(store=tmp_path / "whole"), Context(store=tmp_path / "parts")
    result = NETWORK.compute(whole)
    train_resumable = constructed.train_resumable

    def stops(*given: Any, **options: Any) -> Any:
        loss_at = given[2]

        def loss(step: int) -> Any:
            if step == 6:
                raise KeyboardInterrupt
            return loss_at(step)

        return train_resumable(*given[:2], loss, *given[3:], **{**options, "every": 4})

    with monkeypatch.context() as patch:
        patch.setattr(constructed, "train_resumable", stops)
        with pytest.raises(KeyboardInterrupt):
            NETWORK.compute(context)
    assert NETWORK.file(context, ".pt").is_file()
    assert NETWORK.compute(context) == result
    for step in (None, *NETWORK.looks):
        one, other = NETWORK.load(whole, step), NETWORK.load(context, step)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_weights_of_every_look_are_those_of_the_training(tmp_path: Path) -> None:
    context = Context(store=tmp_path)
    NETWORK.compute(context)
    assert NETWORK.looks == [0, 4, 8]
    first, last = NETWORK.load(context, 0), NETWORK.load(context, 8)
    for model, expected in ((first, NETWORK.untrained(context)), (last, NETWORK.load(context))):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    middle = NETWORK.load(context, 4).state_dict()
    NETWORK.file(context, "-4.pt").unlink()  # what was lost is trained again
    again = NETWORK.load(context, 4).state_dict()
    assert all(torch.equal(middle[name], again[name]) for name in middle)


def test_a_trained_model_is_taken_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(store=tmp_path)
    result = NETWORK.compute(context)
    first = NETWORK.load(context)

    def untaken(*given: Any) -> torch.Tensor:
        raise AssertionError("trained again")

    monkeypatch.setattr(constructed, "sequence_loss", untaken)
    assert NETWORK.compute(context) == result
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), NETWORK.load(context).parameters(), strict=True))


def test_a_recipe_with_muon_moves_every_matrix_by_its_rate_alone() -> None:
    world = LinearDynamics(dim=3, steps=8)
    recipe = Recipe(steps=1, batch_size=4, layers=2, lr=1e-2, weight_decay=0.0, init_std=0.02, optimizer="muon")
    before, (after, _) = constructed.new_model(world, recipe, seed=0), train(world, recipe, seed=0)
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        step = torch.linalg.matrix_norm((new - old).detach(), 2)
        assert float(step) == pytest.approx(0.2 * max(old.shape) ** 0.5 * recipe.lr, rel=0.05)


class Moved:
    """A world in which one gradient step from weights that are not zero predicts the next state exactly."""

    dim, size = 3, 0.02
    initial = torch.tensor([[0.5, 0.2, 0.0], [0.0, -0.4, 0.1], [0.3, 0.0, 0.7]], dtype=torch.float64)

    def sample(self, count: int, *, seed: int) -> Sequences:
        inputs = torch.randn(count, 6, self.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return Sequences(inputs, gradient_descent_predictions(inputs, self.size, self.initial), self.initial)


def test_the_best_gradient_step_is_found_with_its_initial_weights() -> None:
    size, initial = best_gradient_step(Moved(), sequences=64, rounds=60)  # type: ignore[arg-type]
    assert size == pytest.approx(Moved.size, rel=1e-6)
    torch.testing.assert_close(initial, Moved.initial, rtol=1e-6, atol=1e-8)


def test_the_best_gradient_step_is_a_stationary_point_no_worse_than_one_from_zero() -> None:
    world = LinearDynamics(dim=4, steps=20)
    sample = world.sample(256, seed=TUNE_SEED)
    states, targets = sample.inputs.double(), sample.targets.double()
    size, initial = best_gradient_step(world, sequences=256)
    at = torch.tensor(size, dtype=torch.float64, requires_grad=True), initial.clone().requires_grad_()
    loss = sequence_loss(gradient_descent_predictions(states, *at), targets)  # type: ignore[arg-type]
    for slope in torch.autograd.grad(loss, at):
        assert float(slope.abs().max()) < 1e-6
    zero = best_step_size(world, sequences=256)
    assert float(loss.detach()) <= float(sequence_loss(gradient_descent_predictions(states, zero), targets))


def test_the_best_step_size_is_best() -> None:
    world = LinearDynamics(dim=4, steps=20)
    sample = world.sample(2048, seed=TUNE_SEED)
    best = best_step_size(world)

    def loss(step_size: float) -> float:
        return float(sequence_loss(gradient_descent_predictions(sample.inputs, step_size), sample.targets))

    assert loss(best) < min(loss(0.97 * best), loss(1.03 * best))


def test_a_gradient_step_keeps_to_the_bounds_of_the_layer_that_it_stands_beside() -> None:
    recipe, world = Recipe(steps=1, batch_size=1, heads=1, dim_head=3, clip=0.5), LinearDynamics(dim=3, steps=20)
    states = world.sample(8, seed=2).inputs
    model = new_model(world, recipe, seed=0)
    built = LinearSelfAttention.gradient_descent(state_dim=3, step_size=0.3)
    model.blocks[0].attn.load_state_dict(built.state_dict())  # type: ignore[union-attr]
    step = step_predictions(recipe, 0.3)(states)
    assert gradient_descent_predictions(states, 0.3).abs().max() > 1
    assert step.abs().max() == 0.5
    torch.testing.assert_close(model_predictions(model)(states), step)
    initial = torch.eye(3)
    from_initial = gradient_descent_predictions(states, 0.3, initial).clamp(-0.5, 0.5)
    torch.testing.assert_close(step_predictions(recipe, 0.3, initial)(states), from_initial)
