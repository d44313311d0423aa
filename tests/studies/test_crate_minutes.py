"""Minutes become whole epochs by pace, the rate is chosen on held-out images, and every family begins alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unrolled.models import create_model
from unrolled.models.stem import ConvStem
from unrolled.report import Report
from unrolled.studies.cells import Cell, Context, Row
from unrolled.studies.crate.longer import Length, error_after, exponent
from unrolled.studies.crate.minutes import STUDY
from unrolled.studies.crate.minutes import cells as minutes
from unrolled.studies.crate.minutes.cells import FAMILIES, MinutesConfig, Scored, Trial, epochs
from unrolled.studies.results import Results


def test_a_slower_network_sees_fewer_images_in_the_same_time() -> None:
    assert epochs("crate", "cifar10", 60) == 32
    assert epochs("vit", "cifar10", 60) < epochs("crate", "cifar10", 60)
    assert epochs("tost", "cifar10", 0.01) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_begins_with_convolutions_and_fits_the_digits(family: str) -> None:
    model = create_model(FAMILIES[family].model, **{**FAMILIES[family].arguments, "in_chans": 1, "img_size": 8})
    assert isinstance(model.patch_embed, ConvStem)


def test_the_rate_with_the_best_held_out_accuracy_is_tested_and_nothing_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, float]] = []

    class Stop(Exception):
        pass

    def fit(self: Any, context: Context, **asking: float) -> Any:
        asked.append(asking)
        raise Stop

    scores = {3e-3: 0.5, 1e-2: 0.7, 2e-2: None}  # the last diverged
    monkeypatch.setattr(minutes.Trained, "fit", fit)
    monkeypatch.setattr(Context, "result", lambda self, trial: {"accuracy": scores[trial.rate]})
    cell = Scored(family="crate", data="cifar10", seed=1, epochs=32, minutes=60.0, rates=tuple(scores), trial_epochs=2)
    with pytest.raises(Stop):
        cell.compute(Context(store=tmp_path))
    assert asked == [{"rate": 1e-2, "held_out": 0.0}]


def test_all_families_have_as_many_trials_of_as_many_minutes() -> None:
    cells: list[Cell] = list(STUDY.cells(MinutesConfig(families=tuple(FAMILIES), seeds=(0, 1))))
    trials = {cell for cell in cells if isinstance(cell, Trial)}
    for family in FAMILIES:
        assert len([trial for trial in trials if trial.family == family]) == 4
    assert all(need in trials for cell in cells for need in cell.needs)


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ValueError, match="families: 'crat' is none of crate"):
        MinutesConfig(families=("crat",))


def test_a_vit_takes_a_stem_by_name() -> None:
    model = create_model("vit_nano_patch4_32", stem="conv", embed_dim=56, depth=1)
    assert isinstance(model.patch_embed, ConvStem)
    with pytest.raises(ValueError, match="stem='wide'"):
        create_model("vit_nano_patch4_32", stem="wide")


def test_a_trial_that_diverged_has_a_word_and_no_number() -> None:
    config = MinutesConfig(families=("crate",), rates=(1e-2, 2e-2))
    rows: list[Any] = [
        Row(Trial(family="crate", data="cifar10", seed=0, epochs=2, rate=rate), {"accuracy": score, "loss": None}, 1.0)
        for rate, score in ((1e-2, 0.6), (2e-2, None))
    ]
    page = Report("trials")
    STUDY.report(page, config, Results(rows))
    assert "'60.0', 'diverged'" in str([vars(section) for section in page.sections])


def test_an_error_that_halves_with_four_times_the_images_halves_again_unless_some_of_it_stays() -> None:
    short, long = Length(1e5, 0.4, 0.007), Length(4e5, 0.2, 0.004)
    assert exponent(short, long) == pytest.approx(0.5)
    nothing, half = (error_after(short, long, 1.6e6, stays) for stays in (0.0, 0.5))
    assert nothing.value == pytest.approx(0.1)
    assert half.value == pytest.approx(0.1 + 0.1 * 0.1 / 0.3)  # what is above the floor falls to a third each time
    assert nothing.low < 0.1 < nothing.high
    assert nothing.high - nothing.low < 0.03
    certain = error_after(short._replace(spread=0.0), long._replace(spread=0.0), 1.6e6, 0.0)
    assert certain.low == pytest.approx(certain.high)
    seeds = error_after(short._replace(freedom=2), long._replace(freedom=2), 1.6e6, 0.0)  # Student's: wider
    assert seeds.low < nothing.low < nothing.high < seeds.high
    level = error_after(Length(1e5, 0.21, 0.05), Length(4e5, 0.2, 0.05), 1.6e6, 0.75)  # seeds differ by more
    assert 0 < level.low < level.value < level.high < 0.4


def test_longer_training_is_extrapolated_from_two_lengths_and_from_one_it_is_not() -> None:
    config = MinutesConfig(families=("crate",), rates=(5e-3,))
    trial = Trial(family="crate", data="cifar10", seed=0, epochs=2, rate=5e-3)
    tested = Scored(
        family="crate", data="cifar10", seed=0, epochs=32, minutes=60.0, rates=(5e-3,), trial_epochs=2
    )  # fmt: skip
    result = {
        "parameters": 1,
        "flops": 1,
        "rate": 5e-3,
        "images": 1_600_000,
        "accuracy": 0.81,
        "loss": 0.6,
        "curve": [{"epoch": 1.0, "loss": 2.0}],
    }
    rows: list[Any] = [Row(trial, {"accuracy": 0.608, "loss": 1.1}, 1.0), Row(tested, result, 1.0)]
    for few, there in ((rows, True), (rows[1:], False)):
        page = Report("longer")
        STUDY.report(page, config, Results(few))
        assert any(section.title == "What longer training would likely change" for section in page.sections) is there


def _tested(family: str, minutes: float, seed: int, accuracy: float) -> Any:
    cell = Scored(
        family=family, data="cifar10", seed=seed, epochs=2, minutes=minutes, rates=(5e-3,), trial_epochs=2
    )  # fmt: skip
    result = {"parameters": 1, "flops": 1, "rate": 5e-3, "images": 26_500 * minutes, "accuracy": accuracy, "loss": 0.6}
    return Row(cell, {**result, "curve": [{"epoch": 1.0, "loss": 2.0}]}, 1.0)


def _page(rows: list[Any], config: MinutesConfig) -> Report:
    page = Report("minutes")
    STUDY.report(page, config, Results[Any](rows))
    return page


def test_the_headline_says_who_is_ahead_after_every_length_that_two_have_had_and_what_ista_adds_there() -> None:
    config = MinutesConfig(families=("crate", "attention-only", "vit"), minutes=(20.0, 60.0, 240.0))
    rows = [_tested(name, minutes, 0, 0.8) for minutes in (20, 60) for name in ("crate", "attention-only")]
    rows += [_tested("vit", 60, 0, 0.83), _tested("vit", 240, 0, 0.86)]
    assert _page(rows, config).summary == (
        "Most accurate on CIFAR-10: after 20 core-minutes CRATE with 80.0 % (of 2; not told apart: attention only); "
        "after 60 core-minutes ViT of CRATE's operations with 83.0 % (of 3). Where no deviation stands there is one "
        "seed. ISTA adds +0.0 points after 20, +0.0 points after 60."
    )
    of_two = _page([*rows, _tested("crate", 240, 0, 0.855)], config).summary
    assert "after 240 core-minutes ViT of CRATE's operations with 86.0 % (of 2; not told apart: CRATE)" in of_two
    assert of_two.endswith("+0.0 points after 60, after 240 attention only is not run.")
    assert _page(rows[:1], config).summary.startswith("Accuracy on CIFAR-10: after 20 core-minutes CRATE with 80.0 %. ")
    seeds = [_tested(name, 20, seed, 0.8 + 0.01 * seed + ahead) for seed in (0, 1, 2)
             for name, ahead in (("crate", 0.0), ("vit", 0.005))]  # fmt: skip
    assert "with 81.5 ± 1.0 % (of 2)." in _page(seeds, config).summary  # by seeds; the test images would not tell
    assert _page([], config).summary == "No network is kept: accuracies are not run."


def test_what_an_extrapolation_said_stands_beside_what_came_of_it() -> None:
    config = MinutesConfig(families=("crate",), minutes=(20.0, 60.0, 240.0))
    rows = [_tested("crate", minutes, 0, accuracy) for minutes, accuracy in ((20, 0.6), (60, 0.8), (240, 0.85))]
    titles = {section.title: section for section in _page(rows, config).sections}
    table = str(vars(titles["What became of such an extrapolation"]))
    assert "'20 min: 60.0', '60 min: 80.0', '240 min: 85.0'" in table
    assert "'960 min'" in str(vars(titles["What longer training would likely change"]))
    assert "What became of such an extrapolation" not in {each.title for each in _page(rows[:2], config).sections}


def test_a_rate_at_an_end_of_those_tried_is_named_and_the_passes_of_its_trials() -> None:
    config = MinutesConfig(families=("crate", "alpha"), rates=(3e-3, 5e-3, 1e-2), minutes=(20.0,))
    tried = [
        Row(Trial(family=family, data="cifar10", seed=0, epochs=1, rate=rate), {"accuracy": 0.5}, 1.0)
        for family in config.families
        for rate in config.rates
    ]
    rows = [*tried, _tested("crate", 20, 0, 0.7), _tested("alpha", 20, 0, 0.7)]
    rows[-1].result["rate"] = 1e-2
    table = next(section for section in _page(rows, config).sections if "rates" in section.title)
    assert "may lie: CRATE-alpha (0.01)." in str(vars(table))
    assert "('CRATE', '2', '50.0'" in str(vars(table))
    assert "('CRATE-alpha', '1', '50.0'" in str(vars(table))


def test_what_ista_adds_is_said_of_the_length_with_most_seeds_and_then_of_the_others() -> None:
    config = MinutesConfig(families=("crate", "attention-only"), minutes=(20.0, 60.0, 240.0), seeds=(0, 1))
    tried = [
        Row(Trial(family=family, data="cifar10", seed=0, epochs=2, rate=5e-3), {"accuracy": accuracy}, 1.0)
        for family, accuracy in (("crate", 0.60), ("attention-only", 0.58))
    ]
    short = [_tested("crate", 20, seed, 0.75 + 0.01 * seed) for seed in (0, 1)]
    short += [_tested("attention-only", 20, seed, 0.74) for seed in (0, 1)]
    long = [_tested("crate", 60, 0, 0.81), _tested("attention-only", 60, 0, 0.805), _tested("crate", 240, 0, 0.84)]
    claim = next(claim for claim in STUDY.claims if "ISTA" in claim.statement)
    judged = claim.judge(Results[Any]([*tried, *short, *long]), config)
    assert judged.measured == (
        "+1.5 ± 0.7 points after 20 core-minutes; +0.5 after 60 (1 seed); "
        "+2.0 on held-out images in the trials, of 3.4 and 2.9 (1 seed)"
    )
    assert judged.over == "over 2 seeds"
    assert claim.judge(Results[Any](short[:2]), config).verdict == "not run"
