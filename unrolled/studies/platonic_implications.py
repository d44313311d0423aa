"""What convergence would allow, and where it ends: translation without pairs, joint training, conditions, exceptions.

Claims (arXiv 2405.07987, sections 5 and 6): aligned representations can be translated without paired data, data of
another modality help, conditional prediction is easier than unconditional; specialists and what only one modality sees
are exceptions. Measured in the co-occurrence world and on small networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report

Array = NDArray[Any]
Cells = list[dict[str, Any]]


def _stated(statement: str, section: str, **judged: float) -> Expectation:
    return Expectation(
        statement=statement, source=f"arXiv 2405.07987, section {section}", published="stated, no number", **judged
    )


TRANSLATION = _stated(
    "Two modalities are matched without pairs by the structure of their kernels (share of events, trained to the end)",
    "5, translation", low=0.9,
)  # fmt: skip
JOINT = _stated(
    "Two lossy modalities together come closer to the events' kernel than the better one (difference of CKA)",
    "5, training data can be shared", low=0.0,
)  # fmt: skip
CONDITIONAL = _stated(
    "Knowing the other modality, matched without pairs, saves bits of prediction (bits against unconditional)",
    "5, conditional against unconditional", low=0.0,
)  # fmt: skip
SPECIALIST = _stated(
    "A network taught one task is further from generalists than they from each other (difference of mutual 10-NN)",
    "6, special-purpose intelligence", low=0.0,
)  # fmt: skip
PRIVATE = _stated(
    "What only one modality sees lowers alignment (rank correlation of CKA with private bits)",
    "6, different modalities contain different information", high=-0.9,
)  # fmt: skip


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change the number of seeds and levels."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "seeds": (0,), "training_steps": (0, 300), "starts": 8, "symbols": (12,), "private": (0.0, 0.5, 1.0),
            "network_steps": 100,
        },
        "cpu": {},
        "gpu": {"seeds": tuple(range(10)), "starts": 100},
    }  # fmt: skip

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Repetitions of everything."""
    events: int = 16
    """Events of the world."""
    training_steps: tuple[int, ...] = (0, 100, 300, 1000, 3000)
    """Lengths of training after which modalities are matched; the last row is unlimited training."""
    batch_size: int = 1024
    """Pairs a step."""
    starts: int = 20
    """Starts of the matching; the best objective counts."""
    symbols: tuple[int, ...] = (12, 8, 6, 4)
    """Symbols of each of two lossy modalities that are joined."""
    private: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
    """Persistence of what only one modality sees: 0 is noise that cannot be learnt, 1 never changes."""
    network_steps: int = 300
    """Training steps of the networks on digits."""
    neighbours: int = 3
    """k of mutual nearest neighbours among events."""
    out: Path = Path("runs/platonic-implications")
    """Where the report and the kept cells go."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if min(self.starts, self.network_steps, self.neighbours, self.batch_size) < 1 or min(self.training_steps) < 0:
            raise ValueError(
                "starts, network_steps, neighbours and batch_size must be positive, training_steps not < 0"
            )
        if self.events <= max(4, self.neighbours) or not all(1 < count <= self.events for count in self.symbols):
            raise ValueError("events must be more than 4 and than neighbours; symbols between 2 and events")
        if not all(0 <= level <= 1 for level in self.private):
            raise ValueError("private must name persistences in [0, 1]")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Run the four parts for every seed; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text per cell.
    """
    from unrolled.studies.platonic_implications_report import make_report
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    keys = ("events", "training_steps", "batch_size", "starts", "symbols", "private", "network_steps", "neighbours")
    settings = {key: getattr(config, key) for key in keys}
    parts: dict[str, Callable[[Config, int], dict[str, Any]]] = {
        "translation": _translation, "joint": _joint, "private": _private, "networks": _networks,
    }  # fmt: skip
    cells: dict[str, Cells] = {part: [] for part in parts}
    for part, compute in parts.items():
        for seed in config.seeds:
            began_cell = time.perf_counter()
            name = f"{part}-seed{seed}"
            cells[part].append(remembered(config.out / "cells", name, settings, partial(compute, config, seed)))
            if on_progress is not None:
                on_progress(f"{name}: {time.perf_counter() - began_cell:.1f} s")
    report = make_report(config, cells, began)
    report.write(config.out)
    return report


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
        found = quadratic_assignment(left, right, method="faq", options=options)
        again = quadratic_assignment(
            left, right, method="2opt",
            options={"maximize": True, "partial_guess": np.c_[np.arange(len(a)), found.col_ind], "rng": generator},
        )  # fmt: skip
        if again.fun > value:
            best, value = again.col_ind, again.fun
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


