"""What `platonic-vision` judges, read off the pairs: trends with competence, bins, agreement of metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unrolled.studies.claim import CONTROL, Claim
from unrolled.studies.platonic.pairs import Pairs, PairScores
from unrolled.studies.platonic.vision.cells import METRICS, VisionConfig
from unrolled.studies.platonic.zoo import competence, family
from unrolled.studies.results import Estimate, Results, Values
from unrolled.studies.statistics import (
    Array,
    Mask,
    Places,
    correlation,
    over_models,
    pair_places,
    pairs_of,
    rank_correlations,
    spearman,
)

ALL, ACROSS, SOUND = SELECTIONS = "all pairs", "different kinds", "different kinds, true labels only"
CALIBRATED = KNN, CKA = "mutual k-NN", "unbiased CKA"
TRENDS = len(SELECTIONS) * len(CALIBRATED)
"""Trends of pairs that are looked at: their intervals are corrected for their number."""
LEVEL = f"{100 - 5 / TRENDS:.1f} %"


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Pairs within a bin of competence.

    Attributes:
        pairs: how many; of none the others are NaN.
        gain, score, chance: means over them.
        error: jackknife standard error of the gain over models.
    """

    pairs: int
    gain: float = math.nan
    score: float = math.nan
    chance: float = math.nan
    error: float = math.nan


class View:
    """Results by question."""

    def __init__(self, results: Results[Any], config: VisionConfig) -> None:
        self.results, self.config, self.zoo = results, config, config.zoo
        self.on, self.competence = competence(results, self.zoo)
        self.sound = np.array([network.sound for network in self.zoo])
        self.kinds = np.array([family(network) for network in self.zoo])

    def pairs(self, cell: PairScores) -> Pairs | None:
        """All pairs by a metric; None where they were not run."""
        return Pairs.of(self.results, cell)

    def calibrated(self) -> dict[str, Pairs]:
        """Pairs with their chance level by what tables call the metric; those that were run."""
        scores = {KNN: self.pairs(self.config.best), CKA: self.pairs(self.config.last)}
        return {metric: pairs for metric, pairs in scores.items() if pairs is not None}

    def allowed(self, among: str) -> Mask:
        """Pairs of a selection, [m, m]."""
        across = self.kinds[:, None] != self.kinds[None, :]
        true = self.sound[:, None] & self.sound[None, :]
        return {ALL: np.ones_like(across), ACROSS: across, SOUND: across & true}[among]

    def trend(self, pairs: Pairs, among: str) -> Estimate:
        """Rank correlation of a pair's mean competence with its alignment above chance, one of `TRENDS`."""
        allowed = self.allowed(among)

        def rho(drawn: Places) -> Array:
            i, j, keep = pairs_of(drawn, allowed)
            return rank_correlations(
                np.where(keep, (self.competence[i] + self.competence[j]) / 2, np.nan), pairs.gain[i, j]
            )

        return over_models(rho, len(self.zoo), of=TRENDS)

    def count(self, among: str = ALL) -> int:
        """How many pairs a selection has."""
        return len(pair_places(np.arange(len(self.zoo)), self.allowed(among))[0])

    def bins(self) -> list[Places]:
        """Places of the models of every bin, by growing competence."""
        return np.array_split(np.argsort(self.competence, kind="stable"), self.config.bins)

    def bin(self, pairs: Pairs, places: Places, among: str) -> Bin:
        """Means over the pairs of a selection in a bin."""
        allowed = self.allowed(among)

        def mean(chosen: Places) -> float:
            i, j = pair_places(chosen, allowed)
            return float(pairs.gain[i, j].mean()) if len(i) else math.nan

        i, j = pair_places(places, allowed)
        if not len(i):
            return Bin(pairs=0)
        left = np.array([mean(np.delete(places, index)) for index in range(len(places))])
        left = left[np.isfinite(left)]
        return Bin(
            pairs=len(i),
            gain=mean(places),
            score=float(pairs.score[i, j].mean()),
            chance=float(pairs.chance[i, j].mean()),
            error=float(np.sqrt(len(left) - 1) * left.std()) if len(left) > 1 else math.nan,
        )

    def significant(self, pairs: Pairs) -> int:
        """Pairs above chance at a false discovery rate of 5 %."""
        from unrolled.alignment.significance import benjamini_hochberg

        i, j = np.triu_indices(len(self.zoo), k=1)
        return int(benjamini_hochberg(pairs.p_value[i, j].tolist())[1].sum())

    def agreement(self) -> dict[str, dict[str, float]]:
        """Rank correlations over all pairs of models between metrics, those that were run."""
        i, j = np.triu_indices(len(self.zoo), k=1)
        pairs = {metric: self.pairs(self.config.uncalibrated(metric)) for metric in METRICS}
        scores = {metric: each.score[i, j] for metric, each in pairs.items() if each is not None}
        return {one: {other: spearman(scores[one], scores[other]) for other in scores} for one in scores}

    def with_given(self, gain: Array) -> tuple[dict[str, float], Estimate]:
        """Mean alignment [m] with one network of others by family, and its correlation with competence."""
        untrained = np.array([not network.images for network in self.zoo])
        means = {kind: float(gain[(self.kinds == kind) & self.sound].mean()) for kind in dict.fromkeys(self.kinds)}
        means["untrained"] = float(gain[untrained].mean())
        return means, correlation(self.competence, gain)

    def across_kinds(self, pairs: Pairs, place: int) -> float:
        """Mean alignment of a model with the sound ones of other kinds."""
        others = self.sound & (self.kinds != self.kinds[place])
        return float(pairs.gain[place, others].mean()) if others.any() else math.nan


