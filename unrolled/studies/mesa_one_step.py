"""One trained linear-attention layer beside one step of gradient descent on the sequence's own least squares.

Claim (arXiv 2309.05858): trained to predict the next state of linear systems that differ from sequence to sequence, one
linear self-attention layer ends at the loss, the step size and the weight structure of one gradient step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from unrolled.report import Report

_SOURCE = "arXiv 2309.05858, figures 3B and 4"
LOSS = Expectation(
    statement="One trained linear layer predicts as well as one gradient step (ratio of their losses)",
    source=f"{_SOURCE}; means of the released results",
    published="0.894 / 0.900 = 0.993",
    low=0.97,
    high=1.02,
)
STEP = Expectation(
    statement="The step size in its weights is the best one for a gradient step (ratio of the two)",
    source=f"{_SOURCE}; 0.0336 is what a retrained layer has here against a best of about 0.033",
    published="about 1",
    low=0.92,
    high=1.08,
)
WEIGHTS = Expectation(
    statement="Its weights compute the map of Proposition 1 (cosine between the two maps)",
    source="arXiv 2309.05858, figure 4: products of the weights are block-diagonal",
    published="shown, no number",
    low=0.95,
)
SPARSE = Expectation(
    statement="Under 1 % of the weights are non-zero",
    source="press reports on the first version of arXiv 2309.05858",
    published="< 1 %",
)
SIZE = Expectation(
    statement="That holds whatever the number of heads and the width of the state (largest |ratio of losses - 1|)",
    source="arXiv 2309.05858",
    published="stated, no number",
    high=0.03,
)


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change the number of steps, sequences and seeds, never the recipe, which is the published code's."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"seeds": (0,), "steps": 800, "batch_size": 64, "sizes": ((4, 10),), "test_sequences": 1024},
        "cpu": {},
        "gpu": {"seeds": (0, 1, 2, 3, 4), "sizes_batch_size": 256, "device": "cuda"},
    }

    seeds: tuple[int, ...] = (0, 1)
    """One layer for each: initial weights and training sequences. Test sequences are always the same."""
    steps: int = 5000
    """Training steps; the paper's 5000."""
    batch_size: int = 256
    """Sequences per step; the paper's 256."""
    sizes_batch_size: int = 64
    """Sequences per step for the further layers."""
    sizes: tuple[tuple[int, int], ...] = ((1, 10), (4, 10), (2, 5), (2, 20))
    """Further layers, one each with the first seed: heads and width of the state. The paper's is (2, 10)."""
    test_sequences: int = 4096
    """Held-out sequences."""
    points: int = 20
    """Looks at the held-out sequences during training: the points of the curves."""
    device: str = "cpu"
    """Where to train."""
    out: Path = Path("runs/mesa-one-step")
    """Where the report goes, and the trained cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if min(self.steps, self.batch_size, self.sizes_batch_size, self.test_sequences, self.points) < 1:
            raise ValueError("steps, batch_size, sizes_batch_size, test_sequences and points must be at least 1")
        if any(min(size) < 1 for size in self.sizes):
            raise ValueError("sizes: heads and width of the state must be at least 1")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train, read the weights, compare; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text when each layer is trained.
    """
    from unrolled.studies.cells import remembered

    began = time.perf_counter()
    jobs = [(seed, 2, 10, config.batch_size) for seed in config.seeds]
    jobs += [(config.seeds[0], *size, config.sizes_batch_size) for size in config.sizes]
    cells: list[dict[str, Any]] = []
    shared = {name: getattr(config, name) for name in ("steps", "test_sequences", "points", "device")}
    for seed, heads, dim, batch in jobs:

        def compute(seed: int = seed, heads: int = heads, dim: int = dim, batch: int = batch) -> dict[str, Any]:
            return run_one(config, seed=seed, heads=heads, dim=dim, batch_size=batch)

        name = f"seed{seed}-heads{heads}-dim{dim}"
        cell = remembered(config.out / "cells", name, {**shared, "batch_size": batch}, compute)
        cells.append(cell)
        if on_progress is not None:
            on_progress(
                f"{len(cells)} of {len(jobs)}: {heads} heads, width {dim}, seed {seed}: loss {cell['loss']:.4f}, "
                f"gradient step {cell['gradient_step_loss']:.4f}, {cell['seconds']:.0f} s"
            )
    report = _report(config, cells[: len(config.seeds)], cells[len(config.seeds) :], began)
    report.write(config.out)
    return report


