"""What `mesa-depth` computes: trained models tested, and the algorithms they are read as, tuned and tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from unrolled.studies.cells import Cell, Columns, Context, Result
from unrolled.studies.mesa.constructed import Constructed, ModelsConfig, model_predictions
from unrolled.studies.mesa.held_out import TEST_SEED, TUNE_SEED, losses, mean_loss, position_losses
from unrolled.studies.study import Budgets, Count, Distinct, Rate
from unrolled.tasks import LinearDynamics

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.tasks import Sequences

DEPTHS = (1, 2, 4, 6)  # of linear layers, and steps of the iterations
# what the iterations are tuned over: ridge, and largest eigenvalue or inverse step size
GRID = [(ridge, 4.0 * 2.0 ** (power / 2)) for ridge in (0.3, 1.0, 3.0, 9.0) for power in range(12)]
# of predictions, as in the trained models; without it the few sequences beyond the tuned interval outweigh all others
CLIP = 4.0


@dataclass(kw_only=True)
class DepthConfig(ModelsConfig):
    """Only `gpu` has the paper's recipe. The others train with a rate that rises higher and falls, for fewer steps."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            "seeds": (0,),
            "models": ("1", "2", "mesa"),
            "steps": (400, 500, 250),
            "batch_size": (32,),
            "test_sequences": 512,
            "tuning_sequences": 128,
        },
        "cpu": {},
        "gpu": {
            "seeds": (0, 1, 2, 3, 4),
            "steps": (5000, 5000, 10_000, 15_000, 5000),
            "batch_size": (256,),
            "published": True,
            "device": "cuda",
        },
    }

    models: Annotated[tuple[Literal["1", "2", "4", "6", "mesa"], ...], Distinct()] = ("1", "2", "4", "6", "mesa")
    """What to train: numbers of linear layers, and "mesa" for one mesa layer."""
    steps: tuple[Count, ...] = (1500, 1000, 1200, 2500, 800)
    """Training steps of each; the paper's are 5000, 5000, 10000, 15000 and 5000."""
    batch_size: tuple[Count, ...] = (32, 256, 256, 32, 32)
    """Sequences in a step of each, or one number for all; the paper's 256."""
    tuning_sequences: Count = 256
    """Other sequences, on which the settings of the algorithms are chosen."""
    ridges: Annotated[tuple[Rate, ...], Distinct()] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """Ridges to choose from, on other sequences."""


@dataclass(frozen=True, kw_only=True)
class Model(Cell):
    """One trained model, also with its initial weights."""

    network: Constructed
    test_sequences: int

    def compute(self, context: Context) -> Result:
        """`loss`, also `by_position`, and `untrained_loss`; `curve`, during training, by `share` of it in percent."""
        test = self.network.world.sample(self.test_sequences, seed=TEST_SEED)
        inputs, targets = test.inputs.to(context.device), test.targets.to(context.device)
        by_position = position_losses(model_predictions(self.network.load(context)), inputs, targets)
        training, recipe = context.result(self.network), self.network.recipe
        return {
            "loss": float(by_position.mean()),
            "last_position": float(by_position[-1]),
            "by_position": by_position.tolist(),
            "untrained_loss": mean_loss(model_predictions(self.network.untrained(context)), inputs, targets),
            "parameters": training["parameters"],
            "extent": recipe.extent,
            "curve": [{**point, "share": 100 * point["step"] / recipe.steps} for point in training["curve"]],
        }


@dataclass(frozen=True, kw_only=True)
class Solved(Cell):
    """Least squares in context, with the ridge that is best on sequences of its own; or the prediction of zero."""

    method: Literal["zero", "exact ridge", "without newest pair"]
    ridges: tuple[float, ...]
    tuning_sequences: int
    test_sequences: int

    def compute(self, context: Context) -> Result:
        """`loss` and its 95 % `interval` over sequences, the loss `by_position`, the `setting` in words."""
        import torch

        from unrolled.theory.in_context import least_squares_predictions

        world = LinearDynamics()
        test = world.sample(self.test_sequences, seed=TEST_SEED)
        tune = world.sample(self.tuning_sequences, seed=TUNE_SEED + 2, dtype=torch.float64)

        def predictions(states: Tensor, ridge: float) -> Tensor:
            if self.method == "zero":
                return 0 * states
            return least_squares_predictions(states, ridge, include_newest=self.method == "exact ridge")

        def score(ridge: float) -> float:
            value = mean_loss(lambda x: predictions(x, ridge), tune.inputs, tune.targets)
            return value if value == value else float("inf")

        ridge = min(self.ridges, key=score)
        every = losses(lambda x: predictions(x, ridge), test.inputs.double(), test.targets.double())
        by_position = every.mean(0)
        loss, error = float(by_position.mean()), float(every.mean(1).std() / len(every) ** 0.5)
        return {
            "loss": loss,
            "interval": [loss - 1.96 * error, loss + 1.96 * error],
            "by_position": by_position.tolist(),
            "setting": "none" if self.method == "zero" else f"ridge {ridge:g}",
        }


