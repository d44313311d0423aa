"""Separation of families: AUC and d' by their definitions, intervals over networks, families at random beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import unrolled.alignment as al
from unrolled.report import Report
from unrolled.studies.cells import Context, Row
from unrolled.studies.platonic.measures import (
    ARCHITECTURE,
    STUDY,
    TRAINING,
    MeasuresConfig,
    Separation,
    families,
    separations,
)
from unrolled.studies.platonic.zoo import Features
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
            area = by_metric["cka"].auc
            assert area.value == area.high == 1
            # a bootstrap of networks that are all in order is 1 to 1
            assert area.low == pytest.approx(0.025 ** (1 / 9))
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
    many = MeasuresConfig(each=6)  # of nine networks an AUC of 1 may be one of 0.67
    assert [claim.judge(made_up(apart, many), many).verdict for claim in STUDY.claims] == verdicts


def test_the_report_has_every_metric_that_was_run_beside_families_at_random() -> None:
    report = Report(STUDY.title)
    STUDY.report(report, CONFIG, made_up({"soft_matching": 40.0, "pwcca": 3.0}))
    page = report.to_html()
    assert "told apart best by soft_matching" in page
    for words in ("pwcca", "families at random", "9 pairs within and 27 across", "What this does not show"):
        assert words in page


def test_pairs_that_differ_in_lesson_and_architecture_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {features: place for place, features in enumerate(CONFIG.features)}
    layers = torch.randn(27, 40, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Features, "load", lambda self, context: {"last": layers[places[self]]})
    alike = {metric: CONFIG.likeness(metric).compute(Context())["pairs"] for metric in ("pwcca", "procrustes")}
    assert len(alike["pwcca"]) == 3 * 36 + 3 * 3 * 9  # of nine of a lesson, and across lessons of an architecture
    i, j, value = alike["pwcca"][-1]
    both = (al.pwcca(layers[i], layers[j]), al.pwcca(layers[j], layers[i]))
    assert value == pytest.approx(sum(both) / 2)
    i, j, value = alike["procrustes"][5]
    assert value == pytest.approx(-al.procrustes(layers[i], layers[j]))
