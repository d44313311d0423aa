"""A linear self-attention layer that imitates one softmax layer of a trained stack on what that layer reads."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.models import SequenceRegressor
from unrolled.studies.mesa.held_out import TEST_SEED
from unrolled.studies.mesa.stacks import Recipe, world_of
from unrolled.studies.training import Checkpoint, train_resumable, warmup_cosine


def distil(
    model: nn.Module,
    recipe: Recipe,
    index: int,
    *,
    seed: int,
    steps: int,
    rate: float,
    device: str = "cpu",
    keep: Checkpoint | None = None,
) -> tuple[nn.Module, float]:
    """Train a linear layer to give the update of layer `index`.

    It starts from weights of its own, as wide as the softmax layer's, and minimises the squared error of the update
    divided by the update's energy.

    Args:
        model: the trained stack; it is not changed.
        recipe: that it was trained by; gives the world and the batch size.
        index: of the layer.
        seed: of the model; the layer's weights and sequences follow from it.
        steps: of Adam.
        rate: its peak learning rate; warm-up, then a cosine to zero.
        device: where.
        keep: where the training is saved to and goes on from.

    Returns:
        The layer, and that error on 512 held-out sequences: 0 is perfect, 1 no better than zero.
    """
    twin: Any = model
    linear = replace(twin.config, layers=("linear",) * recipe.depth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1000 * (index + 1))
        fresh: Any = SequenceRegressor(linear)
    student: nn.Module = fresh.blocks[index].attn.to(device)
    teacher: nn.Module = twin.blocks[index].attn
    world = world_of(recipe)
    seen: dict[str, Tensor] = {}

    def hear(_: nn.Module, args: Any, out: Tensor) -> None:
        seen["read"], seen["update"] = args[0].detach(), out.detach()

    def error(batch: Tensor) -> Tensor:
        handle = teacher.register_forward_hook(hear)
        try:
            with torch.no_grad():
                twin(batch)
        finally:
            handle.remove()
        update: Tensor = student(seen["read"])
        ratio: Tensor = (update - seen["update"]).square().sum() / seen["update"].square().sum()
        return ratio

    def loss_at(step: int) -> Tensor:
        # apart from the batches that trained the model
        place = (seed + 1) * 10_000_000 - 1 - (index * steps + step)
        return error(world.sample(recipe.batch_size, seed=place, device=device).inputs)

    train_resumable(
        student,
        torch.optim.Adam(student.parameters(), lr=rate),
        loss_at,
        steps=steps,
        keep=keep,
        rate=warmup_cosine(rate, warmup=max(1, steps // 20), steps=steps),
        clip_norm=1.0,
    )
    with torch.no_grad():
        held_out = world.sample(512, seed=TEST_SEED, device=device)
        return student, float(error(held_out.inputs))


def silent(layer: nn.Module) -> nn.Module:
    """A copy of an attention layer that adds nothing."""
    copy: Any = deepcopy(layer)
    copy.output.weight.data.zero_()
    quiet: nn.Module = copy
    return quiet
