"""Compression keeps a construction exactly, loses random weights, and its models are those of the study of depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.layers.linear_attention import LinearSelfAttention
from unrolled.studies.cells import Row
from unrolled.studies.mesa.compressed import (
    CLAIMS,
    STUDY,
    CompressedConfig,
    Numbers,
    cells,
    compressed,
    kept_share,
    permuted,
)
from unrolled.studies.mesa.constructed import Recipe, model_predictions, new_model
from unrolled.studies.mesa.depth.cells import DepthConfig
from unrolled.studies.results import Results
from unrolled.tasks import LinearDynamics
from unrolled.theory.in_context import gradient_descent_predictions

TINY: dict[str, Any] = {
    "seeds": (0, 1),
    "models": ("1", "2"),
    "steps": (3, 2),
    "batch_size": (4,),
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


@pytest.mark.parametrize("budget", ["quick", "cpu", "gpu"])
def test_the_models_are_those_of_the_study_of_depth(budget: Any) -> None:
    assert set(CompressedConfig.of_budget(budget).networks) < set(DepthConfig.of_budget(budget).networks)


def test_the_report_has_every_control(tmp_path: Path) -> None:
    report = STUDY.run(CompressedConfig(kept=tmp_path / "kept", out=tmp_path / "out", **TINY))
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    (row,) = (row for row in record["results"]["rows"] if (row["layers"], row["seed"]) == (2, 0))
    assert row["numbers"] == 2 * 4 * 32
    assert row["weights"] == 2 * 4 * 3200
    assert {"retrained", "permuted", "random", "random_compressed"} <= set(row)
    table = record["sections"][0]["blocks"][1]["rows"]
    assert table[-1][:2] == ["6", "not run"]
    assert report.claims[2].measured == "not run"


def test_the_control_is_the_smallest_of_all_ratios() -> None:
    config = CompressedConfig()
    rows = []
    for cell in cells(config):
        permuted_loss = 1.2 if cell.network.recipe.layers == 2 else 2.0
        rows.append(Row(cell, {"trained": 1.0, "compressed": 1.02, "permuted": permuted_loss}, 1.0))
    one, two, six, control = (claim.judge(Results(rows), config) for claim in CLAIMS)
    assert [claim.verdict for claim in (one, two, six)] == ["reproduced", "not judged", "reproduced"]
    assert (control.why[-15:], control.measured) == ("not as expected", "1.20")
    assert {claim.judge(Results([]), config).verdict for claim in CLAIMS} == {"not run"}
