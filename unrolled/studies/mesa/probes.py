"""Do layers hold the next state and the preconditioned input? Probes by depth and position, scored on other sequences.

arXiv 2309.05858 fits and scores its probes on the same 256 sequences; that protocol stands here beside held-out scores,
shuffled targets and the untrained model, so that what a probe can memorise is seen apart from what a layer holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report

_FIGURE = "arXiv 2309.05858, figures 4 and 6, and its released results"
TARGET = Expectation(
    statement="Next state, softmax stack, t = 29: held-out R^2 of the last layer",
    source=_FIGURE,
    published="error 1.61 to 0.012 (7 layers)",
    low=0.8,
)
TARGET_LINEAR = Expectation(
    statement="Next state, linear stack, t = 29: held-out R^2 of the last layer",
    source=_FIGURE,
    published="error 1.53 to 0.009 (6 layers)",
    low=0.8,
)
MONOTONE = Expectation(
    statement="Next state: smallest gain of held-out R^2 from one layer to the next, both stacks, t = 29",
    source=_FIGURE,
    published="error falls at every layer",
    low=-0.01,
)
PRECONDITIONED = Expectation(
    statement="Preconditioned input, t = 29: held-out error of the best layer over that of the tokens entering the "
    "first, worse of the two stacks",
    source=_FIGURE,
    published="0.06 (linear), 0.34 (softmax)",
    high=0.7,
)
OPTIMISM = Expectation(
    statement="Next state at the input, t = 29: held-out error over that of the paper's protocol",
    source="the paper does not report it",
    published="not reported",
)
PUBLISHED = {
    "softmax": "1.61 -> .012 (7 layers)",
    "linear": "1.53, .53, .31, .10, .048, .030, .009 (6 layers)",
}
TARGETS = {
    "next": "next state",
    "exact": "preconditioned input, exact",
    "chebyshev": "preconditioned input, 6 Chebyshev steps",
}
POSITION = 29


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change the effort of the trainings, which four studies share, and the numbers of seeds and sequences."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"effort": "quick", "seeds": (0,), "sequences": 512, "positions": (4, 14, 29, 49), "workers": 1},
        "cpu": {},
        "gpu": {"effort": "gpu", "seeds": (0, 1, 2, 3, 4), "device": "cuda", "workers": 1},
    }

    seeds: tuple[int, ...] = (0, 1)
    """One model of each kind for each; trained here unless another study has trained it."""
    effort: str = "cpu"
    """Depth, steps and rate of the trainings: quick, cpu or gpu, which is the paper's."""
    steps: int | None = None
    """Training steps, instead of the effort's."""
    batch_size: int | None = None
    """Sequences per step, instead of the effort's."""
    sequences: int = 2048
    """Sequences for the probes; a quarter of them scores."""
    paper_sequences: int = 256
    """Sequences of the paper's protocol, which fits and scores on all of them."""
    positions: tuple[int, ...] = (1, 3, 5, 7, 9, 11, 14, 19, 24, 29, 34, 39, 44, 49)
    """Of the probed tokens, counted from 0; 29, the paper's, is always among them."""
    iterations: int = 6
    """Chebyshev steps; the paper's 6."""
    workers: int = 2
    """Trainings at a time, one thread each."""
    device: str = "cpu"
    """Where to train."""
    models: Path = Path("runs/mesa-models")
    """Trained models, shared with the other studies of them."""
    out: Path = Path("runs/mesa-probes")
    """Where the report goes, and the cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if self.effort not in ("quick", "cpu", "gpu"):
            raise ValueError(f"effort={self.effort!r}: choose quick, cpu or gpu")
        if min(self.iterations, self.workers, self.steps or 1, self.batch_size or 1) < 1:
            raise ValueError("iterations, workers, steps and batch_size must be at least 1")
        if min(self.sequences, self.paper_sequences) < 8:
            raise ValueError("sequences and paper_sequences must be at least 8")
        if any(not 0 <= position < 50 for position in self.positions):
            raise ValueError("positions must lie between 0 and 49")
        self.positions = tuple(sorted({*self.positions, POSITION}))


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train what is not yet trained, probe it; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text when each model is trained, and when it is probed.
    """
    from unrolled.studies.mesa_models import recipe, train_all
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    recipes = {
        kind: recipe(kind, "full", config.effort, steps=config.steps, batch_size=config.batch_size)
        for kind in ("softmax", "linear")
    }
    jobs = [(each, seed) for seed in config.seeds for each in recipes.values()]
    train_all(jobs, folder=config.models, device=config.device, workers=config.workers, on_progress=on_progress)
    names = ("sequences", "paper_sequences", "positions", "iterations", "device")
    shared = {name: getattr(config, name) for name in names}
    cells: dict[str, list[dict[str, Any]]] = {kind: [] for kind in recipes}
    for each, seed in jobs:

        def compute(each: Any = each, seed: int = seed) -> dict[str, Any]:
            return run_one(config, each, seed)

        cell = remembered(config.out / "cells", each.file(seed).removesuffix(".pt"), shared, compute)
        cells[each.kind].append(cell)
        if on_progress is not None:
            last = _at(cell["held_out"]["next"], cell["layers"][-1])
            on_progress(f"{each.label}, seed {seed}: R^2 of the next state {last['score']:.3f} after the last layer")
    report = _report(config, cells, began)
    report.write(config.out)
    return report


