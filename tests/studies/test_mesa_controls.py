"""The negative control trains in every world and says what it did not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unrolled.studies.mesa.constructed import Constructed, Recipe
from unrolled.studies.mesa.controls import STUDY, WORLDS, ControlsConfig, InWorld
from unrolled.studies.mesa.held_out import TEST_SEED, mean_loss
from unrolled.theory.in_context import gradient_descent_predictions


def test_the_report_holds_all_worlds_and_prints_what_was_not_run(tmp_path: Path) -> None:
    config = ControlsConfig(
        seeds=(0, 1),
        worlds=("fixed", "oblique"),
        steps=2,
        deeper_steps=1,
        batch_size=4,
        test_sequences=32,
        out=tmp_path,
        kept=tmp_path / "kept",
    )
    report = STUDY.run(config)
    # two steps from weights near zero: worse than a gradient step in every world
    assert report.claims[0].verdict == "not reproduced"
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    table = record["sections"][0]["blocks"][1]["rows"]
    assert all(cell for row in table for cell in row)
    assert [row[4] for row in table if row[1] == "6 linear layers"] == ["not run", "not run"]
    assert [row[4] for row in table if row[0] in (WORLDS["contracting"], WORLDS["orthogonal"])] == ["not run"] * 2
    assert all("paper: 5000 of 256" in row[2] for row in table if row[1] == "1 mesa layer")
    rows = record["results"]["rows"]
    assert len(rows) == 6  # two worlds of two seeds, and a mesa layer in both
    layers = [row for row in rows if row["kind"] == "linear"]
    assert all(row["gradient_step"] < row["zero"] for row in layers)
    assert all(row["untrained"] == pytest.approx(row["zero"], rel=1e-3) for row in layers)
    assert all((row["structure"] is None) == (row["kind"] == "mesa") for row in rows)


def test_the_gradient_step_has_the_bounds_of_the_layer_and_its_sequences() -> None:
    recipe = Recipe(steps=1, batch_size=1, clip=1.0)
    cell = InWorld(network=Constructed(recipe=recipe, seed=0), test_sequences=64)
    test, look = cell.network.world.sample(64, seed=TEST_SEED), cell.network.looked_at
    step = cell.without_training(test.inputs, test.targets)

    def bounded(sample: Any) -> float:
        size = step["best_step_size"]
        predict = lambda states: gradient_descent_predictions(states, size).clamp(-1, 1)  # noqa: E731
        return mean_loss(predict, sample.inputs, sample.targets)

    assert step["gradient_step"] == pytest.approx(bounded(test))
    (point,) = cell.beside_a_step([{"step": 1, "loss": bounded(look)}])
    assert point["ratio"] == pytest.approx(1)


def test_without_the_control_its_claims_are_not_run(tmp_path: Path) -> None:
    small: dict[str, Any] = {"steps": 1, "batch_size": 2, "test_sequences": 8, "deeper": ()}
    report = STUDY.run(ControlsConfig(worlds=("oblique",), out=tmp_path, kept=tmp_path / "kept", **small))
    assert [claim.verdict == "not run" for claim in report.claims] == [True, True, False]
    assert report.summary.startswith("With one teacher for all sequences the layer ends at not run")


@pytest.mark.slow
def test_a_layer_with_one_teacher_is_no_gradient_step(quick: Any) -> None:
    rows = {row["teacher"]: row for row in quick("mesa-controls")[1].results["rows"]}
    ratios = {world: row["loss"] / row["gradient_step"] for world, row in rows.items()}
    assert ratios["fixed"] < 0.8
    assert rows["fixed"]["structure"]["cosine"] < 0.8
    assert 0.90 <= ratios["oblique"] <= 1.03
