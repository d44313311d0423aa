"""What regression on the context reaches in the three worlds: exact, and as Proposition 2's steps.

The controls of trained sequence models (arXiv 2309.05858); every pair seen is used, unlike in the published controls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from unrolled.ops import mesa
from unrolled.studies.cells import Result
from unrolled.studies.mesa.held_out import TEST_SEED, TUNE_SEED, position_losses
from unrolled.studies.mesa.stacks import Place, recipe, world_of
from unrolled.tasks import LinearDynamics
from unrolled.theory.in_context import chebyshev_inputs

CLIP = 4.0


def ridge_predictions(features: Tensor, states: Tensor, ridge: float) -> Tensor:
    """s_{t+1} predicted by exact ridge regression from features of s_{t'} to s_{t'+1}, t' < t, newest pair included.

    With the states as their own features it is `least_squares_predictions`.

    Args:
        features: of the state at each step, [b, t, f].
        states: [b, t, d].
        ridge: > 0.

    Returns:
        [b, t, d]
    """
    keys = pad(features[:, :-1], (0, 0, 1, 0))
    out: Tensor = mesa(features[:, None], keys[:, None], states[:, None], ridge)
    return out[:, 0]


def steps_predictions(features: Tensor, states: Tensor, ridge: float, largest: float, steps: int) -> Tensor:
    """Proposition 2 on features: a gradient step on queries preconditioned by `steps` Chebyshev iterations, [b, t, d].

    Its limit is `ridge_predictions`; arguments as there and in `chebyshev_inputs`. Predictions are kept within
    [-CLIP, CLIP], as the published models keep their tokens: where an interval does not hold all eigenvalues the
    iteration diverges, and without it one sequence in 500 would decide the mean.
    """
    inputs = chebyshev_inputs(features, ridge, steps, largest)[-1]
    return ((inputs @ features[:, :-1].mT).tril(-1) @ states[:, 1:]).clamp(-CLIP, CLIP)


def lagged(states: Tensor, lags: int) -> Tensor:
    """[b, t, d] -> [b, t, lags * d]: each observation joined by the `lags - 1` before it, zero before the first."""
    count = states.shape[1]
    return torch.cat([pad(states, (0, 0, lag, 0))[:, :count] for lag in range(lags)], dim=-1)


def references(world: Place, sequences: int, *, lags: Iterable[int], depths: Iterable[int]) -> Result:
    """Losses of what needs no training, its settings chosen on sequences of their own.

    Args:
        world: "full", "partial" or "nonlinear".
        sequences: to test on; at most 256 others choose the settings.
        lags: observations joined for exact ridge in the partially observed world, from which the best is taken.
        depths: numbers of Chebyshev steps of Proposition 2.

    Returns:
        By predictor "settings" (in words), "loss", "late" (of the last position) and "by_position"; and "noise".
    """
    place: Any = world_of(recipe("softmax", world, "cpu"))
    test, tune = (
        [part.double() for part in place.sample(count, seed=seed)[:2]]
        for count, seed in ((sequences, TEST_SEED), (min(sequences, 256), TUNE_SEED))
    )

    def best(make: Callable[[Any], Callable[[Tensor], Tensor]], grid: list[Any]) -> tuple[Any, Callable]:
        def score(setting: Any) -> float:
            value = float(position_losses(make(setting), *tune).mean())
            return value if value == value else float("inf")

        chosen = min(grid, key=score)
        return chosen, make(chosen)

    ridges = [1e-4, 1e-3, 1e-2, 1e-1]
    # of the mean energy of a context, since the features of the worlds differ in size
    shares = [(low, high) for low in (5e-4, 2e-3, 6e-3, 2e-2, 6e-2) for high in (0.2, 0.35, 0.5, 0.7, 1.0, 1.4)]

    def ridge_on(joined: int, ridge: float) -> Callable[[Tensor], Tensor]:
        return lambda x: ridge_predictions(lagged(x, joined), x, ridge)

    def features(x: Tensor) -> Tensor:
        if world == "nonlinear":
            mapped: Tensor = place.features(x.float())  # the teacher is drawn in float32
            return mapped.double()
        return lagged(x, 16) if world == "partial" else x

    energy = float(features(tune[0]).square().sum((1, 2)).mean())
    on = {"full": "", "partial": "16 lags, ", "nonlinear": "features of the teacher, "}[world]
    predictors: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {"zero": ("", lambda x: 0 * x)}
    setting, predict = best(lambda r: ridge_on(1, r), ridges)
    if world == "full":
        predictors["exact ridge"] = (f"ridge {setting:g}", predict)
    else:
        predictors["naive"] = (f"exact ridge on the last observation, ridge {setting:g}", predict)
    if world == "partial":
        setting, predict = best(lambda s: ridge_on(*s), [(joined, r) for joined in lags for r in ridges])
        predictors["exact ridge"] = (f"{setting[0]} lags, ridge {setting[1]:g}", predict)
    if world == "nonlinear":
        setting, predict = best(lambda r: lambda x: ridge_predictions(features(x), x, r), ridges)
        predictors["exact ridge"] = (f"{on}ridge {setting:g}", predict)
    for depth in depths:

        def make(share: Any, depth: int = depth) -> Callable[[Tensor], Tensor]:
            low, high = share[0] * energy, share[1] * energy
            return lambda x: steps_predictions(features(x), x, low, high, depth)

        setting, predict = best(make, shares)
        predictors[f"Proposition 2, {depth} steps"] = (
            f"{on}for [{setting[0] * energy:.2g}, {setting[1] * energy:.2g}]",
            predict,
        )
    losses = {name: position_losses(predict, *test) for name, (_, predict) in predictors.items()}
    return {
        "settings": {name: text for name, (text, _) in predictors.items()},
        "loss": {name: float(value.mean()) for name, value in losses.items()},
        "late": {name: float(value[-1]) for name, value in losses.items()},
        "by_position": {name: value.tolist() for name, value in losses.items()},
        "noise": 0.5 * place.dim * place.noise**2,
    }


def kernel_errors(width: int, sequences: int) -> dict[str, float]:
    """Error of a coordinate of least squares and of softmax-kernel regression on pairs seen, tuned on other sequences.

    Softmax-kernel regression predicts sum_t' p_t' s_{t'+1} with p = softmax(beta s_t' . s_t) over the earlier t'. With
    each error its standard error over sequences, and the setting.
    """
    world = LinearDynamics(dim=width, steps=4 * width)
    test, tune = (
        [part.double() for part in world.sample(count, seed=seed)[:2]]
        for count, seed in ((sequences, TEST_SEED), (min(sequences, 128), TUNE_SEED))
    )

    def tuned(predict: Callable[[Tensor, float], Tensor], grid: tuple[float, ...]) -> tuple[float, float, float]:
        def squares(setting: float, inputs: Tensor, targets: Tensor) -> Tensor:
            return (predict(inputs, setting) - targets).square()

        best = min(grid, key=lambda setting: float(squares(setting, *tune).mean()))
        errors = squares(best, *test)
        return best, float(errors.mean()), float(errors.mean((1, 2)).std() / len(errors) ** 0.5)

    ridge, least, least_spread = tuned(lambda x, r: ridge_predictions(x, x, r), (1e-4, 1e-3, 1e-2, 1e-1))
    beta, kernel, kernel_spread = tuned(softmax_kernel_predictions, (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0, 3.0, 5.0))
    return {
        "least_squares": least,
        "least_squares_standard_error": least_spread,
        "ridge": ridge,
        "softmax_kernel": kernel,
        "softmax_kernel_standard_error": kernel_spread,
        "beta": beta,
    }


def softmax_kernel_predictions(states: Tensor, beta: float) -> Tensor:
    """s_{t+1} predicted by softmax-kernel regression on the pairs seen, zero at the first: [b, t, d]."""
    scores = beta * (states[:, 1:] @ states[:, :-1].mT)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=states.device).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.cat([torch.zeros_like(states[:, :1]), weights @ states[:, 1:]], dim=1)
