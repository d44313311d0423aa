"""What convergence would allow, and where it ends: translation without pairs, joint training, conditions, exceptions.

Claims (arXiv 2405.07987, sections 5 and 6): aligned representations can be translated without paired data, data of
another modality help, conditional prediction is easier than unconditional; specialists and what only one modality sees
are exceptions. Measured in the co-occurrence world and on small networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from itertools import product
from operator import add
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unrolled.studies.cells import Cell, Context
from unrolled.studies.claim import Claim
from unrolled.studies.platonic.digits import Perceptrons, digits_split, halvings, train
from unrolled.studies.platonic.toy import Embeddings, kernel_alignment, learn_expected, learn_from_samples
from unrolled.studies.results import Results, Values, line
from unrolled.studies.study import AtLeast, Budget, Config, Count, Distinct, Seeds, Study

if TYPE_CHECKING:
    from unrolled.report import Report

Array = NDArray[Any]
KINDS = ("generalist", "specialist", "untrained")
PAIRS = (("generalist", "generalist"), ("generalist", "specialist"), *((kind, kind) for kind in KINDS[1:]))
_STATES = 3  # of what only one modality sees


@dataclass(kw_only=True)
class ImplicationsConfig(Config):
    """Budgets change the number of seeds and levels."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            **{"seeds": (0,), "training_steps": (0, 300), "starts": 8, "symbols": (12,), "private": (0.0, 0.5, 1.0)},
            **{"network_steps": 100},
        },
        "cpu": {},
        "gpu": {"seeds": tuple(range(10)), "starts": 100},
    }

    seeds: Seeds = (0, 1, 2, 3)
    """Repetitions of everything."""
    events: Annotated[int, AtLeast(5)] = 16
    """Events of the world."""
    training_steps: Annotated[tuple[int, ...], AtLeast(0), Distinct()] = (0, 100, 300, 1000, 3000)
    """Lengths of training after which modalities are matched; the last row is unlimited training."""
    batch_size: Count = 1024
    """Pairs a step."""
    starts: Count = 20
    """Starts of the matching; the best objective counts."""
    symbols: Annotated[tuple[int, ...], AtLeast(2), Distinct()] = (12, 8, 6, 4)
    """Symbols of each of two lossy modalities that are joined."""
    private: Annotated[tuple[float, ...], AtLeast(0), Distinct()] = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
    """Persistence of what only one modality sees: 0 is noise that cannot be learnt, 1 never changes."""
    network_steps: Count = 300
    """Training steps of the networks on digits."""
    neighbours: Count = 3
    """k of mutual nearest neighbours among events."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.events <= self.neighbours or self.events < max(self.symbols):
            raise ValueError(f"events={self.events}: must be more than neighbours, and at least as many as symbols")
        if max(self.private) > 1:
            raise ValueError("private must name persistences in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Translated(Cell):
    """Two modalities that show the same events by symbols of their own, matched without pairs.

    `steps` is the length of their training on batches; None: both are trained to the end.
    """

    seed: int
    events: int
    steps: int | None
    batch_size: int
    starts: int

    def compute(self, context: Context) -> dict[str, float]:
        """Shares `matched` and `retrieved` by the map; bits to predict the second event of a pair in one modality.

        `bits` are with the kernel of the other across the match, `shuffled` across a random match, `own` with the own
        kernel, `unconditional` with none, and `least` with the true probabilities.
        """
        from unrolled.tasks import CooccurrenceWorld, bijective, observed_joint

        joint = CooccurrenceWorld(events=self.events, skew=1.0, world_seed=self.seed).joint()
        channels = [bijective(self.events, seed=2 * self.seed + modality) for modality in (0, 1)]
        seen = [observed_joint(joint, channel) for channel in channels]
        x, y = (self._vectors(each, 2 * self.seed + modality) for modality, each in enumerate(seen))
        ours, others = x @ x.T, y @ y.T
        order = match_kernels(ours, others, starts=self.starts, seed=self.seed)
        # truth[x] is the symbol of Y that shows the event which x shows
        truth = (channels[0].mT @ channels[1]).argmax(1).numpy()
        random = np.random.default_rng(self.seed).permutation(self.events)
        bits = partial(_bits, seen[0])
        return {
            "matched": float((order == truth).mean()),
            "retrieved": retrieved(x, y, order, truth),
            "bits": bits(others[np.ix_(order, order)]),
            "shuffled": bits(others[np.ix_(random, random)]),
            "own": bits(ours),
            "unconditional": bits(np.zeros_like(ours)),
            "least": float(-(seen[0] * (seen[0] / seen[0].sum(1, keepdim=True)).log2()).sum()),
        }

    def _vectors(self, joint: Tensor, seed: int) -> Array:
        learn: dict[str, Any] = {"loss": "infonce", "seed": seed, "dim": self.events + 1}
        if self.steps is None:
            learner = learn_expected(joint, **learn)
        elif self.steps == 0:
            learner = Embeddings(symbols=self.events, dim=self.events + 1, seed=seed)
        else:
            learner, _ = learn_from_samples(joint, **learn, steps=self.steps, batch_size=self.batch_size)
        return learner.features().numpy()


def match_kernels(a: Array, b: Array, *, starts: int, seed: int) -> Array:
    """order [n] with which b[order][:, order] is most like a, from the entries of both [n, n] alone.

    A quadratic assignment, solved approximately from several random starts (fast approximate QAP, Vogelstein et al.
    2015, then exchanges of two); diagonals count.
    """
    from scipy.optimize import quadratic_assignment

    generator = np.random.default_rng(seed)
    left, right = (kernel - kernel.mean() for kernel in (a, b))
    best, value = np.arange(len(a)), -np.inf
    for _ in range(starts):
        options = {"maximize": True, "P0": "randomized", "rng": generator, "maxiter": 60}
        rough = quadratic_assignment(left, right, method="faq", options=options)
        guess = np.c_[np.arange(len(a)), rough.col_ind]
        options = {"maximize": True, "partial_guess": guess, "rng": generator}
        fine = quadratic_assignment(left, right, method="2opt", options=options)
        if fine.fun > value:
            best, value = fine.col_ind, fine.fun
    return np.asarray(best)


def retrieved(x: Array, y: Array, order: Array, truth: Array) -> float:
    """Share of rows of x whose linear (orthogonal) image is nearest, by cosine, to their true partner in y.

    The map is fitted to the matching `order` that was found without pairs.
    """
    left, right = x - x.mean(0), y - y.mean(0)
    u, _, vt = np.linalg.svd(left.T @ right[order])
    moved = left @ (u @ vt)
    cosine = moved @ right.T / np.maximum(np.outer(np.linalg.norm(moved, axis=1), np.linalg.norm(right, axis=1)), 1e-12)
    return float((cosine.argmax(1) == truth).mean())


def _bits(joint: Tensor, kernel: Array) -> float:
    """Cross-entropy in bits of the second event of a pair, predicted by P(b) exp(kernel(a, b)), normalised."""
    scores = torch.as_tensor(kernel) + joint.sum(0).log()
    return float(-(joint * scores.log_softmax(1)).sum()) / math.log(2)


@dataclass(frozen=True, kw_only=True)
class Joined(Cell):
    """Two modalities that merge different events into `symbols` each, alone and seen together."""

    seed: int
    events: int
    symbols: int
    neighbours: int

    def compute(self, context: Context) -> dict[str, float]:
        """CKA with a learner of the events themselves, of `one` modality, the `other` and both `together`."""
        from unrolled.tasks import CooccurrenceWorld, lossy, observed_joint

        joint = CooccurrenceWorld(events=self.events, world_seed=self.seed).joint()
        learn = partial(learn_expected, loss="infonce", dim=self.events + 1)
        events = learn(joint, seed=self.seed).features()
        one, other = (lossy(self.events, self.symbols, seed=7 * self.seed + side) for side in (0, 1))
        # a symbol of both together is a pair of symbols; pairs that never occur are left out
        both = (one[:, :, None] * other[:, None, :]).flatten(1)
        scores = {}
        for name, channel in (("one", one), ("other", other), ("together", both[:, both.sum(0) > 0])):
            learner = learn(observed_joint(joint, channel), seed=self.seed + 1)
            scores[name] = kernel_alignment(channel @ learner.features(), events, k=self.neighbours)["cka"]
        return scores


@dataclass(frozen=True, kw_only=True)
class Private(Cell):
    """One modality sees, besides the event, which of three states something private is in, and how it persists."""

    seed: int
    events: int
    persistence: float
    neighbours: int

    def compute(self, context: Context) -> dict[str, float]:
        """Private `bits` in a pair, the `shared_bits` of its events, and `cka` with a modality that sees only those."""
        from unrolled.tasks import CooccurrenceWorld
        from unrolled.theory import mutual_information

        joint = CooccurrenceWorld(events=self.events, world_seed=self.seed).joint()
        plain = learn_expected(joint, loss="infonce", seed=2 * self.seed, dim=self.events + 1).features()
        # 1 would make some pairs impossible, and their PMI minus infinity
        stays = min(self.persistence, 0.99)
        private = (stays * torch.eye(_STATES) + (1 - stays) / _STATES).double() / _STATES
        dim, seed = _STATES * self.events + 1, 2 * self.seed + 1
        learner = learn_expected(torch.kron(joint, private), loss="infonce", seed=seed, dim=dim, iterations=300)
        shared = plain.repeat_interleave(_STATES, 0)
        return {
            "bits": mutual_information(private) / math.log(2),
            "shared_bits": mutual_information(joint) / math.log(2),
            "cka": kernel_alignment(learner.features(), shared, k=self.neighbours)["cka"],
        }


@dataclass(frozen=True, kw_only=True)
class Networks(Cell):
    """On the digits: two generalists, two specialists, each of one halving of the classes, and two untrained."""

    seed: int
    steps: int
    starts: int

    def compute(self, context: Context) -> dict[str, dict[str, float]]:
        """`alignment` of pairs (mutual 10-NN), and the share of classes `matched` without pairs, by kind."""
        fit_x, fit_y, test_x, test_y = digits_split()
        features: dict[str, Tensor] = {}
        for place, kind in enumerate(KINDS):
            seeds = [10_000 + 10 * self.seed + 2 * place, 10_001 + 10 * self.seed + 2 * place]
            tasks = torch.stack([halvings(1, one) for one in seeds]) if kind == "specialist" else None
            nets = Perceptrons(inputs=64, width=64, outputs=10 if tasks is None else 1, seeds=seeds)
            if kind != "untrained":
                train(nets, fit_x, fit_y.expand(2, -1), tasks, steps=self.steps)
            with torch.no_grad():
                features[kind] = nets.features(test_x).double()
        alignment = {}
        for one, other in PAIRS:
            pairs = product(features[one], features[other]) if one != other else [features[one]]
            alignment[f"{one} and {other}"] = fmean(kernel_alignment(a, b, k=10)["knn"] for a, b in pairs)
        matched = {}
        for kind, both in features.items():
            means = [torch.stack([one[test_y == c].mean(0) for c in range(10)]) for one in both]
            means = [m - m.mean(0) for m in means]
            ours, others = ((m @ m.mT / m.norm() ** 2).numpy() for m in means)
            shuffle = np.random.default_rng(self.seed).permutation(10)
            order = match_kernels(ours, others[np.ix_(shuffle, shuffle)], starts=self.starts, seed=self.seed)
            matched[kind] = float((shuffle[order] == np.arange(10)).mean())
        return {"alignment": alignment, "matched": matched}


def cells(config: ImplicationsConfig) -> Iterator[Cell]:
    """The four parts, each for every seed."""
    for seed in config.seeds:
        world: dict[str, Any] = {"seed": seed, "events": config.events}
        for steps in (*config.training_steps, None):
            yield Translated(**world, steps=steps, batch_size=config.batch_size, starts=config.starts)
        for symbols in config.symbols:
            yield Joined(**world, symbols=symbols, neighbours=config.neighbours)
        for persistence in config.private:
            yield Private(**world, persistence=persistence, neighbours=config.neighbours)
        yield Networks(seed=seed, steps=config.network_steps, starts=config.starts)


def at_the_end(results: Results[Any]) -> Results[Translated]:
    """Modalities after unlimited training."""
    return results.of(Translated, steps=None)


def saved(results: Results[Any], config: ImplicationsConfig) -> Values:
    """Bits of prediction that the other modality saves."""
    return at_the_end(results).values("unconditional") - at_the_end(results).values("bits")


def gain(results: Results[Any], config: ImplicationsConfig) -> Values:
    """CKA with the events' kernel of both modalities together less that of the better one, mean over `symbols`."""
    each = [
        results.of(Joined, symbols=symbols).values(lambda cka: cka["together"] - max(cka["one"], cka["other"]))
        for symbols in config.symbols
    ]
    return reduce(add, each) / len(each)


