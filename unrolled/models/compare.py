"""What models cost, side by side: parameters, floating-point operations and measured throughput."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unrolled.models.resolve import resolve_model


class Cost(NamedTuple):
    """One row of `compare`."""

    name: str
    parameters: int
    flops: int
    """Operations of one image's forward pass, as in `count_flops`."""
    images_per_second: float
    input_size: tuple[int, int, int]
    """(channels, height, width)."""


def count_flops(model: nn.Module, images: Tensor) -> int:
    """Floating-point operations of one forward pass of `model` on `images`, as it runs.

    Counted exactly by torch for matrix products, convolutions and attention, a multiplication and an addition being two
    operations; everything else (norms, activations, softmax, factorisations) is not counted, as usual. In eval mode
    `ISTA` runs folded, with one product a token instead of the two of the published code, which is what published
    counts include.

    Args:
        model: runs without gradients, in the mode it is in.
        images: `[b, c, h, w]` on the model's device; the result is for all b.
    """
    with torch.no_grad():
        model(images)  # what is folded once and kept is no cost of a forward pass
        with FlopCounterMode(display=False) as counter:
            model(images)
    return counter.get_total_flops()


def compare(
    names: Sequence[str],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    rounds: int = 7,
    **kwargs: Any,
) -> list[Cost]:
    """Count and time image models under the same conditions.

    Throughput is that of inference in float32 in eval mode. Models take turns, so that whatever else the machine does
    meets all of them; the fastest of `rounds` batches counts.

    Args:
        names: as `resolve_model` takes them; their weights are random, which changes no cost.
        batch_size: images a batch.
        device: where to run.
        rounds: timed batches of each model, after one that is not timed.
        **kwargs: arguments of every model, such as `img_size`.

    Raises:
        ValueError: no name, a name twice, one that is unknown, a count below 1, or a model that reads no images.
    """
    if not names:
        raise ValueError("names: give at least one model")
    if twice := {name for name in names if list(names).count(name) > 1}:
        raise ValueError(f"names: {', '.join(sorted(twice))} is given more than once")
    if batch_size < 1 or rounds < 1:
        raise ValueError(f"batch_size={batch_size}, rounds={rounds}: both must be at least 1")
    models = [resolve_model(name, **kwargs).to(device).eval() for name in names]
    sizes = [_input_size(name, model) for name, model in zip(names, models, strict=True)]
    batches = [torch.randn(batch_size, *size, device=device) for size in sizes]
    flops = [count_flops(model, images[:1]) for model, images in zip(models, batches, strict=True)]
    best = [float("inf")] * len(models)
    for turn in range(rounds + 1):
        for index, (model, images) in enumerate(zip(models, batches, strict=True)):
            seconds = _time(model, images)
            if turn:
                best[index] = min(best[index], seconds)
    return [
        Cost(name, sum(p.numel() for p in model.parameters()), count, batch_size / seconds, size)
        for name, model, count, seconds, size in zip(names, models, flops, best, sizes, strict=True)
    ]


@torch.inference_mode()
def _time(model: nn.Module, images: Tensor) -> float:
    """Seconds of one forward pass, the device having finished."""
    _finish(images.device)
    began = time.perf_counter()
    model(images)
    _finish(images.device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def _input_size(name: str, model: nn.Module) -> tuple[int, int, int]:
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        raise ValueError(f"names: {name} does not say what images it reads; compare models of `unrolled list` or timm")
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)  # what `img_size` may have changed
    channels, height, width = (size[0], *built) if built else size
    return int(channels), int(height), int(width)
