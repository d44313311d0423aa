"""The layer is chosen on held-out images, every way to learn has as many trials, and a teacher's time counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unrolled.report import Report
from unrolled.studies.cells import Cell, Context, Row
from unrolled.studies.crate.aligned import STUDY, cells, claims
from unrolled.studies.crate.aligned.cells import ALIGNED_STEP, ASKED, STEP, AlignedConfig, Instructor, Scored, Trial
from unrolled.studies.crate.aligned.report import seconds
from unrolled.studies.results import Results

CONFIG = AlignedConfig()
LAYERS = {0: 0.50, 1: 0.60, 2: 0.55, 3: 0.40}
"""Held-out accuracy by layer, of the larger weight; of the smaller a tenth less."""


def results(config: AlignedConfig = CONFIG, **test: float) -> Results[Any]:
    """Rows of every cell, with these test accuracies by way of learning (`layer_1`), else 0.3, and noise over seeds."""
    rows: list[Any] = []
    for cell in dict.fromkeys(STUDY.cells(config)):
        if isinstance(cell, Trial):
            lesson = cell.lesson
            score = LAYERS[lesson.layer] - 0.1 * (lesson.align_weight < 2) if lesson.align_weight else 0.2
            rows.append(Row(cell, {"accuracy": score}, 1.0))
        elif isinstance(cell, Scored):
            best = max(cell.lessons, key=lambda lesson: (LAYERS[lesson.layer], lesson.align_weight))
            accuracy = test.get(cell.way.replace(" ", "_"), 0.3) + 0.001 * cell.seed
            result = {"chosen": vars(best), "parameters": 7, "accuracy": accuracy, "loss": 1.0, "misalignment": None}
            rows.append(Row(cell, result, 1.0))
        else:
            rows.append(Row(cell, {"parameters": 9, "accuracy": 0.8}, 1.0))
    return Results(rows)


def test_every_way_to_learn_has_as_many_trials_and_the_control_has_the_aligned_ones() -> None:
    made: list[Cell] = list(STUDY.cells(CONFIG))
    tried = cells.lessons(CONFIG)
    assert {len(each) for each in tried.values()} == {8}
    trials = {cell for cell in made if isinstance(cell, Trial)}
    assert len(trials) == 24
    assert all(need in made for cell in made for need in cell.needs)
    control = next(cell for cell in made if isinstance(cell, Scored) and not cell.trained)
    assert control.lessons == tried["aligned"]
    assert Instructor(data="cifar10", trained=False) in control.needs
    with pytest.raises(ValueError, match="rates: every way to learn has as many trials"):
        AlignedConfig(rates=(1e-2,))
    with pytest.raises(ValueError, match=r"layers=.*the student has 4"):
        AlignedConfig(layers=(1, 2, 3, 4))


def test_the_layer_is_chosen_on_held_out_images_whatever_the_test_says() -> None:
    shown = results(layer_1=0.4, layer_2=0.9)
    assert claims.aligned(shown, CONFIG).mean == pytest.approx(40.1)
    assert claims.aligned(shown, CONFIG, among=(2, 3)).mean == pytest.approx(90.1)


def test_the_best_lesson_is_tested_with_nothing_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Stop(Exception):
        pass

    def fit(self: Any, context: Context, lesson: Any, instructor: Instructor, held_out: int) -> Any:
        asked.append((lesson.layer, lesson.align_weight, instructor.trained, held_out))
        raise Stop

    monkeypatch.setattr(cells.Student, "fit", fit)
    score = {(1, 2.0): 0.6, (2, 0.5): None}  # the second diverged
    monkeypatch.setattr(
        Context,
        "result",
        lambda self, trial: {"accuracy": score.get((trial.lesson.layer, trial.lesson.align_weight), 0.5)},
    )
    control = next(cell for cell in STUDY.cells(CONFIG) if isinstance(cell, Scored) and not cell.trained)
    with pytest.raises(Stop):
        control.compute(Context(store=tmp_path))
    assert asked == [(1, 2.0, False, 0)]


def test_a_teacher_costs_time_in_which_labels_alone_have_more_passes() -> None:
    assert cells.longer(3, "cifar10") == round((3 * ALIGNED_STEP + ASKED) / STEP) == 4
    assert cells.longer(12, "cifar10") > 13
    alone, aligned = (seconds(way, CONFIG, 3) for way in (claims.ALONE, "layer 1"))
    assert aligned - alone == pytest.approx(CONFIG.images * (3 * (ALIGNED_STEP - STEP) + ASKED))


@pytest.mark.parametrize(
    ("test", "verdicts"),
    [
        ({"layer_1": 0.4, "layer_3": 0.3}, ("reproduced", "reproduced")),
        (
            {"layer_1": 0.4, "layer_3": 0.45, "aligned,_untrained_teacher": 0.38},
            ("controls do the same", "not reproduced"),
        ),
        ({"layer_1": 0.2, "layer_3": 0.1}, ("not reproduced", "reproduced")),
    ],
)
def test_claims_follow_the_numbers_and_the_control(test: dict[str, float], verdicts: tuple[str, str]) -> None:
    judged = [claim.judge(results(**{"aligned,_untrained_teacher": 0.25, **test}), CONFIG) for claim in STUDY.claims]
    assert (judged[0].verdict, judged[2].verdict) == verdicts
    assert [judged[number].verdict for number in (1, 4)] == ["not judged"] * 2


def test_the_page_has_every_way_and_what_it_does_not_show() -> None:
    page = Report("aligned", question="?")
    STUDY.report(page, CONFIG, results(layer_1=0.4))
    text = page.to_html()
    for words in ("layer 1 aligned", "aligned with random weights", "labels alone, longer", "62 % of a step"):
        assert words in text, words


def test_held_out_images_are_none_that_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = next(cell for cell in STUDY.cells(AlignedConfig.of_budget("quick")) if isinstance(cell, Trial))
    splits = trial.splits(Context(), trial.held_out)
    train, test = (np.asarray(source.indices) for source in (splits.train, splits.test))  # type: ignore[union-attr]
    assert (len(train), len(test)) == (512, 256)
    assert not set(train) & set(test)
    final = replace(trial, seed=1).splits(Context(), 0)
    assert (np.asarray(final.train.indices) == train).all()  # type: ignore[attr-defined]
    assert final.test is not None
    assert len(final.test) == 360
