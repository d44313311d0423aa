"""Contrastive learners of two modalities end at one kernel, the pointwise mutual information of events.

Claim (arXiv 2405.07987, section 4): trained on which observations occur together, f(a)^T f(b) converges to K_PMI plus a
constant, and modalities that observe events bijectively therefore end at the same kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from torch import Tensor

from unrolled.studies.cells import Cell, Context
from unrolled.studies.claim import NOBODY, Claim
from unrolled.studies.platonic.toy import Embeddings, Loss, kernel_alignment, learn_expected, learn_from_samples
from unrolled.studies.results import NOT_RUN, Results, Values, line
from unrolled.studies.study import AtLeast, Budget, Config, Count, Distinct, Rate, Seeds, Study
from unrolled.tasks import CooccurrenceWorld

if TYPE_CHECKING:
    from unrolled.report import Report

_SOURCE = "arXiv 2405.07987, section 4"
# for the question when one encoder can hold K_PMI
WORLDS: dict[str, dict[str, Any]] = {
    "no neighbours (the paper's condition holds)": {"width": 0.1, "skew": 0.0},
    "ring (as in all other sections)": {},
    "clusters": {"layout": "clusters"},
    "ring, wide steps": {"width": 2.0},
    "ring, without itself (an event is not paired with itself at the same time)": {"with_itself": False},
}
GROUPS: dict[str, dict[str, Any]] = {
    "InfoNCE": {"loss": "infonce", "shuffled": False},
    "binary NCE": {"loss": "nce", "shuffled": False},
    "InfoNCE, pairs shuffled": {"loss": "infonce", "shuffled": True},
}


@dataclass(kw_only=True)
class PmiConfig(Config):
    """Budgets change steps, seeds and the number of levels."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"seeds": (0,), "steps": 1500, "symbols": (24, 12, 6, 3), "noise": (0.0, 0.2, 0.5)},
        "cpu": {},
        "gpu": {"seeds": (0, 1, 2, 3, 4), "steps": 20000, "device": "cuda"},
    }

    seeds: Seeds = (0, 1, 2)
    """Pairs of learners for each: one a modality, with initial vectors and pairs of its own."""
    steps: Count = 5000
    """Training steps."""
    batch_size: Annotated[int, AtLeast(2)] = 1024
    """Pairs a step."""
    dim: Count = 25
    """Width of the vectors; with one more than there are events no kernel is out of reach for its rank."""
    events: Count = 24
    """Events of the world."""
    share_of_true_pairs: Rate = 0.9
    """p of binary NCE. Below about 0.84 its constant is too small here for one encoder: see the last section."""
    symbols: Annotated[tuple[int, ...], AtLeast(2), Distinct()] = (24, 20, 16, 12, 8, 6, 4, 3, 2)
    """Symbols of the lossy modality."""
    noise: Annotated[tuple[float, ...], AtLeast(0), Distinct()] = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    """Probability that the noisy modality shows a random symbol."""
    neighbours: Count = 3
    """k of mutual nearest neighbours."""
    points: Count = 20
    """Looks during training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share_of_true_pairs >= 1:
            raise ValueError(f"share_of_true_pairs={self.share_of_true_pairs}: must be less than 1")
        if max(self.symbols) > self.events:
            raise ValueError(f"symbols must name numbers between 2 and the {self.events} events")
        if max(self.noise) >= 1:
            raise ValueError("noise must name rates in [0, 1)")
        if self.neighbours >= self.events:
            raise ValueError(f"neighbours must be below the {self.events} events")


def looks(steps: int, points: int) -> list[int]:
    """Numbers of steps at which learners are looked at, closer at the beginning."""
    return sorted({round(steps * (i / points) ** 2) for i in range(points + 1)})


def _known(world: CooccurrenceWorld, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Joint, K_PMI, and the weights P(a) P(b) of its entries."""
    from unrolled.theory import pointwise_mutual_information

    joint, frequencies = world.joint(device), world.frequencies(device)
    return joint, pointwise_mutual_information(joint), frequencies[:, None] * frequencies[None, :]


