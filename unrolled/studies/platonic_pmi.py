"""Contrastive learners of two modalities end at one kernel, the pointwise mutual information of events.

Claim (arXiv 2405.07987, section 4): trained on which observations occur together, f(a)^T f(b) converges to K_PMI plus a
constant, and modalities that observe events bijectively therefore end at the same kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report
    from unrolled.studies.platonic.toy import Loss
    from unrolled.tasks import CooccurrenceWorld

_SOURCE = "arXiv 2405.07987, section 4"
KERNEL = Expectation(
    statement="InfoNCE's kernel is K_PMI up to a constant (error left over, as a share of its standard deviation)",
    source=f"{_SOURCE}",
    published="equal (proved)",
    high=0.15,
)
OFFSET = Expectation(
    statement="Binary NCE's constant is log(p / (1 - p)) (difference, nats)",
    source=f"{_SOURCE}, appendix",
    published="equal (proved)",
    low=-0.15,
    high=0.15,
)
AGREE = Expectation(
    statement="Two modalities that observe bijectively end at the same kernel (unbiased CKA)",
    source=f"{_SOURCE}",
    published="equal (proved)",
    low=0.95,
)
LOSSY = Expectation(
    statement="Agreement falls as one modality loses more (rank correlation of CKA with bits lost, merged events)",
    source="arXiv 2405.07987, section 6: the argument needs bijective observation",
    published="stated, no number",
    high=-0.9,
)
CONDITION = Expectation(
    statement="Where the paper's sufficient condition holds, one encoder reaches K_PMI (largest error)",
    source=f"{_SOURCE}, appendix",
    published="exact (proved)",
    high=0.01,
)
UNREACHABLE = Expectation(
    statement="Where no constant makes K_PMI positive semi-definite, one encoder stays off it and two do not (ratio)",
    source="consequence of f(a)^T f(b) being a Gram matrix; arXiv 2405.07987 assumes the condition",
    published="not measured",
    low=10.0,
)
# Worlds for the question when one encoder can hold K_PMI: name, settings, what is special
WORLDS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("no neighbours", {"width": 0.1, "skew": 0.0}, "the paper's condition holds"),
    ("ring", {}, "as in all other sections"),
    ("clusters", {"layout": "clusters"}, ""),
    ("ring, wide steps", {"width": 2.0}, ""),
    ("ring, without itself", {"with_itself": False}, "an event is not paired with itself at the same time"),
)


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change steps, seeds and the number of levels."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"seeds": (0,), "steps": 1500, "symbols": (24, 12, 6, 3), "noise": (0.0, 0.2, 0.5)},
        "cpu": {},
        "gpu": {"seeds": (0, 1, 2, 3, 4), "steps": 20000, "device": "cuda"},
    }

    seeds: tuple[int, ...] = (0, 1, 2)
    """Pairs of learners for each: one a modality, with initial vectors and pairs of its own."""
    steps: int = 5000
    """Training steps."""
    batch_size: int = 1024
    """Pairs a step."""
    dim: int = 25
    """Width of the vectors; with one more than there are events no kernel is out of reach for its rank."""
    events: int = 24
    """Events of the world."""
    share_of_true_pairs: float = 0.9
    """p of binary NCE. Below about 0.84 its constant is too small here for one encoder: see the last section."""
    symbols: tuple[int, ...] = (24, 20, 16, 12, 8, 6, 4, 3, 2)
    """Symbols of the lossy modality."""
    noise: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    """Probability that the noisy modality shows a random symbol."""
    neighbours: int = 3
    """k of mutual nearest neighbours."""
    points: int = 20
    """Looks during training."""
    device: str = "cpu"
    """Where to train."""
    out: Path = field(default=Path("runs/platonic-pmi"))
    """Where the report and the kept cells go."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if min(self.steps, self.points, self.dim, self.neighbours) < 1 or self.batch_size < 2:
            raise ValueError("steps, points, dim and neighbours must be at least 1 and batch_size at least 2")
        if not 0 < self.share_of_true_pairs < 1:
            raise ValueError(f"share_of_true_pairs must be in (0, 1), got {self.share_of_true_pairs}")
        if not self.symbols or not all(1 < count <= self.events for count in self.symbols):
            raise ValueError(f"symbols must name numbers between 2 and the {self.events} events")
        if not self.noise or not all(0 <= rate < 1 for rate in self.noise):
            raise ValueError("noise must name rates in [0, 1)")
        if self.neighbours >= self.events:
            raise ValueError(f"neighbours must be below the {self.events} events")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train both losses in both modalities, blur one of them, and vary the world; written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text per cell.
    """
    from unrolled.studies.platonic_pmi_report import make_report
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()

    def cell(name: str, compute: Callable[[], dict[str, Any]], **more: Any) -> dict[str, Any]:
        keys = ("dim", "events", "share_of_true_pairs", "neighbours", "device")
        settings = {key: getattr(config, key) for key in keys} | more
        result = remembered(config.out / "cells", name, settings, compute)
        if on_progress is not None:
            on_progress(f"{name}: {result['seconds']:.1f} s")
        return result

    sampled = {"steps": config.steps, "batch_size": config.batch_size, "points": config.points}
    trained = [
        cell(f"{loss}-seed{seed}-{name}", lambda s=seed, ls=loss, sh=shuffled: _learn(config, s, ls, sh), **sampled)  # type: ignore[misc]
        for loss, shuffled, name in (("infonce", False, "true"), ("nce", False, "true"), ("infonce", True, "shuffled"))
        for seed in config.seeds
    ]
    blurred = [
        cell(f"{kind}-{level:g}-seed{seed}", lambda s=seed, kd=kind, lv=level: _blur(config, s, kd, lv))  # type: ignore[misc]
        for kind, levels in (("merge", config.symbols), ("noise", config.noise))
        for level in levels
        for seed in config.seeds
    ]
    worlds = [
        cell(f"world-{name.replace(' ', '-').replace(',', '')}", lambda w=more: _world_cell(config, w), world=more)  # type: ignore[misc]
        for name, more, _ in WORLDS
    ]
    report = make_report(config, trained, blurred, worlds, began)
    report.write(config.out)
    return report


def _world(config: Config, **more: Any) -> CooccurrenceWorld:
    from unrolled.tasks import CooccurrenceWorld

    return CooccurrenceWorld(events=config.events, **more)


def _known(world: CooccurrenceWorld, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Joint, K_PMI, and the weights P(a) P(b) of its entries."""
    from unrolled.theory import pointwise_mutual_information

    joint, frequencies = world.joint(device), world.frequencies(device)
    return joint, pointwise_mutual_information(joint), frequencies[:, None] * frequencies[None, :]


