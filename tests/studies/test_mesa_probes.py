"""Probes by depth: the preconditioned input is what it says, and every score has its controls beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from unrolled.studies.mesa.probes import STUDY, ProbesConfig, preconditioned
from unrolled.tasks import LinearDynamics
from unrolled.theory.in_context import chebyshev_inputs, least_squares_predictions

TINY: dict[str, Any] = {
    "effort": "quick",
    "steps": 2,
    "batch_size": 4,
    "sequences": 256,
    "paper_sequences": 64,
    "positions": (9,),
}


def test_the_preconditioned_input_predicts_least_squares_and_is_the_limit_of_chebyshev() -> None:
    states = LinearDynamics(dim=4, steps=12).sample(3, seed=0).inputs.double()
    inputs = preconditioned(states, 0.5)
    predicted = (inputs @ states[:, :-1].mT).tril(-1) @ states[:, 1:]
    torch.testing.assert_close(predicted, least_squares_predictions(states, 0.5))
    torch.testing.assert_close(chebyshev_inputs(states, 0.5, 300)[-1], inputs, rtol=1e-5, atol=1e-7)


def test_the_stack_of_the_papers_depth_is_probed_where_it_is_named(tmp_path: Path) -> None:
    asked = {"out": tmp_path / "out", "kept": tmp_path / "kept", **TINY, "steps": 1, "sequences": 128}
    report = STUDY.run(ProbesConfig(seeds=(0,), kinds=("softmax-7",), **asked))
    statements = [claim.statement for claim in report.claims if claim.verdict != "not run"]
    assert len(statements) == 3
    assert all("softmax-7" in statement for statement in statements)
    assert all(claim.control is not None for claim in report.claims if claim.verdict != "not run")
    assert "In softmax-7 the held-out R^2" in report.summary
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["results"]["rows"]
    assert len(row["layers"]) == 8


def test_the_report_sets_held_out_scores_beside_controls_and_the_papers_protocol(tmp_path: Path) -> None:
    config = ProbesConfig(seeds=(0, 1), out=tmp_path / "out", kept=tmp_path / "kept", **TINY)
    assert config.positions == (9, 29)
    report = STUDY.run(config)
    assert len(report.claims) == 5
    # two steps of training hold no next state: the verdict must be negative
    assert report.claims[0].reproduced is False
    assert report.claims[4].verdict == "not judged"
    # an untrained stack loses nothing from layer to layer either: a gain near zero is none of training
    control = report.claims[2].control
    assert control is not None
    assert STUDY.claims[2].verdict((0.001, 0.003), "over 3 seeds", control)[0] != "reproduced"
    rows = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["results"]["rows"]
    row = next(row for row in rows if row["kind"] == "linear")
    at = {r["layer"]: r for r in row["held_out"]["chebyshev"] if r["position"] == 29}
    assert at["embed"]["score"] > at["embed"]["control"] + 0.2
    fitted = {r["layer"]: r for r in row["paper"]["next"]}
    held_out = {r["layer"]: r for r in row["held_out"]["next"] if r["position"] == 29}
    assert fitted["embed"]["error"] < held_out["embed"]["error"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "paper&#x27;s protocol" in page
    assert "shuffled" in page
