"""Cells, their store, the runner, the table of results and the verdicts: what every study relies on."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_cells import Fails, NeedsData, OfSum, OnData, Square, Sum

from unrolled.errors import MissingData
from unrolled.studies.cells import Cell, Context, Row, computed, stored_row
from unrolled.studies.claim import Claim
from unrolled.studies.networks import Network, OfNetwork
from unrolled.studies.results import Results, Values, line
from unrolled.studies.runner import compute_all
from unrolled.studies.study import Config, Count, Rate, Seeds, Study, causes, not_run


def times(context: Context) -> list[str]:
    """What was computed, in order."""
    path = context.store / "computed.txt"
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(store=tmp_path / "kept", data_dir=tmp_path / "data")


def test_a_cell_is_computed_once_whoever_asks(context: Context) -> None:
    first = computed(Square(number=3), context)
    assert first.result == {"value": 9, "deep": {"list": [1, 2]}}
    assert computed(Square(number=3), context) == first == stored_row(Square(number=3), context)
    assert computed(Square(number=4), context).result["value"] == 16
    assert times(context) == ["square3", "square4"]


def test_a_damaged_or_foreign_file_is_computed_again(context: Context) -> None:
    row = computed(Square(number=3), context)
    path = row.cell.file(context, ".json")
    for text in ("", "{", "[]", "null", '{"key": 1, "result": {}, "seconds": 1}', '{"result": {"value": 1}}'):
        path.write_text(text, encoding="utf-8")
        assert stored_row(row.cell, context) is None
        assert computed(row.cell, context).result == row.result


def test_fields_version_code_and_needs_make_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(cell: Cell) -> str:
        return replace(cell).digest  # of a new one, which has not computed it

    one = Sum(squares=(Square(number=1),))
    assert digest(one) == one.digest != digest(Sum(squares=(Square(number=2),)))
    assert Square(number=1).digest != NeedsData(seed=0).digest
    with monkeypatch.context() as patch:
        patch.setattr(Square, "version", 2)
        assert digest(Sum(squares=(Square(number=1),))) != one.digest
    assert digest(Sum(squares=(Square(number=1),))) == one.digest


def test_cells_among_the_fields_are_needed_but_for_networks_that_are_never_trained() -> None:
    assert OfSum(sum=Sum(squares=(Square(number=1),))).needs == (Sum(squares=(Square(number=1),)),)
    assert Sum(squares=(Square(number=1), Square(number=2))).needs == (Square(number=1), Square(number=2))

    @dataclass(frozen=True, kw_only=True)
    class OfMaybe(OfNetwork):
        network: Network | None  # type: ignore[assignment]

        def compute(self, context: Context) -> dict[str, Any]:
            return {}

    trained = Network(kind="crate", data="digits", seed=0, images=1024)
    assert [OfMaybe(network=network).needs for network in (trained, replace(trained, images=0), None)] == [
        (trained,), (), ()
    ]  # fmt: skip


def test_nested_fields_are_columns_and_must_agree() -> None:
    assert OnData(data=NeedsData(seed=3)).columns == {"seed": 3}
    assert OfSum(sum=Sum(squares=()), shift=2).columns == {"squares": (), "seed": 0, "shift": 2}
    assert OfSum(sum=Sum(squares=()), shift=2).name == "OfSum (Sum seed 0) shift 2"

    @dataclass(frozen=True, kw_only=True)
    class Both(Cell):
        one: NeedsData
        seed: int

        def compute(self, context: Context) -> dict[str, Any]:
            return {}

    with pytest.raises(ValueError, match="seed is 1 and 2; they must agree"):
        _ = Both(one=NeedsData(seed=1), seed=2).columns


@pytest.mark.parametrize("workers", [1, 2])
def test_needs_come_first_and_the_order_is_the_one_asked_for(context: Context, workers: int) -> None:
    squares = tuple(Square(number=number) for number in (3, 4))
    last = OfSum(sum=Sum(squares=squares), shift=7)
    said: list[str] = []
    found = compute_all([last, squares[1], last], context, workers=workers, on_progress=said.append)
    assert [row.result["value"] for row in found.rows] == [7, 16]
    assert sorted(times(context)) == ["of-sum", "square3", "square4", "sum"]
    assert len(said) == 4
    assert said[-1].startswith("4 of 4: OfSum")
    # the time is that of all that stands behind the rows, also when nothing is computed any more
    again = compute_all([last], context, workers=workers)
    assert again.seconds == pytest.approx(found.seconds)
    assert len(times(context)) == 4
    assert found.seconds >= sum(row.seconds for row in found.rows)


def test_what_only_a_kept_cell_needs_is_not_computed_for_it(context: Context) -> None:
    total = Sum(squares=(Square(number=3),))
    compute_all([total], context)
    Square(number=3).file(context, ".json").unlink()
    compute_all([total], context)
    assert times(context) == ["square3", "sum"]


def test_several_processes_of_one_thread(context: Context) -> None:
    compute_all([Square(number=number, wait=0.5) for number in range(4)], context, workers=2)
    pids = {line.split()[1] for line in (context.store / "computed.txt").read_text(encoding="utf-8").splitlines()}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids


def test_what_lacks_its_data_is_left_out_with_all_that_needs_it(context: Context) -> None:
    found = compute_all([NeedsData(), OnData(), Square(number=2)], context)
    assert [row.cell for row in found.rows] == [Square(number=2)]
    assert set(found.missing) == {NeedsData(), OnData()}
    assert all("data_dir=" in reason for reason in found.missing.values())


def test_only_kept_computes_nothing(context: Context) -> None:
    computed(Square(number=2), context)
    found = compute_all([Square(number=2), Square(number=3)], context, only_kept=True)
    assert [row.result["value"] for row in found.rows] == [4]
    assert "only_kept" in found.missing[Square(number=3)]
    assert times(context) == ["square2"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_cell_ends_the_study_and_keeps_what_was_done(context: Context, workers: int) -> None:
    with pytest.raises(ValueError, match="this cell is bad"):
        compute_all([Square(number=2), Fails(), Fails(seed=1)], context, workers=workers)
    if workers == 1:
        assert times(context) == ["square2"]


_SCRIPT = """
import sys
from pathlib import Path
from lab_cells import Square
from unrolled.studies.cells import Context
from unrolled.studies.runner import compute_all

