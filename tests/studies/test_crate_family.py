"""What `crate-family` measures of cost, and what it says of members that are there and that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unrolled import studies
from unrolled.studies.cells import Cell, Row
from unrolled.studies.crate.compared import difference
from unrolled.studies.crate.costs import best_seconds, by_size, costs, exponent, training_memory
from unrolled.studies.crate.family import STUDY
from unrolled.studies.crate.family.cells import FAMILY, FamilyConfig, untrained
from unrolled.studies.networks import Network
from unrolled.studies.results import Results

QUICK: dict[str, Any] = {"data": ("digits",), "seeds": (0,), "images": 128, "workers": 1, "rounds": 1, "batch": 4}


def tiny(folder: Path, **changes: Any) -> FamilyConfig:
    given = {**QUICK, "sides": (8, 12), "fit": 60, "held_out": 60, "kept": folder / "kept", "out": folder / "out"}
    return FamilyConfig(**{**given, **changes})


def test_memory_counts_weights_gradients_moments_and_activations() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000, bias=False), nn.Linear(1000, 10, bias=False))
    images, labels = torch.randn(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    before = [parameter.clone() for parameter in model.parameters()]
    found = training_memory(model, images, labels)
    # AdamW holds four of each weight, and at least one temporary while it steps
    assert 4 * weights < found < 6.5 * weights
    assert found == training_memory(model, images, labels)
    assert training_memory(model, images.repeat(500, 1, 1, 1), labels.repeat(500)) > found + 1000 * 1000 * 4
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_costs_leave_weights_and_say_what_the_models_are() -> None:
    models = {kind: untrained(kind, channels=1, side=8) for kind in ("crate", "alpha")}
    before = [parameter.clone() for model in models.values() for parameter in model.parameters()]
    found = costs(models, torch.randn(2, 1, 8, 8), torch.tensor([0, 1]), rounds=1)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (p for m in models.values() for p in m.parameters()), strict=True)
    )
    crate, alpha = found["models"]["crate"], found["models"]["alpha"]
    assert crate["parameters"] == sum(parameter.numel() for parameter in models["crate"].parameters())
    assert crate["flops"] < alpha["flops"]
    assert crate["memory"] < alpha["memory"]
    assert min(crate["training"], crate["inference"]) > 0


def test_calls_take_turns() -> None:
    order: list[str] = []
    found = best_seconds({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)  # type: ignore[misc]
    assert order == ["a", "b"] * 3
    assert set(found) == {"a", "b"}
    assert all(0 <= value < 1 for value in found.values())


def test_operations_of_token_statistics_grow_linearly_and_those_of_mssa_faster() -> None:
    def make(kind: str) -> Any:
        return lambda side: untrained(kind, side=side)

    found = by_size({kind: make(kind) for kind in ("tost", "crate")}, (32, 64), patch=4, rounds=1)
    assert found["tokens"] == [64, 256]
    assert exponent(found["tokens"], found["flops"]["tost"]) == pytest.approx(1, abs=0.03)
    assert exponent(found["tokens"], found["flops"]["crate"]) > 1.3
    assert exponent([1, 10], [1, 100]) == pytest.approx(2)


def row(cell: Cell, **result: Any) -> Row[Any]:
    return Row(cell, result, 1.0)


def test_differences_pair_seeds() -> None:
    networks = [("crate", 0, 0.5), ("crate", 1, 0.7), ("vit", 1, 0.6), ("vit", 2, 0.1)]
    rows = [
        row(Network(kind=kind, data="digits", seed=seed, images=128), accuracy=score) for kind, seed, score in networks
    ]
    rows.append(row(Network(kind="crate", data="digits", seed=0, images=0), accuracy=0.0))  # the control is no seed
    values = difference(Results(rows), "crate", "vit", "digits")
    assert values.by == pytest.approx({1: 10.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the study has trained its networks and kept its cells."""
    folder = tmp_path_factory.mktemp("family")
    STUDY.run(tiny(folder))
    return folder


@pytest.mark.slow
def test_the_study_trains_compares_and_reports(folder: Path) -> None:
    record = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    rows = record["results"]["rows"]
    scores = {row["kind"]: row["accuracy"] for row in rows if row["cell"] == "Network"}
    assert list(scores) == list(FAMILY)
    assert all(0 <= score <= 1 for score in scores.values())
    assert {(row["kind"], bool(row["images"])) for row in rows if row["cell"] == "Readout"} == {
        (kind, state) for kind in FAMILY for state in (True, False)
    }
    assert len(record["claims"]) == len(studies.load("crate-family").claims)  # type: ignore[union-attr]
    gain = 100 * (scores["alpha"] - scores["decoupled"])
    assert record["claims"][2]["measured"] == f"{gain:+.1f} (digits, 1 seed); one seed decides nothing"
    # a claim about 4,096 tokens is not judged on 36
    assert record["claims"][-1]["measured"] == "not run"


@pytest.mark.slow
def test_networks_that_are_not_kept_are_not_run(folder: Path, tmp_path: Path) -> None:
    report = STUDY.run(tiny(folder, seeds=(0, 1), out=tmp_path, only_kept=True))
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{len(FAMILY)} of {2 * len(FAMILY)} networks were not run" in written
    assert report.claims[0].verdict == "undecided"


@pytest.mark.slow
def test_missing_images_leave_out_the_networks_and_measure_the_costs(folder: Path, tmp_path: Path) -> None:
    report = STUDY.run(tiny(folder, data=("cifar10",), data_dir=tmp_path / "nowhere", out=tmp_path))
    assert all(claim.verdict == "not run" for claim in report.claims)
    assert "data_dir" in report.to_dict()["sections"][-1]["blocks"][0]["text"]
    assert {row["cell"] for row in report.results["rows"]} == {"Cost", "Growth"}
