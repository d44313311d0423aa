"""The losses that trained sequence models are measured against: none of them needs training.

Least squares in context on linear dynamics, solved exactly, and the same with the newest pair left out, as in the
control released with arXiv 2309.05858. That one looks worse than least squares is, and so the trained models better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import EARLIER, Claim
from unrolled.studies.results import NOT_RUN, Results
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Distinct, Rate, Seeds, Study

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report

_RELEASED = "released results of arXiv 2309.05858"
_TUNING = 512  # sequences that settings are chosen on, at most
PREDICTORS = ("zero", "gradient step", "Chebyshev", "without newest pair", "exact ridge")
PUBLISHED = {
    "zero": "1.677 (recomputed)",
    "gradient step": "0.900",
    "Chebyshev": "0.234 (without newest pair; curve unlabelled)",
    "without newest pair": "0.210 to 0.211",
    "exact ridge": "0.186 (recomputed)",
}
TRAINED = {"1": "0.894", "2": "0.430", "4": "0.236", "6": "0.216"}


@dataclass(kw_only=True)
class FloorsConfig(Config):
    """Budgets change how many sequences there are."""

    budgets: ClassVar[Budgets] = {
        "quick": {"seeds": (0, 1), "sequences": 1024},
        "cpu": {},
        "gpu": {},
    }

    seeds: Seeds = (0, 1, 2, 3, 4)
    """One set of sequences for each."""
    sequences: Count = 2048
    """Sequences in a set; as many again, seen by no test, choose step sizes and ridges."""
    steps: Annotated[int, AtLeast(3)] = 50
    """States of a sequence; the paper's 50."""
    ridges: Annotated[tuple[Rate, ...], Distinct()] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """Ridges to choose from."""
    iterations: Count = 6
    """Chebyshev steps of Proposition 2; the paper's 6 for six layers."""


@dataclass(frozen=True, kw_only=True)
class Tuned(Cell):
    """The settings of every predictor that are best on sequences that no test sees."""

    sequences: int
    steps: int
    ridges: tuple[float, ...]
    iterations: int

    def compute(self, context: Context) -> dict[str, float]:
        """`step_size`, `ridge`, `shifted_ridge`, and `chebyshev_ridge` and `chebyshev_largest`, ends of an interval."""
        from unrolled.studies.mesa.held_out import TUNE_SEED, best_step_size, position_losses
        from unrolled.tasks import LinearDynamics
        from unrolled.theory.in_context import least_squares_predictions as exact

        world = LinearDynamics(steps=self.steps)
        tune = _double(world, min(self.sequences, _TUNING), TUNE_SEED + 1)

        def score(predict: Callable[[Tensor], Tensor]) -> float:
            value = float(position_losses(predict, *tune).mean())
            return value if value == value else float("inf")

        grid = [(low, high) for low in (0.3, 1.0, 3.0, 6.0, 10.0) for high in (60.0, 80.0, 120.0, 170.0, 240.0)]
        low, high = min(
            grid, key=lambda ends: score(lambda x: chebyshev_predictions(x, ends[0], ends[1], self.iterations))
        )
        return {
            "step_size": best_step_size(world),
            "ridge": min(self.ridges, key=lambda ridge: score(lambda x: exact(x, ridge))),
            "shifted_ridge": min(self.ridges, key=lambda r: score(lambda x: exact(x, r, include_newest=False))),
            "chebyshev_ridge": low,
            "chebyshev_largest": high,
        }


@dataclass(frozen=True, kw_only=True)
class Tested(Cell):
    """Every predictor, with its tuned setting, on one set of sequences."""

    seed: int
    tuned: Tuned

    def compute(self, context: Context) -> Result:
        """For each predictor its `loss` and the loss `by_position`; the `floor` that the noise sets."""
        from unrolled.studies.mesa.held_out import TEST_SEED, position_losses
        from unrolled.tasks import LinearDynamics
        from unrolled.theory.in_context import gradient_descent_predictions, least_squares_predictions

        world = LinearDynamics(steps=self.tuned.steps)
        best = context.result(self.tuned)
        predictors: dict[str, Callable[[Tensor], Tensor]] = {
            "zero": lambda x: 0 * x,
            "gradient step": lambda x: gradient_descent_predictions(x, best["step_size"]),
            "Chebyshev": lambda x: chebyshev_predictions(
                x, best["chebyshev_ridge"], best["chebyshev_largest"], self.tuned.iterations
            ),
            "without newest pair": lambda x: least_squares_predictions(x, best["shifted_ridge"], include_newest=False),
            "exact ridge": lambda x: least_squares_predictions(x, best["ridge"]),
        }
        test = _double(world, self.tuned.sequences, TEST_SEED + 1 + self.seed)
        losses = {name: position_losses(predict, *test).tolist() for name, predict in predictors.items()}
        return {
            "loss": {name: fmean(values) for name, values in losses.items()},
            "last_position": {name: values[-1] for name, values in losses.items()},
            "by_position": losses,
            "floor": 0.5 * world.dim * world.noise**2,
        }


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


