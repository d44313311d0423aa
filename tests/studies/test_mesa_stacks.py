"""Stacks that studies share: kinds in every world, causal, trained once for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.studies.cells import Context, computed
from unrolled.studies.mesa import stacks
from unrolled.studies.mesa.stacks import Stack, WorldsConfig, new_model, predictor, recipe, tokens_of, world_of


@pytest.mark.parametrize("world", stacks.PLACES)
@pytest.mark.parametrize("kind", stacks.KINDS)
def test_every_kind_predicts_observations_causally_in_every_world(kind: Any, world: Any) -> None:
    each = recipe(kind, world, "quick")
    model = new_model(each, 0)
    states = world_of(each).sample(2, seed=0).inputs
    changed = states.clone()
    changed[:, 30:] += 1
    predict = predictor(each, model)
    assert predict(states).shape == states.shape
    torch.testing.assert_close(predict(states)[:, :30], predict(changed)[:, :30], rtol=1e-4, atol=1e-5)
    assert [name for name in each.layers if name != "mesa"] == {"softmax": ["softmax"] * 2, "hybrid": ["softmax"]}.get(
        kind, []
    )


@pytest.mark.parametrize("world", stacks.PLACES)
@pytest.mark.parametrize("effort", ["quick", "cpu", "gpu"])
def test_softmax_7_has_the_depth_of_the_paper_at_every_effort(effort: Any, world: Any) -> None:
    each = recipe("softmax-7", world, effort)
    assert each.layers == ("softmax",) * 7
    assert each.label == "softmax-7"
    if effort == "gpu":
        assert each == replace(recipe("softmax", world, effort), kind="softmax-7")
    else:
        assert "paper: " in each.extent
        short = replace(each, dim=8, heads=2, dim_head=4)
        states = world_of(each).sample(1, seed=0).inputs
        assert predictor(short, new_model(short, 0))(states).shape == states.shape


def test_softmax_7_is_trained_where_it_is_named_alone() -> None:
    assert {stack.recipe.kind for stack in WorldsConfig().stacks} == {"softmax", "hybrid", "mesa"}
    named = WorldsConfig(kinds=("softmax", "softmax-7"), worlds=("full",), seeds=(0,)).stacks
    assert [stack.recipe.label for stack in named] == ["softmax-3", "softmax-7"]
    assert named[0] in WorldsConfig().stacks


def test_the_linear_stack_reads_constructed_tokens_of_one_world_only() -> None:
    each = recipe("linear", "full", "quick")
    states = world_of(each).sample(2, seed=0).inputs
    assert tokens_of(each, states).shape == (2, 50, 40)
    assert predictor(each, new_model(each, 0))(states).shape == states.shape
    with pytest.raises(ValueError, match="world"):
        recipe("linear", "partial", "quick")


def test_a_stack_is_trained_once_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(store=tmp_path)
    stack = Stack(recipe=recipe("softmax", "full", "quick", steps=3, batch_size=4), seed=0)
    curve = computed(stack, context).result["curve"]
    assert {entry["step"] for entry in curve} == {0, 1, 2, 3}
    assert len(curve[0]["binding"]) == len(curve[0]["sensitivity"]) == stacks.LAGS + 1
    monkeypatch.setattr(stacks, "sequence_loss", None)  # a second training would fail
    one, two = stack.load(context), stack.load(context)
    assert not one.training
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert not torch.equal(one.embed.weight, stack.untrained(context).embed.weight)
    with pytest.raises(TypeError):
        Stack(recipe=stack.recipe, seed=1).load(context)


def test_a_stack_of_another_length_that_nothing_looks_at_in_training(tmp_path: Path) -> None:
    short = replace(recipe("hybrid", "full", "quick", steps=2, batch_size=2), tokens=7, validation=0)
    stack = Stack(recipe=short, seed=0)
    assert stack.world.sample(1, seed=0).inputs.shape == (1, 7, 10)
    assert computed(stack, Context(store=tmp_path)).result["curve"] == []


def test_equal_settings_mean_the_same_stacks_and_some_worlds_get_one_seed() -> None:
    config = WorldsConfig(effort="quick", steps=2, kinds=("softmax",), one_seed=("nonlinear",))
    assert [(stack.recipe.world, stack.seed) for stack in config.stacks] == [
        ("full", 0),
        ("full", 1),
        ("partial", 0),
        ("partial", 1),
        ("nonlinear", 0),
    ]
    assert config.stacks[0] == Stack(recipe=recipe("softmax", "full", "quick", steps=2), seed=0)
