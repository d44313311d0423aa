"""The losses that trained sequence models are measured against: none of them needs training.

Least squares in context on linear dynamics, solved exactly, and the same with the newest pair left out, as in the
control released with arXiv 2309.05858. That one looks worse than least squares is, and so the trained models better.
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
    from torch import Tensor

    from unrolled.report import Report

_RELEASED = "released results of arXiv 2309.05858"
STEP = Expectation(
    statement="Loss of one gradient step of the best size",
    source=f"{_RELEASED}, figure 4B",
    published="0.900",
    low=0.87,
    high=0.93,
)
SHIFTED = Expectation(
    statement="Loss of exact least squares without the newest pair, as published",
    source=_RELEASED,
    published="0.210 to 0.211",
    low=0.203,
    high=0.219,
)
EXACT = Expectation(
    statement="Loss of exact ridge regression on every pair seen",
    source="recomputed on the world of the released code; not in the paper",
    published="0.186",
    low=0.179,
    high=0.193,
)
TRAINED = {"1": "0.894", "2": "0.430", "4": "0.236", "6": "0.216"}


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change how many sequences there are."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"seeds": (0, 1), "sequences": 1024},
        "cpu": {},
        "gpu": {},
    }

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One set of sequences for each."""
    sequences: int = 2048
    """Sequences in a set; as many again, seen by no test, choose step sizes and ridges."""
    steps: int = 50
    """States of a sequence; the paper's 50."""
    ridges: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """Ridges to choose from."""
    iterations: int = 6
    """Chebyshev steps of Proposition 2; the paper's 6 for six layers."""
    out: Path = Path("runs/mesa-floors")
    """Where the report goes."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if min(self.sequences, self.iterations) < 1 or self.steps < 3:
            raise ValueError("sequences and iterations must be at least 1, and steps at least 3")
        if not self.ridges or not min(self.ridges) > 0:
            raise ValueError("ridges must name at least one, all positive")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Tune each predictor on sequences of its own, test it; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text per set of sequences.
    """
    from unrolled.studies.mesa_train import TEST_SEED, position_losses
    from unrolled.tasks import LinearDynamics

    began = time.perf_counter()
    world = LinearDynamics(steps=config.steps)
    predictors, chosen = _predictors(config, world)
    losses: dict[str, list[list[float]]] = {name: [] for name in predictors}
    for seed in config.seeds:
        test = _double(world, config.sequences, TEST_SEED + 1 + seed)
        for name, predict in predictors.items():
            losses[name].append(position_losses(predict, *test).tolist())
        if on_progress is not None:
            on_progress(f"seed {seed}: exact ridge {fmean(losses['exact ridge'][-1]):.4f}")
    report = _report(config, world.noise, losses, chosen, began)
    report.write(config.out)
    return report


def chebyshev_predictions(states: Tensor, ridge: float, largest: float, steps: int) -> Tensor:
    """s_{t+1} predicted by a gradient step on inputs preconditioned by `steps` Chebyshev iterations, [b, t, d].

    Proposition 2's algorithm, at its limit `least_squares_predictions`.
    """
    from unrolled.theory.in_context import chebyshev_inputs

    inputs = chebyshev_inputs(states, ridge, steps, largest)[-1]
    scores = (inputs @ states[..., :-1, :].mT).tril(-1)
    return scores @ states[..., 1:, :]


def _double(world: Any, sequences: int, seed: int) -> tuple[Tensor, Tensor]:
    """States and successors in float64: small ridges square the condition number."""
    sample = world.sample(sequences, seed=seed)
    return sample.inputs.double(), sample.targets.double()


def _predictors(config: Config, world: Any) -> tuple[Mapping[str, Callable[[Tensor], Tensor]], dict[str, float]]:
    """The predictors with the settings that are best on the tuning sequences, and these settings."""
    from unrolled.studies.mesa_train import TUNE_SEED, best_step_size, position_losses
    from unrolled.theory.in_context import gradient_descent_predictions, least_squares_predictions

    tune = _double(world, min(config.sequences, 512), TUNE_SEED + 1)

    def score(predict: Callable[[Tensor], Tensor]) -> float:
        value = float(position_losses(predict, *tune).mean())
        return value if value == value else float("inf")

    step = best_step_size(world)
    exact = min(config.ridges, key=lambda r: score(lambda x: least_squares_predictions(x, r)))
    shifted = min(config.ridges, key=lambda r: score(lambda x: least_squares_predictions(x, r, include_newest=False)))
    grid = [(ridge, largest) for ridge in (0.3, 1.0, 3.0, 6.0, 10.0) for largest in (60.0, 80.0, 120.0, 170.0, 240.0)]
    ridge, largest = min(grid, key=lambda g: score(lambda x: chebyshev_predictions(x, g[0], g[1], config.iterations)))
    predictors: dict[str, Callable[[Tensor], Tensor]] = {
        "zero": lambda x: 0 * x,
        "gradient step": lambda x: gradient_descent_predictions(x, step),
        "Chebyshev": lambda x: chebyshev_predictions(x, ridge, largest, config.iterations),
        "without newest pair": lambda x: least_squares_predictions(x, shifted, include_newest=False),
        "exact ridge": lambda x: least_squares_predictions(x, exact),
    }
    chosen = {"step size": step, "ridge": exact, "ridge without newest pair": shifted}
    return predictors, {**chosen, "Chebyshev ridge": ridge, "Chebyshev largest eigenvalue": largest}