def _translation(config: Config, seed: int) -> dict[str, Any]:
    """Match two modalities without pairs after more and more training, and predict across the match."""
    from unrolled.studies.platonic.toy import Embeddings, learn_expected, learn_from_samples
    from unrolled.tasks import CooccurrenceWorld, bijective, observed_joint

    world = CooccurrenceWorld(events=config.events, skew=1.0, world_seed=seed)
    joint, dim = world.joint(), config.events + 1
    channels = [bijective(config.events, seed=2 * seed + modality) for modality in (0, 1)]
    # truth[x] is the symbol of Y that shows the event which x shows
    truth = (channels[0].mT @ channels[1]).argmax(1).numpy()
    rows = []
    for steps in (*config.training_steps, None):
        tables = []
        for modality, channel in enumerate(channels):
            observed, own = observed_joint(joint, channel), 2 * seed + modality
            if steps is None:
                learner = learn_expected(observed, loss="infonce", seed=own, dim=dim)
            elif steps == 0:
                learner = Embeddings(symbols=config.events, dim=dim, seed=own)
            else:
                learner = learn_from_samples(
                    observed, loss="infonce", seed=own, dim=dim, steps=steps, batch_size=config.batch_size
                )[0]
            tables.append(learner.features().numpy())
        kernels = [table @ table.T for table in tables]
        order = match_kernels(kernels[0], kernels[1], starts=config.starts, seed=seed)
        rows.append(
            {
                "steps": steps, "matched": float((order == truth).mean()),
                "retrieved": retrieved(tables[0], tables[1], order, truth),
                "bits": _bits(observed_joint(joint, channels[0]), kernels[1][np.ix_(order, order)]),
            }
        )  # fmt: skip
    seen = observed_joint(joint, channels[0])
    shuffled = np.random.default_rng(seed).permutation(config.events)
    return {
        "rows": rows,
        "unconditional": _bits(seen, np.zeros((config.events, config.events))),
        "own": _bits(seen, kernels[0]),
        "shuffled": _bits(seen, kernels[1][np.ix_(shuffled, shuffled)]),
        "least": float(-(seen * (seen / seen.sum(1, keepdim=True)).log2()).sum()),
    }


def _bits(joint: Tensor, kernel: Array) -> float:
    """Cross-entropy in bits of the second event of a pair, predicted by P(b) exp(kernel(a, b)), normalised."""
    import torch

    scores = torch.as_tensor(kernel) + joint.sum(0).log()
    return float(-(joint * scores.log_softmax(1)).sum()) / float(np.log(2))


def _joint(config: Config, seed: int) -> dict[str, Any]:
    """Two modalities that merge different events, alone and seen together, beside the kernel of the events."""
    from unrolled.studies.platonic.toy import kernel_alignment, learn_expected
    from unrolled.tasks import CooccurrenceWorld, lossy, observed_joint

    world = CooccurrenceWorld(events=config.events, world_seed=seed)
    joint = world.joint()
    dim = config.events + 1
    events = learn_expected(joint, loss="infonce", seed=seed, dim=dim).features()
    rows = []
    for count in config.symbols:
        channels = [lossy(config.events, count, seed=7 * seed + side) for side in (0, 1)]
        # a symbol of both together is a pair of symbols; pairs that never occur are left out
        both = (channels[0][:, :, None] * channels[1][:, None, :]).flatten(1)
        found = {}
        for name, channel in (("one", channels[0]), ("other", channels[1]), ("together", both[:, both.sum(0) > 0])):
            learner = learn_expected(observed_joint(joint, channel), loss="infonce", seed=seed + 1, dim=dim)
            found[name] = kernel_alignment(channel @ learner.features(), events, k=config.neighbours)
        rows.append({"symbols": count, **{name: value["cka"] for name, value in found.items()}})
    return {"rows": rows}


