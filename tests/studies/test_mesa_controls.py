"""The negative control trains in both worlds and says what it did not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unrolled import studies
from unrolled.studies.mesa_controls import Config, run


def test_the_report_holds_both_worlds_and_prints_what_was_not_run(tmp_path: Path) -> None:
    said: list[str] = []
    config = Config(seeds=(0, 1), steps=4, batch_size=8, test_sequences=64, out=tmp_path)
    report = run(config, on_progress=said.append)
    assert len(said) == 4
    # four steps from weights near zero: worse than a gradient step in either world
    assert report.claims[0].reproduced is False
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    rows = record["sections"][0]["blocks"][1]["rows"]
    assert [row[4] for row in rows if row[1] in ("6 linear layers", "one mesa layer")] == ["not run", "not run"]
    assert any("paper: 5000 of 256" in row[2] for row in rows)
    for cells in record["results"].values():
        assert all(cell["exact_ridge"] < cell["gradient_step"] < cell["zero"] for cell in cells)


@pytest.mark.slow
def test_a_layer_with_one_teacher_is_no_gradient_step(tmp_path: Path) -> None:
    assert run(Config.of_budget("quick", out=tmp_path)).reproduced


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="seeds"):
        Config(seeds=())
    with pytest.raises(ValueError, match="steps"):
        Config(steps=0)
    assert studies.load("mesa-controls").config is Config