def run_one(config: Config, *, seed: int, heads: int, dim: int, batch_size: int) -> dict[str, Any]:
    """One layer: trained, tested, its weights read, at `config.points` moments of the training."""
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
    from unrolled.theory.in_context import gradient_descent_predictions

    began = time.perf_counter()
    world = LinearDynamics(dim=dim)
    test = world.sample(config.test_sequences, seed=TEST_SEED)
    inputs, targets = test.inputs.to(config.device), test.targets.to(config.device)
    best = best_step_size(world)
    gradient_step = position_losses(lambda x: gradient_descent_predictions(x, best), inputs, targets)
    looks = {round(config.steps * point / config.points) for point in range(config.points + 1)}

    def look(step: int, model: Any) -> dict[str, Any]:
        loss = float(position_losses(model_predictions(model), inputs, targets).mean())
        return {"loss": loss, **asdict(structure(model.blocks[0].attn, dim))}

    recipe = Recipe(steps=config.steps, batch_size=batch_size, heads=heads, dim_head=2 * dim)
    model, curve = train(
        world,
        recipe,
        seed=seed,
        device=config.device,
        keep=config.out / "models" / f"seed{seed}-heads{heads}-dim{dim}.pt",
        look=look,
        look_at=looks,
    )
    losses = position_losses(model_predictions(model), inputs, targets)
    return {
        "seed": seed,
        "heads": heads,
        "dim": dim,
        "loss": float(losses.mean()),
        "gradient_step_loss": float(gradient_step.mean()),
        "zero_loss": float(position_losses(lambda x: 0 * x, inputs, targets).mean()),
        "best_step_size": best,
        "losses_by_position": losses.tolist(),
        "gradient_step_by_position": gradient_step.tolist(),
        "structure": asdict(structure(model.blocks[0].attn, dim)),  # type: ignore[arg-type]
        "extent": recipe.extent,
        "curve": curve,
        "seconds": time.perf_counter() - began,
    }