@dataclass(frozen=True, kw_only=True)
class Iterated(Cell):
    """A gradient step on inputs that an iteration preconditions (Proposition 2), its two settings tuned elsewhere."""

    method: Literal["Chebyshev", "Richardson"]
    iterations: int
    tuning_sequences: int
    test_sequences: int

    def compute(self, context: Context) -> Result:
        """`loss`, `by_position` and `setting` of settings for `all` positions, and of settings for `each` position."""
        import torch

        from unrolled.studies.mesa.floors import chebyshev_predictions

        world = LinearDynamics()
        test = world.sample(self.test_sequences, seed=TEST_SEED)
        tune = world.sample(self.tuning_sequences, seed=TUNE_SEED + 2, dtype=torch.float64)

        def chebyshev(x: Tensor, ridge: float, largest: float) -> Tensor:
            return chebyshev_predictions(x, min(ridge, 0.9 * largest), largest, self.iterations).clamp(-CLIP, CLIP)

        def richardson(x: Tensor, ridge: float, inverse: float) -> Tensor:
            return richardson_predictions(x, ridge, 1 / inverse, self.iterations).clamp(-CLIP, CLIP)

        first = self.method == "Chebyshev"
        common, (ridge, other), free = tuned(chebyshev if first else richardson, tune, test)
        setting = f"for [{ridge:g}, {other:.3g}]" if first else f"ridge {ridge:g}, step {1 / other:.3g}"
        return {
            "all": {"loss": float(common.mean()), "by_position": common.tolist(), "setting": setting},
            "each": {"loss": float(free.mean()), "by_position": free.tolist(), "setting": "at every position"},
        }


def cells(config: DepthConfig) -> Iterator[Cell]:
    """The algorithms, then every model of every seed."""
    sizes: Columns = {name: getattr(config, name) for name in ("tuning_sequences", "test_sequences")}
    for method in ("zero", "exact ridge", "without newest pair"):
        yield Solved(method=method, ridges=config.ridges, **sizes)  # type: ignore[arg-type]
    for iterations in DEPTHS:
        for iteration in ("Chebyshev", "Richardson"):
            yield Iterated(method=iteration, iterations=iterations, **sizes)  # type: ignore[arg-type]
    for network in config.networks:
        yield Model(network=network, test_sequences=config.test_sequences)


def tuned(
    predict: Callable[[Tensor, float, float], Tensor], tune: Sequences, test: Sequences
) -> tuple[Tensor, tuple[float, float], Tensor]:
    """A predictor with two settings, tested with those that are best on other sequences.

    Args:
        predict: of states [b, t, d] and the two settings.
        tune: sequences to choose on.
        test: sequences to test on.

    Returns:
        losses [t] with the pair that is best over all positions, that pair, and losses [t] with a pair per position.
    """
    import torch

    def scores(sample: Sequences, pair: tuple[float, float]) -> Tensor:
        return position_losses(lambda x: predict(x, *pair), sample.inputs.float(), sample.targets.float())

    grid = torch.stack([scores(tune, pair) for pair in GRID]).nan_to_num(torch.inf)
    common = int(grid.mean(-1).argmin())
    best = grid.argmin(0)
    tested = {place: scores(test, GRID[place]) for place in {common, *best.tolist()}}
    free = torch.stack([tested[place][position] for position, place in enumerate(best.tolist())])
    return tested[common], GRID[common], free


def richardson_predictions(states: Tensor, ridge: float, step_size: float, steps: int) -> Tensor:
    """s_{t+1} predicted by a gradient step on inputs preconditioned by `steps` Richardson iterations, [b, t, d].

    x <- x + step_size (s_t - (S S^T + ridge) x) from zero, S the states before s_t: Proposition 2 without momentum. One
    step is one gradient step of that size.
    """
    import torch
    from torch.nn.functional import pad

    before = pad(states[..., :-1, :], (0, 0, 1, 0))
    x = torch.zeros_like(states)
    for _ in range(steps):
        x = x + step_size * (states - ridge * x - (x @ before.mT).tril() @ before)
    return (x @ states[..., :-1, :].mT).tril(-1) @ states[..., 1:, :]