def apart(results: Results[Any], config: ImplicationsConfig) -> Values:
    """How much further specialists are from generalists than they from each other."""
    networks = results.of(Networks)
    among, between = (networks.values(f"alignment.generalist and {other}") for other in ("generalist", "specialist"))
    return among - between


def _stated(statement: str, section: str, **judged: Any) -> Claim:
    source, published = f"arXiv 2405.07987, section {section}", "stated, no number"
    return Claim(**{"statement": statement, "source": source, "published": published, "spec": ".2f", **judged})


CLAIMS = (
    _stated(
        "Two modalities are matched without pairs by the structure of their kernels (share of events, trained to the "
        "end)",
        "5, translation",
        value=lambda results, config: at_the_end(results).values("matched"),
        low=0.9,
        outside="modalities that are matched by chance, 0.06, or after too short a training",
        detail=lambda results, config: f"; chance {1 / config.events:.2f}",
    ),
    _stated(
        "Two lossy modalities together come closer to the events' kernel than the better one (difference of CKA)",
        "5, training data can be shared",
        value=gain,
        low=0.0,
        outside="modalities that lose the same: 0",
    ),
    _stated(
        "Knowing the other modality, matched without pairs, saves bits of prediction (bits against unconditional)",
        "5, conditional against unconditional",
        value=saved,
        low=0.0,
        outside="modalities that are matched wrongly, which costs bits",
        detail=lambda results, config: " bits",
    ),
    _stated(
        "A network taught one task is further from generalists than they from each other (difference of mutual 10-NN)",
        "6, special-purpose intelligence",
        value=apart,
        low=0.0,
        outside="one task that teaches as much as ten: 0",
        spec=".3f",
    ),
    _stated(
        "What only one modality sees lowers alignment (rank correlation of CKA with private bits)",
        "6, different modalities contain different information",
        value=lambda results, config: results.of(Private).correlation("bits", "cka"),
        high=-0.9,
        outside="alignment that private bits leave as it is: 0",
    ),
)


