"""Three causes of convergence, each turned up alone: more tasks, more capacity, a stronger pull to simple solutions.

Claims (arXiv 2405.07987, section 3): independently trained networks align more if they solve more tasks, if they are
larger, and if they are biased towards simple functions. Pairs of small networks on the scikit-learn digits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from unrolled.report import Report

Sweep = Literal["tasks", "width", "weight decay", "initial scale"]


def _trend(statement: str, section: str) -> Expectation:
    return Expectation(
        statement=f"{statement} (rank correlation of mutual 10-NN with the level, over pairs of networks)",
        source=f"arXiv 2405.07987, section {section}",
        published="stated, no number",
        low=0.5,
    )


TRENDS: dict[Sweep, Expectation] = {
    "tasks": _trend("More tasks, more alignment", "3.1, multitask scaling hypothesis"),
    "width": _trend("More capacity, more alignment", "3.2, capacity hypothesis"),
    "weight decay": _trend("More weight decay, more alignment", "3.3, simplicity bias hypothesis"),
    "initial scale": _trend("Smaller initial weights, more alignment", "3.3, simplicity bias hypothesis"),
}
_PENALTY = 1e-4


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change the number of levels, pairs and steps."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "pairs": 3, "steps": 150, "tasks": (1, 4, 16), "widths": (8, 32), "decays": (0.0, 3e-3),
            "scales": (0.3, 3.0), "default_width": 32,
        },
        "cpu": {},
        "gpu": {"pairs": 16, "steps": 2000, "widths": (4, 8, 16, 32, 64, 128, 256), "device": "cuda"},
    }  # fmt: skip

    pairs: int = 5
    """Pairs of networks at each level; no network is in two pairs."""
    steps: int = 300
    """Training steps, each on all 1,198 training images."""
    learning_rate: float = 3e-3
    """Of Adam; falls as a cosine to zero."""
    default_width: int = 64
    """Width of both hidden layers where width is not what changes."""
    tasks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of tasks: each halves the ten classes at random. The networks of a pair have different tasks."""
    widths: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """Widths of both hidden layers."""
    decays: tuple[float, ...] = (0.0, 1e-4, 3e-4, 1e-3, 3e-3)
    """Weights of half the squared norm of all weights, added to the loss; 1e-4 where it is not what changes."""
    scales: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """Initial weights as a multiple of He's. These networks have no weight decay, which would undo the difference."""
    neighbours: int = 10
    """k of mutual nearest neighbours."""
    seed: int = 0
    """Of weights, tasks and random labels."""
    device: str = "cpu"
    """Where to train."""
    out: Path = Path("runs/platonic-causes")
    """Where the report and the kept cells go."""

    def __post_init__(self) -> None:
        if min(self.pairs, self.steps, self.default_width, self.neighbours) < 1 or not self.learning_rate > 0:
            raise ValueError("pairs, steps, default_width, neighbours and learning_rate must be positive")
        for name in ("tasks", "widths", "decays", "scales"):
            levels = getattr(self, name)
            if len(levels) < 2 or list(levels) != sorted(set(levels)) or levels[0] < (0 if name == "decays" else 1e-9):
                raise ValueError(f"{name} must name at least two levels, rising, none negative")