def _private(config: Config, seed: int) -> dict[str, Any]:
    """One modality sees, besides the event, which of three states something private is in."""
    import torch

    from unrolled.studies.platonic.toy import kernel_alignment, learn_expected
    from unrolled.tasks import CooccurrenceWorld
    from unrolled.theory import mutual_information

    world = CooccurrenceWorld(events=config.events, world_seed=seed)
    joint, states = world.joint(), 3
    plain = learn_expected(joint, loss="infonce", seed=2 * seed, dim=config.events + 1).features()
    rows = []
    for persistence in config.private:
        # 1 would make some pairs impossible, and their PMI minus infinity
        stays = min(persistence, 0.99)
        own = (stays * torch.eye(states) + (1 - stays) / states).double() / states
        learner = learn_expected(
            torch.kron(joint, own), loss="infonce", seed=2 * seed + 1, dim=states * config.events + 1, iterations=300
        )
        shared = plain.repeat_interleave(states, 0)
        found = kernel_alignment(learner.features(), shared, k=config.neighbours)
        rows.append(
            {"persistence": persistence, "bits": mutual_information(own) / float(np.log(2)), "cka": found["cka"]}
        )
    return {"rows": rows, "shared_bits": mutual_information(joint) / float(np.log(2))}


def _networks(config: Config, seed: int) -> dict[str, Any]:
    """Generalists and specialists on the digits: their alignment, and classes matched without pairs."""
    import torch
    import torch.nn.functional as F

    from unrolled.studies.platonic.digits import Perceptrons, digits_split, halvings
    from unrolled.studies.platonic.toy import kernel_alignment
    from unrolled.studies.training import train_kept, warmup_cosine

    fit_x, fit_y, test_x, test_y = digits_split()
    features: dict[str, Tensor] = {}
    for kind in ("generalist", "specialist", "untrained"):
        seeds = [10_000 + 10 * seed + 2 * len(features), 10_001 + 10 * seed + 2 * len(features)]
        tasks = torch.stack([halvings(1, one) for one in seeds]) if kind == "specialist" else None
        nets = Perceptrons(inputs=64, width=64, outputs=1 if tasks is not None else 10, seeds=seeds, scale=1.0)

        def loss_at(step: int, nets: Perceptrons = nets, tasks: Tensor | None = tasks) -> Tensor:
            out = nets(fit_x)
            if tasks is not None:
                return 2 * F.binary_cross_entropy_with_logits(out, tasks[:, fit_y])
            return 2 * F.cross_entropy(out.flatten(0, 1), fit_y.repeat(2))

        if kind != "untrained":
            optimizer = torch.optim.Adam(nets.parameters(), lr=3e-3)
            rate = warmup_cosine(3e-3, warmup=0, steps=config.network_steps)
            train_kept(nets, optimizer, loss_at, steps=config.network_steps, rate=rate)
        with torch.no_grad():
            features[kind] = nets.features(test_x).double()
    general, special, raw = features["generalist"], features["specialist"], features["untrained"]
    pairs = {
        "generalist and generalist": [(general[0], general[1])],
        "generalist and specialist": [(a, b) for a in general for b in special],
        "specialist and specialist": [(special[0], special[1])],
        "untrained and untrained": [(raw[0], raw[1])],
    }
    alignment = {name: fmean(kernel_alignment(a, b, k=10)["knn"] for a, b in some) for name, some in pairs.items()}
    matched = {}
    for kind, found in features.items():
        means = [torch.stack([one[test_y == c].mean(0) for c in range(10)]) for one in found]
        means = [m - m.mean(0) for m in means]
        kernels = [(m @ m.mT / m.norm() ** 2).numpy() for m in means]
        shuffle = np.random.default_rng(seed).permutation(10)
        order = match_kernels(kernels[0], kernels[1][np.ix_(shuffle, shuffle)], starts=config.starts, seed=seed)
        matched[kind] = float((shuffle[order] == np.arange(10)).mean())
    return {"alignment": alignment, "matched": matched}


def means_of(cells: Sequence[dict[str, Any]], key: str, row: int) -> list[float]:
    """`key` of one row of the tables of all cells."""
    return [float(cell["rows"][row][key]) for cell in cells]


STUDY = Study(
    name="platonic-implications",
    title="Translation without pairs, joint training, conditions, and exceptions",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=Config,
    run=run,
    expectations=(TRANSLATION, JOINT, CONDITIONAL, SPECIALIST, PRIVATE),
)