@dataclass(frozen=True, kw_only=True)
class Learnt(Cell):
    """Two learners, one a modality with its own order of symbols, watched while they learn from batches."""

    seed: int
    loss: Loss
    shuffled: bool
    steps: int
    batch_size: int
    points: int
    events: int
    dim: int
    share_of_true_pairs: float
    neighbours: int

    def compute(self, context: Context) -> dict[str, list[Any]]:
        """At every look: `agreement` of the two (cka, knn); `errors` against K_PMI and `offsets` of each."""
        from unrolled.tasks import bijective, observed_joint
        from unrolled.theory import offset_and_error

        joint, kernel, weights = _known(CooccurrenceWorld(events=self.events), context.device)
        logs, features = [], []
        for modality in (0, 1):
            channel = bijective(self.events, seed=2 * self.seed + modality).to(context.device)
            vectors: list[Tensor] = []

            def look(learner: Embeddings, channel: Tensor = channel, vectors: list[Tensor] = vectors) -> dict[str, Any]:
                vectors.append(channel @ learner.features())
                offset, error = offset_and_error(vectors[-1] @ vectors[-1].mT, kernel, weights)
                return {"offset": offset, "error": error}

            _, log = learn_from_samples(
                observed_joint(joint, channel),
                loss=self.loss,
                seed=2 * self.seed + modality,
                dim=self.dim,
                steps=self.steps,
                batch_size=self.batch_size,
                shuffled=self.shuffled,
                look=look,
                look_at=looks(self.steps, self.points),
                share_of_true_pairs=self.share_of_true_pairs,
            )
            logs.append(log)
            features.append(vectors)
        return {
            "agreement": [kernel_alignment(a, b, k=self.neighbours) for a, b in zip(*features, strict=True)],
            "errors": [[entry["error"] for entry in log] for log in logs],
            "offsets": [[entry["offset"] for entry in log] for log in logs],
        }


@dataclass(frozen=True, kw_only=True)
class Blurred(Cell):
    """A bijective modality and one that loses something, both after unlimited training.

    `level` is the number of symbols that a channel of kind "merge" has, or how often one of kind "noise" is wrong.
    """

    seed: int
    kind: Literal["merge", "noise"]
    level: float
    events: int
    dim: int
    neighbours: int

    def compute(self, context: Context) -> dict[str, float]:
        """`bits` lost, agreement as `cka` and `knn`, and `expected_cka` of the kernels that theory gives them."""
        from unrolled.tasks import bijective, bits_lost, lossy, noisy, observed_joint
        from unrolled.theory import pointwise_mutual_information

        world = CooccurrenceWorld(events=self.events)
        joint = world.joint(context.device)
        plain = bijective(self.events, seed=self.seed).to(context.device)
        lossless = self.kind == "noise"
        channel = noisy(plain, self.level) if lossless else lossy(self.events, int(self.level), seed=self.seed)
        channel = channel.to(context.device)
        features, expected = [], []
        for number, one in enumerate((plain, channel)):
            observed = observed_joint(joint, one)
            learner = learn_expected(observed, loss="infonce", seed=2 * self.seed + number, dim=self.dim)
            features.append(one @ learner.features())
            expected.append(one @ pointwise_mutual_information(observed) @ one.mT)
        return {
            "bits": bits_lost(world.frequencies(context.device), channel),
            **kernel_alignment(*features, k=self.neighbours),
            "expected_cka": _kernel_cka(*expected),
        }


def _kernel_cka(a: Tensor, b: Tensor) -> float:
    """Unbiased CKA of two kernels that need not be positive semi-definite."""
    from unrolled.ops.gram import u_center

    left, right = u_center(a), u_center(b)
    scale = float(left.norm() * right.norm())
    return float((left * right).sum()) / scale if scale > 1e-9 else 0.0


@dataclass(frozen=True, kw_only=True)
class Reached(Cell):
    """One and two encoders at the end of training in a world."""

    world: CooccurrenceWorld
    seed: int
    dim: int

    def compute(self, context: Context) -> dict[str, Any]:
        """`errors` against K_PMI by loss, share of true pairs and number of encoders, and what theory says.

        That is the paper's `condition`, the `smallest_eigenvalue` of K_PMI, and the `smallest_offset` that makes it
        positive semi-definite, infinite where none does.
        """
        from unrolled.theory import exactness, offset_and_error, smallest_eigenvalue, smallest_offset

        joint, kernel, weights = _known(self.world, context.device)
        learn = partial(learn_expected, joint, seed=self.seed, dim=self.dim)
        errors: dict[str, float] = {}
        for encoders in (1, 2):
            learnt = learn(loss="infonce", encoders=encoders).kernel().detach()
            # its optimum is free to add a constant for every a
            learnt = learnt - (weights / weights.sum(1, keepdim=True) * (learnt - kernel)).sum(1, keepdim=True)
            errors[f"infonce {encoders}"] = offset_and_error(learnt, kernel, weights)[1]
            for share in (0.9, 0.5, 0.1):
                learnt = learn(loss="nce", encoders=encoders, share_of_true_pairs=share).kernel().detach()
                errors[f"nce {share:g} {encoders}"] = offset_and_error(learnt, kernel, weights)[1]
        return {
            "condition": exactness(joint).holds,
            "smallest_eigenvalue": smallest_eigenvalue(kernel),
            "smallest_offset": smallest_offset(kernel),
            "errors": errors,
        }