def _report(
    config: Config, noise: float, losses: dict[str, list[list[float]]], chosen: dict[str, float], began: float
) -> Report:
    from unrolled.report import Fact, Provenance, Report, mean_std

    means = {name: [fmean(run) for run in runs] for name, runs in losses.items()}
    late = {name: [run[-1] for run in runs] for name, runs in losses.items()}
    shown = {name: mean_std(values, digits=4) for name, values in means.items()}
    floor = 0.5 * 10 * noise**2
    report = Report(
        "Least squares in context: the floors",
        question="How well can anything predict the next state of an unknown linear system, and how well does the "
        "published control?",
    )
    report.claims = [
        STEP.judge(fmean(means["gradient step"]), shown["gradient step"]),
        SHIFTED.judge(fmean(means["without newest pair"]), shown["without newest pair"]),
        EXACT.judge(fmean(means["exact ridge"]), shown["exact ridge"]),
    ]
    gap = fmean(means["without newest pair"]) / fmean(means["exact ridge"]) - 1
    sets = f"{len(config.seeds)} sets of {config.sequences} sequences"
    report.headline(
        f"Exact ridge regression reaches {shown['exact ridge']}. Left without the newest pair, as in the published "
        f"control, it looks {100 * gap:.0f} % worse: {shown['without newest pair']}.",
        [
            Fact(label="Exact ridge", value=shown["exact ridge"], detail=sets),
            Fact(label="Without the newest pair", value=shown["without newest pair"], detail="the published control"),
            Fact(label="Noise floor", value=f"{floor:.1e}", detail="half the process noise summed over the state"),
        ],
    )
    published = {
        "zero": "1.677 (recomputed)",
        "gradient step": "0.900",
        "Chebyshev": "0.234 (without newest pair; curve unlabelled)",
        "without newest pair": "0.210 to 0.211",
        "exact ridge": "0.186 (recomputed)",
    }
    settings = {
        "zero": "",
        "gradient step": f"step size {chosen['step size']:.4f}",
        "Chebyshev": f"{config.iterations} steps for [{chosen['Chebyshev ridge']:g}, "
        f"{chosen['Chebyshev largest eigenvalue']:g}]",
        "without newest pair": f"ridge {chosen['ridge without newest pair']:g}",
        "exact ridge": f"ridge {chosen['ridge']:g}",
    }
    rows = [[name, settings[name], published[name], shown[name], mean_std(late[name], digits=5)] for name in losses]
    rows += [[f"trained linear layers: {depth}", "", value, "not run", "not run"] for depth, value in TRAINED.items()]
    rows += [["one trained mesa layer", "", "0.190", "not run", "not run"]]
    report.section(
        "Every predictor",
        "Half the squared error, summed over the state, averaged over positions and sequences. Every setting was "
        "chosen on other sequences; the Chebyshev iteration has one interval for all positions and sequences. The "
        "trained layers are here for their published values only.",
    ).table(
        ["predictor", "setting", "published", "here", "here, last position"],
        rows,
        caption=f"Mean ± standard deviation over {sets}; the noise floor is {floor:.1e}.",
    )
    _figure(report, config, losses, floor)
    report.results = {"loss": means, "last_position": late, "by_position": losses, "chosen": chosen, "floor": floor}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _figure(report: Report, config: Config, losses: dict[str, list[list[float]]], floor: float) -> None:
    from unrolled.report import LineChart, Series

    positions = list(range(1, config.steps + 1))
    series = [
        Series(label=name, x=positions, y=[fmean(values) for values in zip(*runs, strict=True)], color=place)
        for place, (name, runs) in enumerate(losses.items())
    ]
    series.append(Series(label="noise", x=positions, y=[floor] * len(positions), dashed=True))
    report.section("By position").figure(
        LineChart(title="loss", x_label="states seen", series=series, log_y=True),
        name="positions",
        caption=f"Mean over {len(config.seeds)} sets of {config.sequences} sequences. A system of ten dimensions is "
        "determined by ten pairs, which eleven states hold: without the newest pair everything comes one state later.",
    )


STUDY = Study(
    name="mesa-floors",
    title="What exact least squares in context reaches, and what the published control does",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=Config,
    run=run,
    expectations=(STEP, SHIFTED, EXACT),
)