def cells(config: FloorsConfig) -> Iterator[Cell]:
    """Every set of sequences, and the settings that all share."""
    tuned = Tuned(sequences=config.sequences, steps=config.steps, ridges=config.ridges, iterations=config.iterations)
    yield tuned
    for seed in config.seeds:
        yield Tested(seed=seed, tuned=tuned)


def _claim(predictor: str, **claim: Any) -> Claim:
    """About the loss of a predictor, over sets of sequences."""
    return Claim(value=lambda results, config: results.of(Tested).values(f"loss.{predictor}"), spec=".4f", **claim)


CLAIMS = (
    _claim(
        "gradient step",
        statement="Loss of one gradient step of the best size",
        source=f"{_RELEASED}, figure 4B",
        published="0.900",
        low=0.87,
        high=0.93,
        outside="a step of another size, the prediction of zero (1.68), or two trained layers (0.43)",
    ),
    _claim(
        "without newest pair",
        statement="Loss of exact least squares without the newest pair, as published",
        source=_RELEASED,
        published="0.210 to 0.211",
        low=0.203,
        high=0.219,
        outside="least squares with the newest pair: 0.186",
    ),
    _claim(
        "exact ridge",
        statement="Loss of exact ridge regression on every pair seen",
        source="recomputed on the world of the released code; not in the paper",
        published="0.186",
        low=0.179,
        high=0.193,
        unjudged=EARLIER,
    ),
)


def report(report: Report, config: FloorsConfig, results: Results[Any]) -> None:
    """The floors, every predictor beside its published value, losses by position."""
    from unrolled.report import Fact, LineChart, Series

    tests = results.of(Tested)
    if not tests:
        report.headline(f"The floors were {NOT_RUN}.")
        return
    best = results.of(Tuned)[0].result
    exact, shifted = tests.values("loss.exact ridge"), tests.values("loss.without newest pair")
    floor = tests.first("floor")
    sets = f"{len(tests)} sets of {config.sequences} sequences"
    report.headline(
        f"Exact ridge regression reaches {exact:.4f}. Left without the newest pair, as in the published control, it "
        f"looks {100 * (shifted.mean / exact.mean - 1):.0f} % worse: {shifted:.4f}.",
        [
            Fact(label="Exact ridge", value=f"{exact:.4f}", detail=sets),
            Fact(label="Without the newest pair", value=f"{shifted:.4f}", detail="the published control"),
            Fact(label="Noise floor", value=f"{floor:.1e}", detail="half the process noise summed over the state"),
        ],
    )
    chosen = {
        "gradient step": f"step size {best['step_size']:.4f}",
        "Chebyshev": f"{config.iterations} steps for [{best['chebyshev_ridge']:g}, {best['chebyshev_largest']:g}]",
        "without newest pair": f"ridge {best['shifted_ridge']:g}",
        "exact ridge": f"ridge {best['ridge']:g}",
    }
    rows = [
        [
            *(name, chosen.get(name, ""), PUBLISHED[name], f"{tests.values(f'loss.{name}'):.4f}"),
            f"{tests.values(f'last_position.{name}'):.5f}",
        ]
        for name in PREDICTORS
    ]
    rows += [[f"trained linear layers: {depth}", "", value, NOT_RUN, NOT_RUN] for depth, value in TRAINED.items()]
    rows += [["one trained mesa layer", "", "0.190", NOT_RUN, NOT_RUN]]
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
    x = list(range(1, config.steps + 1))
    lines = [tests.curve(name, f"by_position.{name}", x=x, color=place) for place, name in enumerate(PREDICTORS)]
    noise = Series(label="noise", x=x, y=[floor] * len(x), dashed=True)
    report.section("By position").figure(
        LineChart(title="loss", x_label="states seen", series=[*lines, noise], log_y=True),
        name="positions",
        caption=f"Mean over {sets}. A system of ten dimensions is determined by ten pairs, which eleven states hold: "
        "without the newest pair everything comes one state later.",
    )


STUDY = Study(
    name="mesa-floors",
    title="Least squares in context: the floors",
    question="How well can anything predict the next state of an unknown linear system, and how well does the "
    "published control?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=FloorsConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
