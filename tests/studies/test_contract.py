"""What holds of every study: bad settings are named, cells are distinct and travel, nothing is computed twice."""

from __future__ import annotations

import pickle
import types
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest

from unrolled import studies
from unrolled.errors import MissingData
from unrolled.report import Report
from unrolled.studies.results import Results
from unrolled.studies.study import Above, Distinct

NAMES = tuple(studies.STUDIES)
BUDGETS: tuple[Any, ...] = ("quick", "cpu", "gpu")


def bad_values(hint: Any) -> list[Any]:
    """Values that a setting's type excludes."""
    if isinstance(hint, types.UnionType):  # X | None
        return bad_values(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return ["no such choice"]
    if get_origin(hint) is tuple and get_args(hint)[-1] is ...:
        return [(bad,) for bad in bad_values(get_args(hint)[0])]
    if get_origin(hint) is not Annotated:
        return []
    inner, *bounds = get_args(hint)
    bad = bad_values(inner)
    for bound in bounds:
        if isinstance(bound, Distinct):
            bad += [(), (1, 1)]
        else:
            number = bound.low if isinstance(bound, Above) else bound.low - 1
            while get_origin(inner) is tuple:
                inner, number = get_args(inner)[0], (number,)
            bad.append(number)
    return bad


def settings_of(config: Any) -> dict[str, Any]:
    """Its fields with the bounds in their types."""
    hints = get_type_hints(config, include_extras=True)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_out_of_its_bounds_is_named(name: str) -> None:
    assert studies.load(name).name == name
    config = studies.load(name).config
    for setting, hint in settings_of(config).items():
        for bad in bad_values(hint):
            with pytest.raises(ValueError, match=rf"^{setting}="):
                config(**{setting: bad})


@pytest.mark.parametrize("name", NAMES)
def test_numbers_and_lists_have_bounds(name: str) -> None:
    """So that 0 steps or no seeds are refused before anything is computed."""
    for setting, hint in settings_of(studies.load(name).config).items():
        assert hint not in (int, float) or setting == "seed", f"{setting}: give its type a bound, such as Count"


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", NAMES)
def test_cells_are_what_settings_say_wherever_they_are_computed(name: str, budget: Any, tmp_path: Path) -> None:
    study = studies.load(name)
    config = study.config.of_budget(budget)
    cells = list(study.cells(config))
    assert cells
    elsewhere = replace(config, kept=tmp_path, out=tmp_path, workers=3, budget="cpu")
    assert list(study.cells(elsewhere)) == cells
    for cell in dict.fromkeys(cells):
        assert pickle.loads(pickle.dumps(cell)) == cell
        assert all(pickle.loads(pickle.dumps(need)) == need for need in cell.needs)
        assert cell.name


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", NAMES)
def test_of_what_was_not_run_there_is_a_page_and_no_verdict(name: str, budget: Any, tmp_path: Path) -> None:
    study = studies.load(name)
    config, nothing = study.config.of_budget(budget), Results[Any]([])
    assert study.claims
    for claim in study.claims:
        assert claim.judge(nothing, config).verdict == "not run", claim.statement
    report = Report(study.title, question=study.question.format(**vars(config)))
    study.report(report, config, nothing)
    assert report.summary
    assert "not run" in report.to_html()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quick_runs_and_a_second_run_computes_nothing(name: str, quick: Any) -> None:
    try:
        config, first = quick(name)
    except MissingData as error:
        pytest.skip(str(error))
    assert first.notice.startswith("Quick")
    assert first.facts
    assert {claim.verdict for claim in first.claims} <= {"not run", "not judged"}
    assert (config.out / "report.html").is_file()
    again = studies.load(name).run(replace(config, only_kept=True))
    assert again.results == first.results
    assert (again.summary, again.facts, again.claims) == (first.summary, first.facts, first.claims)
