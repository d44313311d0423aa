"""Does alignment go with downstream performance? Over a zoo of vision models, with stand-ins for language benchmarks.

Claim (arXiv 2405.07987, figure 4): language models that align better with vision do better on Hellaswag and GSM8K.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import Claim
from unrolled.studies.networks import OfNetwork, probe_accuracy
from unrolled.studies.pictures import unseen_pictures
from unrolled.studies.platonic.given import IMAGENET, WORDS, GivenFeatures
from unrolled.studies.platonic.pairs import Pairs, PairScores
from unrolled.studies.platonic.words import NearWords, class_means
from unrolled.studies.platonic.zoo import (
    FAMILIES,
    GPU,
    QUICK,
    AlignedConfig,
    Features,
    Probe,
    Unseen,
    by_network,
    colour_of,
    competence,
    family,
    short_name,
    zoo_cells,
)
from unrolled.studies.results import NOT_RUN, Estimate, Results, Values
from unrolled.studies.statistics import Array, correlation, number
from unrolled.studies.study import Budgets, Count, Study

if TYPE_CHECKING:
    from unrolled.report import Report

PROBE, TRANSFER, FEW_SHOT = "ten-way probe", "hundred-way transfer", "five-shot transfer"
TASKS = {
    PROBE: "ridge classifier on held-out images of the training data's classes",
    TRANSFER: "ridge classifier on 100 classes of Tiny-ImageNet, never seen: in place of Hellaswag",
    FEW_SHOT: "nearest of 100 class means of five images each: in place of GSM8K, the hardest here",
}
OTHERS, NETWORKS = "best of other kinds", "ImageNet networks"
ALIGNED = {
    OTHERS: "mutual k-NN with the three sound members of other kinds that transfer best",
    NETWORKS: "mutual k-NN with four networks of ImageNet, trained by others",
    "MiniLM": "mutual k-NN of class means with MiniLM's vectors of the class names",
    "GloVe": "mutual k-NN of class means with GloVe's vectors of the class names",
}
ByName = Mapping[str, Array | None]
_SOURCE = "arXiv 2405.07987, figure 4: alignment of language models with DINOv2"


@dataclass(kw_only=True)
class DownstreamConfig(AlignedConfig):
    """Budgets change the zoo's training."""

    budgets: ClassVar[Budgets] = {"quick": {**QUICK, "samples": 300}, "cpu": {}, "gpu": GPU}

    k: Count = 10
    """Neighbours, of images and of classes."""
    shots: Count = 5
    """Images a class of the few-shot task."""
    episodes: Count = 20
    """Draws of these images."""

    def scores(self, *others: GivenFeatures) -> PairScores:
        """Mutual k-NN at the best layers, of the zoo with itself or with others."""
        of = tuple(Features(network=network, samples=self.samples) for network in self.zoo)
        return PairScores(of=of, against=others, metric="mutual_knn", k=min(self.k, self.samples // 4), draws=9)

    @property
    def networks(self) -> PairScores:
        """The zoo with the networks of ImageNet."""
        return self.scores(*(GivenFeatures(given=name, data=self.data, samples=self.samples) for name in IMAGENET))


@dataclass(frozen=True, kw_only=True)
class Tasks(OfNetwork):
    """Accuracies on unseen images, of which the first half is left to be compared with words."""

    shots: int
    episodes: int

    @property
    def needs(self) -> Sequence[Cell]:
        """The features."""
        return (Unseen(network=self.network),)

    def compute(self, context: Context) -> Result:
        """Accuracies by the names of `TASKS`, but for the probe."""
        images, seen = unseen_pictures(context.data_dir), Unseen(network=self.network).load(context)
        half, labels, classes = len(images.labels) // 2, images.labels, len(images.classes)
        fit = half + round(0.75 * (len(labels) - half))
        return {
            TRANSFER: probe_accuracy((seen[half:fit], labels[half:fit]), (seen[fit:], labels[fit:]), classes),
            FEW_SHOT: few_shot(seen[half:], labels[half:], classes, shots=self.shots, episodes=self.episodes),
        }


def few_shot(seen: Tensor, labels: Tensor, classes: int, *, shots: int, episodes: int) -> float:
    """Accuracy of the nearest class mean of `shots` images a class, on the others; mean over draws of the images."""
    unit = torch.nn.functional.normalize(seen - seen.mean(0), dim=1)
    total = 0.0
    for episode in range(episodes):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(episode))
        # the rank of each image within its class, in this order
        one_hot = torch.nn.functional.one_hot(labels[order], classes)
        rank = (one_hot.cumsum(0) * one_hot).sum(1)
        support, query = order[rank <= shots], order[rank > shots]
        means = torch.nn.functional.normalize(class_means(unit[support], labels[support], classes), dim=1)
        total += float(((unit[query] @ means.mT).argmax(1) == labels[query]).double().mean())
    return total / episodes


def cells(config: DownstreamConfig) -> Iterator[Cell]:
    """The zoo, its pairs, and of CIFAR-10's the tasks on unseen images, networks of others, and words."""
    yield from zoo_cells(config)
    yield config.scores()
    if config.data == "cifar10":
        for network in config.zoo:
            yield Tasks(network=network, shots=config.shots, episodes=config.episodes)
        yield config.networks
        for words in WORDS.values():
            yield from (NearWords(network=network, words=words, k=config.k, share=0.5) for network in config.zoo)


def aligned(results: Results[Any], config: DownstreamConfig) -> ByName:
    """Alignment above chance [m] of every member, by the names of `ALIGNED`; None where it was not run."""
    pairs, given = (Pairs.of(results, cell) for cell in (config.scores(), config.networks))
    near = {label: by_network(results.of(NearWords, words=words), "gain", config.zoo) for label, words in WORDS.items()}
    return {
        OTHERS: None if pairs is None else _best_of_others(pairs, results, config),
        NETWORKS: None if given is None else given.gain.mean(1),
        **near,
    }


def _best_of_others(pairs: Pairs, results: Results[Any], config: DownstreamConfig) -> Array:
    _, able = competence(results, config.zoo)
    sound = np.array([network.sound for network in config.zoo])
    kinds = np.array([family(network) for network in config.zoo])
    near = []
    for place in range(len(kinds)):
        others = np.flatnonzero(sound & (kinds != kinds[place]))
        near.append(pairs.gain[place, others[np.argsort(able[others])[::-1][:3]]].mean())
    return np.array(near)


def tasks(results: Results[Any], config: DownstreamConfig) -> ByName:
    """Accuracies [m] of every member, by the names of `TASKS`; None where not all were run."""
    rows: dict[str, tuple[Results[Any], str]] = {PROBE: (results.of(Probe, on="held-out"), "accuracy")}
    rows |= {name: (results.of(Tasks), name) for name in (TRANSFER, FEW_SHOT)}
    return {name: by_network(of, result, config.zoo) for name, (of, result) in rows.items()}


def _selections(config: DownstreamConfig) -> dict[str, NDArray[np.bool_]]:
    selections = {
        "all": np.ones(len(config.zoo), dtype=bool),
        "true labels, all classes": np.array([network.sound for network in config.zoo]),
    }
    for kind in FAMILIES:
        selections[f"{kind} only"] = np.array([family(network) == kind for network in config.zoo])
    return selections


def _goes_with(near: str) -> Any:
    def value(results: Results[Any], config: DownstreamConfig) -> Values | Estimate:
        x, y = aligned(results, config)[near], tasks(results, config)[TRANSFER]
        return Values() if x is None or y is None else correlation(x, y)

    return value


CLAIMS = (
    Claim(
        statement="Vision models nearer to a language model's space of class names do better downstream (rank "
        "correlation of alignment to MiniLM with 100-way transfer)",
        source=f"{_SOURCE} against Hellaswag",
        published="linear relation; shown, no number",
        value=_goes_with("MiniLM"),
        low=0.0,
        unjudged="published of language models on a task of language: other models, another task",
        spec=".2f",
    ),
    Claim(
        statement="Vision models nearer to the best models of other kinds do better downstream (rank correlation with "
        "100-way transfer)",
        source=f"{_SOURCE}; within vision instead of across modalities",
        published="linear relation; shown, no number",
        value=_goes_with(OTHERS),
        low=0.0,
        unjudged="published across modalities alone",
        spec=".2f",
    ),
)


def report(report: Report, config: DownstreamConfig, results: Results[Any]) -> None:
    """The answer, alignment beside a task, every correlation, every model."""
    from unrolled.report import Fact

    near, scores = aligned(results, config), tasks(results, config)
    main = PROBE if scores[TRANSFER] is None else TRANSFER

    def rho(words: str) -> str:
        x, y = near[words], scores[main]
        return NOT_RUN if x is None or y is None else f"{correlation(x, y):.2f}"

    report.headline(
        f"Over {len(config.zoo)} models, the rank correlation of {main} with alignment to the best models of other "
        f"kinds is {rho(OTHERS)}, with alignment to MiniLM's class names {rho('MiniLM')}.",
        [
            Fact(label="Other kinds of vision model", value=rho(OTHERS), detail=f"Spearman, {main}"),
            Fact(label="Language (class names)", value=rho("MiniLM"), detail="MiniLM, Spearman"),
        ],
    )
    _panels(report, config, near, main, scores[main])
    _correlations(report, config, near, scores)
    report.section("Every model").table(
        ["model", *near, *(f"{task} %" for task in scores)],
        [
            [
                short_name(network),
                *(number(None if values is None else values[place]) for values in near.values()),
                *(number(None if values is None else 100 * values[place], 1) for values in scores.values()),
            ]
            for place, network in enumerate(config.zoo)
        ],
        caption=f"Five-shot: mean of {config.episodes} draws of {config.shots} images a class. By chance 10, 1 and "
        "1 %. Untrained members are the control: what they reach, pixels and architecture explain.",
    )


def _panels(report: Report, config: DownstreamConfig, near: ByName, main: str, scores: Array | None) -> None:
    from unrolled.report import Scatter

    section = report.section(
        "Alignment and a task",
        "The paper scores language models on Hellaswag and GSM8K by their alignment with a vision model. There is no "
        "large language model here, so the roles are turned: vision models are scored on visual tasks by their "
        "alignment with other vision models and with words. The tasks are stand-ins, and say nothing about those "
        "benchmarks.",
    )
    panels = [
        Scatter(
            title=f"{main} in %",
            x_label=f"alignment: {words}",
            x=values.tolist(),
            y=(100 * scores).tolist(),
            names=[short_name(network) for network in config.zoo],
            groups=[colour_of(network) for network in config.zoo],
        )
        for words, values in near.items()
        if values is not None and scores is not None
    ]
    if panels:
        section.figure(
            panels,
            name="tasks",
            caption="One point a model. Alignment is above chance, as a share of what is possible. Spoiled members are "
            "untrained, or had shuffled labels or half of the classes.",
        )


def _correlations(report: Report, config: DownstreamConfig, near: ByName, scores: ByName) -> None:
    rows: list[list[str | int]] = []
    missing: list[list[str | int]] = []
    for words, values in near.items():
        for task, accuracies in scores.items():
            if values is None or accuracies is None:
                missing.append([words, task, "all", 0, NOT_RUN])
                continue
            for members, keep in _selections(config).items():
                rho = correlation(values[keep], accuracies[keep])
                rows.append([words, task, members, int(keep.sum()), f"{rho:.2f}"])
    section = report.section("Every correlation").table(
        ["alignment with", "task", "members", "number", "rank correlation"],
        rows + missing,
        caption="Spearman with a 95 % bootstrap interval over models. Members share architectures, so they are fewer "
        "independent cases than their number; within one kind the architecture cannot be the reason. Intervals are not "
        f"corrected for there being {len(rows)}.",
    )
    section.table(["alignment with", "which is"], [[name, text] for name, text in ALIGNED.items()])
    section.table(["task", "which is"], [[name, text] for name, text in TASKS.items()])


STUDY = Study(
    name="platonic-downstream",
    title="Does alignment go with downstream performance?",
    question="Do vision models that agree more with other models, or with language, solve more tasks?",
    citation="M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=DownstreamConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