def cells(config: PmiConfig) -> Iterator[Cell]:
    """Both losses and the control, both ways to lose something, and every world."""
    shared: dict[str, Any] = {"events": config.events, "dim": config.dim, "neighbours": config.neighbours}
    names = ("steps", "batch_size", "points", "share_of_true_pairs")
    for group in GROUPS.values():
        for seed in config.seeds:
            yield Learnt(**group, seed=seed, **shared, **{name: getattr(config, name) for name in names})
    for kind, level in channels(config):
        for seed in config.seeds:
            yield Blurred(kind=kind, level=level, seed=seed, **shared)
    for world in worlds(config).values():
        yield Reached(world=world, seed=config.seeds[0], dim=config.dim)


def channels(config: PmiConfig) -> Iterator[tuple[Literal["merge", "noise"], float]]:
    """Every way to lose something."""
    for symbols in config.symbols:
        yield "merge", symbols
    for rate in config.noise:
        yield "noise", rate


def worlds(config: PmiConfig) -> dict[str, CooccurrenceWorld]:
    """Those of `WORLDS`."""
    return {name: CooccurrenceWorld(events=config.events, **more) for name, more in WORLDS.items()}


def learners(results: Results[Any], group: str, key: str, look: int = -1) -> Values:
    """`errors` or `offsets`, by seed the mean of its two learners."""
    return results.of(Learnt, **GROUPS[group]).values(lambda result: fmean(log[look] for log in result[key]))


def agreement(results: Results[Any], group: str, key: str = "cka", look: int = -1) -> Values:
    """Of the two modalities, by seed."""
    return results.of(Learnt, **GROUPS[group]).values(f"agreement.{look}.{key}")


def constant_off(results: Results[Any], config: PmiConfig) -> Values:
    """Binary NCE's constant less the one that theory gives."""
    from unrolled.theory import nce_offset

    return learners(results, "binary NCE", "offsets") - nce_offset(config.share_of_true_pairs)


def largest_error(results: Results[Any], config: PmiConfig) -> float:
    """Of one encoder, where the paper's condition holds; NaN where it does nowhere.

    Like the ratio below it is of the minimum of an expected loss, which no sample enters, so there is no interval.
    """
    met = [row.result["errors"] for row in results.of(Reached) if row.result["condition"]]
    return max((errors[loss] for errors in met for loss in ("infonce 1", "nce 0.9 1")), default=math.nan)


def smallest_ratio(results: Results[Any], config: PmiConfig) -> float:
    """Error of one encoder over that of two, where no constant makes K_PMI positive semi-definite; NaN if any does."""
    never = [row.result["errors"] for row in results.of(Reached) if row.result["smallest_offset"] == math.inf]
    return min((errors["infonce 1"] / errors["infonce 2"] for errors in never), default=math.nan)


def trend(results: Results[Any], config: PmiConfig) -> Values:
    """Rank correlation of agreement and bits lost over all numbers of symbols."""
    return results.of(Blurred, kind="merge").correlation("bits", "cka")


