"""Downstream tasks: classifiers are right where the answer is known, and alignment is set beside every task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unrolled.studies.cells import Row
from unrolled.studies.platonic.downstream import FEW_SHOT, STUDY, TRANSFER, DownstreamConfig, Tasks, aligned, few_shot
from unrolled.studies.platonic.words import NearWords
from unrolled.studies.platonic.zoo import Probe, family
from unrolled.studies.results import Results


def test_few_shot_classifies_what_is_separable_and_guesses_on_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat_interleave(20)
    noise = torch.randn(100, 12, generator=generator)
    apart = 20 * torch.eye(12)[labels] + noise
    assert few_shot(apart, labels, 5, shots=3, episodes=5) > 0.98
    assert few_shot(noise, labels, 5, shots=3, episodes=20) == pytest.approx(0.2, abs=0.08)


def planted(config: DownstreamConfig, sign: float) -> Results[Any]:
    """Rows of members whose alignment with everything grows, or falls, with what they can do."""
    able = np.linspace(0.1, 0.6, len(config.zoo))
    score = 0.5 + 0.3 * sign * (able[:, None] + able[None, :])
    rows: list[Row[Any]] = [
        Row(config.scores(), {name: score.tolist() if name == "score" else np.zeros_like(score).tolist()
                              for name in ("score", "chance", "p_value")}, 0.0)
    ]  # fmt: skip
    for network, accuracy in zip(config.zoo, able, strict=True):
        rows += [Row(Probe(network=network, on=on), {"accuracy": accuracy}, 0.0) for on in ("held-out", "unseen")]  # type: ignore[arg-type]
        tasks = Tasks(network=network, shots=config.shots, episodes=config.episodes)
        rows.append(Row(tasks, {TRANSFER: accuracy, FEW_SHOT: accuracy}, 0.0))
        near = NearWords(network=network, words="minilm", k=config.k, share=0.5)
        rows.append(Row(near, {"gain": sign * accuracy, "classes": 100}, 0.0))
    return Results(rows)


def test_alignment_that_goes_with_the_tasks_is_found_and_so_is_its_reverse() -> None:
    config = DownstreamConfig(members="few")
    for sign, words in ((1, "; as expected"), (-1, "; not as expected")):
        claims = [claim.judge(planted(config, sign), config) for claim in STUDY.claims]
        # the paper's are language models on tasks of language
        assert [claim.verdict for claim in claims] == ["not judged"] * 2
        assert all(claim.why.endswith(words) for claim in claims)
        assert claims[0].measured.startswith(f"{sign}.00")
    near = aligned(planted(config, 1), config)
    assert near["GloVe"] is None
    # the three sound members of other kinds that transfer best
    able, zoo = np.linspace(0.1, 0.6, 11), config.zoo
    best = [place for place in range(11) if zoo[place].sound and family(zoo[place]) != family(zoo[0])][-3:]
    assert near["best of other kinds"][0] == pytest.approx(np.mean(0.5 + 0.3 * (able[0] + able[best])))  # type: ignore[index]


def test_downstream_says_what_it_stands_in_for_and_what_was_not_run(tmp_path: Path) -> None:
    config = DownstreamConfig.of_budget(
        "quick", images=128, samples=60, k=5, kept=tmp_path / "kept", out=tmp_path / "out"
    )
    report = STUDY.run(config)
    assert [claim.measured for claim in report.claims] == ["not run", "not run"]  # digits have no other data
    assert "in place of Hellaswag" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    rows = [row for row in report.sections[1].blocks[0].rows if row[2] == "all"]  # type: ignore[union-attr]
    assert [row[:2] for row in rows if row[4] != "not run"] == [("best of other kinds", "ten-way probe")]
    assert len(rows) == 12
    assert "not corrected for there being 5." in report.sections[1].blocks[0].caption  # type: ignore[union-attr]
