"""Linearisation: a near linear layer is imitated, the kernels are what they say, and the report has controls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unrolled.studies.mesa.distil import distil
from unrolled.studies.mesa.linearise import STUDY, LineariseConfig
from unrolled.studies.mesa.regression import kernel_errors, softmax_kernel_predictions
from unrolled.studies.mesa.stacks import new_model, recipe
from unrolled.tasks import LinearDynamics

TINY: dict[str, Any] = {
    "effort": "quick",
    "steps": 2,
    "batch_size": 4,
    "distil_steps": 2,
    "test_sequences": 32,
}


def test_the_stack_of_the_papers_depth_is_linearised_where_it_is_named() -> None:
    config = LineariseConfig(kind="softmax-7", widths=(4,))
    assert config.depth == 7
    first = next(iter(STUDY.cells(config)))
    assert (first.columns["kind"], first.columns["depth"], first.columns["dim"]) == ("softmax-7", 7, 16)
    assert LineariseConfig().depth == 3


def test_a_near_linear_layer_is_imitated() -> None:
    each = replace(recipe("softmax", "full", "quick", batch_size=16), state=3, dim=12, dim_head=6, init_std=0.3)
    teacher = new_model(each, 0)
    with torch.no_grad():  # attention to all alike is a running mean, near linear in what it reads
        teacher.blocks[0].attn.query.weight.zero_()  # type: ignore[union-attr]
    _, error = distil(teacher, each, 0, seed=0, steps=150, rate=1e-2)
    assert error < 0.6
    _, unlearned = distil(teacher, each, 0, seed=0, steps=1, rate=1e-2)
    assert unlearned > error + 0.2


def test_the_softmax_kernel_averages_earlier_successors() -> None:
    states = LinearDynamics(dim=3, steps=6).sample(2, seed=0).inputs.double()
    flat = softmax_kernel_predictions(states, 0.0)
    assert float(flat[:, 0].abs().max()) == 0
    torch.testing.assert_close(flat[:, 4], states[:, 1:5].mean(1))
    sharp = softmax_kernel_predictions(states, 1e6)
    nearest = (states[:, :4] @ states[:, 4, :, None])[..., 0].argmax(1)
    torch.testing.assert_close(sharp[:, 4], states[torch.arange(2), nearest + 1])


def test_least_squares_is_better_than_the_softmax_kernel_on_linear_dynamics() -> None:
    errors = kernel_errors(6, 64)
    assert errors["least_squares"] < errors["softmax_kernel"] < 1 / 3
    assert 0 < errors["least_squares_standard_error"] < 0.1 * errors["least_squares"]


def test_the_report_marks_what_was_not_run_and_leaves_layers_out_as_a_control(tmp_path: Path) -> None:
    config = LineariseConfig(
        widths=(6, 4), out=tmp_path / "out", kept=tmp_path / "kept", **{**TINY, "test_sequences": 128}
    )
    assert config.widths == (4, 6)
    report = STUDY.run(config)
    record = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    rows = [row for row in record["results"]["rows"] if row["cell"] == "Linearised"]
    assert [row["state"] for row in rows] == [4, 6]
    assert {"ratio", "left_out_ratio", "unexplained"} <= set(rows[0]["layers"][0])
    assert "not run" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    # one seed decides nothing, two layers have no third; the kernels have intervals over sequences
    assert [claim.verdict for claim in report.claims[:3]] == ["undecided", "not run", "undecided"]
    assert report.claims[1].measured == "not run: stacks of 2 layers"
    assert report.claims[3].verdict == "reproduced"
    assert "[" in report.claims[3].measured
