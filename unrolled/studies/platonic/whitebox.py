"""Is CRATE closer to other models, to the brain and to language than a ViT of equal accuracy?

Nobody has measured it: there is no published value, and no direction was expected. Seeds within a kind are the floor of
noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from unrolled.data.human import brains
from unrolled.studies.cells import Cell, Context
from unrolled.studies.claim import NOBODY, Claim
from unrolled.studies.networks import Network, OfNetwork
from unrolled.studies.pictures import as_input
from unrolled.studies.platonic.given import CIFAR, IMAGENET, WORDS, GivenFeatures
from unrolled.studies.platonic.pairs import Pairs, PairScores
from unrolled.studies.platonic.words import NearWords
from unrolled.studies.platonic.zoo import FAMILIES, GPU, QUICK, AlignedConfig, Features, by_network, family, short_name
from unrolled.studies.results import NOT_RUN, Estimate, Results, Values
from unrolled.studies.statistics import Array, Mask, Places, number
from unrolled.studies.study import Budgets, Rate, Study

if TYPE_CHECKING:
    from unrolled.report import Report

TARGETS = {
    "CNNs": "the zoo's CNNs",
    "CIFAR networks": "networks of CIFAR-10 trained by others",
    "ImageNet networks": "four networks of ImageNet",
    "human IT": "human inferior temporal cortex",
    "monkey IT": "monkey inferior temporal cortex",
    "MiniLM": "MiniLM's vectors of class names",
    "GloVe": "GloVe's vectors of class names",
}
GROUPS = {"CRATE-CRATE": (True, True), "ViT-ViT": (False, False), "CRATE-ViT": (True, False)}


@dataclass(kw_only=True)
class WhiteboxConfig(AlignedConfig):
    """Budgets change the zoo's training."""

    budgets: ClassVar[Budgets] = {"quick": {**QUICK, "samples": 300}, "cpu": {}, "gpu": GPU}

    within: Rate = 0.02
    """Two members have equal accuracy if it differs by no more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within >= 1:
            raise ValueError(f"within={self.within}: must be less than 1")

    def sound(self, *families: str) -> tuple[Network, ...]:
        """Members of these families that were taught true labels of all classes."""
        return tuple(network for network in self.zoo if network.sound and family(network) in families)

    @property
    def compared(self) -> tuple[Network, ...]:
        """The CRATEs and the ViTs."""
        return self.sound("crate", "vit")

    @property
    def between(self) -> dict[str, PairScores]:
        """Alignment of these with each other, by what tables call the metric."""
        features = self._features(self.compared)
        return {
            "mutual k-NN": PairScores(of=features, metric="mutual_knn", k=self.k, draws=19),
            "unbiased CKA, last layers": PairScores(of=features, metric="unbiased_cka", last=True),
        }

    @property
    def networks(self) -> dict[str, PairScores]:
        """Their alignment with other networks, by target."""
        against: dict[str, tuple[Features | GivenFeatures, ...]] = {"CNNs": self._features(self.sound("cnn"))}
        if self.data == "cifar10":
            for target, names in (("CIFAR networks", CIFAR), ("ImageNet networks", IMAGENET)):
                against[target] = tuple(GivenFeatures(given=n, data=self.data, samples=self.samples) for n in names)
        return {
            target: PairScores(
                of=self._features(self.compared), against=others, metric="mutual_knn", k=self.k, draws=19
            )
            for target, others in against.items()
        }

    def _features(self, networks: tuple[Network, ...]) -> tuple[Features, ...]:
        return tuple(Features(network=network, samples=self.samples) for network in networks)


@dataclass(frozen=True, kw_only=True)
class NearBrains(OfNetwork):
    """A network's dissimilarities of 92 photographs beside those of inferior temporal cortex."""

    def require(self, context: Context) -> None:
        """The photographs and the records."""
        super().require(context)
        brains(context.data_dir)

    def compute(self, context: Context) -> dict[str, float]:
        """Spearman's correlation with `human IT` and `monkey IT`, each in its best block, averaged over places."""
        import torch

        from unrolled.alignment import compare_rdms, rdm
        from unrolled.instruments.features import extract

        records = brains(context.data_dir)
        images = as_input(small(torch.from_numpy(records.stimuli).movedim(-1, 1), 32)).to(context.device)
        blocks = [rdm(rows).double() for rows in extract(self.network.load(context), images, layers="block*").values()]
        targets = {"human IT": records.human.mean(0), "monkey IT": records.monkey}
        return {
            name: max(compare_rdms(block, torch.from_numpy(target)) for block in blocks)
            for name, target in targets.items()
        }


