"""Reports of traces and of run folders, finished or not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.test_report import Page
from unrolled.errors import CorruptFile, MissingData
from unrolled.report import Report, learning_curves, report_for_run, trace_section


def trace_result(shift: float = 0.0, layers: int = 3, control: bool = True) -> dict[str, Any]:
    keys = ("rate", "subspace_rate", "effective_rank", "nonzero", "l1", "subspace_rate_z", "subspace_rate_half")

    def rows(offset: float) -> list[dict[str, float]]:
        return [
            {"layer": float(i), "incoherence": 0.5, "images": 8.0}
            | dict.fromkeys(keys, 10.0 - i + offset + shift)
            | {f"{key}_se": 0.25 for key in keys}
            for i in range(layers)
        ]

    return {
        "protocol": "paper",
        "eps": 0.1,
        "images": 8,
        "seed": 0,
        "layers": rows(0),
        "control": rows(1) if control else None,
    }


def test_trace_section_sets_the_untrained_control_beside_the_model() -> None:
    report = Report("r")
    section = trace_section(report, {"CRATE": [trace_result(0.0), trace_result(2.0)], "ViT": trace_result()})
    figure = section.blocks[-1]
    first = figure.panels[0]  # type: ignore[union-attr]
    by_label = {series.label: series for series in first.series}
    assert list(by_label) == ["CRATE", "CRATE untrained", "ViT", "ViT untrained"]
    assert list(by_label["CRATE"].y) == [11.0, 10.0, 9.0]
    assert by_label["CRATE"].error == pytest.approx([math.sqrt(2)] * 3)  # over seeds
    assert by_label["ViT"].error == pytest.approx([0.25] * 3)  # over images
    assert by_label["CRATE untrained"].dashed
    assert by_label["CRATE untrained"].color == by_label["CRATE"].color
    Page(report.to_html())
    with pytest.raises(ValueError, match="different numbers of layers"):
        trace_section(report, {"CRATE": [trace_result(), trace_result(layers=2)]})


METRICS = [
    {"split": "train", "step": 5, "epoch": 0.5, "loss": 2.0, "lr": 1e-3, "images_per_second": 100.0},
    {"split": "val", "step": 10, "epoch": 1.0, "accuracy": 0.5, "loss": 1.5, "images": 20},
    {"split": "train", "step": 10, "epoch": 1.0, "loss": 1.0, "images_per_second": 120.0, "skipped_names": ["bad.png"]},
    {"split": "test", "step": 10, "epoch": 1.0, "accuracy": 0.75, "loss": 0.9, "images": 40},
]


def make_run(folder: Path, metrics: list[dict[str, Any]], state: str = "finished") -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("model: crate_nano_patch2_8\ndata: digits\nseed: 3\nweights: null\n")
    (folder / "env.json").write_text(
        json.dumps({"unrolled": "0.1.0", "cpu": "a processor", "command": ["unrolled", "train"]})
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
    (folder / "status.json").write_text(json.dumps({"state": state, "step": 10, "total_steps": 20}))
    return folder


def test_report_of_a_run_comes_from_its_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", METRICS)
    report = report_for_run(run, trace=trace_result(), parameters=1234, duration=9.0, notes={"A note": "of mine"})
    assert report.summary == "75.00 % of 40 test images are classified correctly."
    page = Page(report.write(run).html.read_text(encoding="utf-8"))
    for words in (
        "crate_nano_patch2_8 trained on digits",
        "1,234",
        "bad.png",
        "of mine",
        "a processor",
        "unrolled train",
    ):
        assert words in page.text
    assert report.results["test"]["accuracy"] == 0.75
    assert report.provenance.seeds == (3,)
    assert [[fact.value for fact in each.facts if fact.label == "Training speed"] for each in (
        report, report_for_run(run, speed=77.4), report_for_run(run, speed=0.0)
    )] == [["120 images/s"], ["77 images/s"], []]  # fmt: skip


def test_a_run_of_two_steps_has_numbers_instead_of_a_chart_of_one_dot(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [METRICS[0], METRICS[3]])
    text = report_for_run(run).to_html()
    page = Page(text)
    assert "<svg" not in text
    assert "Loss (nats)" in page.text
    assert "<svg" in report_for_run(make_run(tmp_path / "longer", METRICS)).to_html()


def test_a_killed_run_has_a_report_that_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", METRICS[:2], state="running")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "lo')  # cut short by the kill
    report = report_for_run(run)
    assert report.summary.startswith("The run has not finished (running at step 10 of 20).")
    assert "50.00 % of 20 validation images" in report.summary
    Page(report.to_html())


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"config\.yaml"):
        report_for_run(tmp_path)
    run = make_run(tmp_path / "run", METRICS)
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(CorruptFile, match=r"config\.yaml"):
        report_for_run(run)


def test_learning_curves_average_the_epochs_all_seeds_have() -> None:
    longer = [*METRICS, {"split": "val", "step": 20, "epoch": 2.0, "accuracy": 0.9, "loss": 1.0, "images": 20}]
    other = [{**record, "accuracy": 0.7} if record["split"] == "val" else record for record in METRICS]
    accuracy, loss = learning_curves({"CRATE": [longer, other], "ViT": [METRICS, METRICS]})
    crate = accuracy.series[0]
    assert (list(crate.x), list(crate.y)) == ([1.0], [pytest.approx(60.0)])
    assert crate.error == pytest.approx([math.sqrt(200)])
    assert [series.label for series in loss.series] == [
        "CRATE training",
        "CRATE validation",
        "ViT training",
        "ViT validation",
    ]


def test_the_validation_accuracy_beside_the_test_is_that_of_the_weights_that_were_tested(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: m\ndata: d\n", encoding="utf-8")
    records = [
        {"split": "val", "step": 10, "epoch": 1.0, "accuracy": 0.9, "loss": 0.1, "images": 50},
        {"split": "val", "step": 20, "epoch": 2.0, "accuracy": 0.2, "loss": 2.0, "images": 50},
        {"split": "test", "step": 20, "epoch": 2.0, "accuracy": 0.8, "loss": 0.2, "images": 40},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    status = {"state": "finished", "step": 20, "total_steps": 20, "chosen_step": 10}
    (tmp_path / "status.json").write_text(json.dumps(status), encoding="utf-8")
    facts = {fact.label: fact for fact in report_for_run(tmp_path).facts}
    assert facts["Validation accuracy"].value == "90.00 %"
    assert "epoch 1" in facts["Validation accuracy"].detail
    assert facts["Test accuracy"].value == "80.00 %"
