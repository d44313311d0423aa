"""The demo runs, says what it did, and its CRATE is as good as it claims."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import studies
from unrolled.studies.cells import computed
from unrolled.studies.demo import RECIPES, STUDY, DemoConfig, DigitsRun
from unrolled.studies.results import Results


def test_a_short_demo_writes_a_report_of_every_model(tmp_path: Path) -> None:
    config = DemoConfig.of_budget("quick", epochs=0.5, workers=1, out=tmp_path / "out", kept=tmp_path / "kept")
    lines: list[str] = []
    report = STUDY.run(config, on_progress=lines.append)
    assert len(lines) == 4
    assert "crate_nano_patch2_8, seed 0" in lines[0]
    rows = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["results"]["rows"]
    crate, vit = (row for row in rows if row["cell"] == "DigitsRun")
    assert crate["parameters"] < vit["parameters"]
    assert crate["images"] == 360
    assert 0 < crate["accuracy"] < 1
    layers = next(row for row in rows if row["cell"] == "DigitsLayers")
    assert len(layers["trace"]["layers"]) == len(layers["trace"]["control"]) == 6
    assert [picture["label"] for picture in layers["attention"]] == list(range(6))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for words in (
        "CRATE and ViT on handwritten digits",
        "CRATE test accuracy",
        "CRATE untrained",
        "Learning curves",
        "Where the class token looks",
        "data:image/png",
    ):
        assert words in page
    assert report.claims[0].measured.endswith(" %")
    assert report.claims[0].verdict == "not judged"
    assert report.provenance.seeds == (0,)
    # the layers are those of the model that was tested
    context, run = config.context, next(iter(STUDY.cells(config)))
    assert isinstance(run, DigitsRun)
    again = DigitsRun.load(run, context)
    assert not again.training
    assert sum(parameter.numel() for parameter in again.parameters()) == crate["parameters"]


def test_the_same_run_comes_out_the_same(tmp_path: Path) -> None:
    small: dict[str, Any] = {"models": ("crate_nano_patch2_8",), "epochs": 0.2, "workers": 1}
    results, weights = [], []
    for folder in ("one", "two"):
        config = DemoConfig.of_budget("quick", kept=tmp_path / folder, **small)
        run: Any = next(iter(STUDY.cells(config)))
        found = computed(run, config.context).result
        results.append({key: value for key, value in found.items() if "second" not in key and key != "metrics"})
        weights.append(run.load(config.context).state_dict())
    assert results[0] == results[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_without_a_crate_nothing_is_claimed(tmp_path: Path) -> None:
    config = DemoConfig(models=("vit_nano_patch2_8",), out=tmp_path, kept=tmp_path)
    assert STUDY.claims[0].judge(Results([]), config).measured == "there is no CRATE among the models"


def test_each_model_has_the_recipe_chosen_for_it_unless_one_is_given() -> None:
    def recipes(config: DemoConfig) -> dict[str, tuple[float, float]]:
        return {run.model: (run.lr, run.warmup_epochs) for run in STUDY.cells(config) if isinstance(run, DigitsRun)}

    assert recipes(DemoConfig()) == dict(RECIPES)
    assert set(recipes(DemoConfig(lr=1e-2, warmup_epochs=0.0)).values()) == {(1e-2, 0.0)}


@pytest.mark.slow
def test_demo_reaches_97_percent_in_two_minutes(tmp_path: Path) -> None:
    began = time.perf_counter()
    report = STUDY.run(DemoConfig(out=tmp_path, kept=tmp_path / "kept"))
    assert report.reproduced
    assert time.perf_counter() - began < 120


def test_studies_are_found_by_name() -> None:
    assert studies.load("demo") is STUDY
    with pytest.raises(ValueError, match="did you mean 'demo'"):
        studies.load("demos")