def report(report: Report, config: ImplicationsConfig, results: Results[Any]) -> None:
    """Five claims, the numbers behind them, and their controls."""
    from unrolled.report import Fact

    first = results.of(Translated, steps=config.training_steps[0]).values("matched")
    matched, joint, specialists = at_the_end(results).values("matched"), gain(results, config), apart(results, config)
    report.headline(
        f"Without a single pair, {100 * matched:.0f} % of {config.events} events are matched between two modalities by "
        f"their kernels alone ({100 * first:.0f} % after {config.training_steps[0]} steps, "
        f"{100 / config.events:.0f} % by chance), and the match saves {saved(results, config):.2f} bits of prediction.",
        [
            Fact(label="Matched without pairs", value=f"{matched:.2f}", detail=matched.count),
            Fact(label="Gain of joint training", value=f"{joint:.2f}", detail="unbiased CKA"),
            Fact(label="Specialists are further by", value=f"{specialists:.2f}", detail="mutual 10-NN"),
        ],
    )
    _translation(report, config, results)
    _joint(report, config, results)
    _exceptions(report, config, results)
    report.section(
        "What this does not show",
        "Matching is a quadratic assignment over a handful of events or classes, whose frequencies differ; it does not "
        "scale to single images, and symmetric worlds cannot be matched at all. Symbols are known to be those of a "
        "bijective observation. What large models need for translation without pairs is another question.",
    )