def _learn(config: Config, seed: int, loss: Loss, shuffled: bool) -> dict[str, Any]:
    """Two learners, one a modality with its own order of symbols, watched while they learn."""
    from unrolled.studies.platonic.toy import Embeddings, kernel_alignment, learn_from_samples
    from unrolled.tasks import bijective, observed_joint
    from unrolled.theory import offset_and_error

    began = time.perf_counter()
    joint, kernel, weights = _known(_world(config), config.device)
    looks = sorted({round(config.steps * (i / config.points) ** 2) for i in range(config.points + 1)})
    seen: list[list[dict[str, Any]]] = []
    features: list[list[Tensor]] = []
    for modality in (0, 1):
        channel = bijective(config.events, seed=2 * seed + modality).to(config.device)
        vectors: list[Tensor] = []

        def look(learner: Embeddings, channel: Tensor = channel, vectors: list[Tensor] = vectors) -> dict[str, Any]:
            vectors.append(channel @ learner.features())
            offset, error = offset_and_error(vectors[-1] @ vectors[-1].mT, kernel, weights)
            return {"offset": offset, "error": error}

        seen.append(
            learn_from_samples(
                observed_joint(joint, channel), loss=loss, seed=2 * seed + modality, dim=config.dim,
                steps=config.steps, batch_size=config.batch_size, shuffled=shuffled, look=look, look_at=looks,
                share_of_true_pairs=config.share_of_true_pairs,
            )[1]
        )  # fmt: skip
        features.append(vectors)
    agreement = [kernel_alignment(a, b, k=config.neighbours) for a, b in zip(*features, strict=True)]
    return {
        "loss": loss, "seed": seed, "shuffled": shuffled, "looks": looks, "agreement": agreement,
        "errors": [[entry["error"] for entry in one] for one in seen],
        "offsets": [[entry["offset"] for entry in one] for one in seen],
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def _blur(config: Config, seed: int, kind: str, level: float) -> dict[str, Any]:
    """A bijective and a blurred modality after unlimited training, beside the kernels that theory gives them."""
    from unrolled.studies.platonic.toy import kernel_alignment, learn_expected
    from unrolled.tasks import bijective, bits_lost, lossy, noisy, observed_joint
    from unrolled.theory import pointwise_mutual_information

    began = time.perf_counter()
    world = _world(config)
    joint = world.joint(config.device)
    plain = bijective(config.events, seed=seed).to(config.device)
    channel = lossy(config.events, int(level), seed=seed) if kind == "merge" else noisy(plain, level)
    channel = channel.to(config.device)
    features, expected = [], []
    for number, one in enumerate((plain, channel)):
        observed = observed_joint(joint, one)
        learner = learn_expected(observed, loss="infonce", seed=2 * seed + number, dim=config.dim)
        features.append(one @ learner.features())
        expected.append(one @ pointwise_mutual_information(observed) @ one.mT)
    return {
        "kind": kind, "level": level, "seed": seed, "bits": bits_lost(world.frequencies(config.device), channel),
        **kernel_alignment(*features, k=config.neighbours), "expected_cka": _kernel_cka(*expected),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def _kernel_cka(a: Tensor, b: Tensor) -> float:
    """Unbiased CKA of two kernels that need not be positive semi-definite."""
    from unrolled.ops.gram import u_center

    left, right = u_center(a), u_center(b)
    scale = float(left.norm() * right.norm())
    return float((left * right).sum()) / scale if scale > 1e-9 else 0.0


def _world_cell(config: Config, more: dict[str, Any]) -> dict[str, Any]:
    """One and two encoders at the end of training in one world."""
    from unrolled.studies.platonic.toy import learn_expected
    from unrolled.theory import exactness, offset_and_error, smallest_eigenvalue, smallest_offset

    began = time.perf_counter()
    joint, kernel, weights = _known(_world(config, **more), config.device)
    errors: dict[str, float] = {}
    for loss, share in (("infonce", 0.5), ("nce", 0.9), ("nce", 0.5), ("nce", 0.1)):
        for encoders in (1, 2):
            learner = learn_expected(
                joint, loss=cast("Loss", loss), seed=config.seeds[0], dim=config.dim, encoders=encoders,
                share_of_true_pairs=share,
            )  # fmt: skip
            learnt = learner.kernel().detach()
            if loss == "infonce":  # its optimum is free to add a constant for every a
                learnt = learnt - (weights / weights.sum(1, keepdim=True) * (learnt - kernel)).sum(1, keepdim=True)
            name = loss if loss == "infonce" else f"nce {share:g}"
            errors[f"{name} {encoders}"] = offset_and_error(learnt, kernel, weights)[1]
    return {
        "condition": exactness(joint).holds,
        "smallest_eigenvalue": smallest_eigenvalue(kernel),
        "smallest_offset": smallest_offset(kernel),
        "errors": errors,
        "seconds": time.perf_counter() - began,
    }


STUDY = Study(
    name="platonic-pmi",
    title="Contrastive learners of two modalities end at the kernel of pointwise mutual information",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=Config,
    run=run,
    expectations=(KERNEL, OFFSET, AGREE, LOSSY, CONDITION, UNREACHABLE),
)
