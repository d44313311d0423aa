"""A committed report is a store of results: its study is judged from it without computing anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.study_store import STUDIES, configuration, take_over
from unrolled import studies
from unrolled.reading import read_json
from unrolled.studies.runner import compute_all


@pytest.mark.parametrize("name", ["mesa-linearise", "mesa-compressed"])
def test_a_study_is_judged_alike_from_its_committed_rows(name: str, tmp_path: Path) -> None:
    report = read_json(STUDIES / name / "report.json")
    assert take_over(report, name, tmp_path / "kept") == (len(report["results"]["rows"]), {})
    study = studies.load(name)
    config = configuration(study.config, report["provenance"]["config"])
    config.kept, config.out, config.only_kept = tmp_path / "kept", tmp_path / "out", True
    again = study.run(config)
    intervals = [claim["interval"] and tuple(claim["interval"]) for claim in report["claims"]]
    assert any(intervals)
    assert [claim.interval for claim in again.claims] == intervals
    assert [claim.verdict for claim in again.claims] == [claim["verdict"] for claim in report["claims"]]


def test_a_row_of_other_settings_is_left(tmp_path: Path) -> None:
    report = read_json(STUDIES / "mesa-compressed" / "report.json")
    rows, kind = report["results"]["rows"], report["results"]["rows"][0]["cell"]
    rows[0]["seed"] = 12345
    of_kind = sum(row["cell"] == kind for row in rows)
    assert take_over(report, "mesa-compressed", tmp_path / "old") == (len(rows) - of_kind, {kind: of_kind})
    report["results"]["missing"] = {}
    assert take_over(report, "mesa-compressed", tmp_path / "new") == (len(rows) - 1, {kind: 1})
    study = studies.load("mesa-compressed")
    config = configuration(study.config, report["provenance"]["config"])
    config.kept = tmp_path / "new"
    assert len(compute_all(study.cells(config), config.context, only_kept=True).missing) == 1


def test_an_untrained_network_is_not_given_the_numbers_of_the_trained_one(tmp_path: Path) -> None:
    report = read_json(STUDIES / "crate-pretrain" / "report.json")
    rows = report["results"]["rows"]
    untrained = next(row for row in rows if row["cell"] == "Layers" and "operations" not in row and "seed" in row)
    rows.remove(untrained)
    report["results"]["missing"] = {}
    assert take_over(report, "crate-pretrain", tmp_path) == (len(rows), {})
    study = studies.load("crate-pretrain")
    config = configuration(study.config, report["provenance"]["config"])
    config.kept = tmp_path
    missing = compute_all(study.cells(config), config.context, only_kept=True).missing
    (cell,) = (each for each in missing if type(each).__name__ == "Layers")  # the report may lack others too
    assert (cell.columns["form"], cell.columns["seed"]) == (untrained["form"], untrained["seed"])
    assert "operations" not in cell.columns


def test_a_report_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mesa-compressed: its report is of a time"):
        take_over({"results": {}}, "mesa-compressed", tmp_path)
