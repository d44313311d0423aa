"""What `platonic-pmi` computes: learners watched while they learn, channels that lose something, and hard worlds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from unrolled.studies.cells import Cell, Columns, Context, Result
from unrolled.studies.platonic.toy import Embeddings, Loss, kernel_alignment, learn_expected, learn_from_samples
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Distinct, Rate, Seeds
from unrolled.tasks import CooccurrenceWorld

# for the question when one encoder can hold K_PMI
WORLDS: dict[str, Columns] = {
    "no neighbours (the paper's condition holds)": {"width": 0.1, "skew": 0.0},
    "ring (as in all other sections)": {},
    "clusters": {"layout": "clusters"},
    "ring, wide steps": {"width": 2.0},
    "ring, without itself (an event is not paired with itself at the same time)": {"with_itself": False},
}
GROUPS: dict[str, Columns] = {
    "InfoNCE": {"loss": "infonce", "shuffled": False},
    "binary NCE": {"loss": "nce", "shuffled": False},
    "InfoNCE, pairs shuffled": {"loss": "infonce", "shuffled": True},
}


@dataclass(kw_only=True)
class PmiConfig(Config):
    """Budgets change steps, seeds and the number of levels."""

    budgets: ClassVar[Budgets] = {
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

            def look(learner: Embeddings, channel: Tensor = channel, vectors: list[Tensor] = vectors) -> Result:
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

    def compute(self, context: Context) -> Result:
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
    shared: Columns = {"events": config.events, "dim": config.dim, "neighbours": config.neighbours}
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
