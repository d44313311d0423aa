"""The studies over the zoo: each measures right where the answer is known, and reports with its controls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import studies
from unrolled.studies import platonic_downstream, platonic_stitching
from unrolled.studies.platonic_zoo import ZooConfig, zoo

TINY: dict[str, Any] = {
    "data": "digits", "members": "few", "steps": 2, "batch_size": 8, "samples": 60, "workers": 1,
}  # fmt: skip
STITCHING: dict[str, Any] = {
    "cuts": (1, 2), "stitch_steps": 2, "matched": 64, "tested": 100, "units": 40, "draws": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = {**TINY, "zoo": tmp_path_factory.mktemp("zoo")}
    zoo(ZooConfig(**settings))
    yield settings
    torch.set_num_threads(threads)


def read(folder: Path) -> tuple[dict[str, Any], str]:
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return record, (folder / "report.html").read_text(encoding="utf-8")


def test_few_shot_classifies_what_is_separable_and_guesses_on_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat_interleave(20)
    noise = torch.randn(100, 12, generator=generator)
    apart = 20 * torch.eye(12)[labels] + noise
    assert platonic_downstream.few_shot(apart, labels, 5, shots=3, episodes=5) > 0.98
    assert platonic_downstream.few_shot(noise, labels, 5, shots=3, episodes=20) == pytest.approx(0.2, abs=0.08)
    means = platonic_downstream.class_means(apart, labels, 5)
    assert torch.allclose(means[2], apart[40:60].mean(0), atol=1e-5)


def test_downstream_says_what_it_stands_in_for_and_what_was_not_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    report = platonic_downstream.run(platonic_downstream.Config(**tiny, out=tmp_path, k=5))
    record, page = read(tmp_path)
    assert [claim.measured for claim in report.claims] == ["not run", "not run"]  # digits have no other data
    assert "in place of Hellaswag" in page
    assert record["results"]["aligned"]["MiniLM"] is None
    near = [e for e in record["results"]["correlations"] if e["members"] == "all"]
    assert [e["task"] for e in near] == ["ten-way probe"]
    assert -1 <= near[0]["low"] <= near[0]["rho"] <= near[0]["high"] <= 1


def test_stitching_is_reported_by_depth_with_both_controls(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = platonic_stitching.Config(**tiny, **STITCHING, out=tmp_path)
    report = platonic_stitching.run(config)
    record, _ = read(tmp_path)
    stitched = record["results"]["stitched"]
    assert {cell["sort"] for cell in stitched} == {"itself", "another seed", "another kind", "untrained"}
    assert {cell["cut"] for cell in stitched} == {1, 2}
    assert len(report.claims) == 4
    pairs = [frozenset((pair["a"], pair["b"])) for pair in record["results"]["rosetta"]]
    assert len(pairs) == len(set(pairs)) == 8
    said: list[str] = []
    platonic_stitching.run(config, on_progress=said.append)  # from what was kept
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["results"] == record["results"]


def test_a_network_stitched_to_itself_loses_little_before_any_training(tmp_path: Path) -> None:
    settings = {**TINY, "steps": 50, "batch_size": 16, "zoo": tmp_path}
    config = platonic_stitching.Config(**settings, out=tmp_path, stitch_steps=1, matched=256, tested=200)
    found = platonic_stitching.stitch(config, "cnn-small-seed0", "cnn-small-seed0", 1)
    assert found["reference"] > 0.4
    assert found["regressed"] == pytest.approx(found["reference"], abs=0.05)


def test_bad_settings_are_refused_by_name() -> None:
    for module, settings, match in (
        (platonic_downstream, {"shots": 0}, "shots"),
        (platonic_stitching, {"cuts": (9,)}, "cuts"),
        (platonic_stitching, {"units": 3}, "units"),
    ):
        with pytest.raises(ValueError, match=match):
            module.Config(**settings)
    for name in ("downstream", "stitching"):
        assert studies.load(f"platonic-{name}").name == f"platonic-{name}"


@pytest.mark.slow
@pytest.mark.parametrize("module", [platonic_downstream, platonic_stitching])
def test_the_quick_budget_runs_without_files(module: Any, tmp_path: Path) -> None:
    report = module.run(module.Config.of_budget("quick", out=tmp_path / "out", zoo=tmp_path / "zoo"))
    assert report.summary
