"""What `platonic-vision` computes: the zoo, and alignment of all its pairs by several metrics, beside chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from unrolled.studies.cells import Cell
from unrolled.studies.platonic.given import GIVEN_VISION, GivenFeatures
from unrolled.studies.platonic.pairs import PairScores
from unrolled.studies.platonic.zoo import GPU, QUICK, AlignedConfig, Features, zoo_cells
from unrolled.studies.study import AtLeast, Budgets, Count

# compared at the last layers, all against mutual k-NN at the last layers
METRICS = ("mutual_knn", "unbiased_cka", "cka", "cknna", "lcs_knn", "rsa", "svcca")
_NEAR = ("mutual_knn", "cknna", "lcs_knn")


@dataclass(kw_only=True)
class VisionConfig(AlignedConfig):
    """Budgets change the zoo's training and the draws."""

    budgets: ClassVar[Budgets] = {
        "quick": {**QUICK, "samples": 300, "draws": 39},
        "cpu": {},
        "gpu": {**GPU, "draws": 999},
    }

    draws: Count = 99
    """Relabellings of the images: p-values are at least 1 / (draws + 1)."""
    bins: Annotated[int, AtLeast(2)] = 4
    """Bins of competence, as many models in each; the paper has five of equal width."""

    @property
    def features(self) -> tuple[Features, ...]:
        """Of every member."""
        return tuple(Features(network=network, samples=self.samples) for network in self.zoo)

    @property
    def best(self) -> PairScores:
        """Mutual k-NN at the best layers."""
        return PairScores(of=self.features, metric="mutual_knn", k=self.k, draws=self.draws)

    @property
    def last(self) -> PairScores:
        """Unbiased CKA at the last layers."""
        return PairScores(of=self.features, metric="unbiased_cka", last=True, draws=self.draws)

    @property
    def given(self) -> PairScores:
        """Mutual k-NN with networks that others trained."""
        others = tuple(GivenFeatures(given=name, data=self.data, samples=self.samples) for name in GIVEN_VISION)
        return PairScores(of=self.features, against=others, metric="mutual_knn", k=self.k, draws=19)

    def uncalibrated(self, metric: str) -> PairScores:
        """Scores of a metric at the last layers, without chance."""
        return PairScores(of=self.features, metric=metric, k=self.k if metric in _NEAR else None, last=True)


def cells(config: VisionConfig) -> Iterator[Cell]:
    """The zoo and what it can do, its pairs by every metric, and the networks of others."""
    yield from zoo_cells(config)
    yield config.best
    yield config.last
    for metric in METRICS:
        yield config.uncalibrated(metric)
    if config.data == "cifar10":
        yield config.given