cells = [Square(number=number, wait=0.0 if number < 2 else float(sys.argv[2])) for number in range(4)]
compute_all(cells, Context(store=Path(sys.argv[1])), on_progress=lambda line: print(line, flush=True))
"""


def test_a_killed_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tmp_path), "60"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    assert "2 of 4" in lines[1], lines
    process.send_signal(signal.SIGKILL)
    process.wait()
    context = Context(store=tmp_path)
    compute_all([Square(number=0), Square(number=1)], context)
    assert times(context) == ["square0", "square1"]


@pytest.mark.slow
def test_workers_end_with_the_process_that_asked(tmp_path: Path) -> None:
    script = _SCRIPT.replace("store=Path(sys.argv[1]))", "store=Path(sys.argv[1])), workers=2").replace(
        "0.0 if", "3.0 if"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), "60"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    workers = {int(line.split()[1]) for line in (tmp_path / "computed.txt").read_text(encoding="utf-8").splitlines()}
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert workers
    assert not any(_alive(pid) for pid in workers)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def rows(*numbers: tuple[int, float], kind: str = "a") -> list[Row[Any]]:
    return [
        Row(Square(number=number, seed=seed), {"value": number, "curve": [number, 2.0]}, 1.0)
        for seed, number in numbers
    ]  # type: ignore[arg-type]


def test_a_selection_with_two_rows_of_a_seed_names_the_column_to_give() -> None:
    results = Results(rows((0, 1), (1, 1), (0, 2)))
    assert results.where(number=1).values("value").by == {0: 1.0, 1: 1.0}
    assert results.where(number=1).values("curve.-1").by == {0: 2.0, 1: 2.0}
    with pytest.raises(ValueError, match="two rows have seed=0; also give number"):
        results.values("value")
    with pytest.raises(ValueError, match="'colour'"):
        results.where(colour=1)
    assert not results.of(NeedsData).values("value")
    assert f"{results.of(NeedsData).values('value'):.1f}" == "not run"
    assert [record["value"] for record in results.records()] == [1, 1, 2]


def test_curves_are_means_with_their_deviation() -> None:
    curve = Results(rows((0, 1), (1, 3))).curve("a", "curve", x=[0, 1])
    assert curve.y == [2.0, 2.0]
    assert curve.error == pytest.approx([math.sqrt(2), 0.0])


def test_a_line_through_means_has_bars_where_all_places_have_several_values() -> None:
    one, two = Values({0: 1.0}), Values({0: 1.0, 1: 3.0})
    whole = line("a", [0, 1], [two, two], dashed=True)
    assert (whole.y, whole.error, whole.dashed) == ([2.0, 2.0], pytest.approx([math.sqrt(2)] * 2), True)
    gap = line("a", [0, 1, 2], [one, two, Values()])
    assert gap.error is None
    assert math.isnan(gap.y[2])


def test_correlations_are_of_ranks_and_within_a_seed() -> None:
    results = Results(rows((0, 1), (0, 2), (0, 5), (1, 1), (1, 2), (2, 7)))
    assert results.correlation("value", lambda result: -(result["value"] ** 2)).by == pytest.approx({0: -1, 1: -1})
    assert Results(rows((0, 1), (0, 2))).correlation("value", "curve.0", "number").by == {}


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_diverged_training_is_shown_and_decides_nothing(lost: float) -> None:
    values = Values({0: 1.0, 1: lost})
    assert f"{values:.1f}" == f"{lost} ± nan"
    assert "nan" in f"{values.interval()}"
    one, other = (row.cell for row in rows((0, 1), (1, 3)))
    results = Results([Row(one, {"curve": [1.0, 2.0]}, 1.0), Row(other, {"curve": [1.0, lost]}, 1.0)])
    curve = results.curve("a", "curve", x=[0, 1])
    assert curve.error is not None
    assert curve.error[0] == 0
    assert math.isnan(curve.error[1])


def test_a_table_for_pandas() -> None:
    pytest.importorskip("pandas")
    frame = Results(rows((0, 1), (1, 3))).frame()
    assert list(frame["value"]) == [1, 3]
    assert {"cell", "seed", "number", "seconds"} <= set(frame)


def test_a_result_called_as_a_column_loses_neither() -> None:
    row: Row[Any] = Row(Square(number=3, seed=1), {"number": 9, "seconds": 2.5}, 0.5)
    (record,) = Results([row]).records()
    assert (record["number"], record["seconds"], record["seed"]) == (3, 0.5, 1)
    assert (record["result.number"], record["result.seconds"]) == (9, 2.5)


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(0, 9), st.floats(-1e6, 1e6), max_size=6),
    st.dictionaries(st.integers(0, 9), st.floats(-1e6, 1e6), max_size=6),
)
def test_values_are_combined_pair_by_pair(a: dict[int, float], b: dict[int, float]) -> None:
    one, other = Values(a), Values(b)
    both = a.keys() & b.keys()
    assert (one - other).by == {seed: a[seed] - b[seed] for seed in a if seed in both}
    assert (one + other).by == {seed: a[seed] + b[seed] for seed in a if seed in both}
    assert (2 * one).by == (one * 2).by == (one + one).by
    assert abs(-one).by == abs(one).by
    if len(one) > 1:
        low, high = one.interval() or (math.nan, math.nan)
        rounding = 1e-12 * abs(one.mean) + 1e-9
        assert low - rounding <= one.mean <= high + rounding
    else:
        assert one.interval() is None


def test_values_read_as_a_reader_expects() -> None:
    assert [Values(dict.fromkeys(range(n), 0.0), "pair of models").count for n in (1, 2)] == [
        "1 pair of models", "2 pairs of models"
    ]  # fmt: skip
    assert f"{Values({0: 1.0, 1: 2.0}):.1f}" == "1.5 ± 0.7"
    assert f"{Values({0: 1.0, 1: 2.0}):+.1f}" == "+1.5 ± 0.7"
    assert f"{Values({0: 1.25}):.2f}" == "1.25"
    assert f"{Values():.2f}" == "not run"


@dataclass(kw_only=True)
class Settings(Config):
    """Of a study of squares."""

    budgets = {"quick": {"seeds": (0,)}}  # noqa: RUF012

    seeds: Seeds = (0, 1, 2)
    number: Count = 3
    rate: Rate = 0.1
    rates: tuple[Rate, ...] = (0.1,)
    limit: Count | None = None


STUDY = Study(
    name="squares",
    title="Squares",
    question="Is {number} squared positive?",
    citation="none",
    config=Settings,
    cells=lambda config: [*(Square(number=config.number, seed=seed) for seed in config.seeds), NeedsData()],
    claims=(
        Claim(
            statement="It is",
            source="-",
            published="yes",
            value=lambda r, c: r.of(Square).values("value"),
            low=0.0,
            outside="roots of negative numbers",
        ),
    ),
    report=lambda report, config, results: report.headline(f"{results.of(Square).values('value'):.0f}"),
)


def test_of_cells_that_were_not_run_a_page_gives_every_cause_and_puts_seeds_together() -> None:
    squares = [Square(seed=seed, number=number) for number in (3, 4) for seed in range(3)]
    missing: dict[Cell, str] = {cell: f"{cell.name}: not computed yet" for cell in squares}
    missing[OnData()] = "data_dir: there is no numbers"
    first, second = not_run(missing).split("\n\n")
    three, four = (f"Square number {number}, wait 0, seeds 0, 1, 2" for number in (3, 4))
    assert first == f"not computed yet (6 cells: {three}; {four})"
    assert second.startswith("data_dir: there is no numbers (1 cell: OnData")
    assert len(causes(missing)["not computed yet"]) == 6
    many: dict[Cell, str] = {Square(seed=0, number=number): "none" for number in range(20)}
    assert not_run(many).endswith("; Square number 11, wait 0, seed 0; and 8 more kinds)")
    large: dict[Cell, str] = {Square(seed=seed, number=3): "none" for seed in (1_000_000, 1)}
    assert not_run(large) == "none (2 cells: Square number 3, wait 0, seeds 1e+06, 1)"


def test_a_study_runs_judges_and_reports(tmp_path: Path) -> None:
    config = Settings(out=tmp_path / "out", kept=tmp_path / "kept")
    report = STUDY.run(config)
    assert report.question == "Is 3 squared positive?"
    assert report.claims[0].verdict == "reproduced"
    assert report.sections[-1].title == "Not run"
    assert [row["seed"] for row in report.results["rows"]] == [0, 1, 2]
    assert (tmp_path / "out" / "report.html").is_file()
    assert report.provenance.duration is not None
    assert list(report.provenance.seeds) == [0, 1, 2]
    quick = STUDY.run(Settings.of_budget("quick", out=tmp_path / "quick", kept=tmp_path / "kept"))
    assert quick.notice
    assert quick.claims[0].verdict == "not judged"
    with pytest.raises(MissingData):
        STUDY.run(Settings(out=tmp_path / "none", kept=tmp_path / "empty", only_kept=True))


@pytest.mark.parametrize(
    "bad",
    [
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"number": 0},
        {"rate": 0.0},
        {"rate": math.inf},
        {"rates": (0.1, -1.0)},
        {"workers": 0},
        {"limit": 0},
        {"budget": "large"},
    ],
)
def test_a_setting_out_of_bounds_is_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Settings(**bad)
