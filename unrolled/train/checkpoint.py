"""Checkpoints that survive a kill, a full disk and a flipped bit.

One checkpoint is a folder `step-00000500/` with `state.safetensors` (every tensor, by name) and `state.json`
(everything else, with the checksums of both). It is written under another name, flushed to the disk, then renamed: a
folder with the final name is whole. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from unrolled.checksums import is_whole, sealed
from unrolled.errors import CorruptFile, MissingData, TrainingStopped
from unrolled.reading import open_file, read_object

FORMAT = 1
_TENSORS, _STATE, _UNFINISHED = "state.safetensors", "state.json", ".unfinished"
logger = logging.getLogger(__name__)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), reverse=True)


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, keep: int) -> Path:
    """Write `step-STEP` in `folder`, then remove all but the `keep` newest.

    Raises:
        TrainingStopped: the disk is full or the folder cannot be written; every earlier checkpoint is untouched.
    """
    target = folder / f"step-{step:08d}"
    unfinished = target.with_name(target.name + _UNFINISHED)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        payload = tensors_to_bytes(tensors)
        document = {**state, "format": FORMAT, "step": step, "sha256": hashlib.sha256(payload).hexdigest()}
        write_bytes(unfinished / _TENSORS, payload)
        write_bytes(unfinished / _STATE, sealed(document))
        _sync_folder(unfinished)
        if target.exists():  # a damaged one that resuming passed over, or the same step written once more
            _remove(target)
        os.replace(unfinished, target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise TrainingStopped(
            f"could not write the checkpoint of step {step} in {folder}: {disk_error(error)}"
        ) from error
    for old in checkpoints(folder)[keep:]:
        _remove(old)
    return target


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of one checkpoint, verified.

    Raises:
        CorruptFile: truncated, damaged, or not a checkpoint; the message names the file.
        MissingData: `path` does not exist.
    """
    if not path.exists():
        raise MissingData(f"no checkpoint at {path}; resume='auto' continues the run in out=")
    try:
        document = read_object(path / _STATE)
        if not is_whole(document):
            raise CorruptFile(f"{path / _STATE} is damaged: its checksum does not match")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, CorruptFile):
            raise
        raise CorruptFile(f"{path} is not a complete checkpoint: {_STATE} cannot be read ({error})") from error
    if document.get("format") != FORMAT:
        raise CorruptFile(f"{path} has checkpoint format {document.get('format')}; this version reads {FORMAT}")
    try:
        with open_file(path / _TENSORS) as file:
            payload = file.read()
    except (OSError, CorruptFile) as error:
        raise CorruptFile(f"{path} is not a complete checkpoint: {_TENSORS} cannot be read ({error})") from error
    if hashlib.sha256(payload).hexdigest() != document["sha256"]:
        raise CorruptFile(f"{path / _TENSORS} is truncated or damaged: its checksum does not match")
    # safetensors returns them in an order of its own, another in every process; collective calls need one order
    return dict(sorted(tensors_from_bytes(payload).items())), document


def load_newest(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """The newest good checkpoint in `folder`; damaged ones are named in a warning and passed over. None: there is none.

    Raises:
        CorruptFile: there are checkpoints and all of them are damaged.
    """
    refused: list[str] = []
    for path in checkpoints(folder):
        try:
            return (path, *load_checkpoint(path))
        except CorruptFile as error:
            logger.warning("refused a checkpoint: %s", error)
            refused.append(str(error))
    if refused:
        raise CorruptFile(f"no usable checkpoint in {folder}: " + "; ".join(refused))
    return None


def write_bytes(path: Path, data: bytes) -> None:
    """Write and flush to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` in one move, so that a reader sees the old or the new content and never a part."""
    temporary = path.with_name(path.name + _UNFINISHED)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _remove(path: Path) -> None:
    """Take the final name away first: a removal cut short must not leave half a checkpoint under it."""
    doomed = path.with_name(path.name + ".old")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def disk_error(error: OSError) -> str:
    """What went wrong, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; free some and resume"
    return str(error)


# Between live objects and named tensors


def whole(tensor: Tensor) -> Tensor:
    """An independent CPU copy, gathered from all processes if the tensor is sharded (then a collective call)."""
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.to("cpu", copy=True).contiguous()


def like(value: Tensor, reference: Tensor) -> Tensor:
    """`value` (whole, on the CPU) on the device, and sharded in the way, of `reference`."""
    value = value.to(reference.device)
    if hasattr(reference, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = reference
        # every process has the whole value, so each takes its part and none is sent
        return distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)
    return value


def pack_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimiser state keyed by parameter name, so that it does not depend on how parameters are spread or ordered."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, parameter in parameters.items():
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = whole(value)
            else:
                scalars[f"{name}/{key}"] = value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        json.dumps([scalars, groups])
    except TypeError as error:
        raise ValueError(
            f"optimizer {type(optimizer).__name__} keeps state that cannot be saved ({error}); use adamw or lion"
        ) from error
    return tensors, {"scalars": scalars, "groups": groups}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: dict[str, Tensor],
    rest: dict[str, Any],
) -> None:
    """Inverse of `pack_optimizer`, in place."""
    current = optimizer.state_dict()
    index = {
        id(parameter): number
        for group, saved in zip(optimizer.param_groups, current["param_groups"], strict=True)
        for parameter, number in zip(group["params"], saved["params"], strict=True)
    }
    state: dict[int, dict[str, Any]] = {}
    for path, value in {**rest["scalars"], **tensors}.items():
        name, key = path.rsplit("/", 1)
        parameter = parameters[name]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value = like(value, parameter)
        state.setdefault(index[id(parameter)], {})[key] = value
    groups = []
    for now, saved in zip(current["param_groups"], rest["groups"], strict=True):
        restored = {k: tuple(v) if isinstance(now.get(k), tuple) else v for k, v in saved.items()}
        groups.append({**now, **restored, "params": now["params"]})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def check_architecture(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse a checkpoint whose names or shapes are not the model's.

    Raises:
        ValueError: naming the first differences.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted == shapes:
        return
    parts = []
    if missing := sorted(wanted.keys() - shapes.keys()):
        parts.append(f"lacks {_some(missing)}")
    if extra := sorted(shapes.keys() - wanted.keys()):
        parts.append(f"has {_some(extra)} besides")
    if other := [f"{n} {shapes[n]} for {wanted[n]}" for n in wanted if shapes.get(n, wanted[n]) != wanted[n]]:
        parts.append(f"has other shapes: {_some(other)}")
    raise ValueError(
        f"{path} is a checkpoint of another architecture: it {', '.join(parts)}. "
        "Resume with the model it was made by, or choose another out= for a new run."
    )


def _some(items: list[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