def preconditioned(states: Tensor, ridge: float) -> Tensor:
    """(S_{t-1} S_{t-1}^T + ridge I)^-1 s_t by exact solves, [b, t, d].

    Args:
        states: [b, t, d].
        ridge: 1 / lambda > 0.
    """
    import torch

    outer = states[..., :, None] * states[..., None, :]
    before = outer.cumsum(1) - outer
    identity = torch.eye(states.shape[-1], dtype=states.dtype, device=states.device)
    solved: Tensor = torch.linalg.solve(before + ridge * identity, states[..., None])
    return solved[..., 0]


def best_interval(iterations: int) -> tuple[float, float]:
    """Ridge and largest eigenvalue with which Proposition 2's prediction is best, on sequences of its own."""
    from unrolled.studies.mesa_regression import steps_predictions
    from unrolled.studies.mesa_train import TUNE_SEED, position_losses
    from unrolled.tasks import LinearDynamics

    inputs, targets, _ = LinearDynamics().sample(256, seed=TUNE_SEED)
    grid = [(ridge, largest) for ridge in (0.3, 1.0, 3.0, 6.0, 10.0) for largest in (60.0, 80.0, 120.0, 170.0, 240.0)]

    def score(setting: tuple[float, float]) -> float:
        value = position_losses(lambda x: steps_predictions(x, x, *setting, iterations), inputs, targets).mean()
        return float(value.nan_to_num(float("inf")))

    return min(grid, key=score)


def run_one(config: Config, recipe: Any, seed: int) -> dict[str, Any]:
    """Probes of one trained model and of the same with its initial weights."""
    from unrolled.instruments import probe_model
    from unrolled.studies.mesa_models import tokens_of, trained, untrained, world_of
    from unrolled.studies.mesa_train import TEST_SEED
    from unrolled.theory.in_context import chebyshev_inputs

    ridge, largest = best_interval(config.iterations)
    states, following, _ = world_of(recipe).sample(max(config.sequences, config.paper_sequences), seed=TEST_SEED)
    wide = states.double()
    wanted = {
        "next": following,
        "exact": preconditioned(wide, ridge),
        "chebyshev": chebyshev_inputs(wide, ridge, config.iterations, largest)[-1],
    }
    model, log = trained(recipe, seed=seed, folder=config.models, device=config.device)
    models = {"trained": model.cpu(), "untrained": untrained(recipe, seed)}

    def probes(which: str, name: str, count: int, **options: Any) -> list[dict[str, Any]]:
        inputs, target = tokens_of(recipe, states[:count]), wanted[name][:count]
        keys = ("layer", "position", "score", "error", "baseline", "control")
        found = probe_model(models[which], inputs, target, batch_size=512, **options)
        return [{key: record[key] for key in keys} for record in found]

    held_out = {name: probes("trained", name, config.sequences, positions=config.positions) for name in TARGETS}
    return {
        "kind": recipe.kind,
        "label": recipe.label,
        "seed": seed,
        "extent": recipe.extent,
        "loss": log[-1]["loss"],
        "ridge": ridge,
        "layers": list(dict.fromkeys(record["layer"] for record in held_out["next"])),
        "held_out": held_out,
        "untrained": {name: probes("untrained", name, config.sequences, positions=[POSITION]) for name in TARGETS},
        "paper": {
            name: probes("trained", name, config.paper_sequences, positions=[POSITION], protocol="paper")
            for name in TARGETS
        },
    }


