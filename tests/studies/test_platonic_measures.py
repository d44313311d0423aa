"""Separation of families: AUC and d' by their definitions, intervals over networks, families at random beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from unrolled.studies.cells import Row
from unrolled.studies.platonic import measures
from unrolled.studies.platonic.measures import (
    ARCHITECTURE,
    STUDY,
    TRAINING,
    MeasuresConfig,
    Separation,
    cells,
    families,
    separations,
)
from unrolled.studies.results import Results

CONFIG = MeasuresConfig(each=3)


def made_up(apart: dict[str, float], config: MeasuresConfig = CONFIG) -> Results[Any]:
    """Rows of metrics, by how far beyond noise of size 1 networks of one architecture are alike."""
    rows = []
    for metric, gap in apart.items():
        cell = config.likeness(metric)
        kinds = [features.network.kind for features in cell.of]
        noise = np.random.default_rng(0).standard_normal((len(kinds), len(kinds)))
        pairs = [[i, j, gap * (kinds[i] == kinds[j]) + noise[i, j]] for i in range(len(kinds)) for j in range(i)]
        rows.append(Row(cell, {"pairs": pairs}, 0.0))
    return Results(rows)


def test_networks_begin_with_different_weights_and_questions_ask_of_the_right_pairs() -> None:
    networks = [features.network for features in CONFIG.features]
    assert len({(network.kind, network.seed) for network in networks}) == len(networks) == 27
    questions = families(CONFIG)
    assert {networks[place].taught for place in questions[ARCHITECTURE].places} == {"labels"}
    training = questions[TRAINING]
    for i, j in np.argwhere(training.allowed):
        one, other = (networks[training.places[place]] for place in (i, j))
        assert one.kind == other.kind
        assert (training.label[i] == training.label[j]) == (bool(one.images) == bool(other.images))


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_auc_and_dprime_are_their_definitions(gap: float) -> None:
    separation = separations(made_up({"cka": gap}), CONFIG)[ARCHITECTURE]["cka"]
    within, across = (separation.alike[chosen] for chosen in (separation.within, ~separation.within))
    assert (len(within), len(across)) == (9, 27)
    area = stats.mannwhitneyu(within, across).statistic / (9 * 27)
    assert separation.auc.value == pytest.approx(area)
    expected = (within.mean() - across.mean()) / np.sqrt((within.var() + across.var()) / 2)
    assert separation.dprime.value == pytest.approx(expected)
    assert separation.auc.low < area < separation.auc.high
    assert "over 9 models" in separation.auc.basis
    # rows of draws are weights of pairs: what is drawn twice counts so, and is no pair with itself
    drawn = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7])
    twice = separation.weights(drawn[None])[0]
    assert twice.sum() == 36 - 1


def test_ties_count_half_and_families_at_random_are_at_chance() -> None:
    question = families(CONFIG)[ARCHITECTURE]
    alike = np.ones((27, 27))
    assert Separation(alike, question).auc.value == 0.5
    for name, by_metric in separations(made_up({"cka": 9.0}), CONFIG).items():
        permuted = by_metric["cka"].permuted
        assert permuted.mean() == pytest.approx(0.5, abs=0.03), name
        if name == ARCHITECTURE:
            assert by_metric["cka"].auc.value == 1
            assert np.quantile(permuted, 0.9) < 1


@pytest.mark.parametrize(
    ("apart", "verdicts"),
    [
        ({"soft_matching": 40.0, "procrustes": 12.0, "ridge_predictivity": 2.0, "rsa": 9.0}, ["reproduced"] * 3),
        (
            {"soft_matching": 2.0, "procrustes": 12.0, "ridge_predictivity": 40.0, "rsa": -3.0},
            ["not reproduced"] * 3,
        ),
        ({"soft_matching": 2.0}, ["not run"] * 3),
    ],
)
def test_claims_are_judged_by_the_order_of_the_metrics(apart: dict[str, float], verdicts: list[str]) -> None:
    results = made_up(apart)
    assert [claim.judge(results, CONFIG).verdict for claim in STUDY.claims] == verdicts


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[str, ...]]:
    names = ("soft_matching", "procrustes", "pwcca")
    monkeypatch.setattr(measures, "metric_names", lambda: names)
    return lambda: names


def test_a_tiny_run_reports_every_metric_and_what_was_not_run(
    few: Callable[[], tuple[str, ...]], tmp_path: Path
) -> None:
    config = MeasuresConfig.of_budget("quick", images=128, samples=60, kept=tmp_path / "kept", out=tmp_path / "out")
    assert len({cell.name for cell in cells(config)}) == len(list(cells(config)))
    report = STUDY.run(config)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for words in ("soft_matching", "pwcca", "families at random", "What this does not show"):
        assert words in page
    pairs = report.results["rows"][-1]["pairs"]
    assert len(pairs) == 3 * 15 + 3 * 12  # of six of a lesson, and across lessons of one architecture