def small(stimuli: Tensor, side: int) -> Tensor:
    """uint8 images [n, 3, h, w] at another size, averaged."""
    import torch

    resized = torch.nn.functional.interpolate(stimuli.float(), (side, side), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def cells(config: WhiteboxConfig) -> Iterator[Cell]:
    """The networks, their alignment with each other, with other networks, with brains and with words."""
    yield from config.compared
    yield from config.between.values()
    yield from config.networks.values()
    if config.data == "cifar10":
        yield from (NearBrains(network=network) for network in config.compared)
        for words in WORDS.values():
            yield from (NearWords(network=network, words=words, k=config.k) for network in config.compared)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much closer CRATE is to a target.

    Attributes:
        crate, vit: means.
        matched: CRATE less ViT over pairs of equal accuracy.
        adjusted: the same with accuracy as a covariate over all members.
        seeds: standard deviation among networks that differ by seed alone.
    """

    crate: float
    vit: float
    matched: Estimate
    adjusted: Estimate
    seeds: float | None


class View:
    """The results as claims and page read them.

    Attributes:
        networks: the CRATEs and ViTs that are compared; none where one was not run.
        accuracy: of each [m].
        crate: which of them are CRATEs.
        equal: [m, m], pairs of equal accuracy.
    """

    def __init__(self, results: Results[Any], config: WhiteboxConfig) -> None:
        self.results, self.config = results, config
        accuracy = {row.cell: row.result["accuracy"] for row in results.of(Network)}
        self.networks = config.compared if all(network in accuracy for network in config.compared) else ()
        self.accuracy = np.array([accuracy[network] for network in self.networks])
        self.crate = np.array([family(network) == "crate" for network in self.networks], dtype=bool)
        self.equal: Mask = np.abs(self.accuracy[:, None] - self.accuracy[None, :]) <= config.within

    @property
    def matched(self) -> int:
        """Pairs of a CRATE and a ViT of equal accuracy."""
        return int((self.equal & self.crate[:, None] & ~self.crate[None, :]).sum())

    def values(self, target: str) -> Array | None:
        """How close each network is to a target [m]; None where it was not run."""
        if target in WORDS:
            return by_network(self.results.of(NearWords, words=WORDS[target]), "gain", self.networks)
        if target in ("human IT", "monkey IT"):
            return by_network(self.results.of(NearBrains), target, self.networks)
        scores = Pairs.of(self.results, self.config.networks.get(target))
        return None if scores is None else scores.gain.mean(1)

    def difference(self, target: str) -> Difference | None:
        """CRATE less ViT in how close they are to a target; None where it was not run."""
        values = self.values(target)
        if values is None or not self.networks:
            return None

        def matched(drawn: Places) -> float:
            i, j = drawn[self.crate[drawn]], drawn[~self.crate[drawn]]
            near = self.equal[np.ix_(i, j)]
            return float((values[i][:, None] - values[j][None, :])[near].mean()) if near.any() else nan

        def adjusted(drawn: Places) -> float:
            accuracy, crate = self.accuracy[drawn], self.crate[drawn]
            if len(set(accuracy)) < 4 or crate.all() or not crate.any():
                return nan
            design = np.stack([np.ones(len(drawn)), accuracy, crate.astype(float)], 1)
            return float(np.linalg.lstsq(design, values[drawn], rcond=None)[0][2])

        sizes = np.array([f"{network.kind} {network.images}" for network in self.networks])
        spread = [
            values[sizes == size].var(ddof=1) for size in sorted(set(sizes.tolist())) if (sizes == size).sum() > 1
        ]
        return Difference(
            crate=float(values[self.crate].mean()),
            vit=float(values[~self.crate].mean()),
            matched=self._interval(matched),
            adjusted=self._interval(adjusted),
            seeds=float(np.sqrt(np.mean(spread))) if spread else None,
        )

    def groups(self, metric: str) -> dict[str, Estimate] | None:
        """Mean alignment of pairs of equal accuracy, by `GROUPS`, and `gap`: the floors less CRATE-ViT."""
        pairs = Pairs.of(self.results, self.config.between[metric])
        if pairs is None or not self.networks:
            return None
        scores = pairs.score if np.isnan(pairs.chance).any() else pairs.gain

        def mean(which: tuple[bool, bool], drawn: Places) -> float:
            i, j = drawn[self.crate[drawn] == which[0]], drawn[self.crate[drawn] == which[1]]
            keep = self.equal[np.ix_(i, j)] & (i[:, None] != j[None, :])
            return float(scores[np.ix_(i, j)][keep].mean()) if keep.any() else nan

        def gap(drawn: Places) -> float:
            floors = [mean(GROUPS[name], drawn) for name in ("CRATE-CRATE", "ViT-ViT")]
            return float(np.mean(floors)) - mean(GROUPS["CRATE-ViT"], drawn)

        means = {name: self._interval(partial(mean, which)) for name, which in GROUPS.items()}
        return {**means, "gap": self._interval(gap)}

    def _interval(self, statistic: Callable[[Places], float]) -> Estimate:
        """With a 95 % interval from drawing members anew within each kind; NaN where it is undefined."""
        everyone = np.arange(len(self.networks))
        sides = [everyone[self.crate], everyone[~self.crate]]
        value, low, high = statistic(everyone), nan, nan
        # drawing two or three networks anew says nothing about others
        if isfinite(value) and min(len(side) for side in sides) >= 4:
            generator = np.random.default_rng(0)
            draws = [np.concatenate([generator.choice(side, len(side)) for side in sides]) for _ in range(1000)]
            values = np.array([statistic(drawn) for drawn in draws])
            values = values[np.isfinite(values)]
            if len(values) >= 500:
                low, high = np.quantile(values, [0.025, 0.975]).tolist()
        return Estimate(value, low, high, "bootstrap over members")


def _gap(results: Results[Any], config: WhiteboxConfig) -> Estimate | Values:
    groups = View(results, config).groups("mutual k-NN")
    return Values() if groups is None else groups["gap"]


def _closer(target: str) -> Callable[[Results[Any], WhiteboxConfig], Estimate | Values]:
    def value(results: Results[Any], config: WhiteboxConfig) -> Estimate | Values:
        difference = View(results, config).difference(target)
        return Values() if difference is None else difference.matched

    return value


_unpublished = partial(Claim, source=NOBODY, published="none", unjudged=NOBODY, spec="+.3f")
CLAIMS = (
    _unpublished(
        statement="CRATE and ViT are as close to each other as seeds of one kind (mean of the two floors less "
        "CRATE-ViT)",
        value=_gap,
    ),
    *(
        _unpublished(
            statement=f"CRATE is closer to {words} than a ViT of equal accuracy (CRATE less ViT)",
            value=_closer(target),
        )
        for target, words in TARGETS.items()
    ),
)


def report(report: Report, config: WhiteboxConfig, results: Results[Any]) -> None:
    """The answer, to each other, to what is neither, every network, limits."""
    view = View(results, config)
    differences = {target: view.difference(target) for target in TARGETS}
    _headline(report, view, differences)
    _each_other(report, view)
    _targets(report, view, differences)
    _networks(report, view)
    report.section(
        "What this does not show",
        "Both kinds are small and trained for minutes on small images. Equal accuracy is not equal training: a ViT "
        "that was stopped early is compared with a CRATE that was not, and CRATE has fewer weights at the same width.",
    )


def _headline(report: Report, view: View, differences: dict[str, Difference | None]) -> None:
    from unrolled.report import Fact

    points = 100 * view.config.within
    known = {
        target: each.matched for target, each in differences.items() if each is not None and isfinite(each.matched.low)
    }
    if not view.matched:
        answer = (
            f"No CRATE and ViT here are within {points:.0f} points of accuracy: nothing is compared at equal accuracy."
        )
    elif not known:
        answer = f"{len(view.networks)} networks are too few to say whether CRATE or ViT is closer to anything."
    else:
        closer = ", ".join(target for target, each in known.items() if each.low > 0)
        farther = ", ".join(target for target, each in known.items() if each.high < 0)
        answer = (
            f"At equal accuracy CRATE is closer than ViT to {closer or 'nothing'} and farther from "
            f"{farther or 'nothing'}; elsewhere the interval holds zero."
        )
    groups = view.groups("mutual k-NN")
    report.headline(
        answer,
        [
            Fact(label="Pairs of equal accuracy", value=str(view.matched), detail=f"within {points:.0f} points"),
            Fact(
                label="CRATE-ViT below the seeds' floor",
                value=NOT_RUN if groups is None else f"{groups['gap']:+.3f}",
                detail="mutual k-NN above chance",
            ),
        ],
    )


def _each_other(report: Report, view: View) -> None:
    rows = []
    for metric in view.config.between:
        groups = view.groups(metric)
        rows.append([metric, *([NOT_RUN] * 4 if groups is None else [f"{each:+.3f}" for each in groups.values()])])
    report.section(
        "To each other",
        f"Mean alignment of pairs whose accuracy differs by at most {100 * view.config.within:.0f} points. Pairs of "
        "one kind, mostly seeds of one size, say how close two networks can be expected to come; CRATE with ViT is "
        "read against them.",
    ).table(
        ["metric", *GROUPS, "floors less CRATE-ViT"],
        rows,
        caption=f"Mutual {view.config.k}-NN above chance at the best layers; 95 % bootstrap intervals over members, "
        "drawn within each kind.",
    )


def _targets(report: Report, view: View, differences: dict[str, Difference | None]) -> None:
    from unrolled.report import Scatter

    section = report.section(
        "To what is not CRATE or ViT",
        "Networks: mutual k-NN above chance of the best pair of layers, mean over the networks. Brains: Spearman "
        "between dissimilarities of 92 photographs at 32 px in the best block and in inferior temporal cortex; people "
        "agree with one another at 0.37 to 0.67. Language: mutual k-NN above chance of the class means of "
        "Tiny-ImageNet's images with vectors of the classes' names. The first difference is the mean over pairs of "
        "equal accuracy; the second takes accuracy as a covariate over all members, a straight line that small samples "
        "cannot check.",
    )
    rows = []
    for target, each in differences.items():
        if each is None:
            rows.append([target, *[NOT_RUN] * 5])
        else:
            both = number(each.crate), number(each.vit)
            rows.append([target, *both, f"{each.matched:+.3f}", f"{each.adjusted:+.3f}", number(each.seeds)])
    section.table(
        ["closeness to", "CRATE", "ViT", "at equal accuracy", "accuracy as covariate", "seeds"],
        rows,
        caption="CRATE less ViT with a 95 % bootstrap interval over members; seeds: standard deviation among networks "
        "that differ by seed alone. Seven targets were looked at: one interval in twenty misses zero by chance.",
    )
    panels = [
        Scatter(
            title=f"closeness to {target}",
            x_label="accuracy in %",
            x=(100 * view.accuracy).tolist(),
            y=values.tolist(),
            names=[short_name(network) for network in view.networks],
            groups=[FAMILIES[family(network)] for network in view.networks],
        )
        for target, each in differences.items()
        if each is not None and (values := view.values(target)) is not None
    ]
    if panels:
        section.figure(panels, name="targets", caption="One point a network.")


def _networks(report: Report, view: View) -> None:
    columns = [view.values(target) for target in TARGETS]
    report.section("Every network").table(
        ["network", "accuracy %", *TARGETS],
        [
            [
                *(short_name(network), f"{100 * view.accuracy[place]:.1f}"),
                *(NOT_RUN if values is None else number(values[place]) for values in columns),
            ]
            for place, network in enumerate(view.networks)
        ],
        caption="Brief ViTs had a quarter of the training, so as to be no more accurate than a CRATE.",
    )


STUDY = Study(
    name="platonic-whitebox",
    title="White box against black box at equal accuracy",
    question="Is CRATE closer to other models, to the brain and to language than a ViT that is as accurate?",
    citation="Question of this package; CRATE: arXiv 2306.01129, alignment: arXiv 2405.07987",
    config=WhiteboxConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