def levels(config: Config) -> dict[Sweep, tuple[float, ...]]:
    """The levels of every sweep, weakest first: initial scale counts down."""
    return {
        "tasks": config.tasks,
        "width": config.widths,
        "weight decay": config.decays,
        "initial scale": config.scales[::-1],
    }


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train every pair with true and with random labels; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text per level.
    """
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    keys = ("pairs", "steps", "learning_rate", "default_width", "neighbours", "seed", "device")
    settings = {key: getattr(config, key) for key in keys}
    cells = []
    for sweep, values in levels(config).items():
        for labels in ("true", "random"):
            for level in values:
                name = f"{sweep}-{level:g}-{labels}".replace(" ", "-")
                compute = partial(_level, config, sweep, level, labels)
                cells.append(remembered(config.out / "cells", name, settings, compute))
                if on_progress is not None:
                    on_progress(f"{name}: {fmean(cells[-1]['knn']):.3f}, {cells[-1]['seconds']:.0f} s")
    report = _report(config, cells, began)
    report.write(config.out)
    return report


class Perceptrons(nn.Module):
    """Networks of two hidden layers side by side, each with a seed of its own.

    Args:
        inputs, width, outputs: of every network.
        seeds: one a network; a network does not depend on the others.
        scale: of initial weights, as a multiple of He's.
    """

    def __init__(self, *, inputs: int, width: int, outputs: int, seeds: Sequence[int], scale: float) -> None:
        super().__init__()
        shapes = ((inputs, width), (width, width), (width, outputs))
        drawn: list[list[Tensor]] = [[] for _ in shapes]
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for column, shape in zip(drawn, shapes, strict=True):
                column.append(torch.randn(shape, generator=generator) * scale * math.sqrt(2 / shape[0]))
        self.weights = nn.ParameterList([nn.Parameter(torch.stack(column)) for column in drawn])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(len(seeds), 1, shape[1])) for shape in shapes])

    def features(self, x: Tensor) -> Tensor:
        """The second hidden layer of every network for x [n, inputs], [networks, n, width]."""
        first = F.relu(x @ self.weights[0] + self.biases[0])
        return F.relu(first @ self.weights[1] + self.biases[1])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of every network, [networks, n, outputs]."""
        return self.features(x) @ self.weights[2] + self.biases[2]