def _at(records: list[dict[str, Any]], layer: str, position: int = POSITION) -> dict[str, Any]:
    return next(r for r in records if r["layer"] == layer and r["position"] == position)


def _column(cell: dict[str, Any], group: str, name: str, key: str) -> list[float]:
    """One number a layer at the paper's position."""
    return [_at(cell[group][name], layer)[key] for layer in cell["layers"]]


def _claims(cells: dict[str, list[dict[str, Any]]]) -> list[Any]:
    from unrolled.report import mean_std

    claims = []
    for claim, kind in ((TARGET, "softmax"), (TARGET_LINEAR, "linear")):
        scores = [_column(cell, "held_out", "next", "score")[-1] for cell in cells[kind]]
        claims.append(claim.judge(fmean(scores), f"{mean_std(scores, digits=3)} after {cells[kind][0]['label']}"))
    everything = [cell for done in cells.values() for cell in done]
    gains = []
    for cell in everything:
        scores = _column(cell, "held_out", "next", "score")
        gains.append(min(after - before for before, after in pairwise(scores)))
    claims.append(MONOTONE.judge(min(gains), f"{min(gains):.3f}"))
    ratios = {}
    for kind, done in cells.items():
        errors = [_column(cell, "held_out", "exact", "error") for cell in done]
        ratios[kind] = fmean(min(line[1:]) / line[0] for line in errors)
    claims.append(PRECONDITIONED.judge(max(ratios.values()), ", ".join(f"{k} {v:.2f}" for k, v in ratios.items())))
    optimism = [
        _column(cell, "held_out", "next", "error")[0] / _column(cell, "paper", "next", "error")[0]
        for cell in everything
    ]
    claims.append(OPTIMISM.judge(fmean(optimism), f"{fmean(optimism):.2f}"))
    return claims


