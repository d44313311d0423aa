"""Names of `studies.mesa` for studies that do not yet compute by cells."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from unrolled.studies.mesa.constructed import Recipe, constructed_recipe, model_predictions, new_model, train
from unrolled.studies.mesa.held_out import (
    LOOK_SEED,
    TEST_SEED,
    TUNE_SEED,
    best_step_size,
    mean_loss,
    position_losses,
)
from unrolled.studies.mesa.weights import products, structure

__all__ = [
    "TEST_SEED",
    "TUNE_SEED",
    "Recipe",
    "best_step_size",
    "constructed_model",
    "constructed_recipe",
    "model_predictions",
    "new_model",
    "position_losses",
    "products",
    "structure",
    "train",
]


def constructed_model(
    world: Any, name: str, recipe: Recipe, *, seed: int, device: str, folder: Path
) -> tuple[Any, list[dict[str, Any]]]:
    """The trained model of a name, from `folder` if it is there, and its loss during training."""
    from unrolled.studies.remembered import checkpoint

    sample = world.sample(1024, seed=LOOK_SEED)
    inputs, targets = sample.inputs.to(device), sample.targets.to(device)
    settings = {"world": asdict(world), "recipe": asdict(recipe), "seed": seed, "device": device}
    return train(
        world,
        recipe,
        seed=seed,
        device=device,
        keep=checkpoint(folder / f"constructed-{world.teacher}-{name}-seed{seed}.pt", settings),
        look=lambda step, model: {"loss": mean_loss(model_predictions(model), inputs, targets)},
        look_at={round(recipe.steps * point / 20) for point in range(21)},
    )
