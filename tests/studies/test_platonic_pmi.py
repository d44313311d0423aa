"""Learners in the co-occurrence world reach what theory says they reach, and the study reports it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.studies.platonic import pmi
from unrolled.studies.platonic.pmi import STUDY
from unrolled.studies.platonic.pmi.cells import PmiConfig
from unrolled.studies.platonic.toy import kernel_alignment, learn_expected, learn_from_samples
from unrolled.tasks import CooccurrenceWorld
from unrolled.theory import nce_offset, offset_and_error, pointwise_mutual_information

TINY: dict[str, Any] = {
    "events": 8, "dim": 9, "steps": 20, "batch_size": 32, "points": 3, "symbols": (8, 2), "noise": (0.0, 0.5),
}  # fmt: skip


def test_the_end_of_training_is_pmi_with_the_constant_of_the_loss() -> None:
    joint = CooccurrenceWorld(events=8).joint()
    kernel = pointwise_mutual_information(joint)
    for loss in ("infonce", "nce"):
        learner = learn_expected(joint, loss=loss, seed=0, dim=9)  # type: ignore[arg-type]
        offset, error = offset_and_error(learner.kernel().detach(), kernel)
        assert error < 1e-2
        if loss == "nce":
            assert offset == pytest.approx(nce_offset(0.9), abs=1e-2)


def test_samples_lead_there_and_shuffled_pairs_do_not() -> None:
    world = CooccurrenceWorld(events=8)
    kernel = pointwise_mutual_information(world.joint())

    def error(**more: Any) -> float:
        learner, _ = learn_from_samples(world.joint(), seed=1, dim=9, steps=400, batch_size=512, **more)
        return offset_and_error(learner.kernel().detach(), kernel)[1]

    assert error(loss="infonce") < 0.25
    assert error(loss="nce") < 0.25
    assert error(loss="infonce", shuffled=True) > 0.9


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    joint = CooccurrenceWorld(events=8).joint()
    before = torch.random.get_rng_state()
    one, two, other = (
        learn_from_samples(joint, loss="infonce", seed=s, dim=4, steps=3, batch_size=16)[0].features()
        for s in (0, 0, 1)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_learners_that_learnt_nothing_agree_with_nothing() -> None:
    same = torch.ones(8, 3, dtype=torch.float64)
    assert kernel_alignment(same, torch.eye(8, dtype=torch.float64), k=2) == {"cka": 0.0, "knn": 0.0}


@pytest.mark.slow
def test_the_report_holds_the_claims_and_the_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_, last = pmi.WORLDS
    monkeypatch.setattr(pmi, "WORLDS", {name: pmi.WORLDS[name] for name in (first, last)})
    config = PmiConfig(seeds=(0, 1), out=tmp_path, kept=tmp_path / "kept", **TINY)
    report = STUDY.run(config)
    rows = report.results["rows"]
    assert [sum(row["cell"] == cell for row in rows) for cell in ("Learnt", "Blurred", "Reached")] == [6, 8, 2]
    # twenty steps do not converge, and the report must say so; the worlds are solved whatever the budget
    assert report.claims[0].verdict == "not reproduced"
    assert report.claims[3].measured == "-1.00 ± 0.00"
    assert report.claims[4].verdict == "reproduced"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "pairs shuffled" in page
    assert "untrained" in page
    assert "4 learners" in page
    more = replace(config, out=tmp_path / "more", only_kept=True, points=4, seeds=(1, 2))
    partly = STUDY.run(more)
    assert [claim.verdict for claim in partly.claims] == ["not run"] * 3 + ["undecided"] + ["not run"] * 2
    assert "not run" in partly.summary


@pytest.mark.slow
def test_the_quick_budget_reproduces_the_theorem(tmp_path: Path) -> None:
    config = PmiConfig.of_budget("quick", out=tmp_path, kept=tmp_path / "kept", seeds=(0, 1), symbols=(24,), noise=(0,))
    claims = STUDY.run(replace(config, budget="cpu")).claims
    assert [claim.verdict for claim in claims[:3]] == ["reproduced"] * 3, claims
