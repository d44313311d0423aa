"""The negative control trains in every world and says what it did not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unrolled import studies
from unrolled.studies.mesa_controls import Config, run


def test_the_report_holds_all_worlds_and_prints_what_was_not_run(tmp_path: Path) -> None:
    said: list[str] = []
    config = Config(
        seeds=(0, 1),
        worlds=("orthogonal", "fixed", "oblique"),
        steps=2,
        deeper_steps=1,
        batch_size=4,
        test_sequences=32,
        out=tmp_path,
    )
    report = run(config, on_progress=said.append)
    assert len(said) == 8  # three worlds of two seeds, and a mesa layer in two of them
    # two steps from weights near zero: worse than a gradient step in every world
    assert report.claims[0].reproduced is False
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    rows = record["sections"][0]["blocks"][1]["rows"]
    assert all(cell for row in rows for cell in row)
    assert [row[4] for row in rows if row[1] == "6 linear layers"] == ["not run", "not run"]
    assert [row[4] for row in rows if row[0] == "contracting, symmetric"] == ["not run"]
    assert all("paper: 5000 of 256" in row[2] for row in rows if row[1] == "1 mesa layer")
    for cells in record["results"].values():
        assert all(cell["gradient_step"] < cell["zero"] for cell in cells["1"])
        assert all(cell["untrained"] == pytest.approx(cell["zero"], rel=1e-3) for cell in cells["1"])


@pytest.mark.slow
def test_a_layer_with_one_teacher_is_no_gradient_step(tmp_path: Path) -> None:
    assert run(Config.of_budget("quick", out=tmp_path)).reproduced


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="seeds"):
        Config(seeds=())
    with pytest.raises(ValueError, match="steps"):
        Config(steps=0)
    with pytest.raises(ValueError, match="worlds"):
        Config(worlds=("oblique",))
    with pytest.raises(ValueError, match="deeper"):
        Config(deeper=("2",))
    assert studies.load("mesa-controls").config is Config
