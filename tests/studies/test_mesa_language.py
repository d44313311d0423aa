"""Language models of the layers: the study says what each spends on text, beside its controls, and what was not run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import studies
from unrolled.errors import MissingData
from unrolled.models.encoder import parameters
from unrolled.studies.cells import Cell, Row
from unrolled.studies.language import Predicted, new_model
from unrolled.studies.mesa.language import MODELS, STUDY, Layered, MesaTextConfig, cells
from unrolled.studies.results import Results

TINY: dict[str, Any] = {
    **{"corpora": ("tinyshakespeare",), "depths": (2, 4), "models": ("softmax", "hybrid-linear", "hybrid-mesa")},
    **{"compared": ("softmax", "hybrid-linear"), "dim": 16, "heads": 2, "length": 24, "steps": 3, "points": 1},
    **{"early": 2, "late": 20, "window": 2, "test_bytes": 400, "rates": (1e-2, 3e-2), "trial_steps": 2},
}
TWO = ("tinyshakespeare", "wikitext2-small")


def tiny(folder: Path, **changes: Any) -> MesaTextConfig:
    return MesaTextConfig(**{**TINY, "data_dir": folder, "kept": folder / "kept", "out": folder / "out", **changes})


def test_the_study_reports_every_model_beside_its_controls(corpus: Path) -> None:
    assert studies.load("mesa-language") is STUDY
    report = STUDY.run(tiny(corpus))
    rows = json.loads((corpus / "out" / "report.json").read_text())["results"]["rows"]
    tested = [row for row in rows if row["cell"] == "Predicted"]
    assert sum(row["steps"] > 0 for row in tested) == 2 * 3 + 1 + 2
    assert sum(row["steps"] == 0 for row in tested) == 2 * 3 + 1 + 2
    for row in tested:
        assert len(row["curve"]) == 24
        if not row["steps"]:
            assert row["loss"] == pytest.approx(math.log(256), abs=0.4)
    (tables,) = [row for row in rows if row["cell"] == "Tables"]
    assert tables["bigram"]["loss"] < tables["unigram"]["loss"] < math.log(256)
    assert [claim.measured == "not run" for claim in report.claims] == [False, False, False, True]
    page = (corpus / "out" / "report.html").read_text()
    assert "not run" in page
    assert "bigram table" in page


def test_a_page_of_what_is_kept_needs_nothing(corpus: Path) -> None:
    STUDY.run(tiny(corpus, models=("mesa",), compared=(), depths=(2,)))
    report = STUDY.run(tiny(corpus, models=("softmax", "mesa"), depths=(2,), only_kept=True))
    assert {claim.measured for claim in report.claims} == {"not run"}
    sections = {section["title"]: section["blocks"] for section in report.to_dict()["sections"]}
    rows = {row[1]: row[2:] for row in sections["Every model"][1]["rows"]}
    assert rows["softmax"] == ["not run"] * 8
    assert "not run" not in rows["mesa"]


def test_models_of_one_size_have_equal_parameters_and_start_as_asked() -> None:
    config = MesaTextConfig(depths=(2,), dim=64, heads=4)
    networks = {cell.model: cell for cell in cells(config) if isinstance(cell, Layered)}
    counts = [parameters(new_model(networks[name].frame))["all"] for name in MODELS]
    assert max(counts) < 1.02 * min(counts)
    hybrid: Any = new_model(networks["hybrid-mesa"].frame)
    assert set(hybrid.config.layers[1:]) == {"mesa"}
    assert hybrid.config.layers[0] == "softmax"
    again: Any = new_model(networks["hybrid-mesa"].frame)
    assert torch.equal(hybrid.embed.weight, again.embed.weight)


def test_the_first_place_gets_everything_and_the_rest_a_few() -> None:
    plan = list(MesaTextConfig(corpora=TWO).plan)
    assert len(plan) == len(set(plan))
    assert sum(job[:2] == ("tinyshakespeare", 2) for job in plan) == 3 * 3 + 4
    assert sum(job[:2] == ("tinyshakespeare", 4) for job in plan) == 3
    assert sum(job[:2] == ("wikitext2-small", 2) for job in plan) == 3


def made_up(cell: Cell) -> Row[Any]:
    """Losses that differ by model and place, a little worse for every seed."""
    columns = cell.columns
    base = {"hybrid-mesa": 2.0, "hybrid-linear": 2.1, "softmax": 1.9}[columns["model"]]
    place = 0.03 * (columns["model"] == "hybrid-mesa") * (columns["corpus"] != "tinyshakespeare")
    loss = base + place + 0.001 * columns["seed"]
    return Row(cell, {"loss": loss, "score": loss - 2.0, "score_error": 0.1, "curve": [loss] * 256}, 1.0)


def test_the_least_favourable_place_decides_and_all_are_named() -> None:
    config = MesaTextConfig(
        corpora=TWO, models=("softmax", "hybrid-linear", "hybrid-mesa"), seeds=(0, 1), seeds_elsewhere=2
    )
    results = Results(made_up(cell) for cell in cells(config) if isinstance(cell, Predicted) and cell.network.steps)
    loss, score, level, behind = (claim.judge(results, config) for claim in STUDY.claims)
    assert loss.measured.startswith("-0.070 ± 0.000 (wikitext2-small, 2 layers, 2 seeds); -0.0")
    assert loss.measured.count("layers") == 4
    assert level.measured.startswith("0.130 ± 0.000 (wikitext2-small, 2 layers, 2 seeds); 0.100")
    assert behind.measured.startswith("0.100 ± 0.000 (tinyshakespeare, 4 layers, 2 seeds); 0.130")
    verdicts = ["reproduced", "not judged", "not judged", "reproduced"]
    assert [claim.verdict for claim in (loss, score, level, behind)] == verdicts
    alone = Results(row for row in results if row.cell.columns["seed"] == 0)
    assert {STUDY.claims[place].judge(alone, config).verdict for place in (0, 3)} == {"undecided"}


def test_missing_corpora_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"tinyshakespeare was not found .*; give data_dir="):
        STUDY.run(tiny(tmp_path))
    assert MesaTextConfig.of_budget("quick").steps == 100
