"""Three causes of convergence, each turned up alone: more tasks, more capacity, a stronger pull to simple solutions.

Claims (arXiv 2405.07987, section 3): independently trained networks align more if they solve more tasks, if they are
larger, and if they are biased towards simple functions. Pairs of small networks on the scikit-learn digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from unrolled.studies.cells import Cell, Columns, Context
from unrolled.studies.claim import Claim
from unrolled.studies.platonic.digits import Perceptrons, accuracies, digits_split, halvings, train
from unrolled.studies.platonic.toy import kernel_alignment
from unrolled.studies.results import NOT_RUN, Estimate, Results, Values, line
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Rate, Study

if TYPE_CHECKING:
    from unrolled.report import Report

Cause = Literal["tasks", "width", "decay", "scale"]
Labels = Literal["true", "random"]
WORDS: dict[Cause, str] = {"tasks": "tasks", "width": "width", "decay": "weight decay", "scale": "initial scale"}
LINES: dict[str, tuple[Labels, str]] = {
    "trained": ("true", "knn"),
    "random labels": ("random", "knn"),
    "untrained": ("true", "untrained"),
}
_DECAY = 1e-4  # where it is not what changes
_NOTHING = float("nan")


@dataclass(kw_only=True)
class CausesConfig(Config):
    """Budgets change the number of levels, pairs and steps."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"pairs": 3, "steps": 150, "tasks": (1, 4, 16), "widths": (8, 32), "decays": (0.0, 3e-3)},
            **{"scales": (0.3, 3.0), "default_width": 32},
        },
        "cpu": {},
        "gpu": {"pairs": 16, "steps": 2000, "widths": (4, 8, 16, 32, 64, 128, 256), "device": "cuda"},
    }

    pairs: Count = 5
    """Pairs of networks at each level; no network is in two pairs."""
    steps: Count = 300
    """Training steps, each on all 1,198 training images."""
    learning_rate: Rate = 3e-3
    """Of Adam; falls as a cosine to zero."""
    default_width: Count = 64
    """Width of both hidden layers where width is not what changes."""
    tasks: tuple[Count, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of tasks: each halves the ten classes at random. The networks of a pair have different tasks."""
    widths: tuple[Count, ...] = (4, 8, 16, 32, 64, 128)
    """Widths of both hidden layers."""
    decays: tuple[Annotated[float, AtLeast(0)], ...] = (0.0, 1e-4, 3e-4, 1e-3, 3e-3)
    """Weights of half the squared norm of all weights, added to the loss; 1e-4 where it is not what changes."""
    scales: tuple[Rate, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """Initial weights as a multiple of He's. These networks have no weight decay, which would undo the difference."""
    neighbours: Count = 10
    """k of mutual nearest neighbours."""
    seed: int = 0
    """Of weights, tasks and random labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tasks", "widths", "decays", "scales"):
            levels = getattr(self, name)
            if len(levels) < 2 or list(levels) != sorted(set(levels)):
                raise ValueError(f"{name} must name at least two levels, rising")

    def levels(self, cause: Cause) -> tuple[float, ...]:
        """The levels of a cause, weakest first: initial scale counts down."""
        levels = {"tasks": self.tasks, "width": self.widths, "decay": self.decays, "scale": self.scales[::-1]}
        return levels[cause]


@dataclass(frozen=True, kw_only=True)
class Pairs(Cell):
    """Networks 0 and 1, 2 and 3, ..., trained from different weights on the digits.

    Each learns so many `tasks`, halvings of the classes drawn for it, or the classes where there are none. With random
    labels each has labels of its own, and there is no common world behind them.
    """

    tasks: int
    width: int
    decay: float
    scale: float
    labels: Labels
    pairs: int
    steps: int
    learning_rate: float
    neighbours: int
    seed: int

    def compute(self, context: Context) -> dict[str, list[float]]:
        """`knn`, `cka` and `untrained` (knn before training) of every pair; `fit` and `accuracy` of every network.

        All on held-out digits but `fit`, the accuracy on the digits that were learnt.
        """
        fit_x, fit_y, test_x, test_y = (part.to(context.device) for part in digits_split())
        seeds = [1000 * self.seed + i for i in range(2 * self.pairs)]
        taught = fit_y.expand(len(seeds), -1)
        if self.labels == "random":
            drawn = [torch.randint(10, fit_y.shape, generator=torch.Generator().manual_seed(7919 + s)) for s in seeds]
            taught = torch.stack(drawn).to(context.device)
        tasks = None
        if self.tasks:
            tasks = torch.stack([halvings(self.tasks, 104_729 + seed) for seed in seeds]).to(context.device)
        outputs = self.tasks or 10
        nets = Perceptrons(inputs=fit_x.shape[1], width=self.width, outputs=outputs, seeds=seeds, scale=self.scale)
        nets.to(context.device)
        untrained = self._alignment(nets, test_x)["knn"]
        train(nets, fit_x, taught, tasks, steps=self.steps, learning_rate=self.learning_rate, decay=self.decay)
        return {
            **self._alignment(nets, test_x),
            "untrained": untrained,
            "fit": accuracies(nets, fit_x, taught, tasks),
            "accuracy": accuracies(nets, test_x, test_y.expand(len(seeds), -1), tasks),
        }

    def _alignment(self, nets: Perceptrons, x: Tensor) -> dict[str, list[float]]:
        with torch.no_grad():
            features = nets.features(x).double()
        pairs = zip(features[::2], features[1::2], strict=True)
        scores = [kernel_alignment(one, other, k=self.neighbours) for one, other in pairs]
        return {key: [score[key] for score in scores] for key in ("knn", "cka")}


def setting(config: CausesConfig, cause: Cause, level: float) -> Columns:
    """What the networks at a level of a cause are: the columns of their row, but for the labels."""
    plain: Columns = {"tasks": 0, "width": config.default_width, "decay": _DECAY, "scale": 1.0}
    if cause == "scale":
        plain["decay"] = 0.0
    return {**plain, cause: level}


def cells(config: CausesConfig) -> Iterator[Pairs]:
    """Every level of every cause with true and with random labels."""
    names = ("pairs", "steps", "learning_rate", "neighbours", "seed")
    shared: Columns = {name: getattr(config, name) for name in names}
    for cause in WORDS:
        for labels in ("true", "random"):
            for level in config.levels(cause):
                yield Pairs(**setting(config, cause, level), labels=labels, **shared)


def at_levels(
    results: Results[Pairs], config: CausesConfig, cause: Cause, labels: Labels = "true", key: str = "knn"
) -> list[Values]:
    """The results called `key` at each level, by pair (accuracies by network)."""
    rows = [results.of(Pairs, **setting(config, cause, level), labels=labels) for level in config.levels(cause)]
    return [Values(dict(enumerate(row.first(key, []))), "pair") for row in rows]


class Trend(NamedTuple):
    """How alignment rises with the level; NaN where fewer than two levels were run.

    Attributes:
        rho: Spearman's correlation over all pairs; its interval is by Fisher's z (Bonett and Wright 2000).
        p: share of random assignments of pairs to levels with at least this correlation, this one among them.
    """

    rho: Estimate
    p: float

    @property
    def words(self) -> tuple[str, str]:
        """Correlation and p as a table shows them."""
        return (NOT_RUN, NOT_RUN) if math.isnan(self.p) else (f"{self.rho.value:+.2f}", f"{self.p:.4f}")


def trend(levels: Sequence[Values], *, draws: int = 2000) -> Trend:
    """Of as many values at each level, one a pair, weakest level first; levels without any are passed over."""
    import numpy as np

    from unrolled.alignment.people import unit_ranks

    pairs = max(map(len, levels), default=0)
    values = np.array([list(level) for level in levels if level])
    if len(values) < 2:
        return Trend(Estimate(_NOTHING, _NOTHING, _NOTHING, "none"), _NOTHING)
    places, ranks = unit_ranks(np.repeat(np.arange(len(values)), pairs)), unit_ranks(values.ravel())
    rho = float(places @ ranks)
    null = np.random.default_rng(0).permuted(np.tile(places, (draws, 1)), axis=1) @ ranks
    p = (1 + int((null >= rho - 1e-12).sum())) / (draws + 1)
    basis = f"Fisher's z over {values.size} pairs"
    known = pairs > 1 and values.size > 3
    return Trend(Estimate.of_ranks(rho, values.size, basis) if known else Estimate(rho, _NOTHING, _NOTHING, basis), p)


def trends(results: Results[Pairs], config: CausesConfig, cause: Cause) -> dict[str, Trend]:
    """Of networks that learnt, and of the controls, which must not rise for a claim to be judged."""
    return {name: trend(at_levels(results, config, cause, *which)) for name, which in LINES.items()}


def _rises(cause: Cause, statement: str, section: str) -> Claim:
    def value(results: Results[Pairs], config: CausesConfig) -> Estimate | float:
        rise = trend(at_levels(results, config, cause))
        return _NOTHING if math.isnan(rise.p) else rise.rho

    def detail(results: Results[Pairs], config: CausesConfig) -> str:
        first, *others = trends(results, config, cause).items()
        return f" (p {first[1].words[1]}); {', '.join(f'{name} {one.words[0]}' for name, one in others)}"

    def control(results: Results[Pairs], config: CausesConfig) -> Estimate | float:
        """Of networks that learnt nothing of the digits' classes, those that rise more."""
        _, *others = (one.rho for one in trends(results, config, cause).values())
        return max((rho for rho in others if not math.isnan(rho.value)), key=lambda rho: rho.value, default=_NOTHING)

    return Claim(
        statement=f"{statement} (rank correlation of mutual 10-NN with the level, over pairs of networks)",
        source=f"arXiv 2405.07987, section {section}",
        published="stated, no number",
        value=value,
        low=0.5,
        spec="+.2f",
        detail=detail,
        outside="networks that learn random labels, or nothing, unless they rise too",
        control=control,
    )


CLAIMS = (
    _rises("tasks", "More tasks, more alignment", "3.1, multitask scaling hypothesis"),
    _rises("width", "More capacity, more alignment", "3.2, capacity hypothesis"),
    _rises("decay", "More weight decay, more alignment", "3.3, simplicity bias hypothesis"),
    _rises("scale", "Smaller initial weights, more alignment", "3.3, simplicity bias hypothesis"),
)


def report(report: Report, config: CausesConfig, results: Results[Pairs]) -> None:
    """What alignment rises with, by level, beside random labels and untrained networks."""
    from unrolled.report import Fact, LineChart

    by_cause = {cause: trends(results, config, cause) for cause in WORDS}
    main = {WORDS[cause]: each["trained"] for cause, each in by_cause.items()}
    risen = [
        f"{WORDS[cause]} (by {_gain(results, config, cause, 'true')} from weakest to strongest level; "
        f"{_gain(results, config, cause, 'random')} with random labels)"
        for cause, each in by_cause.items()
        if each["trained"].rho.value >= 0.5
    ]
    report.headline(
        f"Alignment rises with {'; '.join(risen) or 'none of the four'}.",
        [Fact(label=name.capitalize(), value=t.words[0], detail=f"p {t.words[1]}") for name, t in main.items()],
    )
    panels = []
    for cause, name in WORDS.items():
        levels = config.levels(cause)
        x = range(1, len(levels) + 1)
        series = [
            line(label, x, at_levels(results, config, cause, *which), color=place, dashed=place > 0)
            for place, (label, which) in enumerate(LINES.items())
        ]
        x_label = f"level: {', '.join(f'{level:g}' for level in levels)}"
        title = f"mutual {config.neighbours}-NN by {name}"
        panels.append(LineChart(title=title, x_label=x_label, series=series, y_range=(0.0, 1.0)))
    report.section(
        "Levels",
        f"Pairs of networks with two hidden layers, trained for {config.steps} steps from different weights; features "
        "are the second hidden layer on 599 held-out digits. Weight decay and initial scale, the two handles on "
        "simplicity, run from weak to strong: the scale of initial weights falls to the right.",
    ).figure(
        panels,
        name="levels",
        caption=f"Mean over {config.pairs} pairs; bars are one standard deviation. Random labels: each network has "
        f"labels of its own. Chance is {config.neighbours / 598:.3f}. A rise that untrained networks show as well is "
        "owed to the input and the architecture, not to what was learnt.",
    )
    rows, table = [], []
    for cause, each in by_cause.items():
        (rho, p), *others = (one.words for one in each.values())
        cka = trend(at_levels(results, config, cause, key="cka")).words[0]
        rows.append([WORDS[cause], rho, p, cka, *(word for words in others for word in words)])
        for labels in ("true", "random"):
            scores = [at_levels(results, config, cause, labels, key) for key in ("knn", "untrained", "cka")]
            shares = [at_levels(results, config, cause, labels, key) for key in ("fit", "accuracy")]
            for place, level in enumerate(config.levels(cause)):
                numbers = [f"{of[place]:.3f}" for of in scores] + [f"{100 * of[place]:.1f}" for of in shares]
                table.append([WORDS[cause], f"{level:g}", labels, *numbers])
    report.section("Trends").table(
        ["what rises", "true labels", "p", "CKA, true labels", "random labels", "p", "untrained", "p"],
        rows,
        caption="Spearman's correlation of alignment with the level over all pairs; one-sided p from 2,000 "
        "permutations. Mutual nearest neighbours except where CKA is named.",
    )
    report.section("Every level").table(
        ["what", "level", "labels", f"mutual {config.neighbours}-NN", "untrained", "CKA", "fitted %", "held-out %"],
        table,
        caption=f"Mean and standard deviation over {config.pairs} pairs (accuracies: {2 * config.pairs} networks).",
    )
    report.section(
        "What this does not show",
        "Small networks, one easy data set, one kind of architecture. Capacity and simplicity are turned through "
        "width, weight decay and initial scale alone; rank is not penalised directly. Networks that fit better are "
        "also more alike: where accuracy moves with the level, it is part of the cause.",
    )


def _gain(results: Results[Pairs], config: CausesConfig, cause: Cause, labels: Labels) -> str:
    """Mean alignment at the strongest level less that at the weakest."""
    weakest, *_, strongest = at_levels(results, config, cause, labels)
    return f"{strongest.mean - weakest.mean:+.2f}" if weakest and strongest else NOT_RUN


STUDY = Study(
    name="platonic-causes",
    title="Three causes of convergence",
    question="Do more tasks, more capacity and a pull to simplicity each make independent networks more alike?",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=CausesConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
