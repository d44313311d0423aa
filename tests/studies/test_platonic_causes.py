"""Pairs of small networks at rising levels: seeds, trends and a report with its controls."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.studies.platonic.causes import STUDY, CausesConfig, trend
from unrolled.studies.platonic.digits import Perceptrons, accuracies, halvings, train
from unrolled.studies.results import Values

TINY: dict[str, Any] = {
    "pairs": 2, "steps": 3, "default_width": 8, "tasks": (1, 2), "widths": (4, 8), "decays": (1e-4, 1e-3),
    "scales": (0.3, 3.0),
}  # fmt: skip


def by_pair(levels: list[list[float]]) -> list[Values]:
    return [Values(dict(enumerate(level)), "pair") for level in levels]


def test_a_network_does_not_depend_on_those_beside_it() -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    labels, tasks = torch.tensor([0, 1, 2, 1, 0]).expand(3, -1), torch.stack([halvings(3, seed) for seed in range(3)])
    for extra, own in (((), ()), ((tasks,), (tasks[1:2],))):
        several = Perceptrons(inputs=6, width=4, outputs=3, seeds=(1, 2, 3), scale=0.5)
        alone = Perceptrons(inputs=6, width=4, outputs=3, seeds=(2,), scale=0.5)
        assert not torch.allclose(several(x)[0], several(x)[1])
        for _ in range(2):  # before and after training
            assert torch.allclose(several(x)[1], alone(x)[0], atol=1e-5)
            train(several, x, labels, *extra, steps=3, decay=0.1)
            train(alone, x, labels[:1], *own, steps=3, decay=0.1)


def test_small_networks_learn_what_they_are_taught() -> None:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.stack([torch.arange(12) % 3, torch.arange(12) // 4])  # each network has labels of its own
    tasks = torch.stack([halvings(5, seed) for seed in range(2)])
    for outputs, extra in ((3, ()), (5, (tasks,))):
        nets = Perceptrons(inputs=6, width=32, outputs=outputs, seeds=(0, 1))
        assert min(accuracies(nets, x, labels, *extra)) < 1
        train(nets, x, labels, *extra, steps=150, learning_rate=1e-2)
        assert accuracies(nets, x, labels, *extra) == [1.0, 1.0]


def test_every_task_halves_the_classes() -> None:
    tasks = halvings(7, seed=0)
    assert tasks.shape == (10, 7)
    assert tasks.sum(0).tolist() == [5] * 7
    assert torch.equal(tasks, halvings(7, seed=0))
    assert not torch.equal(tasks, halvings(7, seed=1))


def test_trends_are_told_from_none() -> None:
    rising = trend(by_pair([[0.1 * i + 0.01 * j for j in range(4)] for i in range(4)]), draws=200)
    assert 0.5 < rising.rho.low < 0.9 < rising.rho.value < rising.rho.high < 1
    assert rising.p < 0.01
    flat = trend(by_pair([[0.1 * j for j in range(4)]] * 4), draws=200)
    assert flat.rho.value == pytest.approx(0, abs=1e-9)
    assert flat.rho.low < -0.4 < 0.4 < flat.rho.high
    assert flat.p > 0.3


def test_a_trend_needs_two_levels_and_its_interval_several_pairs() -> None:
    assert trend(by_pair([[0.1], []])).words == ("not run", "not run")
    one = trend(by_pair([[0.1], [0.2], [0.3], [0.4]])).rho
    assert one.value == pytest.approx(1)
    assert math.isnan(one.low)


def test_the_report_holds_levels_and_controls(tmp_path: Path) -> None:
    config = CausesConfig(out=tmp_path, kept=tmp_path / "kept", **TINY)
    report = STUDY.run(config)
    rows = report.results["rows"]
    # a level that two causes share is one row
    assert len(rows) == 16 - 2
    assert {row["labels"] for row in rows} == {"true", "random"}
    assert {row["decay"] for row in rows if row["scale"] != 1} == {0.0}
    assert len(report.claims) == 4
    assert all("random labels" in claim.measured and "untrained" in claim.measured for claim in report.claims)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("random labels", "untrained", "initial scale"):
        assert words in page
    assert list(report.provenance.seeds) == [0]
    partly = STUDY.run(replace(config, only_kept=True, tasks=(1, 2, 3), widths=(2, 3)))
    assert partly.claims[1].measured == "not run"
    assert partly.claims[0].measured == report.claims[0].measured


@pytest.mark.slow
def test_more_tasks_make_networks_more_alike_and_random_labels_do_not(tmp_path: Path) -> None:
    config = CausesConfig.of_budget("quick", out=tmp_path, kept=tmp_path / "kept", widths=(8, 9), scales=(0.9, 1.0))
    claim = STUDY.run(replace(config, budget="cpu")).claims[0]
    assert claim.verdict == "reproduced", claim.measured
