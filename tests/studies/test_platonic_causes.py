"""Pairs of small networks at rising levels: seeds, trends and a report with its controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import studies
from unrolled.studies import platonic_causes
from unrolled.studies.platonic_causes import Config, Perceptrons, halvings, run, trend

TINY: dict[str, Any] = {
    "pairs": 2, "steps": 3, "default_width": 8, "tasks": (1, 2), "widths": (4, 8), "decays": (0.0, 1e-3),
    "scales": (0.3, 3.0),
}  # fmt: skip


def test_a_network_does_not_depend_on_those_beside_it() -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    several = Perceptrons(inputs=6, width=4, outputs=3, seeds=(1, 2, 3), scale=0.5)
    alone = Perceptrons(inputs=6, width=4, outputs=3, seeds=(2,), scale=0.5)
    assert torch.allclose(several(x)[1], alone(x)[0], atol=1e-6)
    assert not torch.allclose(several(x)[0], several(x)[1])


def test_every_task_halves_the_classes() -> None:
    tasks = halvings(7, seed=0)
    assert tasks.shape == (10, 7)
    assert tasks.sum(0).tolist() == [5] * 7
    assert torch.equal(tasks, halvings(7, seed=0))
    assert not torch.equal(tasks, halvings(7, seed=1))


def test_trends_are_told_from_none() -> None:
    rising = [{"knn": [0.1 * i + 0.01 * j for j in range(4)]} for i in range(4)]
    rho, p = trend(rising, "knn", draws=200)
    assert rho > 0.9
    assert p < 0.01
    flat = [{"knn": [0.1 * j for j in range(4)]} for _ in range(4)]
    rho, p = trend(flat, "knn", draws=200)
    assert rho == pytest.approx(0, abs=1e-9)
    assert p > 0.3


def test_the_report_holds_levels_and_controls_and_a_second_run_takes_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(out=tmp_path, **TINY)
    report = run(config)
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert len(record["results"]["cells"]) == 16
    assert {cell["labels"] for cell in record["results"]["cells"]} == {"true", "random"}
    assert len(report.claims) == 4
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("random labels", "untrained", "initial scale"):
        assert words in page

    def fails(*_: Any) -> dict[str, Any]:
        raise AssertionError("computed again")

    monkeypatch.setattr(platonic_causes, "_level", fails)
    assert run(config).results == report.results


@pytest.mark.slow
def test_more_tasks_make_networks_more_alike_and_random_labels_do_not(tmp_path: Path) -> None:
    found = run(Config.of_budget("quick", out=tmp_path)).results["trends"]["tasks"]
    assert found["true"][0] > 0.5
    assert found["true"][0] > found["random"][0]


def test_bad_settings_are_refused_by_name() -> None:
    for given_, match in (
        ({"pairs": 0}, "pairs"), ({"tasks": (1,)}, "tasks"), ({"widths": (8, 4)}, "widths"),
        ({"decays": (-1.0, 0.0)}, "decays"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            Config(**given_)  # type: ignore[arg-type]
    assert studies.load("platonic-causes").config is Config
