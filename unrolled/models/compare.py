"""What models cost, side by side: parameters, operations and measured throughput; baselines of equal cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

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
    width: int | None = None
    """`num_features`, where the model has it: of a transformer the width of its tokens, in the last stage."""


def matched_width(name: str, like: str, *, by: Literal["parameters", "flops"] = "parameters", **kwargs: Any) -> int:
    """Width at which one image model costs what another does: `create_model(name, embed_dim=matched_width(...))`.

    Depth, number of heads and everything else stay; among the widths that the heads divide, the nearest in cost wins,
    so that what is left over is up to half a head's share.

    Args:
        name: model to be changed; of this package or timm, with `embed_dim` as an argument and `blocks`.
        like: model whose cost it is to have, as it is.
        by: `parameters`, or `flops` as `count_flops` finds them in eval mode.
        **kwargs: arguments of both models, such as `num_classes`.

    Returns:
        The width, a multiple of the number of heads of `name`.

    Raises:
        ValueError: `by` is unknown, or the width of `name` cannot be changed.
    """
    if by not in ("parameters", "flops"):
        raise ValueError(f"by={by!r}: choose parameters or flops")

    def cost(model: nn.Module, label: str) -> int:
        if by == "parameters":
            return _parameters(model)
        return count_flops(model.eval(), torch.zeros(1, *_input_size(label, model)))

    def at(width: int) -> nn.Module:
        if by == "flops":  # it has to run, and what it looks up in tables of its own must be there
            return resolve_model(name, **kwargs, embed_dim=width)
        with torch.device("meta"):  # nothing is drawn
            return resolve_model(name, **kwargs, embed_dim=width)

    target = cost(resolve_model(like, **kwargs), like)
    changed = resolve_model(name, **kwargs)
    try:
        width = int(changed.num_features)  # type: ignore[arg-type]
        attention = changed.blocks[0].attn  # type: ignore[index, union-attr]
        step = int(getattr(attention, "heads", None) or attention.num_heads)  # type: ignore[arg-type, union-attr]
        while not _can(at, width + step):  # a convolutional stem also halves the width, rotations need even shares
            step *= 2
    except (AttributeError, TypeError) as error:
        raise ValueError(f"name={name!r}: its width cannot be changed; choose a transformer of the list") from error

    def off(count: int) -> int:
        """Cost at `count` steps of width, less the target."""
        return cost(at(count * step), name) - target

    low, high = 0, max(1, width // step)
    while off(high) < 0:
        low, high = high, 2 * high
    while high - low > 1:  # the cost grows with the width
        middle = (low + high) // 2
        low, high = (middle, high) if off(middle) < 0 else (low, middle)
    return step * min((count for count in (low, high) if count), key=lambda count: abs(off(count)))


def _of_attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


_UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _of_attention}  # by torch 2.11 and before


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
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)  # without it the counter stumbles over models that join tokens on their way, as cait
    try:
        with torch.no_grad():
            model(images)  # what is folded once and kept is no cost of a forward pass
            with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
                model(images)
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
    return counter.get_total_flops()


def compare(
    names: Sequence[str],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    rounds: int = 7,
    match: Literal["parameters", "flops"] | None = None,
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
        match: give all models but the first the width at which they have its `parameters` or `flops`
            (`matched_width`), so that what is left to compare is the architecture.
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

    def options(name: str) -> dict[str, Any]:
        if match is None or name == names[0]:
            return kwargs
        return {**kwargs, "embed_dim": matched_width(name, names[0], by=match, **kwargs)}

    models = [resolve_model(name, **options(name)).to(device).eval() for name in names]
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
        Cost(name, _parameters(model), count, batch_size / seconds, size, getattr(model, "num_features", None))
        for name, model, count, seconds, size in zip(names, models, flops, best, sizes, strict=True)
    ]


def _can(at: Callable[[int], nn.Module], width: int) -> bool:
    try:
        at(width)
    except (ValueError, AssertionError, RuntimeError):  # how this package and timm refuse a width
        if width > 2**16:
            raise
        return False
    return True


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


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
