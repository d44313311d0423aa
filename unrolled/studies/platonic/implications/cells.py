"""What `platonic-implications` computes: translations, joint and private modalities, and small networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import fmean
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from unrolled.studies.cells import Cell, Columns, Context
from unrolled.studies.platonic.digits import Perceptrons, digits_split, halvings, train
from unrolled.studies.platonic.implications.matching import Array, match_kernels, retrieved
from unrolled.studies.platonic.toy import Embeddings, kernel_alignment, learn_expected, learn_from_samples
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Distinct, Seeds

KINDS = ("generalist", "specialist", "untrained")
PAIRS = (("generalist", "generalist"), ("generalist", "specialist"), *((kind, kind) for kind in KINDS[1:]))
_STATES = 3  # of what only one modality sees


@dataclass(kw_only=True)
class ImplicationsConfig(Config):
    """Budgets change the number of seeds and levels."""

    budgets: ClassVar[Budgets] = {
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
        dim = self.events + 1
        if self.steps is None:
            learner = learn_expected(joint, loss="infonce", seed=seed, dim=dim)
        elif self.steps == 0:
            learner = Embeddings(symbols=self.events, dim=dim, seed=seed)
        else:
            learner, _ = learn_from_samples(
                joint, loss="infonce", seed=seed, dim=dim, steps=self.steps, batch_size=self.batch_size
            )
        return learner.features().numpy()


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
        world: Columns = {"seed": seed, "events": config.events}
        for steps in (*config.training_steps, None):
            yield Translated(**world, steps=steps, batch_size=config.batch_size, starts=config.starts)
        for symbols in config.symbols:
            yield Joined(**world, symbols=symbols, neighbours=config.neighbours)
        for persistence in config.private:
            yield Private(**world, persistence=persistence, neighbours=config.neighbours)
        yield Networks(seed=seed, steps=config.network_steps, starts=config.starts)
