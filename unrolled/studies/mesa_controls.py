"""The one-step reading where it should fail: one teacher for all sequences.

There nothing has to be learned in context, and a trained layer should do better than any gradient step on its own
context (arXiv 2309.05858, appendix E). If it did not, agreement with the gradient step elsewhere would show little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from unrolled.report import Report

_SOURCE = "arXiv 2309.05858, appendix E; means of the released results"
FIXED = Expectation(
    statement="One teacher for all: loss of the trained layer over that of one gradient step",
    source=_SOURCE,
    published="0.107 / 0.911 = 0.117: far below",
    high=0.8,
)
COSINE = Expectation(
    statement="One teacher for all: cosine of the trained layer's map to Proposition 1's",
    source="follows from the claim; no published value",
    published="far from 1",
    high=0.8,
)
PUBLISHED = {"orthogonal": ("0.894", "0.900"), "fixed": ("0.107", "0.911")}
# other trained models in the published comparison
DEEPER = {
    "fixed": {"6 linear layers": "0.0046", "one mesa layer": "0.0019"},
}


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change the number of steps, sequences and seeds, never the recipe, which is the published code's.

    The bounds of 0.8 are this package's. `quick` has 2500 steps because 1500 left the ratio at 0.887, above its bound,
    and still falling; the published size (0.117) is not reached at these budgets.
    """

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"seeds": (0,), "steps": 2500, "batch_size": 32, "test_sequences": 1024},
        "cpu": {},
        "gpu": {"seeds": (0, 1, 2, 3, 4), "device": "cuda"},
    }

    seeds: tuple[int, ...] = (0, 1, 2)
    """One layer per world for each."""
    steps: int = 5000
    """Training steps; the paper's 5000."""
    batch_size: int = 256
    """Sequences per step; the paper's 256."""
    test_sequences: int = 4096
    """Held-out sequences."""
    device: str = "cpu"
    """Where to train."""
    out: Path = Path("runs/mesa-controls")
    """Where the report goes, and the trained cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if min(self.steps, self.batch_size, self.test_sequences) < 1:
            raise ValueError("steps, batch_size and test_sequences must be at least 1")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train one layer per world and seed; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text when each layer is trained.
    """
    from unrolled.studies.cells import remembered

    began = time.perf_counter()
    shared = {name: getattr(config, name) for name in ("steps", "batch_size", "test_sequences", "device")}
    cells: dict[str, list[dict[str, Any]]] = {world: [] for world in PUBLISHED}
    for seed in config.seeds:
        for world, done in cells.items():

            def compute(seed: int = seed, world: str = world) -> dict[str, Any]:
                return run_one(config, world, seed)

            done.append(remembered(config.out / "cells", f"{world}-seed{seed}", shared, compute))
            if on_progress is not None:
                on_progress(
                    f"{world}, seed {seed}: loss {done[-1]['loss']:.4f}, gradient step {done[-1]['gradient_step']:.4f}"
                )
    report = _report(config, cells, began)
    report.write(config.out)
    return report


def run_one(config: Config, teacher: Any, seed: int) -> dict[str, Any]:
    """One layer in one world, trained, tested beside the gradient step of the best size, its weights read."""
    from unrolled.studies.mesa_train import (
        TEST_SEED,
        Recipe,
        best_step_size,
        model_predictions,
        position_losses,
        structure,
        train,
    )
    from unrolled.tasks import LinearDynamics
    from unrolled.theory.in_context import gradient_descent_predictions, least_squares_predictions

    world = LinearDynamics(teacher=teacher)
    test = world.sample(config.test_sequences, seed=TEST_SEED)
    inputs, targets = test.inputs.to(config.device), test.targets.to(config.device)
    best = best_step_size(world)
    recipe = Recipe(steps=config.steps, batch_size=config.batch_size)
    keep = config.out / "models" / f"{teacher}-seed{seed}.pt"
    model, _ = train(world, recipe, seed=seed, device=config.device, keep=keep)
    predictors = {
        "loss": model_predictions(model),
        "gradient_step": lambda x: gradient_descent_predictions(x, best),
        "exact_ridge": lambda x: least_squares_predictions(x.double(), 1e-3).to(x.dtype),
        "zero": lambda x: 0 * x,
    }
    losses = {name: float(position_losses(predict, inputs, targets).mean()) for name, predict in predictors.items()}
    found = structure(model.blocks[0].attn, world.dim)  # type: ignore[arg-type]
    return {**losses, "best_step_size": best, "structure": asdict(found), "extent": recipe.extent, "seed": seed}


def _report(config: Config, cells: dict[str, list[dict[str, Any]]], began: float) -> Report:
    from unrolled.report import Fact, Provenance, Report, mean_std

    def ratios(world: str) -> list[float]:
        return [cell["loss"] / cell["gradient_step"] for cell in cells[world]]

    cosines = [cell["structure"]["cosine"] for cell in cells["fixed"]]
    report = Report(
        "Negative control of the one-step reading",
        question="Does a linear layer become a gradient step where nothing has to be learned in context?",
    )
    report.claims = [
        FIXED.judge(fmean(ratios("fixed")), mean_std(ratios("fixed"), digits=3)),
        COSINE.judge(max(cosines), mean_std(cosines, digits=3)),
    ]
    report.headline(
        f"With one teacher for all sequences the layer ends at {mean_std(ratios('fixed'), digits=2)} times the loss of "
        f"a gradient step, with new orthogonal systems at {mean_std(ratios('orthogonal'), digits=2)} times.",
        [
            Fact(
                label=f"{world}: layer / gradient step",
                value=mean_std(ratios(world), digits=3),
                detail=done[0]["extent"],
            )
            for world, done in cells.items()
        ],
    )
    rows: list[list[str]] = []
    for world, done in cells.items():
        here = [mean_std([cell[key] for cell in done], digits=4) for key in ("loss", "gradient_step", "zero")]
        ridge = f"{done[0]['exact_ridge']:.4f}"
        cosine = mean_std([cell["structure"]["cosine"] for cell in done], digits=3)
        rows.append([world, "1 linear layer", done[0]["extent"], PUBLISHED[world][0], here[0], cosine])
        rows.append([world, "gradient step", "", PUBLISHED[world][1], here[1], "1"])
        rows += [[world, model, "", value, "not run", ""] for model, value in DEEPER.get(world, {}).items()]
        rows += [[world, "exact ridge 0.001", "", "", ridge, ""], [world, "zero", "", "", here[2], ""]]
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "One seed"
    report.section(
        "Every world",
        "Half the squared error, summed over the state and averaged over positions and held-out sequences.",
    ).table(
        ["world", "predictor", "training", "published", "here", "cosine to Prop. 1"],
        rows,
        caption=f"{seeds}, {config.test_sequences} held-out sequences.",
    )
    report.results = cells
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


STUDY = Study(
    name="mesa-controls",
    title="No gradient step where nothing has to be learned in context",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=Config,
    run=run,
    expectations=(FIXED, COSINE),
)
