"""Depth: the algorithms are what they are called, and what did not run is not given a number."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.studies.cells import Cell, Row
from unrolled.studies.mesa.depth import STUDY
from unrolled.studies.mesa.depth.cells import (
    DepthConfig,
    Iterated,
    Model,
    Solved,
    cells,
    richardson_predictions,
    tuned,
)
from unrolled.studies.mesa.depth.report import CLAIMS, LOSSES
from unrolled.studies.mesa.floors import chebyshev_predictions
from unrolled.studies.results import Results
from unrolled.tasks import LinearDynamics
from unrolled.theory.in_context import gradient_descent_predictions, least_squares_predictions

TINY: dict[str, Any] = {
    "seeds": (0, 1),
    "models": ("1", "2", "mesa"),
    "steps": (3, 2, 2),
    "batch_size": (4,),
    "test_sequences": 16,
    "tuning_sequences": 16,
    "ridges": (1e-3,),
}


def test_one_step_is_gradient_descent_and_many_are_ridge_regression() -> None:
    states = LinearDynamics(dim=4, steps=12).sample(6, seed=0, dtype=torch.float64).inputs
    for size in (0.01, 0.1):
        one = richardson_predictions(states, 3.0, size, 1)
        torch.testing.assert_close(one, gradient_descent_predictions(states, size))
    ridge, largest = 0.5, 40.0
    exact = least_squares_predictions(states, ridge)
    many = richardson_predictions(states, ridge, 2 / (ridge + largest), 2000)
    torch.testing.assert_close(many, exact, atol=1e-6, rtol=1e-6)
    few = [
        (predict - exact).norm()
        for predict in (
            chebyshev_predictions(states, ridge, largest, 8),
            richardson_predictions(states, ridge, 2 / (ridge + largest), 8),
        )
    ]
    assert few[0] < few[1]


def test_settings_by_position_are_never_worse_where_they_are_chosen() -> None:
    sample = LinearDynamics(steps=20).sample(64, seed=3)

    def predict(states: torch.Tensor, ridge: float, inverse: float) -> torch.Tensor:
        return richardson_predictions(states, ridge, 1 / inverse, 2).clamp(-4, 4)

    fixed, pair, free = tuned(predict, sample, sample)
    assert (free <= fixed + 1e-6).all()
    assert free.mean() < 0.97 * fixed.mean()
    assert min(pair) > 0


@pytest.mark.slow
def test_the_report_gives_no_number_to_what_did_not_run(tmp_path: Path) -> None:
    config = DepthConfig(out=tmp_path / "out", kept=tmp_path / "kept", **TINY)
    report = STUDY.run(config)
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    rows = {row[0]: row for row in record["sections"][0]["blocks"][1]["rows"]}
    assert rows["4 linear layers"][1] == rows["6 linear layers"][3] == "not run"
    assert "paper: 5000 of 256" in rows["1 mesa layer"][1]
    assert all(cell for row in rows.values() for cell in row)
    claims = {claim.statement: claim for claim in report.claims}
    assert claims["6 linear layers: held-out loss"].measured == "not run"
    # a few steps from small weights predict about zero
    assert claims["1 linear layer: held-out loss"].verdict == "not reproduced"
    assert "2 linear layers, 6 not run" in claims[CLAIMS[6].statement].measured
    solved = {row["method"]: row for row in record["results"]["rows"] if row["cell"] == "Solved"}
    assert solved["exact ridge"]["loss"] < solved["without newest pair"]["loss"]
    low, high = solved["exact ridge"]["interval"]
    assert low < solved["exact ridge"]["loss"] < high
    iterated = {
        (row["method"], row["iterations"]): row for row in record["results"]["rows"] if row["cell"] == "Iterated"
    }
    assert iterated["Chebyshev", 6]["each"]["loss"] < solved["zero"]["loss"]
    one = iterated["Richardson", 1]["all"]["loss"]
    assert iterated["Chebyshev", 1]["all"]["loss"] == pytest.approx(one, rel=0.2)


def test_a_layer_below_the_exact_solution_sees_what_it_shall_predict() -> None:
    config = DepthConfig(seeds=(0, 1))
    for loss, verdict in ((0.190, "reproduced"), (0.180, "not reproduced"), (0.216, "not reproduced")):
        rows = []
        for cell in cells(config):
            row = made_up(cell)
            mesa = isinstance(cell, Model) and cell.network.recipe.kind == "mesa"
            floor = isinstance(cell, Solved) and cell.method == "exact ridge"
            changed = {"loss": loss + 1e-5 * cell.columns["seed"]} if mesa else {"loss": 0.186} if floor else {}
            rows.append(Row(cell, {**row.result, **changed}, 1.0))
        assert CLAIMS[4].judge(Results(rows), config).verdict == verdict


def test_models_alone_and_algorithms_alone_are_reported(tmp_path: Path) -> None:
    from unrolled.report import Report

    config = DepthConfig(seeds=(0, 1))
    rows = [made_up(cell) for cell in cells(config)]
    for kinds, verdicts in (
        ((Model,), {"reproduced": 6, "not run": 4}),
        ((Solved, Iterated), {"not run": 7, "reproduced": 1, "not judged": 2}),
    ):
        results = Results(row for row in rows if isinstance(row.cell, kinds))
        claims = [claim.judge(results, config) for claim in CLAIMS]
        assert Counter(claim.verdict for claim in claims) == verdicts
        report = Report("t")
        STUDY.report(report, config, results)
        assert "not run" in report.summary


def made_up(cell: Cell) -> Row[Any]:
    """The published losses, as if every one of them had come out."""
    by_position = {"by_position": [1.0, 0.5], "setting": "some"}
    if isinstance(cell, Model):
        loss = float(LOSSES[cell.network.recipe.name].published.split()[0]) + 1e-4 * cell.network.seed
        curve = [{"step": step, "share": step, "loss": loss} for step in (0, 100)]
        found: dict[str, Any] = {"untrained_loss": 1.6, "last_position": loss, "extent": "long", "curve": curve}
        return Row(cell, {"loss": loss, **by_position, **found}, 1.0)
    if isinstance(cell, Solved):
        loss = {"zero": 1.677, "exact ridge": 0.186, "without newest pair": 0.21}[cell.method]
        return Row(cell, {"loss": loss, "interval": [loss - 1e-3, loss + 1e-3], **by_position}, 1.0)
    return Row(cell, {name: {"loss": 0.3, **by_position} for name in ("all", "each")}, 1.0)