def _report(config: Config, cells: dict[str, list[dict[str, Any]]], began: float) -> Report:
    from unrolled.report import Fact, Provenance, Report, mean_std

    report = Report(
        "What each layer holds",
        question="Can the next state, and the input preconditioned by the context, be read off the layers of trained "
        "stacks, on sequences that the probes have not seen?",
    )
    report.claims = _claims(cells)
    facts = []
    for done in cells.values():
        first, last = ([_column(c, "held_out", "next", "score")[at] for c in done] for at in (0, -1))
        facts.append(
            Fact(
                label=f"{done[0]['label']}: R^2 of the next state",
                value=f"{mean_std(first, digits=2)} to {mean_std(last, digits=3)}",
                detail=f"input to last layer, t = {POSITION}, held out; {done[0]['extent']}",
            )
        )
    softmax = cells["softmax"]
    exact = [_column(cell, "held_out", "exact", "score") for cell in softmax]
    report.headline(
        f"In {softmax[0]['label']} the held-out R^2 of the next state goes from {facts[0].value}; that of the "
        f"preconditioned input is {fmean(line[0] for line in exact):.2f} at the input and "
        f"{fmean(max(line[1:]) for line in exact):.2f} in the best layer.",
        facts,
    )
    for kind, done in cells.items():
        _section(report, config, kind, done)
    report.section(
        "What this does not show",
        "That a quantity can be read off a layer does not mean that later layers use it. A part of the preconditioned "
        "input is a multiple of the input, which is why the tokens entering layer 1 already yield some of it. Errors "
        "fall with context also because the preconditioned input shrinks; R^2 does not have that confound. The "
        "published models are deeper and were trained longer.",
    )
    report.results = {"models": cells}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _section(report: Report, config: Config, kind: str, done: list[dict[str, Any]]) -> None:
    import numpy as np

    from unrolled.report import HeatMap, LineChart, Series, mean_std

    layers = done[0]["layers"]
    names = ["input", *(f"layer {place}" for place in range(1, len(layers)))]
    read = "constructed tokens" if kind == "linear" else "embedded observations"

    def over(group: str, name: str, key: str, place: int, scale: float = 1.0, digits: int = 3) -> str:
        return mean_std([_column(cell, group, name, key)[place] for cell in done], scale=scale, digits=digits)

    # half the sum over ten coordinates, the scale of the published errors
    rows = [
        [
            layer,
            TARGETS[name],
            over("held_out", name, "score", place),
            over("held_out", name, "control", place),
            over("untrained", name, "score", place),
            over("held_out", name, "error", place, 5.0, 4),
            over("paper", name, "error", place, 5.0, 4),
        ]
        for name in TARGETS
        for place, layer in enumerate(names)
    ]
    seeds = f"{len(done)} seeds" if len(done) > 1 else "1 seed"
    section = report.section(
        f"{done[0]['label']}",
        f"On {read}; {done[0]['extent']}. Published errors of the next state: {PUBLISHED[kind]}. The preconditioned "
        f"input is (S S^T + {done[0]['ridge']:g})^-1 s over the earlier states; its ridge is the one with which "
        f"{config.iterations} Chebyshev steps predict best on other sequences. The scale of the published errors of "
        "the preconditioned input is not known, so only their ratios compare.",
    )
    section.table(
        [
            "tokens",
            "probed for",
            "R^2, held out",
            "shuffled",
            "untrained",
            "error, held out",
            "error, paper's protocol",
        ],
        rows,
        caption=f"t = {POSITION}, counted from 0; {seeds}. Held out: {config.sequences} sequences, three quarters fit. "
        f"Paper's protocol: fitted and scored on the same {config.paper_sequences}. Errors are half the squared error "
        "summed over ten coordinates.",
    )
    maps = []
    for name in ("next", "exact"):
        values = [
            [
                fmean(_at(cell["held_out"][name], layer, position)["score"] for cell in done)
                for position in config.positions
            ]
            for layer in layers
        ]
        maps.append(
            HeatMap(
                title=f"{TARGETS[name]}: held-out R^2",
                values=np.clip(np.array(values), 0, 1),
                rows=names,
                columns=[str(position) for position in config.positions],
                column_label="position, from 0",
            )
        )
    section.figure(
        maps, name=f"{kind}-maps", caption=f"Mean over {seeds}. Values below 0, where a probe only overfits, show as 0."
    )
    series: list[Series] = []
    for name in ("next", "exact"):
        line = [fmean(_column(cell, "held_out", name, "score")[place] for cell in done) for place in range(len(layers))]
        flat = [
            fmean(_column(cell, "untrained", name, "score")[place] for cell in done) for place in range(len(layers))
        ]
        color = len(series) // 2
        series.append(Series(label=TARGETS[name].split(",")[0], x=range(len(layers)), y=line, color=color))
        series.append(Series(label="untrained", x=range(len(layers)), y=flat, color=color, dashed=True))
    section.figure(
        LineChart(title=f"held-out R^2 at t = {POSITION}", x_label="layers passed", series=series),
        name=f"{kind}-depth",
        caption=f"Mean over {seeds}; dashed, the same model with its initial weights.",
    )


STUDY = Study(
    name="mesa-probes",
    title="Next states and preconditioned inputs in the layers of trained stacks, held out",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=Config,
    run=run,
    expectations=(TARGET, TARGET_LINEAR, MONOTONE, PRECONDITIONED, OPTIMISM),
)