def _translation(report: Report, config: ImplicationsConfig, results: Results[Any]) -> None:
    networks = results.of(Networks)
    names = ("unconditional", "own", "shuffled", "least")
    unconditional, same_kernel, shuffled, least = (f"{at_the_end(results).values(name):.2f}" for name in names)
    rows = []
    for steps in (*config.training_steps, None):
        of = results.of(Translated, steps=steps)
        numbers = (f"{of.values(key):.2f}" for key in ("matched", "retrieved", "bits"))
        rows.append(["unlimited" if steps is None else str(steps), *numbers])
    report.section(
        "Translation without pairs",
        "Two learners see the same kind of world, each through symbols of its own. Their kernels are matched as "
        "matrices, without a pair; the matching then gives a linear map between vectors. Bits are the cross-entropy of "
        "the second event of a pair in one modality, predicted by the kernel of the other across the match.",
    ).table(
        ["training steps", "matched", "retrieved by the map", "bits"],
        rows,
        caption=f"Mean and standard deviation over {len(config.seeds)} seeds; by chance {1 / config.events:.2f} are "
        f"matched. Bits: unconditional {unconditional}; own kernel {same_kernel}; the other's kernel with a shuffled "
        f"match {shuffled}; least possible {least}.",
    ).table(
        ["networks on digits", "classes matched without pairs"],
        [[kind, f"{networks.values(f'matched.{kind}'):.2f}"] for kind in KINDS],
        caption="Ten class means of two networks, matched by their inner products; by chance 0.10. Untrained networks, "
        "which still pass on some of the geometry of pixels, are the control.",
    )


