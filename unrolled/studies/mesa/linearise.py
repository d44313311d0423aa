"""Can a trained softmax layer be replaced by a linear one? Distilled layer by layer, by width of the state.

One linear self-attention layer learns the update of one trained softmax layer from what that layer reads, and takes its
place (arXiv 2309.05858, figure 5A). Beside it, without training (figure 5B), regression with a linear and a softmax
kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from torch import nn

    from unrolled.report import Report

_FIVE = "arXiv 2309.05858, figure 5, and its released results"
WIDTHS = (4, 6, 10, 20, 40, 60)
FIRST = Expectation(
    statement="Layer 1: loss ratio of the widest state over that of the narrowest",
    source=_FIVE,
    published="3.6 / 2.1 = 1.7 (4 to 60)",
    low=1.0,
)
LATER = Expectation(
    statement="Layers 3 on: largest loss ratio of a replaced layer at the widest state",
    source=_FIVE,
    published="1.21 (4), 1.08 (60)",
    high=1.3,
)
FIRST_WORST = Expectation(
    statement="Loss ratio of layer 1 over the mean of the others, at the widest state",
    source=_FIVE,
    published="3.6 / 1.07 (width 60)",
    low=1.0,
)
LEAST = Expectation(
    statement="Least squares: error at width 60 over that at width 4",
    source=_FIVE,
    published="0.022 / 0.033 = 0.67",
    high=1.0,
)
KERNEL = Expectation(
    statement="Softmax-kernel regression: error at width 60 over that at width 4",
    source=_FIVE,
    published="0.115 / 0.080 = 1.44",
    low=1.0,
)


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change the widths, the effort of the trainings, and the steps of distillation."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {
            "effort": "quick",
            "seeds": (0,),
            "widths": (4, 6),
            "distil_steps": 60,
            "test_sequences": 256,
            "workers": 1,
        },
        "cpu": {},
        "gpu": {
            "effort": "gpu",
            "seeds": (0, 1, 2, 3, 4),
            "widths": WIDTHS,
            "distil_steps": 5000,
            "device": "cuda",
            "workers": 1,
        },
    }

    widths: tuple[int, ...] = (4, 6, 10)
    """Widths n of the state; sequences have 4 n tokens. The paper's are 4, 6, 10, 20, 40, 60."""
    seeds: tuple[int, ...] = (0,)
    """One softmax stack of each width for each."""
    effort: str = "cpu"
    """Depth, steps and rate of the trainings: quick, cpu or gpu, which is the paper's."""
    steps: int | None = None
    """Training steps, instead of the effort's."""
    batch_size: int | None = None
    """Sequences per step, instead of the effort's."""
    distil_steps: int = 800
    """Steps of each distillation."""
    distil_rate: float = 3e-3
    """Peak learning rate of each distillation."""
    test_sequences: int = 1024
    """Held-out sequences; as many again, at most 256, choose the settings of the regressions."""
    workers: int = 2
    """Trainings at a time, one thread each."""
    device: str = "cpu"
    """Where to train."""
    models: Path = Path("runs/mesa-models")
    """Trained models, shared with the other studies of them."""
    out: Path = Path("runs/mesa-linearise")
    """Where the report goes, and the cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if not self.widths or min(self.widths) < 2:
            raise ValueError("widths must name at least one, each 2 or more")
        self.widths = tuple(sorted(set(self.widths)))
        if self.effort not in ("quick", "cpu", "gpu"):
            raise ValueError(f"effort={self.effort!r}: choose quick, cpu or gpu")
        if min(self.distil_steps, self.test_sequences, self.workers, self.steps or 1, self.batch_size or 1) < 1:
            raise ValueError("distil_steps, test_sequences, workers, steps and batch_size must be at least 1")
        if not self.distil_rate > 0:
            raise ValueError(f"distil_rate={self.distil_rate}: must be positive")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train what is not yet trained, distil its layers; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text when each model is trained, and when its layers are distilled.
    """
    from dataclasses import replace

    from unrolled.studies.mesa_models import recipe, train_all
    from unrolled.studies.mesa_regression import kernel_errors
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    base = recipe("softmax", "full", config.effort, steps=config.steps, batch_size=config.batch_size)
    recipes = {width: replace(base, state=width, dim=4 * width, dim_head=2 * width) for width in config.widths}
    jobs = [(each, seed) for seed in config.seeds for each in recipes.values()]
    train_all(jobs, folder=config.models, device=config.device, workers=config.workers, on_progress=on_progress)
    shared = {name: getattr(config, name) for name in ("distil_steps", "distil_rate", "test_sequences", "device")}
    cells: dict[int, list[dict[str, Any]]] = {width: [] for width in config.widths}
    for each, seed in jobs:

        def compute(each: Any = each, seed: int = seed) -> dict[str, Any]:
            return run_one(config, each, seed)

        cell = remembered(config.out / "cells", each.file(seed).removesuffix(".pt"), shared, compute)
        cells[cell["width"]].append(cell)
        if on_progress is not None:
            ratios = ", ".join(f"{layer['ratio']:.2f}" for layer in cell["layers"])
            on_progress(f"width {cell['width']}, seed {seed}: loss ratios {ratios}")
    kernels: dict[int, dict[str, float]] = {}
    for width in WIDTHS:

        def compare(width: int = width) -> dict[str, Any]:
            return kernel_errors(width, min(config.test_sequences, 512))

        settings = {"test_sequences": config.test_sequences}
        kernels[width] = remembered(config.out / "cells", f"kernels-{width}", settings, compare)
    report = _report(config, cells, kernels, began)
    report.write(config.out)
    return report


