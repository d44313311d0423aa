"""Language models of the layers: the study runs, goes on where it stopped, and says what was not run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import studies
from unrolled.errors import MissingData
from unrolled.studies import mesa_language
from unrolled.studies.mesa_language import MODELS, Config, build, jobs, run

TINY: dict[str, Any] = {
    "corpora": ("tinyshakespeare",),
    "depths": (2, 4),
    "models": ("softmax", "hybrid-linear", "hybrid-mesa"),
    "compared": ("softmax", "hybrid-linear"),
    "dim": 16,
    "heads": 2,
    "length": 24,
    "steps": 3,
    "points": 1,
    "early": 2,
    "late": 20,
    "window": 2,
    "test_bytes": 400,
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = [f"to be or not to be, said number {i}, that is the question of {i % 7}" for i in range(300)]
    (tmp_path / "tinyshakespeare.txt").write_text("\n".join(lines))
    return tmp_path


def test_the_study_reports_every_cell_beside_its_controls_and_does_not_train_twice(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(**TINY, data_dir=corpus, out=tmp_path / "out")
    lines: list[str] = []
    report = run(config, on_progress=lines.append)
    assert len(lines) == 2 * 2 + 1 + 2
    results = json.loads((tmp_path / "out" / "report.json").read_text())["results"]
    for cell in results["cells"]:
        assert cell["untrained_loss"] == pytest.approx(math.log(256), abs=0.4)
        assert cell["bits_per_byte"] == pytest.approx(cell["loss"] / math.log(2))
        assert len(cell["curve"]) == 24
    control = results["controls"][0]
    assert control["bigram"]["loss"] < control["unigram"]["loss"] < math.log(256)
    assert [claim.measured == "not run" for claim in report.claims] == [False, False, False, True]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "not run" in page
    assert "bigram table" in page
    monkeypatch.setattr(mesa_language, "run_one", None)
    assert run(config).results == report.results


def test_models_of_one_size_have_equal_parameters_and_start_as_asked() -> None:
    config = Config(dim=64, heads=4)
    for depth in (2, 4):
        counts = [sum(p.numel() for p in build(config, model=m, depth=depth, seed=0).parameters()) for m in MODELS]
        assert max(counts) < 1.02 * min(counts)
    hybrid: Any = build(config, model="hybrid-mesa", depth=4, seed=0)
    assert hybrid.config.layers == ("softmax", "mesa", "mesa", "mesa")
    again: Any = build(config, model="hybrid-mesa", depth=4, seed=0)
    assert torch.equal(hybrid.embed.weight, again.embed.weight)


def test_the_first_place_gets_everything_and_the_rest_a_few() -> None:
    plan = list(jobs(Config()))
    assert len(plan) == len(set(plan))
    assert sum(job[:2] == ("tinyshakespeare", 2) for job in plan) == 3 * 2 + 4
    assert sum(job[:2] == ("tinyshakespeare", 4) for job in plan) == 3
    assert sum(job[:2] == ("wikitext2-small", 2) for job in plan) == 3


def test_bad_settings_and_missing_corpora_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="late"):
        Config(early=8, late=256, length=256)
    with pytest.raises(ValueError, match="hybrid-mesa"):
        Config(models=("mamba",))
    with pytest.raises(MissingData, match="data_dir"):
        run(Config(**TINY, data_dir=tmp_path, out=tmp_path / "out"))
    assert studies.load("mesa-language").config.of_budget("quick").steps == 100
