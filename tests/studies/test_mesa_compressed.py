"""Compression keeps a construction exactly, loses random weights, and takes its models from the shared folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import studies
from unrolled.layers.linear_attention import LinearSelfAttention
from unrolled.studies import mesa_depth
from unrolled.studies.mesa_compressed import Config, Numbers, compressed, kept_share, permuted, run
from unrolled.studies.mesa_train import Recipe, constructed_recipe, model_predictions, new_model
from unrolled.tasks import LinearDynamics
from unrolled.theory.in_context import gradient_descent_predictions

TINY: dict[str, Any] = {
    "seeds": (0, 1),
    "models": ("1", "2"),
    "steps": (3, 2),
    "batch_size": 4,
    "test_sequences": 16,
    "retraining": 3,
}


def test_the_construction_is_kept_exactly() -> None:
    world = LinearDynamics(dim=3, steps=9)
    model = new_model(world, Recipe(steps=1, batch_size=1, heads=1, dim_head=3), seed=0)
    built = LinearSelfAttention.gradient_descent(state_dim=3, step_size=0.1)
    model.blocks[0].get_submodule("attn").load_state_dict(built.state_dict())
    numbers = compressed(model, 3)
    states = world.sample(4, seed=0).inputs
    torch.testing.assert_close(numbers.predict(states), gradient_descent_predictions(states, 0.1).clamp(-4, 4))
    assert kept_share(model, numbers, 3) == pytest.approx(1.0)
    assert int((numbers.scores != 0).sum()) == int((numbers.values != 0).sum()) == 1


def test_a_model_of_such_numbers_is_its_own_compression() -> None:
    world = LinearDynamics(dim=3, steps=7)
    recipe = Recipe(steps=1, batch_size=1, layers=2, heads=2, dim_head=12)
    model = new_model(world, recipe, seed=0)
    numbers = Numbers(0.2 * torch.randn(2, 2, 4, 4), 0.2 * torch.randn(2, 2, 4, 4), 4.0)
    eye = torch.eye(3)
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            attn: Any = block.get_submodule("attn")
            attn.query.weight.copy_(torch.cat([torch.kron(m.T.contiguous(), eye) for m in numbers.scores[layer]]))
            attn.key.weight.copy_(torch.eye(12).repeat(2, 1))
            attn.value.weight.copy_(torch.cat([torch.kron(m.contiguous(), eye) for m in numbers.values[layer]]))
            attn.output.weight.copy_(torch.eye(12).repeat(1, 2))
    found = compressed(model, 3)
    torch.testing.assert_close(found.scores.float(), numbers.scores)
    torch.testing.assert_close(found.values.float(), numbers.values)
    states = world.sample(4, seed=0).inputs
    torch.testing.assert_close(found.predict(states), model_predictions(model)(states).detach())


def test_random_weights_keep_next_to_nothing_and_a_permutation_moves_only_places() -> None:
    model = new_model(LinearDynamics(), Recipe(steps=1, batch_size=1, init_std=0.1), seed=0)
    numbers = compressed(model, 10)
    assert kept_share(model, numbers, 10) < 0.03
    moved = permuted(numbers, 0)
    assert not torch.equal(moved.scores, numbers.scores)
    torch.testing.assert_close(moved.scores.flatten(-2).sort().values, numbers.scores.flatten(-2).sort().values)


def test_the_models_are_those_of_the_study_of_depth(tmp_path: Path) -> None:
    for budget in ("quick", "cpu", "gpu"):
        own, depth = Config.of_budget(budget), mesa_depth.Config.of_budget(budget)  # type: ignore[arg-type]
        steps = dict(zip(depth.models, depth.steps, strict=True))
        assert own.shared == depth.shared
        assert own.seeds == depth.seeds
        for name, count in zip(own.models, own.steps, strict=True):
            mine = constructed_recipe(name, steps=count, batch_size=own.batch_size, published=own.published)
            assert mine == constructed_recipe(
                name, steps=steps[name], batch_size=depth.batch_size, published=depth.published
            )


def test_the_report_has_every_control(tmp_path: Path) -> None:
    said: list[str] = []
    report = run(Config(shared=tmp_path / "models", out=tmp_path / "out", **TINY), on_progress=said.append)
    assert len(said) == 4
    assert {path.name for path in (tmp_path / "models").iterdir()} == {
        f"constructed-orthogonal-{name}-seed{seed}.pt" for name in ("1", "2") for seed in (0, 1)
    }
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    cell = record["results"]["models"]["2"][0]
    assert cell["numbers"] == 2 * 4 * 32
    assert cell["weights"] == 2 * 4 * 3200
    assert {"retrained", "permuted", "random", "random_compressed"} <= set(cell)
    rows = record["sections"][0]["blocks"][1]["rows"]
    assert rows[-1][:2] == ["6", "not run"]
    assert report.claims[2].measured == "not run"


def test_bad_settings_are_refused_by_name() -> None:
    for settings, match in (
        ({"seeds": (1, 1)}, "seeds"),
        ({"models": ("4",), "steps": (1,)}, "models"),
        ({"steps": (1,)}, "steps"),
        ({"retraining": 0}, "retraining"),
    ):
        with pytest.raises(ValueError, match=match):
            Config(**settings)  # type: ignore[arg-type]
    assert studies.load("mesa-compressed").config is Config