def run_one(config: Config, recipe: Any, seed: int) -> dict[str, Any]:
    """One trained stack, each of its layers replaced by a distilled linear one, or left out."""
    from unrolled.studies.mesa_distil import distil, silent
    from unrolled.studies.mesa_models import trained, untrained, world_of
    from unrolled.studies.mesa_train import TEST_SEED, position_losses

    model, _ = trained(recipe, seed=seed, folder=config.models, device=config.device)
    test = world_of(recipe).sample(config.test_sequences, seed=TEST_SEED)
    inputs, targets = test.inputs.to(config.device), test.targets.to(config.device)

    def loss_with(index: int, layer: nn.Module) -> float:
        block: Any = model.blocks[index]
        kept, block.attn = block.attn, layer
        try:
            return float(position_losses(model, inputs, targets).mean())
        finally:
            block.attn = kept

    loss = float(position_losses(model, inputs, targets).mean())
    name = recipe.file(seed).removesuffix(".pt")
    layers = []
    for index in range(recipe.depth):
        student, error = distil(
            model,
            recipe,
            index,
            seed=seed,
            steps=config.distil_steps,
            rate=config.distil_rate,
            device=config.device,
            keep=config.out / "layers" / f"{name}-layer{index + 1}.pt",
        )
        replaced = loss_with(index, student)
        left_out = loss_with(index, silent(student))
        layers.append(
            {
                "layer": index + 1,
                "loss": replaced,
                "ratio": replaced / loss,
                "left_out_ratio": left_out / loss,
                "unexplained": error,
            }
        )
    return {
        "width": recipe.state,
        "label": recipe.label,
        "seed": seed,
        "extent": recipe.extent,
        "loss": loss,
        "untrained": float(position_losses(untrained(recipe, seed, config.device), inputs, targets).mean()),
        "zero": float(position_losses(lambda x: 0 * x, inputs, targets).mean()),
        "layers": layers,
    }


