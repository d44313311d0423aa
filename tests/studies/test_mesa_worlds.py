"""The worlds: right regressions, and every stack beside its controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.report import Report
from unrolled.studies.cells import stored_row
from unrolled.studies.mesa.regression import lagged, ridge_predictions, steps_predictions
from unrolled.studies.mesa.worlds import STUDY, ComparedConfig, Controls, HeldOut
from unrolled.studies.results import Results
from unrolled.tasks import LinearDynamics
from unrolled.theory.in_context import least_squares_predictions

TINY: dict[str, Any] = {"effort": "quick", "steps": 2, "batch_size": 4, "test_sequences": 32, "lags": (1, 4)}


@given(seed=st.integers(0, 99), dim=st.integers(2, 5), ridge=st.floats(0.05, 10))
@settings(max_examples=8, deadline=None)
def test_regression_uses_every_pair_seen_and_is_the_limit_of_proposition_2(seed: int, dim: int, ridge: float) -> None:
    states = LinearDynamics(dim=dim, steps=12).sample(3, seed=seed).inputs.double()
    exact = ridge_predictions(states, states, ridge)
    torch.testing.assert_close(exact, least_squares_predictions(states, ridge), rtol=1e-6, atol=1e-8)
    bound = float(ridge + states.square().sum((1, 2)).max())
    stepped = steps_predictions(states, states, ridge, bound, 400)
    torch.testing.assert_close(stepped, exact, rtol=1e-4, atol=1e-5)


def test_lagged_observations_never_look_ahead() -> None:
    states = torch.arange(1.0, 5.0)[None, :, None]
    assert lagged(states, 3)[0].tolist() == [[1, 0, 0], [2, 1, 0], [3, 2, 1], [4, 3, 2]]


@pytest.mark.slow
def test_the_report_sets_every_stack_beside_its_controls(tmp_path: Path) -> None:
    config = ComparedConfig(seeds=(0,), out=tmp_path / "out", kept=tmp_path / "kept", **TINY)
    report = STUDY.run(config)
    assert len(report.claims) == 5
    # one seed has no interval, and of Proposition 2 the published curve is another algorithm's
    assert [claim.verdict for claim in report.claims] == ["not judged"] * 2 + ["undecided"] * 3
    rows = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["results"]["rows"]
    controls = {row["world"]: row for row in rows if row["cell"] == "Controls"}
    assert controls["full"]["loss"]["exact ridge"] == pytest.approx(0.186, abs=0.02)
    assert controls["nonlinear"]["loss"]["exact ridge"] < 0.7 * controls["nonlinear"]["loss"]["naive"]
    assert controls["partial"]["loss"]["exact ridge"] < 0.5 * controls["partial"]["loss"]["naive"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "paper: 10000 of 256" in page
    assert "untrained" in page
    results = [stored_row(cell, config.context) for cell in STUDY.cells(config)]
    for kinds, lacking in (
        ((HeldOut,), "at not run"),
        ((Controls,), "stacks were not run"),
        ((), "stacks were not run"),
    ):
        some: Results[Any] = Results(row for row in results if row is not None and isinstance(row.cell, kinds))
        page_of_some = Report("t")
        STUDY.report(page_of_some, config, some)
        assert lacking in page_of_some.summary
        assert STUDY.claims[0].judge(some, config).verdict == "not run"