CLAIMS = (
    Claim(
        statement="InfoNCE's kernel is K_PMI up to a constant (error left over, as a share of its standard deviation)",
        source=_SOURCE,
        published="equal (proved)",
        value=lambda results, config: learners(results, "InfoNCE", "errors"),
        high=0.15,
        outside="a learner of shuffled pairs: 1",
        control=lambda results, config: learners(results, "InfoNCE, pairs shuffled", "errors"),
    ),
    Claim(
        statement="Binary NCE's constant is log(p / (1 - p)) (difference, nats)",
        source=f"{_SOURCE}, appendix",
        published="equal (proved)",
        value=constant_off,
        low=-0.15,
        high=0.15,
        outside="a learner that is not trained, off by log(p / (1 - p)) = 2.2",
    ),
    Claim(
        statement="Two modalities that observe bijectively end at the same kernel (unbiased CKA)",
        source=_SOURCE,
        published="equal (proved)",
        value=lambda results, config: agreement(results, "InfoNCE"),
        low=0.95,
        outside="learners of shuffled pairs: 0",
        control=lambda results, config: agreement(results, "InfoNCE, pairs shuffled"),
    ),
    Claim(
        statement="Agreement falls as one modality loses more (rank correlation of CKA with bits lost, merged events)",
        source="arXiv 2405.07987, section 6: the argument needs bijective observation",
        published="stated, no number",
        value=trend,
        high=-0.9,
        outside="agreement that does not depend on what is lost: 0",
        spec=".2f",
    ),
    Claim(
        statement="Where the paper's sufficient condition holds, one encoder reaches K_PMI (largest error)",
        source=f"{_SOURCE}, appendix",
        published="exact (proved)",
        value=largest_error,
        high=0.01,
        outside="worlds in which the condition does not hold: 0.1 and more",
        point=True,
        spec=".1e",
    ),
    Claim(
        statement="Where no constant makes K_PMI positive semi-definite, one encoder stays off it and two do not "
        "(ratio)",
        source="consequence of f(a)^T f(b) being a Gram matrix; arXiv 2405.07987 assumes the condition",
        published="not measured",
        value=smallest_ratio,
        low=10.0,
        unjudged=NOBODY,
        point=True,
        spec=".0f",
    ),
)


def report(report: Report, config: PmiConfig, results: Results[Any]) -> None:
    """The kernels that are learnt, what blurring one modality does, and where one encoder cannot follow."""
    from unrolled.report import Fact

    errors, agree = learners(results, "InfoNCE", "errors"), agreement(results, "InfoNCE")
    falls, merged = trend(results, config), results.of(Blurred, kind="merge")
    report.headline(
        f"After {config.steps} steps the kernel of InfoNCE differs from K_PMI, up to a constant, by {errors:.3f} of "
        f"its standard deviation; two modalities agree with CKA {agree:.3f}. With shuffled pairs the error stays at "
        f"{learners(results, 'InfoNCE, pairs shuffled', 'errors'):.2f}.",
        [
            Fact(label="Error against K_PMI", value=f"{errors:.3f}", detail=errors.count),
            Fact(label="CKA of two modalities", value=f"{agree:.3f}", detail=f"{len(agree)} pairs"),
            Fact(label="Rank correlation with bits lost", value=f"{falls:.2f}", detail=f"{len(merged)} channels"),
        ],
    )
    _learning(report, config, results)
    _losing(report, config, results)
    _encoders(report, config, results)
    report.section(
        "What this does not show",
        "Vectors here are free: one for every symbol, wide enough for any kernel. Networks generalise over symbols and "
        "have priors of their own. The world is small and stationary, and every event is seen thousands of times.",
    )


