"""Does the first layer join each token with the ones before it? Probes, attention maps, and sensitivity in training.

Least squares on raw observations needs pairs of neighbours in one token (arXiv 2309.05858, figures 2, 14 to 17 and 21
to 23). Probes are scored on other sequences than they were fitted on, beside shuffled targets and the untrained layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from unrolled.report import Claim, Report

_RELEASED = "released results of arXiv 2309.05858"
SOFTMAX = Expectation(
    statement="Fully observed, softmax: error of the previous token over that of its mean, after layer 1",
    source=_RELEASED,
    published="0.0004 / 0.26 = 0.002",
    high=0.1,
)
SOFTMAX_TWO = Expectation(
    statement="Fully observed, softmax: the same of the token two back, which a pair does not need",
    source=_RELEASED,
    published="0.151 / 0.26 = 0.58",
    low=0.3,
)
HYBRID = Expectation(
    statement="Fully observed, hybrid: error of the previous token over that of its mean, after layer 1",
    source=_RELEASED,
    published="0.005 / 0.26 = 0.02",
    high=0.1,
)
MESA = Expectation(
    statement="Fully observed, all mesa: error of the previous token over that of its mean, after layer 1",
    source=_RELEASED,
    published="0.21 / 0.26 = 0.8 (weak)",
    low=0.5,
)
PARTIAL_SOFTMAX = Expectation(
    statement="Partially observed, softmax: the same of the token three back",
    source=_RELEASED,
    published="error 0.026",
    high=0.2,
)
PARTIAL_HYBRID = Expectation(
    statement="Partially observed, hybrid: the same of the token four back",
    source=_RELEASED,
    published="error 0.046",
    high=0.2,
)
_CLAIMS: tuple[tuple[Expectation, str, str, int], ...] = (
    (SOFTMAX, "full", "softmax", 1),
    (SOFTMAX_TWO, "full", "softmax", 2),
    (HYBRID, "full", "hybrid", 1),
    (MESA, "full", "mesa", 1),
    (PARTIAL_SOFTMAX, "partial", "softmax", 3),
    (PARTIAL_HYBRID, "partial", "hybrid", 4),
)
PUBLISHED = {
    ("full", "softmax", 1): "0.0004",
    ("full", "softmax", 2): "0.151",
    ("full", "hybrid", 1): "0.005",
    ("full", "hybrid", 2): "0.11",
    ("full", "mesa", 1): "0.21",
    ("partial", "softmax", 3): "0.026",
    ("partial", "hybrid", 4): "0.046",
}
TITLES = {"full": "Fully observed", "partial": "Partially observed", "nonlinear": "Nonlinear teacher"}


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change the effort of the trainings, which four studies share, and the numbers of seeds and sequences."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"effort": "quick", "seeds": (0,), "sequences": 256, "workers": 1},
        "cpu": {},
        "gpu": {"effort": "gpu", "seeds": (0, 1, 2, 3, 4), "one_seed": (), "device": "cuda", "workers": 1},
    }

    kinds: tuple[str, ...] = ("softmax", "hybrid", "mesa")
    """Stacks to look into."""
    worlds: tuple[str, ...] = ("full", "partial")
    """Where: full, partial or nonlinear."""
    seeds: tuple[int, ...] = (0, 1)
    """One model of each kind and world for each; trained here unless another study has trained it."""
    one_seed: tuple[str, ...] = ("partial", "nonlinear")
    """Worlds that get the first seed alone, for longer trainings in the same time."""
    effort: str = "cpu"
    """Depth, steps and rate of the trainings: quick, cpu or gpu, which is the paper's."""
    steps: int | None = None
    """Training steps, instead of the effort's."""
    batch_size: int | None = None
    """Sequences per step, instead of the effort's."""
    sequences: int = 2048
    """Sequences for probes and maps; a quarter of them scores the probes."""
    workers: int = 2
    """Trainings at a time, one thread each."""
    device: str = "cpu"
    """Where to train."""
    models: Path = Path("runs/mesa-models")
    """Trained models, shared with the other studies of them."""
    out: Path = Path("runs/mesa-binding")
    """Where the report goes, and the cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if not self.kinds or set(self.kinds) - {"softmax", "hybrid", "mesa"}:
            raise ValueError(f"kinds={self.kinds}: choose from softmax, hybrid, mesa")
        if not self.worlds or set(self.worlds) - set(TITLES):
            raise ValueError(f"worlds={self.worlds}: choose from {', '.join(TITLES)}")
        if self.effort not in ("quick", "cpu", "gpu"):
            raise ValueError(f"effort={self.effort!r}: choose quick, cpu or gpu")
        if min(self.workers, self.steps or 1, self.batch_size or 1) < 1 or self.sequences < 16:
            raise ValueError("workers, steps and batch_size must be at least 1, and sequences at least 16")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train what is not yet trained, look into its first layer; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text when each model is trained, and when it has been looked into.
    """
    from unrolled.studies.mesa_models import recipe, train_all
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    recipes = [
        recipe(kind, world, config.effort, steps=config.steps, batch_size=config.batch_size)
        for world in config.worlds
        for kind in config.kinds
    ]
    jobs = [(each, seed) for each in recipes for seed in seeds_of(config, each.world)]
    train_all(jobs, folder=config.models, device=config.device, workers=config.workers, on_progress=on_progress)
    shared = {"sequences": config.sequences, "device": config.device}
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each, seed in jobs:

        def compute(each: Any = each, seed: int = seed) -> dict[str, Any]:
            return run_one(config, each, seed)

        cell = remembered(config.out / "cells", each.file(seed).removesuffix(".pt"), shared, compute)
        cells.setdefault((each.world, each.kind), []).append(cell)
        if on_progress is not None:
            on_progress(
                f"{each.world}, {each.label}, seed {seed}: R^2 of the previous token "
                f"{cell['trained'][1]['score']:.3f} after layer 1"
            )
    report = _report(config, cells, began)
    report.write(config.out)
    return report


