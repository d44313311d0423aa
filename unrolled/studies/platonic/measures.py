"""The measure of the measures: how well each metric of alignment tells families of networks apart.

Claim (arXiv 2509.04622): of metrics that map one model to another, soft matching separates families of models best,
then Procrustes, then linear predictivity; RSA separates them strongly too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import Claim
from unrolled.studies.networks import BATCH, Network, Taught
from unrolled.studies.platonic.zoo import FAMILIES, Features, family
from unrolled.studies.results import NOT_RUN, Estimate, Results, Values
from unrolled.studies.statistics import Array, Mask, Places, area, number, over_models
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Study

if TYPE_CHECKING:
    from unrolled.report import Forest, Report

LESSONS: dict[str, Taught | None] = {"true labels": "labels", "shuffled labels": "all shuffled", "untrained": None}
ARCHITECTURE, UNTRAINED, TRAINING, TAUGHT = (
    "architecture", "architecture, untrained", "trained or untrained", "true or shuffled labels",
)  # fmt: skip
_PERMUTATIONS = 500


@dataclass(kw_only=True)
class MeasuresConfig(Config):
    """Budgets change the networks and their training."""

    budgets: ClassVar[Budgets] = {
        "quick": {"each": 2, "images": 20 * BATCH, "samples": 120},
        "cpu": {},
        "gpu": {"data": "cifar10", "each": 8, "images": 20_000 * BATCH, "samples": 1000, "device": "cuda"},
    }

    data: Literal["cifar10", "digits"] = "digits"
    """Images the networks learn; `digits` (8x8, with scikit-learn) need no files."""
    data_dir: Path = Path("data")
    """Folder with `cifar10`."""
    each: Annotated[int, AtLeast(2)] = 4
    """Networks of each architecture and lesson; no two of one architecture begin with the same weights."""
    images: Annotated[int, AtLeast(BATCH)] = 300 * BATCH
    """Images a network sees in training, 128 a step."""
    samples: Annotated[int, AtLeast(40)] = 360
    """Held-out images whose features are compared; there are 360 digits."""
    workers: Count = 1

    @property
    def features(self) -> tuple[Features, ...]:
        """Of all networks: by lesson, by architecture, by seed."""
        return tuple(
            Features(network=self._network(kind, lesson, place * (self.each + 1) + seed), samples=self.samples)
            for place, lesson in enumerate(LESSONS.values())
            for kind in FAMILIES
            for seed in range(self.each)
        )

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the networks."""
        return tuple(sorted({features.network.seed for features in self.features}))

    def _network(self, kind: str, lesson: Taught | None, seed: int) -> Network:
        images, taught = (self.images, lesson) if lesson else (0, "labels")
        return Network(kind=f"{kind}-small", data=self.data, seed=seed, images=images, taught=taught)

    def likeness(self, metric: str) -> Likeness:
        """The scores of one metric."""
        return Likeness(of=self.features, metric=metric)


@dataclass(frozen=True, kw_only=True)
class Likeness(Cell):
    """Networks beside each other by one metric with its default options, at the last layers."""

    of: tuple[Features, ...]
    metric: str

    def compute(self, context: Context) -> Result:
        """`pairs`, [i, j, likeness] of networks of one architecture or one lesson.

        Higher is closer, also of a distance; of a metric that is not symmetric it is the mean both ways.
        """
        from unrolled.alignment.registry import get_metric

        metric = get_metric(self.metric)
        sign = 1.0 if metric.higher_is_closer else -1.0
        last = [metric.prepare(list(features.load(context).values())[-1]) for features in self.of]

        def alike(i: int, j: int) -> float:
            score = metric.compare(last[i], last[j])
            return sign * (score if metric.symmetric else (score + metric.compare(last[j], last[i])) / 2)

        lessons = [(features.network.images > 0, features.network.taught) for features in self.of]
        kinds = [family(features.network) for features in self.of]
        pairs = itertools.combinations(range(len(self.of)), 2)
        asked = ((i, j) for i, j in pairs if kinds[i] == kinds[j] or lessons[i] == lessons[j])
        return {"pairs": [[i, j, alike(i, j)] for i, j in asked]}