def weakest(view: View) -> tuple[str, float] | None:
    """The metric that agrees least with mutual k-NN, and how much; None where they were not run."""
    others = {metric: rho for metric, rho in view.agreement().get("mutual_knn", {}).items() if metric != "mutual_knn"}
    return min(others.items(), key=lambda entry: entry[1]) if others else None


def _trend(among: str) -> Callable[[Results[Any], VisionConfig], Values | Estimate]:
    def value(results: Results[Any], config: VisionConfig) -> Values | Estimate:
        view = View(results, config)
        pairs = view.calibrated().get(KNN)
        return Values() if pairs is None else view.trend(pairs, among)

    return value


def _corrected(results: Results[Any], config: VisionConfig) -> str:
    return f" (one of {TRENDS} trends: interval at {LEVEL})"


def _weakest(results: Results[Any], config: VisionConfig) -> float:
    least = weakest(View(results, config))
    return math.nan if least is None else least[1]


def _weakest_name(results: Results[Any], config: VisionConfig) -> str:
    least = weakest(View(results, config))
    return "" if least is None else f" ({least[0]})"


CLAIMS = (
    Claim(
        statement="Mutual k-NN alignment rises with transfer competence (rank correlation over pairs of models)",
        source="arXiv 2405.07987, figure 2: 78 models, five bins of transfer performance on VTAB",
        published="rises; shown as bars, no number",
        value=_trend(ALL),
        low=0.0,
        outside="models whose alignment has nothing to do with what they can do: 0",
        spec=".2f",
        detail=_corrected,
    ),
    Claim(
        statement="It does so among models of different kinds, where architecture cannot be the reason",
        source="a control of this package; the paper's bins mix architectures",
        unjudged=CONTROL,
        published="not measured",
        value=_trend(ACROSS),
        low=0.0,
        spec=".2f",
        detail=_corrected,
    ),
    Claim(
        statement="Metrics order pairs of models alike (smallest rank correlation of mutual k-NN with another metric)",
        source="arXiv 2405.07987, appendix: Spearman correlations of metrics",
        published="all p < 2.24e-105",
        value=_weakest,
        unjudged="the source has p-values alone, and no two measures of likeness would fail a test against 0",
        spec=".2f",
        detail=_weakest_name,
    ),
)
