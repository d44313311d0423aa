"""The worlds have the statistics and the floors the published experiments have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unrolled.tasks import (
    LinearDynamics,
    NonlinearDynamics,
    PartialDynamics,
    constructed_tokens,
    random_orthogonal,
    sequence_loss,
)
from unrolled.theory.in_context import gradient_descent_predictions, least_squares_predictions

WORLDS: dict[str, Any] = {
    f"{kind.__name__}-{variant}": kind(variant=variant)
    for kind in (LinearDynamics, PartialDynamics, NonlinearDynamics)
    for variant in ("paper", "code")
} | {teacher: LinearDynamics(teacher=teacher) for teacher in ("contracting", "oblique", "fixed")}


@pytest.mark.parametrize("name", WORLDS)
def test_a_seed_is_a_batch(name: str) -> None:
    world = WORLDS[name]
    first, again, other = (world.sample(4, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, other.inputs)
    assert first.inputs.shape == first.targets.shape == (4, world.steps, world.dim)
    assert torch.equal(first.inputs[:, 1:], first.targets[:, :-1])
    assert torch.isfinite(first.targets).all()


def test_reference_floors_of_the_published_data() -> None:
    inputs, targets, _ = LinearDynamics().sample(1000, seed=0, dtype=torch.float64)

    def loss(predictions: torch.Tensor) -> float:
        return float(sequence_loss(predictions, targets))

    assert loss(torch.zeros_like(targets)) == pytest.approx(1.677, abs=0.02)
    assert loss(gradient_descent_predictions(inputs, 0.032)) == pytest.approx(0.898, abs=0.01)
    ridge = least_squares_predictions(inputs, 1e-3)
    assert loss(ridge) == pytest.approx(0.186, abs=0.003)
    assert loss(least_squares_predictions(inputs, 1e-3, include_newest=False)) == pytest.approx(0.2105, abs=0.003)
    late = float(sequence_loss(ridge[:, 40:], targets[:, 40:]))
    assert late < 1e-3


def test_teachers() -> None:
    fixed = WORLDS["fixed"].sample(3, seed=0).transition
    assert torch.equal(fixed[0], fixed[2])
    assert torch.equal(fixed, WORLDS["fixed"].sample(3, seed=5).transition)
    assert not torch.equal(fixed[0], LinearDynamics(teacher="fixed", world_seed=1).sample(1, seed=0).transition[0])
    values = torch.linalg.eigvalsh(WORLDS["contracting"].sample(50, seed=0, dtype=torch.float64).transition)
    assert values.min() >= 0.3
    assert values.max() <= 0.9


def test_the_oblique_world_shrinks_in_the_end_but_not_at_once() -> None:
    inputs, targets, transition = WORLDS["oblique"].sample(200, seed=0, dtype=torch.float64)
    sizes = torch.linalg.eigvals(transition).abs().sort(-1).values
    assert sizes[:, 0].min() > 0.3 - 1e-6
    assert (sizes[:, -1] - 0.9).abs().max() < 1e-4
    assert sizes[:, :-1].std() > 0.1
    assert inputs.abs().max() <= 2.0
    # eigenvectors that are not orthogonal: most states grow at first, which no symmetric contraction does
    growth = torch.linalg.matrix_norm(transition, ord=2)
    assert (growth > 1).all()
    symmetric = WORLDS["contracting"].sample(200, seed=0, dtype=torch.float64).transition
    assert torch.linalg.matrix_norm(symmetric, ord=2).max() <= 0.9 + 1e-9
    free, after, matrix = LinearDynamics(teacher="oblique", noise=0.0, clip=1e9).sample(5, seed=1, dtype=torch.float64)
    torch.testing.assert_close(after, free @ matrix.mT)
    assert targets.shape == inputs.shape


def test_random_orthogonal_is_uniform_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = random_orthogonal(4000, 3, generator, torch.float64)
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64).expand_as(matrices))
    assert matrices.mean(0).abs().max() < 0.05
    assert matrices.square().mean(0).sub(1 / 3).abs().max() < 0.02
    assert torch.linalg.det(matrices).mean().abs() < 0.05


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_dynamics_without_noise(variant: Any) -> None:
    inputs, targets, transition = LinearDynamics(noise=0.0, variant=variant).sample(5, seed=0, dtype=torch.float64)
    torch.testing.assert_close(targets, inputs @ transition.mT)
    world = NonlinearDynamics(noise=0.0, variant=variant)
    inputs, targets, transition = world.sample(5, seed=0, dtype=torch.float64)
    torch.testing.assert_close(targets, (world.features(inputs) @ transition.mT).clamp(-10, 10))
    if variant == "code":
        torch.testing.assert_close(targets.norm(dim=-1), torch.ones(5, 50, dtype=torch.float64))


def test_variants_differ_in_the_start() -> None:
    assert LinearDynamics(variant="code").sample(500, seed=0).inputs[:, 0].abs().max() <= 1
    assert LinearDynamics(variant="paper").sample(500, seed=0).inputs[:, 0].std() == pytest.approx(1, abs=0.05)


def test_constructed_tokens() -> None:
    s, phi = torch.randn(2, 5, 3), torch.randn(3, 3)
    four = constructed_tokens(s).unflatten(-1, (4, 3))
    assert (four[..., 0, :] == 0).all()
    assert (four[:, 0, 3] == 0).all()
    assert torch.equal(four[:, 1:, 3], s[:, :-1])
    three = constructed_tokens(s, phi).unflatten(-1, (3, 3))
    torch.testing.assert_close(three[..., 0, :], s @ phi.mT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearDynamics(dim=0), "widths and steps"),
        (lambda: LinearDynamics(noise=-1.0), "noise"),
        (lambda: PartialDynamics(variant="v1"), "variant"),
        (lambda: LinearDynamics(teacher="random"), "teacher"),
    ],
)
def test_bad_worlds_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "world",
    [
        LinearDynamics(),
        LinearDynamics(teacher="contracting"),
        LinearDynamics(teacher="fixed", variant="paper"),
        LinearDynamics(teacher="oblique"),
        PartialDynamics(),
        NonlinearDynamics(),
    ],
)
def test_a_seed_means_the_same_world_in_any_precision(
    world: LinearDynamics | PartialDynamics | NonlinearDynamics,
) -> None:
    single, double = (world.sample(3, seed=1, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert double.inputs.dtype == torch.float64
    assert torch.allclose(single.inputs[:, :5].double(), double.inputs[:, :5], atol=1e-3)
    if isinstance(world, NonlinearDynamics):
        states = double.inputs[:, :5]
        assert torch.allclose(world.features(states.float()).double(), world.features(states), atol=1e-4)
