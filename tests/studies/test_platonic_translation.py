"""Translation without pairs as a study: what is divided, what claims read, classes that find their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unrolled import studies
from unrolled.report import Report
from unrolled.studies.cells import Context, Row
from unrolled.studies.pictures import Pictures
from unrolled.studies.platonic.given import GivenFeatures
from unrolled.studies.platonic.translation import cells, claims, classes
from unrolled.studies.platonic.translation.cells import SORTS, FewPairs, Translated, TranslationConfig
from unrolled.studies.platonic.translation.classes import TEXTS, Named
from unrolled.studies.results import Results

STUDY = studies.load("platonic-translation")


def result(top1: float, paired: float, rank: float, n: int = 100, *, worked: bool | None = None) -> dict[str, Any]:
    common = {"n": n, "chance": 1 / n, "chance_rank": (n + 1) / 2, "cosine": 0.5, "shuffled_cosine": 0.0}
    restart = {"restart": 0, "anchors": 0.9, "criterion": 0.8, "agreement": 1.0, "chosen": True}
    return {
        "n": n, "fitted": [n, n], "scores": {**common, "top1": top1, "mean_rank": rank},
        "paired": {**common, "top1": paired, "mean_rank": 1.0}, "level": 0.8,
        "linear": {"scores": {**common, "top1": top1}, "paired": {**common, "top1": paired}},
        "controls": [] if worked is None else [0.7] * 19 if worked else [0.9],
        "p_value": None if worked is None else 0.05 if worked else 1.0, "worked": worked,
        "restarts": [{**restart, "top1": top1, "mean_rank": rank}],
    }  # fmt: skip


def rows(config: TranslationConfig, trained_right: float = 0.5) -> Results[Any]:
    """Two seeds reach half of what pairs give, all others nothing; a few pairs add 0.1; of names a share is right."""
    made = []
    for place, cell in enumerate(STUDY.cells(config)):
        if isinstance(cell, FewPairs):
            ranks = {"mean_rank": 2.0, "chance_rank": 50.5}
            with_rest, alone = ({"top1": share + cell.pairs / 1000, **ranks} for share in (0.2, 0.1))
            kinds = ("orthogonal", "linear")
            of = {"scores": dict.fromkeys(kinds, with_rest), "alone": dict.fromkeys(kinds, alone)}
            made.append(Row(cell, {"n": 100, **of}, 1.0))
        elif isinstance(cell, Named):
            right = (trained_right if isinstance(cell.side, GivenFeatures) else 0.3) + 0.03 * (place % 3)
            names = [f"class{i}" for i in range(10)]
            named = {"accuracy": right, "classes": names, "order": list(range(10)), "value": 0.9, "truth": 0.8}
            made.append(Row(cell, named, 1.0))
        elif isinstance(cell, Translated):
            works = cell.trained and cell.sort == "seeds"
            worked = works if cell.controls else None
            top1 = 0.4 + 0.01 * cell.split if works else 0.01
            made.append(Row(cell, result(top1, 0.8, 5.0 if works else 50.5, worked=worked), 1.0))
    return Results(made)


def test_claims_read_shares_ranks_and_verdicts(tmp_path: Path) -> None:
    config = TranslationConfig()
    results = rows(config)
    assert claims.splits(results, "seeds", claims.top1).mean == pytest.approx(0.42)
    assert claims.splits(results, "seeds", claims.share).mean == pytest.approx((0.42 - 0.01) / (0.8 - 0.01))
    assert claims.splits(results, "image-text", claims.rank_gain).mean == pytest.approx(0)
    assert claims.splits(results, "seeds", claims.top1, trained=False).mean == pytest.approx(0.01)
    assert claims.named(results).mean == pytest.approx(0.53, abs=0.03)
    assert len(claims.named(results)) == 4
    assert claims.verdicts(results, config).mean == 1
    assert len(claims.verdicts(results, config)) == 10, "untrained controls are tested too"
    assert claims.few(results, "imagenet", 16, lambda r: r["scores"]["linear"]["top1"]).mean == pytest.approx(0.216)
    assert claims.gained(results, config).mean == pytest.approx(0.1)
    judged = {claim.statement: claim.judge(results, config).verdict for claim in STUDY.claims}
    assert judged[STUDY.claims[1].statement] == "reproduced"
    assert set(judged.values()) == {"reproduced", "not judged"}
    report = Report(STUDY.title, question=STUDY.question)
    STUDY.report(report, config, results)
    assert "Translated best without a single pair: two seeds of a CRATE." in report.summary
    page = report.to_html()
    assert all(words in page for words in SORTS.values())
    assert "no translation found" in page
    assert "64 pairs, alone" in page
    assert "unconstrained" in page


@pytest.mark.parametrize(("right", "verdict"), [(0.5, "reproduced"), (0.31, "undecided"), (0.15, "not reproduced")])
def test_classes_find_their_names_if_trained_networks_have_more_than_untrained_ones(right: float, verdict: str) -> None:
    """Chance is 0.1, and networks that have learnt nothing have 0.3."""
    config = TranslationConfig()
    judged = STUDY.claims[1].judge(rows(config, right), config)
    assert judged.verdict == verdict
    assert "by chance 0.1" in judged.measured


def test_every_split_has_other_seeds_and_only_the_first_is_tested() -> None:
    all_cells = [cell for cell in STUDY.cells(TranslationConfig()) if isinstance(cell, Translated)]
    seeds = [cell for cell in all_cells if cell.sort == "seeds" and cell.trained]
    pairs = [tuple(side.network.seed for side in cell.sides) for cell in seeds]  # type: ignore[union-attr]
    assert len(set(pairs)) == len(pairs) == 5
    assert all(one != other for one, other in pairs)
    assert [cell.controls for cell in seeds] == [19, 0, 0, 0, 0]
    fresh = [cell for cell in all_cells if not cell.trained]
    assert {cell.sort for cell in fresh} == set(SORTS)
    assert all(cell.sides[1].network.images == 0 for cell in fresh if cell.sort in ("seeds", "families"))  # type: ignore[union-attr]


def test_a_map_is_fitted_to_rows_of_which_no_pair_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(90, 6))
    seen: list[np.ndarray] = []

    def fit(left: Any, right: Any, **options: Any) -> Any:
        from unrolled.alignment.translation import translating

        seen.extend([left, right])
        return translating.translate(left, right, **options)

    monkeypatch.setattr("unrolled.alignment.translation.translate", fit)
    monkeypatch.setattr(cells, "_rows", lambda side, texts, context: x)
    config = TranslationConfig(restarts=1, controls=1, rounds=2, anchor_sets=1, splits=(3,))
    cell = next(each for each in STUDY.cells(config) if isinstance(each, Translated) and each.sort == "sentences")
    out = cell.compute(Context(store=tmp_path))
    left, right = ({tuple(row) for row in side} for side in seen[:2])
    assert not left & right
    assert out["n"] + sum(out["fitted"]) == 90
    assert out["n"] == 30
    assert out["paired"]["top1"] == 1
    assert len(out["restarts"]) == 1
    assert out["linear"]["paired"]["top1"] > 0.9
    assert set(out["linear"]["scores"]) == set(out["scores"])


def test_a_few_pairs_are_of_what_fits_and_the_rest_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(90, 6))
    given: list[Any] = []

    def fit(left: Any, right: Any, *, pairs: Any, **options: Any) -> Any:
        from unrolled.alignment.translation import translating

        given.append((left, right, *pairs))
        return translating.translate(left, right, pairs=pairs, **options)

    monkeypatch.setattr("unrolled.alignment.translation.translate", fit)
    monkeypatch.setattr(cells, "_rows", lambda side, texts, context: x)
    config = TranslationConfig(rounds=2, anchor_sets=1, splits=(3,), pairs=(4, 16))
    cell = [each for each in STUDY.cells(config) if isinstance(each, FewPairs) and each.sort == "sentences"][1]
    assert cell.pairs == 16
    out = cell.compute(Context(store=tmp_path))
    left, right, one, other = ({tuple(row) for row in side} for side in given[0])
    assert len(one) == 16
    assert one == other
    assert one <= left
    assert not one & right
    assert set(out["scores"]) == set(out["alone"]) == {"orthogonal", "linear"}
    assert out["scores"]["orthogonal"]["top1"] > 0.5  # 16 pairs of a space with itself
    assert out["n"] == 30


@pytest.mark.parametrize("right", [True, False])
def test_classes_find_their_names_by_how_they_lie(right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    places = generator.normal(size=(5, 3))
    labels = torch.arange(50) % 5
    features = torch.from_numpy(places)[labels] + 0.01 * torch.randn(50, 3)
    words = torch.from_numpy(places if right else generator.normal(size=(5, 3)))
    names = tuple(f"class{i}" for i in range(5))
    shown = Pictures(images=torch.zeros(50, 3, 32, 32, dtype=torch.uint8), labels=labels, classes=names)
    monkeypatch.setattr(classes, "pictures", lambda *args: shown)
    monkeypatch.setattr(classes, "find_weights", lambda data_dir: data_dir)
    monkeypatch.setattr(classes, "word_vectors", lambda text, texts, weights: words)
    monkeypatch.setattr(GivenFeatures, "load", lambda self, context: {"layer": features})
    side = GivenFeatures(given="mobilenet_v1_075", data="cifar10", samples=50)
    out = Named(side=side, text=TEXTS[0], data="cifar10").compute(Context(store=tmp_path))
    assert out["value"] >= out["truth"] - 1e-9
    if right:
        assert out["accuracy"] == 1
        assert out["order"] == list(range(5))
        assert out["truth"] > 0.9
    else:
        assert out["truth"] < 0.9


def test_more_texts_than_a_photo_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^texts=6: a photo has 5 captions"):
        TranslationConfig(texts=6)


def test_more_pairs_than_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^pairs=\(4, 700\): the smallest third has 666 samples"):
        TranslationConfig(pairs=(4, 700))


def test_a_difference_of_two_groups_has_welchs_interval() -> None:
    from unrolled.studies.results import Values
    from unrolled.studies.statistics import difference

    one, other = Values(dict(enumerate((0.1, 0.4, 0.3)))), Values(dict(enumerate((0.2, 0.5))))
    estimate = difference(one, other)
    assert estimate.value == pytest.approx(one.mean - other.mean)  # type: ignore[union-attr]
    assert estimate.low < estimate.value < estimate.high  # type: ignore[union-attr]
    assert not difference(one, Values({0: 1.0}))
