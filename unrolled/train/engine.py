"""Processes, devices and precision: Lightning Fabric, with the strategy that is really active checked."""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from unrolled.locks import owned
from unrolled.precision import in_hardware, note_if_slow
from unrolled.train.config import RunConfig

T = TypeVar("T")
_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class Alone:
    """What a task asks of a Fabric, where one process measures and nothing is trained."""

    device: torch.device
    world_size: int = 1
    global_rank: int = 0
    is_global_zero: bool = True


@contextlib.contextmanager
def launched(config: RunConfig) -> Iterator[Any]:
    """A launched `lightning_fabric.Fabric` for `config`, whose process group is left at the end, come what may.

    Until then the run folder `config.out` is the group's: its first process holds the lock of `unrolled.locks`.

    Raises:
        ValueError: as `launch`, or other processes are at work in the run folder; the message names one.
    """
    fabric = launch(config)
    lock = contextlib.ExitStack()
    try:
        on_main(fabric, lambda: lock.enter_context(owned(config.out)))
        yield fabric
    except BaseException as error:
        if fabric.world_size > 1:
            traceback.clear_frames(error.__traceback__)  # they hold the DDP wrapper, see `shutdown`
        raise
    finally:
        lock.close()
        shutdown(fabric)


def launch(config: RunConfig) -> Any:
    """A launched `lightning_fabric.Fabric` for `config`. Under torchrun its process counts win over the config's.

    Raises:
        ValueError: the accelerator, the number of devices or the precision cannot be had on this machine.
    """
    from lightning_fabric import Fabric

    devices, nodes = config.devices, config.num_nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    accelerator = pick_accelerator(config.accelerator, devices)
    if config.precision == "fp16" and accelerator == "cpu":
        others = "precision='fp32'" + (
            " or precision='bf16'" if in_hardware("bf16") else " (this CPU only emulates bf16)"
        )
        raise ValueError(f"precision='fp16' needs a GPU: CPUs lack the loss scaling it depends on; use {others}")
    if config.precision == "fp16" and config.strategy == "fsdp":
        raise ValueError("precision='fp16' is not supported with strategy='fsdp'; use precision='bf16'")
    world = devices * nodes
    if config.batch_size % world:
        raise ValueError(f"batch_size={config.batch_size} must be a multiple of the number of processes, {world}")
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(config.strategy, world),
        precision=_PRECISION[config.precision],
    )
    fabric.launch()
    if fabric.is_global_zero:
        note_if_slow(config.precision, accelerator)
    return fabric


def pick_accelerator(wanted: str, devices: int = 1) -> str:
    """`wanted`, or for "auto" the best there is.

    Raises:
        ValueError: it is not there, or has fewer devices.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = 1 if torch.backends.mps.is_available() else 0
    if wanted == "auto":
        wanted = "cuda" if cuda else "mps" if mps and devices == 1 else "cpu"
    available = {"cpu": devices, "cuda": cuda, "mps": mps}
    if wanted not in available:
        raise ValueError(f"accelerator={wanted!r} is not one of auto, cpu, cuda, mps")
    if available[wanted] == 0:
        raise ValueError(f"accelerator={wanted!r} was asked for, but torch finds none here; use accelerator='auto'")
    if available[wanted] < devices:
        raise ValueError(f"devices={devices} {wanted} devices were asked for, but torch finds {available[wanted]}")
    return wanted


def _strategy(wanted: str, world: int) -> Any:
    if wanted == "fsdp":
        from lightning_fabric.strategies import ModelParallelStrategy

        return ModelParallelStrategy(_shard, data_parallel_size=world, tensor_parallel_size=1)
    return "ddp" if world > 1 or wanted == "ddp" else "auto"


def _shard(model: nn.Module, mesh: Any) -> nn.Module:
    """FSDP2: one unit per block, and one for the rest."""
    from torch.distributed.fsdp import fully_shard

    data = mesh["data_parallel"]
    for block in getattr(model, "blocks", []):
        fully_shard(block, mesh=data)
    fully_shard(model, mesh=data)
    return model


def active_strategy(fabric: Any, wrapped: nn.Module, config: RunConfig) -> str:
    """ "single", "ddp" or "fsdp", read off the wrapped model rather than the request, which must agree with it."""
    from torch.nn.parallel import DistributedDataParallel

    forward = getattr(wrapped, "_forward_module", wrapped)
    forward = getattr(forward, "_orig_mod", forward)  # torch.compile's wrapper
    if any(hasattr(parameter, "full_tensor") for parameter in wrapped.parameters()):
        active = "fsdp"
    else:
        active = "ddp" if isinstance(forward, DistributedDataParallel) else "single"
    wanted = config.strategy if config.strategy != "auto" else ("ddp" if fabric.world_size > 1 else "single")
    assert active == wanted, f"asked for {wanted}, but the model runs under {active}"
    return active


def mean_over_processes(fabric: Any, values: Tensor) -> list[float]:
    """The elements averaged over processes; equal on all of them."""
    if fabric.world_size > 1:
        values = fabric.all_reduce(values, reduce_op="mean")
    return [float(value) for value in values.tolist()]


def sum_over_processes(fabric: Any, values: Tensor) -> Tensor:
    """The elements summed over processes, on the CPU."""
    if fabric.world_size == 1:
        return values
    total: Tensor = fabric.all_reduce(values.to(fabric.device), reduce_op="sum")
    return total.cpu()


def no_sync(fabric: Any, wrapped: nn.Module, skip: bool) -> Any:
    """Within the block, do not yet exchange gradients (for all but the last part of an accumulated batch)."""
    return fabric.no_backward_sync(wrapped, enabled=skip) if fabric.world_size > 1 else contextlib.nullcontext()


def clip(fabric: Any, wrapped: nn.Module, optimizer: Any, most: float | None) -> Tensor | None:
    """Unscale the gradients, clip their total norm to `most`, and return the norm before; None leaves them alone."""
    if most is None:
        return None
    norm: Tensor = fabric.clip_gradients(wrapped, optimizer, max_norm=most, error_if_nonfinite=False)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def gather_lists(fabric: Any, items: list[Any]) -> list[Any]:
    """Concatenation over processes, in rank order (a collective call)."""
    if fabric.world_size == 1:
        return items
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def on_main(fabric: Any, function: Callable[[], T]) -> T:
    """Call `function` on the first process only; its result, or its error, reaches all of them (a collective call)."""
    if fabric.world_size == 1:
        return function()
    result: Any = None
    error: Exception | None = None
    if fabric.is_global_zero:
        try:
            result = function()
        except Exception as caught:
            error = caught
    result, error = fabric.broadcast((result, error))
    if error is not None:
        raise error
    return cast(T, result)


def main_first(fabric: Any, function: Callable[[], T]) -> T:
    """Call `function` on the first process of each node before the others, e.g. to download once."""
    with fabric.rank_zero_first(local=True):
        return function()


def shutdown(fabric: Any) -> None:
    """Leave the process group. Every reference to the DDP wrapper must be gone by now: destroying the group while one
    is alive makes gloo abort some exits."""
    if fabric.world_size > 1 or torch.distributed.is_initialized():
        gc.collect()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