def _joint(report: Report, config: ImplicationsConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    def at(key: str) -> list[Values]:
        return [results.of(Joined, symbols=symbols).values(key) for symbols in config.symbols]

    lines = {"one modality": at("one"), "the other": at("other"), "together": at("together")}
    series = [
        line(label, config.symbols, values, color=place, dashed=label != "together")
        for place, (label, values) in enumerate(lines.items())
    ]
    report.section(
        "Joint training",
        f"Each modality shows {config.events} events as fewer symbols, merging different ones. Together they tell more "
        "events apart. CKA (unbiased) is with a learner that sees the events themselves; all are trained to the end.",
    ).figure(
        LineChart(title="CKA with the events' kernel", x_label="symbols of each modality", series=series),
        name="joint",
        caption=f"Mean over {len(config.seeds)} seeds; bars are one standard deviation.",
    ).table(
        ["symbols", *lines],
        [
            [str(symbols), *(f"{values[place]:.2f}" for values in lines.values())]
            for place, symbols in enumerate(config.symbols)
        ],
    )


def _exceptions(report: Report, config: ImplicationsConfig, results: Results[Any]) -> None:
    networks = results.of(Networks)
    rows = []
    for level in config.private:
        of = results.of(Private, persistence=level)
        rows.append([f"{level:g}", *(f"{of.values(key):.2f}" for key in ("bits", "cka"))])
    shared = results.of(Private, persistence=config.private[0]).values("shared_bits")
    report.section(
        "Exceptions",
        "What only one modality sees: besides the event it shows one of three private states, which persist more or "
        "less. Specialists: networks taught one halving of the ten digits instead of all classes.",
    ).table(
        ["persistence", "private bits", "CKA with the other modality"],
        rows,
        caption=f"Events share {shared:.2f} bits within a pair. Persistence of 1 is run as 0.99.",
    ).table(
        ["pair", "mutual 10-NN"],
        [[pair, f"{networks.values(f'alignment.{pair}'):.3f}"] for pair in map(" and ".join, PAIRS)],
        caption=f"On 599 held-out digits, {len(config.seeds)} seeds; by chance {10 / 598:.3f}.",
    )


STUDY = Study(
    name="platonic-implications",
    title="Translation without pairs, joint training, conditions, and exceptions",
    question="Can representations be translated without pairs, do modalities help each other, and what breaks it?",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=ImplicationsConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
