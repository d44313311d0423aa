"""The claims of one trained linear layer: what the weights say is what they compute, and the study reports it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unrolled.studies.mesa.constructed import Constructed, Recipe
from unrolled.studies.mesa.held_out import TEST_SEED
from unrolled.studies.mesa.one_step import STUDY, Layer, OneStepConfig

TINY: dict[str, Any] = {"steps": 6, "batch_size": 8, "sizes_batch_size": 8, "test_sequences": 64, "points": 2}


def test_the_report_holds_the_claims_and_marks_short_training(tmp_path: Path) -> None:
    config = OneStepConfig(seeds=(0, 1), sizes=((1, 3),), out=tmp_path, kept=tmp_path / "kept", **TINY)
    report = STUDY.run(config)
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["dim"] for row in record["results"]["rows"]] == [10, 10, 3]
    assert len(report.claims) == 5
    assert report.claims[4].over == "over 2 shapes"  # two seeds of one shape are no two shapes
    # six steps from weights near zero predict zero: the verdict must be negative
    assert report.claims[0].verdict == "not reproduced"
    assert report.claims[3].verdict == "not judged"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "paper: 5000 of 256" in page
    assert "By position" in page


def test_the_gradient_step_has_the_bounds_of_the_layer() -> None:
    def losses(clip: float) -> dict[str, Any]:
        layer = Layer(network=Constructed(recipe=Recipe(steps=1, batch_size=1, clip=clip), seed=0), test_sequences=512)
        test = layer.network.world.sample(512, seed=TEST_SEED)
        return layer.without_training(test.inputs, test.targets)

    bounded, free = losses(4.0), losses(1e9)
    for key in ("gradient_step_loss", "initial_step_loss"):
        assert bounded[key] < free[key] < bounded["zero_loss"]
    assert bounded["best_step_size"] == free["best_step_size"]


@pytest.mark.slow
def test_the_quick_budget_finds_the_gradient_step(quick: Any, tmp_path: Path) -> None:
    config = replace(quick("mesa-one-step")[0], budget="cpu", out=tmp_path)
    report = STUDY.run(config)
    assert report.claims[-1].verdict == "reproduced"
    assert "1.0" in report.claims[0].measured
