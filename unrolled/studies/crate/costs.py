"""What training and running small models costs on this machine: time in turns, and peak memory of a training step."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unrolled.models.compare import count_flops
from unrolled.studies.cells import Result


def best_seconds(calls: Mapping[str, Callable[[], Any]], *, rounds: int, device: str = "cpu") -> dict[str, float]:
    """Shortest time of each call, in seconds; calls take turns, after one round that is not timed.

    Turns let whatever else the machine does meet all calls, and the shortest time is the one least disturbed.
    """
    best = dict.fromkeys(calls, math.inf)
    for turn in range(rounds + 1):
        for name, call in calls.items():
            _finish(device)
            began = time.perf_counter()
            call()
            _finish(device)
            if turn:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def costs(
    models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, *, rounds: int, device: str = "cpu"
) -> Result:
    """Parameters, operations, speed and memory of classifiers under the same conditions.

    Args:
        models: on `device`; training steps with a rate of 0 leave their weights as they are.
        images: `[b, c, h, w]` float32 on `device`, one batch.
        labels: `[b]` int64 on `device`.
        rounds: timed batches of each model.
        device: where all of it is.

    Returns:
        `models`: of each its `parameters`, `flops` (of one image's forward pass, see `count_flops`), `inference` and
        `training` (images/s), and `memory` (bytes, see `training_memory`). `load`: the machine's load average of the
        last minute before and after, NaN where the system does not tell. `rounds`, `batch` and `threads` say how it was
        measured.
    """
    before = load()
    measured: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        model.eval()
        measured[name] = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "flops": count_flops(model, images[:1]),
            "memory": training_memory(model, images, labels),
        }
    steps = {name: _step(model, images, labels) for name, model in models.items()}
    for name, seconds in best_seconds(steps, rounds=rounds, device=device).items():
        measured[name]["training"] = len(images) / seconds
    passes = {name: _forward(model.eval(), images) for name, model in models.items()}
    for name, seconds in best_seconds(passes, rounds=rounds, device=device).items():
        measured[name]["inference"] = len(images) / seconds
    return {
        "models": measured,
        "load": [before, load()],
        "rounds": rounds,
        "batch": len(images),
        "threads": torch.get_num_threads(),
    }


def training_memory(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Most bytes that tensors hold at a time during one AdamW step: weights, batch, gradients, moments, activations.

    Counted from the tensors that operations return, so it is the same on every run; buffers that a kernel needs inside
    are not seen. On the models of these studies it agrees with the allocator's own count to 2 %.
    """
    was_training = model.training
    model.train()
    given = [*model.parameters(), *model.buffers(), images, labels]
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.0)
    with _Live(given) as live:
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return live.peak


def by_size(
    build: Mapping[str, Callable[[int], nn.Module]],
    sides: Sequence[int],
    *,
    patch: int,
    rounds: int,
    channels: int = 3,
    device: str = "cpu",
) -> Result:
    """Operations and seconds of one image's forward pass as the image, and so the number of tokens, grows.

    Args:
        build: of each model, from the side of the image to the network.
        sides: in pixels, growing; multiples of `patch`.
        patch: side of a patch.
        rounds: timed batches of each model; a batch has as many images as give about 4,096 tokens.
        channels: of the image.
        device: where to run.

    Returns:
        `tokens` (patches, one for each side), `flops` and `seconds` (for each model a list, one for each side), and
        `load` as in `costs`.
    """
    before = load()
    flops: dict[str, list[int]] = {name: [] for name in build}
    seconds: dict[str, list[float]] = {name: [] for name in build}
    for side in sides:
        batch = torch.randn(max(1, 4096 // (side // patch) ** 2), channels, side, side, device=device)
        models = {name: make(side).to(device).eval() for name, make in build.items()}
        passes = {name: _forward(model, batch) for name, model in models.items()}
        for name, best in best_seconds(passes, rounds=rounds, device=device).items():
            flops[name].append(count_flops(models[name], batch[:1]))
            seconds[name].append(best / len(batch))
    tokens = [(side // patch) ** 2 for side in sides]
    return {"tokens": tokens, "flops": flops, "seconds": seconds, "load": [before, load()]}


def exponent(tokens: Sequence[float], cost: Sequence[float]) -> float:
    """How cost grows between the two largest sizes: 1 is linear in the number of tokens, 2 quadratic."""
    if len(tokens) < 2:
        return math.nan
    return math.log(cost[-1] / cost[-2]) / math.log(tokens[-1] / tokens[-2])


def load() -> float:
    """Load average of the last minute, NaN where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return math.nan


def _step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    # a rate of 0: speed does not depend on it, and weights stay in range
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.0)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _forward(model: nn.Module, images: Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def forward() -> None:
        model(images)

    return forward


def _finish(device: str) -> None:
    if (kind := torch.device(device).type) in ("cuda", "mps"):
        getattr(torch, kind).synchronize()


class _Live(TorchDispatchMode):
    """Follows how many bytes the storages hold that operations return, beginning with those of `given`."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()
        self._take(given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._take(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out

    def _take(self, tensors: Any) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                weakref.finalize(storage, self._gone, key, size).atexit = False
                self.live += size
                self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