def seeds_of(config: Config, world: str) -> tuple[int, ...]:
    """The seeds that a world gets."""
    return config.seeds[:1] if world in config.one_seed else config.seeds


def run_one(config: Config, recipe: Any, seed: int) -> dict[str, Any]:
    """The first layer of one trained model, and of the same with its initial weights."""
    from unrolled.instruments import token_binding
    from unrolled.studies.mesa_models import LAGS, trained, untrained, world_of
    from unrolled.studies.mesa_train import TEST_SEED

    model, log = trained(recipe, seed=seed, folder=config.models, device=config.device)
    model = model.cpu()
    inputs = world_of(recipe).sample(config.sequences, seed=TEST_SEED).inputs
    softmax = recipe.layers[0] == "softmax"
    found = {
        which: token_binding(each, inputs, lags=LAGS, batch_size=512)
        for which, each in (("trained", model), ("untrained", untrained(recipe, seed)))
    }
    keys = ("lag", "score", "error", "baseline", "control", "before", "sensitivity")
    return {
        "label": recipe.label,
        "seed": seed,
        "extent": recipe.extent,
        "loss": log[-1]["loss"],
        **{which: [{key: record[key] for key in keys} for record in records] for which, records in found.items()},
        "attention": attention_maps(model, inputs) if softmax else None,
        "training": [{key: entry[key] for key in ("step", "loss", "binding", "sensitivity")} for entry in log],
    }


def attention_maps(model: Any, inputs: Any) -> list[list[list[float]]]:
    """Attention weights of the first layer, mean over sequences, [heads, t, t] rounded to four digits."""
    import torch

    from unrolled.instruments.trace import trace

    sums: list[Any] = []
    parts = inputs.split(256)
    with (
        torch.no_grad(),
        trace(model, patterns="block00/attention", attention=True, reduce=lambda _, w: sums.append(w.sum(0))),
    ):
        for part in parts:
            model(part)
    mean = torch.stack(sums).sum(0) / len(inputs)
    maps: list[list[list[float]]] = (mean * 1e4).round().div(1e4).double().tolist()
    return maps


Cells = Mapping[tuple[str, str], list[dict[str, Any]]]


def _ratio(cell: dict[str, Any], lag: int, which: str = "trained") -> float:
    record = cell[which][lag]
    ratio: float = record["error"] / record["baseline"]
    return ratio


def _claims(cells: Cells) -> list[Claim]:
    from unrolled.report import mean_std

    claims = []
    for claim, world, kind, lag in _CLAIMS:
        if (world, kind) in cells:
            done = cells[world, kind]
            ratios = [_ratio(cell, lag) for cell in done]
            errors = mean_std([cell["trained"][lag]["error"] for cell in done], digits=4)
            claims.append(claim.judge(fmean(ratios), f"{errors}, ratio {mean_std(ratios, digits=3)}"))
    return claims