def _learning(report: Report, config: PmiConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    x = looks(config.steps, config.points)
    errors, agree, rows = [], [], []
    for place, (group, which) in enumerate(GROUPS.items()):
        style: dict[str, Any] = {"color": place, "dashed": which["shuffled"]}
        errors.append(line(group, x, [learners(results, group, "errors", i) for i in range(len(x))], **style))
        agree.append(line(group, x, [agreement(results, group, "cka", i) for i in range(len(x))], **style))
        for when, look in (("untrained", 0), (f"{config.steps} steps", -1)):
            error, constant = (learners(results, group, key, look) for key in ("errors", "offsets"))
            cka, knn = (agreement(results, group, key, look) for key in ("cka", "knn"))
            rows.append([group, when, f"{error:.3f}", f"{constant:.2f}", f"{cka:.3f}", f"{knn:.3f}"])
    report.section(
        "Learning",
        f"{config.events} events on a ring, {config.batch_size} pairs a step, vectors of {config.dim} numbers, "
        f"{2 * len(config.seeds)} learners a row, half of them in each modality. The error is the root mean square of "
        "what is left of f(a)^T f(b) - K_PMI after a constant, weighted by P(a) P(b), as a share of K_PMI's standard "
        "deviation: a constant kernel has 1.",
    ).figure(
        [
            LineChart(title="error against K_PMI", x_label="training step", series=errors, log_y=True),
            LineChart(title="CKA of two modalities", x_label="training step", series=agree),
        ],
        name="learning",
        caption="Mean over learners; bars are one standard deviation.",
    ).table(
        ["loss", "training", "error", "constant", "CKA", f"mutual {config.neighbours}-NN"],
        rows,
        caption="Mean and standard deviation over learners (error, constant) or pairs of modalities. By chance mutual "
        f"{config.neighbours}-NN is {config.neighbours / (config.events - 1):.2f} and unbiased CKA 0.",
    )


def _losing(report: Report, config: PmiConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    keys = ("bits", "cka", "expected_cka", "knn")
    numbers: dict[str, list[list[Values]]] = {"merge": [], "noise": []}
    rows = []
    for kind, level in channels(config):
        of = results.of(Blurred, kind=kind, level=level)
        numbers[kind].append([of.values(key) for key in keys])
        name = f"{level:g} symbols" if kind == "merge" else f"{100 * level:g} % random"
        rows.append([name, *(f"{values:.2f}" for values in numbers[kind][-1])])
    series = []
    for place, (label, every) in enumerate(zip(("events merged", "random symbols"), numbers.values(), strict=True)):
        measured = [values for values in every if values[0]]
        if not measured:
            continue
        bits, cka, expected, _ = zip(*measured, strict=True)
        x = [values.mean for values in bits]
        series.append(line(label, x, cka, color=place))
        series.append(line(f"{label}, theory", x, expected, color=place, dashed=True))
    section = report.section(
        "When observation loses something",
        "One modality observes bijectively, the other merges events at random or shows a wrong symbol now and then. "
        "Both are trained to the end (expected InfoNCE, no sampling). Bits lost are H(event | symbol); an event's "
        "vector is the mean over its symbols'. Theory is the CKA of the two modalities' own K_PMI.",
    )
    if series:
        section.figure(
            LineChart(
                title="CKA with the bijective modality", x_label="bits lost", series=series, y_range=(-0.1, 1.05)
            ),
            name="lossy",
            caption=f"Mean over {len(config.seeds)} seeds. Bits alone do not decide: merged events get one vector "
            "however far apart they are, while noise blurs all events alike, which scales the kernel more than it "
            "bends it.",
        )
    section.table(["channel", "bits lost", "CKA", "CKA, theory", f"mutual {config.neighbours}-NN"], rows)


def _encoders(report: Report, config: PmiConfig, results: Results[Any]) -> None:
    names = [f"{loss} {n}" for loss in ("infonce", "nce 0.9", "nce 0.5", "nce 0.1") for n in (1, 2)]
    rows = []
    for name, world in worlds(config).items():
        of = results.of(Reached, **vars(world))
        condition = {True: "holds", False: "fails", None: NOT_RUN}[of.first("condition")]
        smallest = of.values("smallest_offset")
        errors = of.first("errors", {})
        row = [name, condition, "none" if math.inf in smallest else f"{smallest:.2f}"]
        rows.append([*row, *(f"{errors[name]:.1e}" if errors else NOT_RUN for name in names)])
    report.section(
        "When K_PMI is not positive semi-definite",
        "f(a)^T f(b) with one encoder is positive semi-definite. K_PMI + c must be so as well, for the constant c that "
        "the loss ends at: any for InfoNCE, log(p / (1 - p)) for binary NCE, which is negative as soon as there are "
        "more false pairs than true ones. Otherwise one encoder ends at another kernel, while two, f(a)^T g(b), end at "
        "K_PMI all the same.",
    ).table(
        ["world", "paper's condition", "smallest c", *(name.replace("infonce", "InfoNCE") for name in names)],
        rows,
        caption="Errors against K_PMI after unlimited training, one seed; the last digit of a column's name counts "
        "encoders, the number before it is p. Smallest c is the least constant that makes K_PMI + c positive "
        "semi-definite. The paper's condition is sufficient, not necessary: most worlds that fail it are learnt.",
    )


STUDY = Study(
    name="platonic-pmi",
    title="Contrastive learners of two modalities end at the kernel of pointwise mutual information",
    question="Do contrastive learners end at K_PMI, and do two modalities end at the same kernel?",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=PmiConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