def _report(config: Config, main: list[dict[str, Any]], sizes: list[dict[str, Any]], began: float) -> Report:
    from unrolled.report import Fact, Provenance, Report, mean_std

    report = Report(
        "One linear-attention layer and one gradient step",
        question="Does a trained linear layer do what one step of gradient descent on the sequence itself does?",
    )
    ratios = [cell["loss"] / cell["gradient_step_loss"] for cell in main]
    steps = [cell["structure"]["step_size"] / cell["best_step_size"] for cell in main]
    cosines = [cell["structure"]["cosine"] for cell in main]
    nonzero, heavy, loud = (
        fmean(cell["structure"][key] for cell in main) for key in ("nonzero", "for_90_percent", "above_tenth")
    )
    loss = mean_std([cell["loss"] for cell in main], digits=3)
    learned = mean_std([cell["structure"]["step_size"] for cell in main], digits=4)
    report.claims = [
        LOSS.judge(fmean(ratios), f"{loss} / {main[0]['gradient_step_loss']:.3f} = {mean_std(ratios, digits=3)}"),
        STEP.judge(fmean(steps), f"{learned} / {main[0]['best_step_size']:.4f} = {mean_std(steps, digits=3)}"),
        WEIGHTS.judge(min(cosines), mean_std(cosines, digits=3)),
        SPARSE.judge(
            nonzero,
            f"{100 * nonzero:.0f} % are non-zero; {100 * heavy:.1f} % hold 90 % of the squared weight and "
            f"{100 * loud:.1f} % exceed a tenth of the largest; of the construction's, 0.6 % are non-zero",
        ),
    ]
    everything = main + sizes
    if sizes:
        off = [abs(cell["loss"] / cell["gradient_step_loss"] - 1) for cell in everything]
        report.claims.append(SIZE.judge(max(off), f"{max(off):.3f} over {len(everything)} layers"))
    seeds = f"{len(main)} seeds" if len(main) > 1 else "1 seed"
    report.headline(
        f"One trained linear layer ends at a loss of {loss}, one gradient step of the best size at "
        f"{main[0]['gradient_step_loss']:.3f}; the weights hold a step size of {learned}.",
        [
            Fact(label="Loss of the layer", value=loss, detail=f"{seeds}, {main[0]['extent']}"),
            Fact(label="Loss of one gradient step", value=f"{main[0]['gradient_step_loss']:.3f}"),
            Fact(label="Cosine to Proposition 1", value=mean_std(cosines, digits=3), detail=seeds),
        ],
    )
    _sections(report, config, main, everything)
    report.results = {"layers": everything}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _sections(report: Report, config: Config, main: list[dict[str, Any]], everything: list[dict[str, Any]]) -> None:
    from unrolled.report import LineChart, Series

    over = f"Mean over {len(main)} seeds; bars are one standard deviation." if len(main) > 1 else "One seed."
    report.section(
        "Every layer",
        "Losses are half the squared error, summed over the state and averaged over positions and held-out sequences. "
        "The gradient step starts from zero; its size is the best one on sequences of its own.",
    ).table(
        ["heads", "width", "seed", "training", "loss", "gradient step", "learned step", "best step", "cosine"],
        [
            [
                *(c["heads"], c["dim"], c["seed"], c["extent"], f"{c['loss']:.4f}", f"{c['gradient_step_loss']:.4f}"),
                *(
                    f"{c['structure']['step_size']:.4f}",
                    f"{c['best_step_size']:.4f}",
                    f"{c['structure']['cosine']:.3f}",
                ),
            ]
            for c in everything
        ],
        caption="The cosine is between the map that the weights of all heads compute and that of Proposition 1.",
    )
    looks = [point["step"] for point in main[0]["curve"]]

    def series(label: str, key: str, color: int) -> Series:
        columns = [[point[key] for point in cell["curve"]] for cell in main]
        return _series(label, looks, columns, color)

    def flat(label: str, value: float) -> Series:
        return Series(label=label, x=looks, y=[value] * len(looks), dashed=True)

    report.section("During training").figure(
        [
            LineChart(
                title="held-out loss",
                x_label="training step",
                series=[series("layer", "loss", 0), flat("gradient step", main[0]["gradient_step_loss"])],
            ),
            LineChart(
                title="step size in the weights",
                x_label="training step",
                series=[series("layer", "step_size", 0), flat("best", main[0]["best_step_size"])],
            ),
            LineChart(
                title="share of the squared weight",
                x_label="training step",
                series=[
                    series("W_q^T W_k", "query_key_on_diagonals", 0),
                    series("P W_v", "output_value_on_diagonals", 1),
                    series("cosine to Prop. 1", "cosine", 2),
                ],
                y_range=(0.0, 1.05),
            ),
        ],
        name="training",
        caption=f"{over} The third panel: share on the diagonals of the blocks of both products of weights, where all "
        f"of Proposition 1's lies and a tenth of random weights'. {config.test_sequences} held-out sequences.",
    )
    positions = list(range(1, len(main[0]["losses_by_position"]) + 1))
    reference = main[0]["gradient_step_by_position"]
    report.section("By position").figure(
        LineChart(
            title="held-out loss",
            x_label="states seen",
            series=[
                _series("layer", positions, [cell["losses_by_position"] for cell in main], 0),
                Series(label="gradient step", x=positions, y=reference, dashed=True),
            ],
        ),
        name="positions",
        caption=f"{over} A fixed step size is too small for short contexts and too large for long ones: that is why "
        "the loss rises again.",
    )


def _series(label: str, x: Sequence[float], runs: Sequence[Sequence[float]], color: int) -> Any:
    from unrolled.report import Series

    means = [fmean(values) for values in zip(*runs, strict=True)]
    error = [stdev(values) for values in zip(*runs, strict=True)] if len(runs) > 1 else None
    return Series(label=label, x=x, y=means, error=error, color=color)


STUDY = Study(
    name="mesa-one-step",
    title="One linear-attention layer is one gradient step on its own context",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=Config,
    run=run,
    expectations=(LOSS, STEP, WEIGHTS, SPARSE, SIZE),
)
