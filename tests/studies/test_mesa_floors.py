"""The floors come out where theory puts them, and the published control is worse by one state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.studies.mesa.floors import STUDY, FloorsConfig, chebyshev_predictions
from unrolled.tasks import LinearDynamics
from unrolled.theory.in_context import least_squares_predictions


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("floors")
    report = STUDY.run(FloorsConfig.of_budget("quick", sequences=512, out=out, kept=out / "kept"))
    assert len(report.claims) == 3
    return out, [row for row in report.results["rows"] if row["cell"] == "Tested"]


def test_exact_beats_the_published_control_beats_one_gradient_step(quick: tuple[Path, list[dict[str, Any]]]) -> None:
    for row in quick[1]:
        loss = row["loss"]
        assert loss["exact ridge"] < loss["without newest pair"] < loss["Chebyshev"] < loss["gradient step"]
        assert loss["gradient step"] < loss["zero"]


def test_the_control_lags_one_state_and_both_end_near_the_noise(quick: tuple[Path, list[dict[str, Any]]]) -> None:
    exact, shifted = (
        torch.tensor([row["by_position"][name] for row in quick[1]]).mean(0)
        for name in ("exact ridge", "without newest pair")
    )
    # after eleven states ten pairs determine the system; without the newest one it takes twelve
    assert exact[10] < 0.05 < shifted[10]
    assert shifted[14] < 0.05
    for row in quick[1]:
        assert row["floor"] == pytest.approx(5e-4)
        for name in ("exact ridge", "without newest pair"):
            assert row["floor"] * 0.9 < row["last_position"][name] < 2 * row["floor"]


def test_the_report_prints_what_was_not_run(quick: tuple[Path, list[dict[str, Any]]]) -> None:
    record = json.loads((quick[0] / "report.json").read_text(encoding="utf-8"))
    rows = record["sections"][0]["blocks"][1]["rows"]
    untrained = [row for row in rows if row[0].startswith("trained") or "mesa layer" in row[0]]
    assert [row[2] for row in untrained] == ["0.894", "0.430", "0.236", "0.216", "0.190"]
    assert all(row[3:] == ["not run", "not run"] for row in untrained)
    assert "without the newest pair" in record["summary"]


def test_chebyshev_predictions_end_at_exact_ridge_regression() -> None:
    states = LinearDynamics(dim=4, steps=12).sample(8, seed=0, dtype=torch.float64).inputs
    largest = float(states.square().sum((1, 2)).max()) + 0.1
    exact = least_squares_predictions(states, 0.1)
    torch.testing.assert_close(chebyshev_predictions(states, 0.1, largest, 300), exact, rtol=1e-8, atol=1e-8)
