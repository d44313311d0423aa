"""Sequences that no training sees, and losses on them: what every study of sequence models measures with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unrolled.tasks import LinearDynamics
from unrolled.theory.in_context import gradient_descent_predictions

# seeds of sampled batches, apart from every training step: held-out sequences, those that step sizes are tuned on, and
# those that losses during training are taken on
TEST_SEED, TUNE_SEED, LOOK_SEED = 2**41, 2**42, 2**43


Predictor = Callable[[Tensor], Tensor]


@torch.no_grad()
def losses(predict: Predictor, inputs: Tensor, targets: Tensor) -> Tensor:
    """1/2 |error|^2 of a predictor of states [b, t, d], for every sequence and position: [b, t]."""
    parts = zip(inputs.split(512), targets.split(512), strict=True)
    return torch.cat([0.5 * (predict(x) - y).square().sum(-1) for x, y in parts])


def position_losses(predict: Predictor, inputs: Tensor, targets: Tensor) -> Tensor:
    """`losses` averaged over the sequences: [t]."""
    return losses(predict, inputs, targets).mean(0)


def mean_loss(predict: Predictor, inputs: Tensor, targets: Tensor) -> float:
    """`losses` averaged over sequences and positions."""
    return float(position_losses(predict, inputs, targets).mean())


def best_step_size(world: LinearDynamics, *, sequences: int = 2048) -> float:
    """The step size with which one gradient step from zero predicts best, in closed form on sequences of its own.

    The prediction is linear in the step size, so the best one is a ratio of inner products.
    """
    sample = world.sample(sequences, seed=TUNE_SEED)
    return _step_size(sample.inputs, sample.targets, torch.zeros(world.dim, world.dim))


def best_gradient_step(world: LinearDynamics, *, sequences: int = 2048, rounds: int = 20) -> tuple[float, Tensor]:
    """The step size and the initial weights Phi_0 [d, d] with which one gradient step predicts best, float64.

    The prediction is linear in either while the other stays, so they are solved for in turns, on sequences of their
    own; the loss never rises. Of a world that is the same under s -> -s for every teacher, the best Phi_0 is zero but
    for the sequences drawn.
    """
    sample = world.sample(sequences, seed=TUNE_SEED)
    states, targets = sample.inputs.double(), sample.targets.double()
    identity = torch.eye(world.dim, dtype=states.dtype)
    learned = gradient_descent_predictions(states, 1.0)
    forgotten = states + learned - gradient_descent_predictions(states, 1.0, identity)  # of Phi_0, for every unit of it
    initial, size = 0 * identity, 0.0
    for _ in range(rounds):
        size = _step_size(states, targets, initial)
        inputs, wanted = ((states - size * forgotten).flatten(0, 1), (targets - size * learned).flatten(0, 1))
        initial = torch.linalg.lstsq(inputs, wanted).solution.mT
    return size, initial


def _step_size(states: Tensor, targets: Tensor, initial: Tensor) -> float:
    start = states @ initial.mT
    direction = gradient_descent_predictions(states, 1.0, initial) - start
    return float((direction * (targets - start)).sum() / direction.square().sum())
