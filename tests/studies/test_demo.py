"""The demo runs, says what it did, and its CRATE is as good as it claims."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from unrolled import studies
from unrolled.studies.base import Expectation
from unrolled.studies.demo import Config, run


def test_quick_demo_writes_a_report_of_every_model(tmp_path: Path) -> None:
    config = Config.of_budget("quick", epochs=0.5, workers=1, out=tmp_path)
    said: list[str] = []
    report = run(config, on_progress=said.append)
    assert len(said) == 2
    assert "crate_nano_patch2_8" in said[0]
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    crate, vit = record["results"]["CRATE"], record["results"]["ViT"]
    assert crate["parameters"] < vit["parameters"]
    assert crate["test_images"] == 360
    assert 0 < crate["test_accuracy_mean"] < 1
    assert len(crate["trace"][0]["layers"]) == len(crate["trace"][0]["control"]) == 6
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (
        "CRATE test accuracy",
        "CRATE untrained",
        "Learning curves",
        "Where the class token looks",
        "data:image/png",
    ):
        assert words in page
    assert report.provenance.seeds == (0,)


def test_a_demo_in_the_same_place_is_replaced_and_comes_out_the_same(tmp_path: Path) -> None:
    config = Config.of_budget("quick", models=("crate_nano_patch2_8",), epochs=0.2, workers=1, out=tmp_path)
    assert run(config).results["CRATE"]["trace"] == run(config).results["CRATE"]["trace"]


@pytest.mark.slow
def test_demo_reaches_97_percent_in_two_minutes(tmp_path: Path) -> None:
    began = time.perf_counter()
    report = run(Config(out=tmp_path))
    assert report.results["CRATE"]["test_accuracy_mean"] >= 0.97
    assert report.reproduced
    assert time.perf_counter() - began < 120


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="seeds"):
        Config(seeds=())
    with pytest.raises(ValueError, match="repeat"):
        Config(seeds=(1, 1))
    with pytest.raises(ValueError, match="val_fraction"):
        Config(val_fraction=0.0)
    with pytest.raises(ValueError, match="workers"):
        Config(workers=0)
    with pytest.raises(ValueError, match="budget"):
        Config.of_budget("huge")  # type: ignore[arg-type]


def test_studies_are_found_by_name() -> None:
    assert studies.load("demo").config is Config
    with pytest.raises(ValueError, match="did you mean 'demo'"):
        studies.load("demos")


def test_an_expectation_judges_only_what_it_bounds() -> None:
    bounded = Expectation(statement="s", source="a paper", published="0.5", low=0.4, high=0.6)
    assert bounded.judge(0.5, "0.5").reproduced is True
    assert bounded.judge(0.7, "0.7").reproduced is False
    assert bounded.judge(math.nan, "n/a").reproduced is False
    assert Expectation(statement="s", source="a paper", published="rises").judge(1.0, "1").reproduced is None
