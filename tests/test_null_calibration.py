"""The table of false positive rates: a small one holds, and the benchmark goes on where it stopped."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from scipy import stats

from benchmarks import null_calibration as nc

pytestmark = pytest.mark.filterwarnings("ignore:.*copies of other rows", "ignore:.*correlate perfectly")


@pytest.mark.slow
@pytest.mark.parametrize("kind", nc.KINDS)
@pytest.mark.parametrize("metric", nc.METRICS)
def test_no_rate_lies_above_its_level(metric: str, kind: str) -> None:
    draws = 60
    found = [nc.p_values(metric, kind, 60, draw) for draw in range(draws)]
    for null, level in itertools.product(nc.NULLS, nc.LEVELS):
        # of 170 cells one fails by chance once in 60 runs
        reached = sum(each[null][0] <= level for each in found)
        assert stats.binomtest(reached, draws, level, "greater").pvalue > 1e-4


@pytest.mark.parametrize("kind", ["normal", "groups"])
@pytest.mark.parametrize("metric", ["mutual_knn", "cycle_knn"])
def test_one_pass_over_both_nulls_gives_what_each_gives_alone(metric: str, kind: str) -> None:
    draws = range(4)
    alone = [{null: nc.p_values(metric, kind, 30, draw, [null])[null] for null in nc.NULLS} for draw in draws]
    assert [nc.p_values(metric, kind, 30, draw) for draw in draws] == alone


def test_the_benchmark_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nc, "CHUNK", 4)
    pair = [nc.Cell("mutual_knn", null, "normal", 60) for null in nc.NULLS]
    assert nc.extend(tmp_path, pair[1:], 8) == 4  # one null is ahead
    nc.main(["--metrics", "mutual_knn", "--kinds", "normal", "--n", "60", "--draws", "8", "--out", str(tmp_path)])
    other = tmp_path / "other"
    other.mkdir()
    for _ in range(2):
        nc.extend(other, pair, 8)
    for cell in pair:
        gone_on, at_once = (json.loads((folder / cell.file).read_text()) for folder in (tmp_path, other))
        assert gone_on["draws"] == sum(gone_on["methods"].values()) == 8
        assert {**gone_on, "seconds": 0} == {**at_once, "seconds": 0}


def test_the_table_says_what_was_not_run_and_marks_what_is_above(tmp_path: Path) -> None:
    good = {**vars(nc.Cell("mutual_knn", "moments", "normal", 60)), "draws": 1000, "reached": [50, 9, 0], "methods": {}}
    bad = {**good, "null": "permutation", "kind": "t2", "reached": [90, 9, 0]}
    short = {**good, "metric": "cka", "draws": 100}
    for i, record in enumerate((good, bad, short)):
        (tmp_path / f"{i}.json").write_text(json.dumps(record))
    found = nc.table(tmp_path, 1000)
    assert (found["computed"], found["tested"]) == (2, 5)
    page = nc.markdown(found)
    assert "| mutual_knn | moments | 5.0 / 0.9 / 0.0 | not run |" in page
    assert "**9.0** / 0.9" in page
    assert "1 cells (in bold)" in page


def test_a_table_can_be_gone_on_with(tmp_path: Path) -> None:
    docs = Path(__file__).resolve().parents[1] / "docs"
    nc.take_over(docs / "null_calibration.json", tmp_path)
    again, committed = (
        nc.table(tmp_path, 1000)["rows"],
        json.loads((docs / "null_calibration.json").read_text())["rows"],
    )
    for one, other in zip(again, committed, strict=True):
        rates, others = one.pop("rates"), other.pop("rates")
        assert one == other
        assert rates == [
            pytest.approx(each) for each in others
        ]  # SciPy's quantiles differ in the last digits by version


def test_the_table_of_the_docs_has_no_rate_above_its_level() -> None:
    path = Path(__file__).resolve().parents[1] / "docs" / "null_calibration.json"
    found = json.loads(path.read_text())
    assert found["computed"] > 0
    assert all(rate["holds"] for row in found["rows"] for rate in row["rates"])
    assert nc.markdown(found) == path.with_suffix(".md").read_text()