def metric_names() -> tuple[str, ...]:
    """Every metric of the package."""
    from unrolled.alignment.registry import METRICS

    return (*METRICS, "unbiased_cka")


def cells(config: MeasuresConfig) -> Iterator[Cell]:
    """The networks, and each metric on all of their pairs."""
    yield from dict.fromkeys(features.network for features in config.features if features.network.images)
    yield from (config.likeness(metric) for metric in metric_names())


class Families(NamedTuple):
    """Networks of a question, as places [m], the family of each, and within what families may be exchanged [m]."""

    places: Places
    label: Places
    block: Places

    @property
    def allowed(self) -> Mask:
        """Pairs that are asked about, [m, m]: of one block."""
        return self.block[:, None] == self.block[None, :]


def families(config: MeasuresConfig) -> dict[str, Families]:
    """The families of every question."""
    networks = [features.network for features in config.features]
    kinds = np.array([list(FAMILIES).index(family(network)) for network in networks])
    lessons = np.repeat(np.arange(len(LESSONS)), len(networks) // len(LESSONS))
    alone = np.zeros_like(kinds)

    def among(which: tuple[int, ...], label: Places, block: Places) -> Families:
        places = np.flatnonzero(np.isin(lessons, which))
        return Families(places, label[places], block[places])

    return {
        ARCHITECTURE: among((0,), kinds, alone),
        UNTRAINED: among((2,), kinds, alone),
        TRAINING: among((0, 2), lessons, kinds),
        TAUGHT: among((0, 1), lessons, kinds),
    }


class Separation:
    """How far pairs within a family are more alike than pairs across, of one metric and one question.

    Attributes:
        auc: probability that a pair within is more alike than a pair across, ties counting half: 0.5 by chance.
        dprime: difference of the two means over the root of the mean of the two variances: 0 by chance.
    """

    def __init__(self, alike: Array, question: Families) -> None:
        self.question = question
        self.first, self.second = np.triu_indices(len(question.places), k=1)
        asked = question.allowed[self.first, self.second]
        self.first, self.second = self.first[asked], self.second[asked]
        self.alike = alike[np.ix_(question.places, question.places)][self.first, self.second]
        self.within = self._within(question.label)

    def _within(self, label: Places) -> Mask:
        same: Mask = label[self.first] == label[self.second]
        return same

    @cached_property
    def _groups(self) -> Array:
        """[pairs, distinct values] 1 where a pair has a value, in growing order."""
        values, place = np.unique(self.alike, return_inverse=True)
        return np.eye(len(values))[place]

    def weights(self, drawn: Places) -> Array:
        """[r, pairs] how often each pair is among the networks of each row of `drawn`."""
        counts = (drawn[:, :, None] == np.arange(len(self.question.places))).sum(1)
        return np.asarray(counts[:, self.first] * counts[:, self.second], dtype=np.float64)

    def aucs(self, weights: Array, within: Mask) -> Array:
        """[r] for weights of pairs [r, pairs] and [pairs] which are within; NaN where one sort is missing."""
        inside, outside = (weights * within) @ self._groups, (weights * ~within) @ self._groups
        below = outside.cumsum(1) - outside / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            area: Array = (inside * below).sum(1) / (inside.sum(1) * outside.sum(1))
        return area

    def dprimes(self, weights: Array) -> Array:
        """[r] as `aucs`."""
        means, variances = [], []
        with np.errstate(invalid="ignore", divide="ignore"):
            for chosen in (self.within, ~self.within):
                part = weights * chosen
                mean = part @ self.alike / part.sum(1)
                means.append(mean)
                variances.append((part * (self.alike - mean[:, None]) ** 2).sum(1) / part.sum(1))
            distance: Array = (means[0] - means[1]) / np.sqrt((variances[0] + variances[1]) / 2)
        return distance

    def _over(self, statistic: Callable[[Array], Array]) -> Estimate:
        return over_models(lambda drawn: statistic(self.weights(drawn)), len(self.question.places))

    @cached_property
    def auc(self) -> Estimate:
        """With its interval over networks."""
        return area(lambda drawn: self.aucs(self.weights(drawn), self.within), len(self.question.places))

    @cached_property
    def dprime(self) -> Estimate:
        """With its interval over networks."""
        return self._over(self.dprimes)

    def beyond(self, other: Separation) -> Estimate:
        """d' of this metric less that of another on the same question, over the same draws of networks."""
        return self._over(lambda weights: self.dprimes(weights) - other.dprimes(weights))

    @cached_property
    def permuted(self) -> Array:
        """AUC of families drawn at random: labels exchanged among the networks, within blocks."""
        generator, label, block = np.random.default_rng(0), self.question.label, self.question.block
        order = np.lexsort(
            (generator.random((_PERMUTATIONS, len(label))), np.broadcast_to(block, (_PERMUTATIONS, len(label))))
        )
        places = np.argsort(block, kind="stable")
        every = np.ones((1, len(self.alike)))
        shuffled = np.empty_like(label)
        areas = []
        for row in order:
            shuffled[places] = label[row]
            areas.append(float(self.aucs(every, self._within(shuffled))[0]))
        return np.array(areas)


def separations(results: Results[Any], config: MeasuresConfig) -> dict[str, dict[str, Separation]]:
    """By question and metric, of the metrics that were run."""
    known = {row.cell.metric: _matrix(row.result["pairs"], len(row.cell.of)) for row in results.of(Likeness)}
    return {
        name: {metric: Separation(known[metric], question) for metric in metric_names() if metric in known}
        for name, question in families(config).items()
    }


def _matrix(pairs: Sequence[tuple[int, int, float]], count: int) -> Array:
    matrix = np.full((count, count), np.nan)
    for i, j, value in pairs:
        matrix[i, j] = matrix[j, i] = value
    return matrix


def _more(one: str, other: str, statement: str) -> Claim:
    def value(results: Results[Any], config: MeasuresConfig) -> Values | Estimate:
        by_metric = separations(results, config)[ARCHITECTURE]
        return by_metric[one].beyond(by_metric[other]) if {one, other} <= by_metric.keys() else Values()

    return Claim(
        statement=f"{statement} (d' of the one less that of the other; architectures of networks taught true labels)",
        source="arXiv 2509.04622, abstract: 35 vision models of four families",
        published="stated, no number",
        value=value,
        low=0.0,
        outside="metrics that separate alike, 0, or in the other order",
        spec="+.2f",
    )


def _rsa(results: Results[Any], config: MeasuresConfig) -> Values | Estimate:
    by_metric = separations(results, config)[ARCHITECTURE]
    return by_metric["rsa"].auc if "rsa" in by_metric else Values()


def _rsa_permuted(results: Results[Any], config: MeasuresConfig) -> float:
    by_metric = separations(results, config)[ARCHITECTURE]
    return float(by_metric["rsa"].permuted.mean()) if "rsa" in by_metric else math.nan


CLAIMS = (
    _more("soft_matching", "procrustes", "Soft matching separates families more than Procrustes does"),
    _more("procrustes", "ridge_predictivity", "Procrustes separates them more than linear predictivity does"),
    Claim(
        statement="RSA, which fits nothing, separates families strongly (AUC of pairs within against pairs across)",
        source="arXiv 2509.04622, abstract",
        published="stated, no number",
        value=_rsa,
        low=0.8,
        outside="a metric that cannot tell families apart: 0.5",
        control=_rsa_permuted,
        spec=".2f",
    ),
)


def report(report: Report, config: MeasuresConfig, results: Results[Any]) -> None:
    """Which metrics tell families apart, by question, beside families drawn at random."""
    from unrolled.report import Fact

    by_question = separations(results, config)
    main = by_question[ARCHITECTURE]
    if not main:
        report.headline(f"Scores of pairs of networks: {NOT_RUN}.", [])
        return
    best = max(main, key=lambda metric: main[metric].dprime.value)
    report.headline(
        f"Architectures are told apart best by {best} (d' {main[best].dprime:.2f}, AUC {main[best].auc:.2f}).",
        [
            Fact(label=metric, value=f"{main[metric].auc.value:.2f}", detail=f"AUC; d' {main[metric].dprime:.2f}")
            for metric in ("soft_matching", "procrustes", "ridge_predictivity", "rsa", "mutual_knn")
            if metric in main
        ],
    )
    accuracy = _accuracy(results)
    report.section(
        "AUC and d' of each metric",
        f"{len(config.features)} small networks: CRATE, ViT and CNN, {config.each} each taught true labels, taught "
        f"labels drawn anew for every image, and untrained, on {config.data}; last layers, averaged over places, of "
        f"{config.samples} held-out images. A pair is within a family or across two. AUC is the probability that a "
        "pair within is more alike than a pair across: 0.5 by chance, 1 if a threshold separates them. Whether a "
        "network is trained, and on what labels, is asked among networks of one architecture.",
    ).figure(
        [_forest(name, "AUC", _ordered(by_metric)) for name, by_metric in by_question.items()],
        name="auc",
        caption="Bars are 95 % intervals: the wider of a bootstrap over networks and of the exact interval of a share "
        "of as many, since of networks that are all in order every draw is. Dashed: by chance.",
    ).figure(
        [_forest(name, "d'", _ordered(by_metric)) for name, by_metric in by_question.items()],
        name="dprime",
        caption="Bars are 95 % intervals by a bootstrap over networks. Dashed: by chance. The metrics stand in the "
        "order of d' in both figures.",
    )
    for name, by_metric in by_question.items():
        separation = next(iter(by_metric.values()))
        within = int(separation.within.sum())
        report.section(
            name.capitalize(), f"{within} pairs within and {len(separation.within) - within} across families."
        ).table(
            [
                "metric",
                "AUC",
                "95 % interval",
                "d'",
                "95 % interval",
                "AUC, families at random",
                "97.5 % of these below",
            ],
            [_row(metric, each) for metric, each in _ordered(by_metric).items()],
            caption=f"Families at random: labels exchanged among the networks {_PERMUTATIONS} times, mean.",
        )
    report.section(
        "What this does not show",
        f"One data set of small images, one recipe, one width a family (the CNN's last layer has 32 rectified units, "
        f"the others' 48), {config.each} seeds. Accuracy with true labels: {accuracy}. Untrained networks are told "
        "apart by architecture as well: what separates families here is the form of a layer as much as what was "
        "learnt. A metric that separates better is not the truer one: it asks for more to be equal.",
    )


def _accuracy(results: Results[Any]) -> str:
    """Mean by architecture of the networks taught true labels, in words."""
    words = []
    for kind, name in FAMILIES.items():
        rows = [row for row in results.of(Network) if family(row.cell) == kind and row.cell.sound]
        if rows:
            words.append(f"{name} {100 * float(np.mean([row.result['accuracy'] for row in rows])):.1f} %")
    return ", ".join(words) or NOT_RUN


def _ordered(by_metric: Mapping[str, Separation]) -> dict[str, Separation]:
    """The metric of the largest d' first."""
    return dict(sorted(by_metric.items(), key=lambda item: -np.nan_to_num(item[1].dprime.value, nan=-math.inf)))


def _forest(name: str, quantity: Literal["AUC", "d'"], by_metric: Mapping[str, Separation]) -> Forest:
    from unrolled.report import Forest

    each = [separation.auc if quantity == "AUC" else separation.dprime for separation in by_metric.values()]
    return Forest(
        title=f"{quantity}: {name}",
        x_label=quantity,
        names=list(by_metric),
        values=[estimate.value for estimate in each],
        interval=[(estimate.low, estimate.high) for estimate in each],
        beside=0.5 if quantity == "AUC" else 0.0,
    )


def _row(metric: str, separation: Separation) -> list[str]:
    auc, dprime, permuted = separation.auc, separation.dprime, separation.permuted
    return [
        metric, number(auc.value), f"{number(auc.low)} to {number(auc.high)}",
        number(dprime.value, 2), f"{number(dprime.low, 2)} to {number(dprime.high, 2)}",
        number(float(permuted.mean())), number(float(np.quantile(permuted, 0.975))),
    ]  # fmt: skip


STUDY = Study(
    name="platonic-measures",
    title="Which metric tells families of networks apart?",
    question="Which metrics of alignment separate networks by architecture, by training and by what they were taught?",
    citation="J. Wu et al., Measuring the Measures, arXiv 2509.04622",
    config=MeasuresConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