def _report(config: Config, cells: Cells, began: float) -> Report:
    from unrolled.report import Fact, Provenance, Report, mean_std

    report = Report(
        "Token binding in the first layer",
        question="After one layer, does a token hold the tokens that the regression in later layers needs beside it?",
    )
    report.claims = _claims(cells)
    facts = []
    for (world, _), done in cells.items():
        lag = 1 if world == "full" else 3
        facts.append(
            Fact(
                label=f"{TITLES[world]}, {done[0]['label']}: R^2 of the token {lag} back",
                value=mean_std([cell["trained"][lag]["score"] for cell in done], digits=3),
                detail=f"untrained {fmean(c['untrained'][lag]['score'] for c in done):.2f}; {done[0]['extent']}",
            )
        )
    (world, _), done = next(iter(cells.items()))
    report.headline(
        f"{TITLES[world]}, {done[0]['label']}: after layer 1 the previous token is read off the last one with an error "
        f"of {fmean(cell['trained'][1]['error'] for cell in done):.4f} a coordinate, against "
        f"{fmean(cell['trained'][1]['baseline'] for cell in done):.2f} without reading and "
        f"{fmean(cell['untrained'][1]['error'] for cell in done):.2f} in the untrained layer.",
        facts,
    )
    for world in config.worlds:
        _section(report, config, world, {kind: cells[world, kind] for kind in config.kinds})
    report.section(
        "What this does not show",
        "That earlier tokens can be read off a token does not mean that later layers use them. In the partially "
        "observed world an observation is partly a linear function of its neighbours, so that probes score above zero "
        "for tokens that were not copied. A mesa layer has no attention weights, hence no map. The published baseline "
        "of the fully observed world, 0.26 a coordinate, is not the variance of its states; ratios use the table's.",
    )
    report.results = {"models": {f"{world} {kind}": done for (world, kind), done in cells.items()}}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _section(report: Report, config: Config, world: str, mine: Mapping[str, list[dict[str, Any]]]) -> None:
    import numpy as np

    from unrolled.report import HeatMap, LineChart, Series, mean_std

    def over(done: list[dict[str, Any]], which: str, lag: int, key: str, digits: int = 3) -> str:
        return mean_std([cell[which][lag][key] for cell in done], digits=digits)

    lags = range(len(next(iter(mine.values()))[0]["trained"]))
    rows = [
        [
            done[0]["label"],
            lag,
            PUBLISHED.get((world, kind, lag), ""),
            over(done, "trained", lag, "error", 4),
            over(done, "trained", lag, "baseline", 2),
            over(done, "trained", lag, "score"),
            over(done, "trained", lag, "control"),
            over(done, "untrained", lag, "score"),
            over(done, "trained", lag, "before"),
            over(done, "trained", lag, "sensitivity"),
            over(done, "untrained", lag, "sensitivity"),
        ]
        for kind, done in mine.items()
        for lag in lags
    ]
    count = len(seeds_of(config, world))
    seeds = f"{count} seeds" if count > 1 else "1 seed"
    extents = "; ".join(f"{done[0]['label']}: {done[0]['extent']}" for done in mine.values())
    section = report.section(TITLES[world], extents + ".")
    section.table(
        [
            *("model", "tokens back", "published error", "error", "of the mean", "R^2"),
            *("R^2, shuffled", "R^2, untrained", "R^2 before layer 1", "sensitivity", "untrained"),
        ],
        rows,
        caption=f"Last token (t = 49) after layer 1, {seeds}; mean squared error of a coordinate of the token so many "
        f"back, read by ridge probes fitted on three quarters of {config.sequences} sequences and scored on the rest. "
        "Sensitivity: root mean square norm of the derivative of the last token after layer 1 by that token before it.",
    )
    first = {kind: done[0] for kind, done in mine.items()}
    section.figure(
        [
            LineChart(
                title=f"{cell['label']}: sensitivity",
                x_label="training step",
                series=[
                    Series(
                        label=f"{lag} back",
                        x=[entry["step"] for entry in cell["training"]],
                        y=[entry["sensitivity"][lag] for entry in cell["training"]],
                        color=lag,
                    )
                    for lag in range(1, 5)
                ],
            )
            for cell in first.values()
        ],
        name=f"{world}-sensitivity",
        caption=f"During training, seed {config.seeds[0]}.",
    )
    maps = [
        HeatMap(
            title=f"{cell['label']}: attention of layer 1, head {head + 1}",
            values=np.array(weights)[:20, :20],
            rows=[str(place) for place in range(20)],
            columns=[str(place) for place in range(20)],
            row_label="query",
            column_label="key",
        )
        for cell in first.values()
        if cell["attention"] is not None
        for head, weights in enumerate(cell["attention"])
    ]
    if maps:
        section.figure(
            maps,
            name=f"{world}-attention",
            caption=f"Mean over {config.sequences} sequences, seed {config.seeds[0]}, the first 20 tokens: queries run "
            "downwards, keys to the right. A diagonal below the main one is attention to so many tokens back.",
        )


STUDY = Study(
    name="mesa-binding",
    title="Token binding in the first layer of trained stacks",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=Config,
    run=run,
    expectations=(SOFTMAX, SOFTMAX_TWO, HYBRID, MESA, PARTIAL_SOFTMAX, PARTIAL_HYBRID),
)
