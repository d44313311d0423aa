"""The stability study measures against the truth, and notices what it is there to notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.ops import mesa
from unrolled.ops import mesa_solve as solver
from unrolled.studies.cells import Context
from unrolled.studies.mesa.stability import STUDY, Case, Solved, StabilityConfig, cases, draw, on_any_processor, truth
from unrolled.studies.results import Estimate

TINY = {"seeds": (0,), "steps": 24, "width": 6, "contexts": (40,)}


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"decay": (0.5, 1.0)},
        {"decay": (0.9, 1.0), "ridge_decays": True, "gate": True},
        {"gate": True, "spread": 10.0},
        {"repeated": True},
    ],
)
def test_the_truth_is_the_dense_solve_in_float64(shape: dict[str, Any]) -> None:
    case = Case(family="f", name="n", steps=16, ridge=0.3, dtype="float64", **shape)
    q, k, v, decay, gate = draw(case, 5, seed=3)
    exact, condition = truth(q, k, v, case, decay, gate, list(range(16)))
    found = mesa(q, k, v, 0.3, decay, gate, method="reference", ridge_decays=case.ridge_decays)
    torch.testing.assert_close(exact, found, rtol=1e-9, atol=1e-9)
    assert condition > 1


def test_every_case_is_finite_and_reported(tmp_path: Path) -> None:
    config = StabilityConfig(out=tmp_path, kept=tmp_path / "kept", **TINY)  # type: ignore[arg-type]
    report = STUDY.run(config)
    assert report.claims[0].measured == "0"
    assert report.claims[0].why == "a target of this package; as expected"
    assert report.summary.startswith("All outputs and gradients are finite.")
    assert "the dense reference by" in report.summary  # which errs more than the solve it is a reference of
    assert len(report.results["rows"]) == len(cases(config))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "does not apply" in page
    for family in ("Condition number", "Precision", "Context", "Gates and extremes"):
        assert family in page


def test_thirty_unchecked_steps_err_where_the_chunkwise_solve_does_not() -> None:
    case = Case(family="f", name="n", steps=256, ridge=1e-2)
    result = Solved(case=case, width=32, seed=0).compute(Context())
    assert 100 < result["condition"] < 1000
    assert result["errors"]["CG-30"] > 1e-2
    assert result["errors"]["chunk"] < 1e-4


def test_a_method_that_breaks_is_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = solver.mesa

    def broken(*args: Any, **options: Any) -> Any:
        out = real(*args, **options)
        return out * float("nan") if options["method"] == "chunk" else out

    monkeypatch.setattr(solver, "mesa", broken)
    report = STUDY.run(StabilityConfig(out=tmp_path, kept=tmp_path / "kept", **TINY))  # type: ignore[arg-type]
    assert report.claims[0].why.endswith("; not as expected")
    assert "of the outputs and gradients are not finite" in report.summary
    assert "not finite" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "place"), [(1e-5, "inside"), (8.4e-5, "undecided"), (1.4e-4, "undecided"), (1e-3, "outside")]
)
def test_nothing_hangs_on_a_processors_rounding(error: float, place: str) -> None:
    range_ = on_any_processor(error)
    assert isinstance(range_, Estimate)
    assert STUDY.claims[1].place((range_.low, range_.high)) == place