def _report(
    config: Config, cells: dict[int, list[dict[str, Any]]], kernels: dict[int, dict[str, float]], began: float
) -> Report:
    from unrolled.report import Fact, Provenance, Report, mean_std

    def ratio(width: int, place: int) -> float:
        return fmean(cell["layers"][place]["ratio"] for cell in cells[width])

    narrow, wide = config.widths[0], config.widths[-1]
    depth = len(cells[wide][0]["layers"])
    first = [ratio(width, 0) for width in config.widths]
    others = [ratio(wide, place) for place in range(1, depth)]
    report = Report(
        "Softmax layers made linear",
        question="How much is lost when one layer of a trained softmax stack is replaced by linear attention?",
    )
    if narrow < wide:
        report.claims.append(
            FIRST.judge(first[-1] / first[0], f"{first[-1]:.2f} / {first[0]:.2f} ({narrow} to {wide})")
        )
    if others[1:]:
        report.claims.append(LATER.judge(max(others[1:]), f"{max(others[1:]):.2f} (width {wide})"))
    if others:
        report.claims.append(
            FIRST_WORST.judge(first[-1] / fmean(others), f"{first[-1]:.2f} / {fmean(others):.2f} (width {wide})")
        )
    for claim, key in ((LEAST, "least_squares"), (KERNEL, "softmax_kernel")):
        small, large = kernels[WIDTHS[0]][key], kernels[WIDTHS[-1]][key]
        report.claims.append(claim.judge(large / small, f"{large:.4f} / {small:.4f} = {large / small:.2f}"))
    done = cells[wide]
    report.headline(
        f"At width {wide}, replacing layer 1 multiplies the loss by {first[-1]:.2f}"
        + (f"; the other layers by {', '.join(f'{value:.2f}' for value in others)}." if others else "."),
        [
            Fact(
                label=f"Layer 1, width {wide}",
                value=mean_std([cell["layers"][0]["ratio"] for cell in done], digits=2),
                detail=f"loss ratio; {done[0]['label']}, {done[0]['extent']}",
            ),
            Fact(
                label=f"Last layer, width {wide}",
                value=mean_std([cell["layers"][-1]["ratio"] for cell in done], digits=2),
                detail=f"{config.distil_steps} steps of distillation",
            ),
        ],
    )
    _sections(report, config, cells, kernels)
    report.results = {"models": [cell for group in cells.values() for cell in group], "kernels": kernels}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _sections(
    report: Report, config: Config, cells: dict[int, list[dict[str, Any]]], kernels: dict[int, dict[str, float]]
) -> None:
    from unrolled.report import LineChart, Series, mean_std

    published = {1: "2.1 (4) to 3.6 (60)", 2: "1.58 (4) to 1.15 (60)"}
    rows: list[list[Any]] = []
    for width in sorted({*WIDTHS, *config.widths}):
        if width not in cells:
            rows.append([width, *["not run"] * 8])
            continue
        done = cells[width]
        for place, layer in enumerate(done[0]["layers"]):
            number = layer["layer"]
            each = [cell["layers"][place] for cell in done]
            rows.append(
                [
                    width,
                    done[0]["extent"],
                    mean_std([cell["loss"] for cell in done], digits=4),
                    mean_std([cell["untrained"] for cell in done], digits=3),
                    number,
                    published.get(number, "1.12 to 1.21 (4), 1.03 to 1.08 (60)"),
                    mean_std([entry["ratio"] for entry in each], digits=3),
                    mean_std([entry["left_out_ratio"] for entry in each], digits=2),
                    mean_std([entry["unexplained"] for entry in each], digits=4),
                ]
            )
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "1 seed"
    section = report.section(
        "Every layer",
        "Each layer alone is replaced; the loss is half the squared error summed over the state, averaged over "
        "positions and held-out sequences. The control leaves the layer out, adding nothing in its place: a ratio near "
        "one means little where leaving the layer out costs little too.",
    )
    section.table(
        [
            *("width", "training", "loss", "untrained", "layer", "published ratio"),
            *("loss ratio", "ratio, left out", "unexplained update"),
        ],
        rows,
        caption=f"{seeds}, {config.test_sequences} held-out sequences of 4 n tokens, {config.distil_steps} steps of "
        "distillation. Unexplained: squared error of the update over its energy. Published ratios are of stacks of 7.",
    )
    widths = list(config.widths)
    depth = len(cells[widths[0]][0]["layers"])
    section.figure(
        LineChart(
            title="loss ratio of a replaced layer",
            x_label="width of the state",
            series=[
                Series(
                    label=f"layer {place + 1}",
                    x=widths,
                    y=[fmean(cell["layers"][place]["ratio"] for cell in cells[width]) for width in widths],
                )
                for place in range(depth)
            ],
        ),
        name="ratios",
        caption=f"Mean over {seeds}.",
    )
    section = report.section(
        "Kernels without training",
        "Regression on the pairs of the context, the newest among them: exactly with the linear kernel, and as a "
        "weighted mean with the softmax kernel. Ridge and inverse temperature are the best on other sequences.",
    )
    section.table(
        ["width", "least squares", "ridge", "softmax kernel", "inverse temperature"],
        [
            [width, f"{k['least_squares']:.4f}", f"{k['ridge']:g}", f"{k['softmax_kernel']:.4f}", f"{k['beta']:g}"]
            for width, k in kernels.items()
        ],
        caption="Mean squared error of a coordinate, averaged over positions. Published, on a scale not stated: "
        "0.033 to 0.022 and 0.080 to 0.115 from width 4 to 60.",
    )
    section.figure(
        LineChart(
            title="error of a coordinate",
            x_label="width of the state",
            series=[
                Series(label=label, x=list(kernels), y=[entry[key] for entry in kernels.values()])
                for label, key in (("least squares", "least_squares"), ("softmax kernel", "softmax_kernel"))
            ],
        ),
        name="kernels",
        caption=f"{min(config.test_sequences, 512)} held-out sequences a width.",
    )


STUDY = Study(
    name="mesa-linearise",
    title="Trained softmax layers replaced by distilled linear attention",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=Config,
    run=run,
    expectations=(FIRST, LATER, FIRST_WORST, LEAST, KERNEL),
)