@cache
def digits_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [n, 64] in [-1, 1] and classes of the digits: two thirds to learn, one third held out, always the same."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.as_tensor(found.data, dtype=torch.float32) / 8 - 1
    y = torch.as_tensor(found.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    held_out = len(x) // 3
    return x[order[held_out:]], y[order[held_out:]], x[order[:held_out]], y[order[:held_out]]


def halvings(count: int, seed: int) -> Tensor:
    """[10, count] of 0 and 1: tasks that each put five of the ten classes against the other five."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(10, generator=generator) for _ in range(count)], 1)
    return (order < 5).float()


def _level(config: Config, sweep: Sweep, level: float, labels: str) -> dict[str, Any]:
    """All pairs at one level: alignment before and after training, and accuracies."""
    from unrolled.studies.training import train_kept, warmup_cosine

    began = time.perf_counter()
    fit_x, fit_y, test_x, test_y = (part.to(config.device) for part in digits_split())
    count = 2 * config.pairs
    seeds = [1000 * config.seed + i for i in range(count)]
    fit_labels = fit_y.expand(count, -1)
    if labels == "random":  # every network has labels of its own: there is no common world behind them
        drawn = [torch.randint(10, fit_y.shape, generator=torch.Generator().manual_seed(7919 + s)) for s in seeds]
        fit_labels = torch.stack(drawn).to(config.device)
    tasks = None
    if sweep == "tasks":
        tasks = torch.stack([halvings(int(level), 104_729 + seed) for seed in seeds]).to(config.device)
    width = int(level) if sweep == "width" else config.default_width
    penalty = {"weight decay": level, "initial scale": 0.0}.get(sweep, _PENALTY)
    nets = Perceptrons(
        inputs=fit_x.shape[1], width=width, outputs=10 if tasks is None else tasks.shape[-1], seeds=seeds,
        scale=level if sweep == "initial scale" else 1.0,
    ).to(config.device)  # fmt: skip
    untrained = _pair_alignment(nets, test_x, config.neighbours)
    wanted = None if tasks is None else torch.stack([t[y] for t, y in zip(tasks, fit_labels, strict=True)])

    def loss_at(step: int) -> Tensor:
        out = nets(fit_x)
        if wanted is not None:
            loss = F.binary_cross_entropy_with_logits(out, wanted) * count
        else:
            loss = F.cross_entropy(out.flatten(0, 1), fit_labels.flatten()) * count
        return loss + 0.5 * penalty * torch.stack([w.square().sum() for w in nets.weights]).sum()

    optimizer = torch.optim.Adam(nets.parameters(), lr=config.learning_rate)
    rate = warmup_cosine(config.learning_rate, warmup=0, steps=config.steps)
    train_kept(nets, optimizer, loss_at, steps=config.steps, rate=rate)
    with torch.no_grad():
        fitted, right = nets(fit_x), nets(test_x)
        if wanted is not None and tasks is not None:
            truth = torch.stack([task[test_y] for task in tasks])
            accuracies = [
                ((out > 0) == (goal > 0.5)).float().mean((1, 2)) for out, goal in ((fitted, wanted), (right, truth))
            ]
        else:
            accuracies = [
                (fitted.argmax(-1) == fit_labels).float().mean(1),
                (right.argmax(-1) == test_y).float().mean(1),
            ]
    return {
        "sweep": sweep, "level": level, "labels": labels, **_pair_alignment(nets, test_x, config.neighbours),
        "untrained": untrained["knn"], "fit": accuracies[0].tolist(), "accuracy": accuracies[1].tolist(),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def _pair_alignment(nets: Perceptrons, x: Tensor, k: int) -> dict[str, list[float]]:
    """Alignment of networks 0 and 1, 2 and 3, ... on x."""
    from unrolled.studies.platonic_toy import kernel_alignment

    with torch.no_grad():
        features = nets.features(x).double()
    found = [kernel_alignment(features[i], features[i + 1], k=k) for i in range(0, len(features), 2)]
    return {key: [one[key] for one in found] for key in ("knn", "cka")}


def trend(cells: Sequence[dict[str, Any]], key: str, *, draws: int = 2000) -> tuple[float, float]:
    """Spearman's correlation of `key` with the place of a cell in `cells`, over pairs, and its one-sided p.

    The p-value is the share of random assignments of pairs to levels with at least this correlation.
    """
    import numpy as np

    from unrolled.studies.platonic.human import unit_ranks

    places = unit_ranks(np.array([i for i, cell in enumerate(cells) for _ in cell[key]], dtype=float))
    values = unit_ranks(np.array([value for cell in cells for value in cell[key]]))
    rho = float(places @ values)
    generator = np.random.default_rng(0)
    null = [float(generator.permutation(places) @ values) for _ in range(draws)]
    return rho, (1 + sum(value >= rho - 1e-12 for value in null)) / (draws + 1)


def _gain(cells: Sequence[dict[str, Any]], sweep: str, labels: str) -> float:
    """Mean alignment at the strongest level less that at the weakest."""
    of = [cell for cell in cells if cell["sweep"] == sweep and cell["labels"] == labels]
    return fmean(of[-1]["knn"]) - fmean(of[0]["knn"])


def _report(config: Config, cells: list[dict[str, Any]], began: float) -> Report:
    from unrolled.report import Fact, LineChart, Provenance, Report, Series, mean_std

    report = Report(
        "Three causes of convergence",
        question="Do more tasks, more capacity and a pull to simplicity each make independent networks more alike?",
    )
    trends: dict[str, dict[str, tuple[float, float]]] = {}
    rows, panels = [], []
    for sweep, expectation in TRENDS.items():
        of = {
            labels: [c for c in cells if c["sweep"] == sweep and c["labels"] == labels] for labels in ("true", "random")
        }
        found = {
            "true": trend(of["true"], "knn"),
            "random": trend(of["random"], "knn"),
            "untrained": trend(of["true"], "untrained"),
            "true, CKA": trend(of["true"], "cka"),
        }
        trends[sweep] = found
        rho, p = found["true"]
        said = (
            f"{rho:+.2f} (p {p:.4f}); random labels {found['random'][0]:+.2f}, untrained {found['untrained'][0]:+.2f}"
        )
        claim = expectation.judge(rho, said)
        alone = [name for name in ("random", "untrained") if found[name][1] <= 0.05 and found[name][0] > 0]
        if alone:  # it rises, but not because of what was learnt: that neither confirms nor contradicts the claim
            named = " and ".join("random labels" if name == "random" else "untrained" for name in alone)
            claim = replace(claim, reproduced=None, measured=f"{said}: rises with {named} too, so not judged")
        report.claims.append(claim)
        rows += [
            [
                sweep, f"{c['level']:g}", labels, *(mean_std(c[key], digits=3) for key in ("knn", "untrained", "cka")),
                *(mean_std(c[key], scale=100, digits=1) for key in ("fit", "accuracy")),
            ]
            for labels in ("true", "random")
            for c in of[labels]
        ]  # fmt: skip
        named = ", ".join(f"{c['level']:g}" for c in of["true"])
        steps = list(range(1, len(of["true"]) + 1))

        def line(label: str, group: list[dict[str, Any]], key: str, color: int, x: list[int] = steps) -> Series:
            error = [stdev(c[key]) for c in group] if config.pairs > 1 else None
            return Series(
                label=label, x=x, y=[fmean(c[key]) for c in group], error=error, color=color, dashed=color > 0
            )

        panels.append(
            LineChart(
                title=f"mutual {config.neighbours}-NN by {sweep}",
                x_label=f"level: {named}",
                series=[
                    line("trained", of["true"], "knn", 0),
                    line("random labels", of["random"], "knn", 1),
                    line("untrained", of["true"], "untrained", 2),
                ],
                y_range=(0.0, 1.0),
            )
        )
    risen = [
        f"{sweep} (by {_gain(cells, sweep, 'true'):+.2f} from weakest to strongest level; "
        f"{_gain(cells, sweep, 'random'):+.2f} with random labels)"
        for sweep, found in trends.items()
        if found["true"][0] >= 0.5
    ]
    report.headline(
        f"Alignment rises with {'; '.join(risen) or 'none of the four'}.",
        [
            Fact(label=sweep.capitalize(), value=f"{found['true'][0]:+.2f}", detail=f"p {found['true'][1]:.4f}")
            for sweep, found in trends.items()
        ],
    )
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
    report.section("Trends").table(
        ["what rises", "true labels", "p", "CKA, true labels", "random labels", "p", "untrained", "p"],
        [
            [
                sweep, f"{f['true'][0]:+.2f}", f"{f['true'][1]:.4f}", f"{f['true, CKA'][0]:+.2f}",
                f"{f['random'][0]:+.2f}", f"{f['random'][1]:.4f}", f"{f['untrained'][0]:+.2f}",
                f"{f['untrained'][1]:.4f}",
            ]
            for sweep, f in trends.items()
        ],
        caption="Spearman's correlation of alignment with the level over all pairs; one-sided p from 2,000 "
        "permutations. Mutual nearest neighbours except where CKA is named.",
    )  # fmt: skip
    report.section("Every level").table(
        ["what", "level", "labels", f"mutual {config.neighbours}-NN", "untrained", "CKA", "fitted %", "held-out %"],
        rows,
        caption=f"Mean and standard deviation over {config.pairs} pairs (accuracies: {2 * config.pairs} networks).",
    )
    report.section(
        "What this does not show",
        "Small networks, one easy data set, one kind of architecture. Capacity and simplicity are turned through "
        "width, weight decay and initial scale alone; rank is not penalised directly. Networks that fit better are "
        "also more alike: where accuracy moves with the level, it is part of the cause.",
    )
    report.results = {"cells": cells, "trends": trends}
    report.provenance = Provenance.collect(config=config, seeds=[config.seed], duration=time.perf_counter() - began)
    return report


STUDY = Study(
    name="platonic-causes",
    title="More tasks, more capacity, more simplicity: three causes of convergence, one at a time",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=Config,
    run=run,
    expectations=tuple(TRENDS.values()),
)
