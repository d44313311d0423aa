"""Products of weights say all that a layer does, and mixing them with the construction's is exact at both ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.layers.linear_attention import LinearSelfAttention
from unrolled.studies.mesa.compressed import compressed
from unrolled.studies.mesa.constructed import Recipe, new_model
from unrolled.studies.mesa.held_out import TEST_SEED, TUNE_SEED, best_step_size, mean_loss
from unrolled.studies.mesa.interpolation import STUDY
from unrolled.studies.mesa.interpolation.cells import InterpolationConfig
from unrolled.studies.mesa.interpolation.deep import (
    StackProducts,
    _plain,
    aligned,
    cosines,
    of_numbers,
    random_stack,
    spread_like,
    stack_products,
    steps_numbers,
    tuned_steps,
)
from unrolled.studies.mesa.interpolation.one_layer import construction, products_of, random_like
from unrolled.tasks import LinearDynamics, constructed_tokens
from unrolled.theory.in_context import gradient_descent_predictions

TINY: dict[str, Any] = {"steps": 4, "batch_size": 8, "test_sequences": 32, "points": 2, "coefficients": 3}
TINY |= {"deep": ("2",), "deep_steps": (3,), "deep_batch_size": (8,)}
WORLD = LinearDynamics(dim=3, steps=9)


def a_stack(layers: int, seed: int = 0) -> Any:
    return new_model(WORLD, Recipe(steps=1, batch_size=1, layers=layers, heads=3, dim_head=5, init_std=0.4), seed=seed)


def states() -> torch.Tensor:
    return WORLD.sample(4, seed=0, dtype=torch.float64).inputs


def test_products_predict_what_the_layer_predicts() -> None:
    torch.manual_seed(0)
    layer = LinearSelfAttention(12, 2, dim_head=5).double()
    states = LinearDynamics(dim=3, steps=9).sample(4, seed=0, dtype=torch.float64).inputs
    with torch.no_grad():
        expected = layer(constructed_tokens(states))[..., :3].clamp(-4, 4)
    torch.testing.assert_close(products_of(layer).predict(states, clip=4.0), expected)


@given(size=st.floats(1e-3, 1.0), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_construction_is_one_gradient_step_whatever_it_is_scaled_like(size: float, seed: int) -> None:
    torch.manual_seed(seed)
    like = products_of(LinearSelfAttention(12, 2, dim_head=5))
    built = construction(like, size)
    states = LinearDynamics(dim=3, steps=9).sample(4, seed=0, dtype=torch.float64).inputs
    torch.testing.assert_close(built.predict(states, clip=1e9), gradient_descent_predictions(states, size))
    ratio, own = (x.values.norm(dim=(-2, -1)) / x.scores.norm(dim=(-2, -1)) for x in (built, like))
    used = built.scores.norm(dim=(-2, -1)) > 0
    torch.testing.assert_close(ratio[used], own[used])


def test_mixing_ends_at_both_and_random_products_have_the_norms() -> None:
    layer = LinearSelfAttention.gradient_descent(state_dim=3, step_size=0.1)
    own = products_of(layer)
    other = random_like(own, torch.Generator().manual_seed(0))
    torch.testing.assert_close(own.mixed(other, 0.0).scores, own.scores)
    torch.testing.assert_close(own.mixed(other, 1.0).values, other.values)
    torch.testing.assert_close(other.values.norm(), own.values.norm())
    # the construction stays itself when averaged with itself
    torch.testing.assert_close(own.mixed(construction(own, 0.1), 0.5).scores, own.scores)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_products_of_a_stack_predict_what_it_predicts(layers: int) -> None:
    model = a_stack(layers).double()
    with torch.no_grad():
        expected = model(constructed_tokens(states()))
    stack = stack_products(model)
    torch.testing.assert_close(stack.predict(states()), expected)
    # and so do the numbers of a head
    numbers = compressed(model, 3)
    torch.testing.assert_close(of_numbers(numbers, 3).predict(states()), numbers.predict(states()))


@given(steps=st.integers(1, 4), size=st.floats(1e-3, 0.1))
@settings(max_examples=10, deadline=None)
def test_layers_of_one_step_size_are_gradient_descent_on_the_context(steps: int, size: float) -> None:
    sizes = torch.full((steps,), size, dtype=torch.float64)
    predicted = of_numbers(steps_numbers(sizes, sizes, 1e9), 3).predict(states())
    for t in range(9):
        before, after = states()[:, :t], states()[:, 1 : t + 1]
        weights = torch.zeros(4, 3, 3, dtype=torch.float64)
        for _ in range(steps):
            weights = weights - size * (before @ weights.mT - after).mT @ before
        torch.testing.assert_close(predicted[:, t], (weights @ states()[:, t, :, None])[..., 0])


def test_tuned_steps_are_better_than_one_and_spread_over_heads_they_are_the_same() -> None:
    world = LinearDynamics(dim=3, steps=12)
    test = world.sample(256, seed=TEST_SEED)

    def tuned(layers: int) -> Any:
        learned, forgotten, _ = tuned_steps(world, layers, 4.0, sequences=256)
        return steps_numbers(learned, forgotten, 4.0).predict

    losses = [mean_loss(tuned(layers), *test[:2]) for layers in (1, 2, 3)]
    one = mean_loss(lambda x: gradient_descent_predictions(x, best_step_size(world)), *test[:2])
    assert losses[0] == pytest.approx(one, rel=0.05)
    assert losses[1] < 0.9 * losses[0]
    assert losses[2] < 0.9 * losses[1]
    single = of_numbers(steps_numbers(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.3, 0.2, 0.1]), 4.0), 3)
    spread = spread_like(stack_products(a_stack(3)), single)
    assert spread.scores.shape == (3, 3, 12, 12)
    torch.testing.assert_close(spread.predict(states()), single.predict(states()))
    torch.testing.assert_close(torch.tensor(cosines(spread, spread)), torch.ones(3))


@pytest.mark.parametrize("copies", [[0, 1, 2, 3], [0, 2, 1, 3]])
def test_a_stack_written_otherwise_is_found_to_be_the_same(copies: list[int]) -> None:
    own = stack_products(a_stack(2))
    place = torch.arange(12).unflatten(0, (4, 3))[copies].flatten()
    factor = torch.tensor([2.0, -0.5, 3.0], dtype=torch.float64)[:, None, None]
    order = [2, 0, 1]
    other = StackProducts(
        (own.scores * factor)[:, order][..., place, :][..., place],
        (own.values / factor)[:, order][..., place, :][..., place],
        own.clip,
    )
    torch.testing.assert_close(other.predict(states()), own.predict(states()))
    assert not torch.allclose(own.mixed(other, 0.5).predict(states()), own.predict(states()))
    found = aligned(own, other)
    torch.testing.assert_close(found.scores, own.scores)
    torch.testing.assert_close(found.values, own.values)
    assert min(cosines(own, aligned(own, stack_products(a_stack(2, seed=1))))) < 0.9


def test_random_stacks_have_the_norms_and_write_where_the_last_layer_is_read() -> None:
    own = stack_products(a_stack(2))
    other = random_stack(own, torch.Generator().manual_seed(0))
    torch.testing.assert_close(other.values.norm(dim=(-2, -1)), own.values.norm(dim=(-2, -1)))
    torch.testing.assert_close(other.scores.norm(dim=(-2, -1)), own.scores.norm(dim=(-2, -1)))
    assert float(other.values[-1, :, 3:].abs().max()) == 0
    acts = _plain(other.scores, other.values, other.clip)  # none of it stands where nothing reads or is read
    torch.testing.assert_close(acts.scores, other.scores)
    torch.testing.assert_close(acts.values, other.values)


def test_tuned_steps_are_as_good_as_they_come() -> None:
    world = LinearDynamics(dim=3, steps=12)
    learned, forgotten, loss = tuned_steps(world, 6, 4.0, sequences=64)
    sample = world.sample(64, seed=TUNE_SEED)
    for scale in (0.97, 1.03):  # a step size by itself
        for sizes in range(5):
            other = learned.clone()
            other[sizes] *= scale
            assert mean_loss(steps_numbers(other, forgotten, 4.0).predict, *sample[:2]) > loss - 1e-4


def test_the_report_holds_both_ends_of_the_way(tmp_path: Path) -> None:
    report = STUDY.run(InterpolationConfig(seeds=(0, 1), out=tmp_path, kept=tmp_path / "kept", **TINY))
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    one, stacks = (
        [row for row in record["results"]["rows"] if row["cell"] == cell] for cell in ("Mixed", "MixedStack")
    )
    assert [len(one), len(stacks)] == [2, 2]
    for row in one:
        assert [point["step"] for point in row["curve"]] == [0, 2, 4]
        last = row["curve"][-1]
        assert row["to_construction"][0] == pytest.approx(last["trained"])
        assert row["to_construction"][-1] == pytest.approx(last["constructed"])
        assert row["to_construction"][1] == pytest.approx(last["mixed"])
        assert last["constructed"] < 0.7 * row["zero_loss"]
    # four steps from weights near zero: the trained layer predicts zero
    assert report.claims[0].verdict == "not reproduced"
    # each stack beside the other one, from which all ways begin; nothing of them is judged
    assert [(row["seed"], row["other_seed"]) for row in stacks] == [(0, 1), (1, 0)]
    for row in stacks:
        ways = [row[f"to_{end}"] for end in ("steps", "random", "numbers", "shuffled", "other")]
        assert len({way[0] for way in ways}) == 1
        assert row["halfway"]["to_steps"] == pytest.approx(row["to_steps"][1])
        assert row["to_steps"][-1] < 0.7 * row["zero_loss"]
    assert [claim.verdict for claim in report.claims[4:]] == ["not judged"] * 3
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "paper: 2500 of 512" in page
    assert "no loss is published for more than one layer" in page


def test_stacks_have_their_settings_each() -> None:
    with pytest.raises(ValueError, match=r"^deep_steps="):
        InterpolationConfig(deep=("2",), deep_steps=(3, 4))
    alone = InterpolationConfig(deep=("4",), deep_batch_size=(8,))
    assert (alone.deep_steps, alone.deep_batch_size) == ((1200,), (8,))
    config = InterpolationConfig(**TINY, seeds=(7,))
    assert [getattr(cell, "other_seed", None) for cell in STUDY.cells(config)] == [None, 8]


@pytest.mark.slow
def test_the_quick_budget_finds_the_average_as_good(tmp_path: Path) -> None:
    config = InterpolationConfig.of_budget("quick", seeds=(0, 1), out=tmp_path, kept=tmp_path / "kept")
    report = STUDY.run(replace(config, budget="cpu"))
    assert report.claims[1].verdict == "reproduced"
    assert report.claims[3].why == "a control of this package; as expected"
