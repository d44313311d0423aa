"""Building a model: within this machine's memory, with what cannot be built said in one sentence; and whole weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from unrolled.checksums import check_model
from unrolled.errors import CorruptFile, MissingData, UnsafeFile
from unrolled.memory import available_bytes
from unrolled.network import hub

_MOST_LAYERS = 10_000
_NO_MEMORY = ("can't allocate memory", "Storage size calculation overflowed", "integer multiplication overflow")
_REFUSED = (RuntimeError, TypeError, ArithmeticError, AssertionError, MemoryError, LookupError, AttributeError)


@contextmanager
def building(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Within the block a model is built; what its arguments make impossible is a `ValueError`.

    Parameters are counted as they are made, before they are filled: a width or depth that this machine cannot hold is
    refused and does not end the process.

    Args:
        name: of the model, for messages.
        arguments: what it is built with.

    Raises:
        ValueError: it needs more memory than there is, or cannot be built from these arguments.
    """
    given = ", ".join(f"{key}={_short(value)}" for key, value in arguments.items())
    what = f"model: {name}{f' with {given}' if given else ''}"
    for key in ("depth", "decoder_depth"):
        if isinstance(arguments.get(key), int) and arguments[key] > _MOST_LAYERS:
            raise ValueError(f"{what}: {key} must be at most {_MOST_LAYERS:,}")
    limit, counted = available_bytes(), 0

    def count(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal counted
        if value is not None and not value.is_meta:
            counted += value.numel() * value.element_size()
            if limit is not None and counted > limit:
                raise MemoryError

    handles = (
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    except _REFUSED as error:
        message = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in message for part in _NO_MEMORY):
            free = "" if limit is None else f" than the {limit / 2**30:,.1f} GiB that are free"
            raise ValueError(f"{what} needs more memory{free}; make it smaller") from error
        if isinstance(error, TypeError) and "unexpected keyword argument" in message:
            raise unknown_argument(name, error) from error
        raise ValueError(f"{what} cannot be built: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reading_weights(name: str, arguments: Mapping[str, Any], pretrained: bool) -> Iterator[None]:
    """Within the block timm builds a model and, if `pretrained`, reads its weights; what is wrong with those is said.

    Raises:
        MissingData: there are none, or they could not be fetched.
        CorruptFile: they are damaged.
        ValueError: they do not fit the model.
    """
    if not pretrained:
        yield
        return
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from safetensors import SafetensorError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise MissingData(f"model: the weights of {name} could not be fetched: {first_line(error)}") from error
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise CorruptFile(f"model: the weights of {name} are truncated or damaged: {first_line(error)}") from error
    except FileNotFoundError as error:
        raise MissingData(f"model: the weights of {name} are not there: {first_line(error)}") from error
    except RuntimeError as error:
        if any(part in str(error) for part in ("No pretrained weights", "No suitable checkpoints")):
            raise MissingData(f"model: there are no weights for {name}; train it, or give weights") from error
        if "weights_only" in str(error):  # of timm, about a pickle
            raise UnsafeFile(
                f"model: the weights of {name} would have to run code to be read, which was refused; save them as "
                "safetensors"
            ) from error
        if "state_dict" not in str(error):
            raise
        if arguments:
            changed = ", ".join(arguments)
            raise ValueError(
                f"model_args: the weights of {name} do not fit a model with {changed} changed; leave it out"
            ) from error
        raise CorruptFile(f"model: the weights of {name} do not fit it: {first_line(error)}") from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Within the block transformers reads weights without its progress bars; those of downloads are shown."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    def silent(factory: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return factory(*args, **{**options, "disable": True})

    before, shown = logging.set_tqdm_hook(silent), gguf.tqdm
    gguf.tqdm = partial(shown, disable=True)  # which asks no hook
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
        gguf.tqdm = shown


def check_finite_weights(model: nn.Module, source: Any) -> None:
    """Refuse weights that are no numbers, from which nothing is to be computed.

    Args:
        model: with its weights.
        source: where they are from, for the message.

    Raises:
        CorruptFile: a parameter is NaN or infinite, or a buffer NaN.
    """
    bad = [name for name, value in model.named_parameters() if _is_full(value) and not torch.isfinite(value).all()]
    bad += [name for name, value in model.named_buffers() if _is_full(value) and torch.isnan(value).any()]
    if bad:
        named = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise CorruptFile(
            f"weights: those of {source} are NaN or infinite ({named}): the file is damaged, or the training diverged; "
            "take an earlier checkpoint"
        )


def _is_full(value: Tensor) -> bool:
    return value.is_floating_point() and not value.is_meta


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unknown_argument(name: str, error: TypeError) -> ValueError:
    """The error of a model that was given an argument it does not take."""
    unknown = str(error).rsplit("unexpected keyword argument", 1)[1].strip().split(".")[0].strip("'\" ")
    return ValueError(f"model_args: {name} does not take {unknown!r}; leave it out or correct its name")


def no_model(path: Path) -> str:
    """What to say of a folder in which no model is: where there is one nearby, or how to go on."""
    near = next((folder for folder in path.resolve().parents[:2] if (folder / "model/config.json").is_file()), None)
    if near is not None:
        return f"{path} is a part of the run {near}; give that folder"
    if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
        return f"{path} is a run that was stopped before it had a model; it goes on with `unrolled train --resume auto`"
    if graph := next((file for file in sorted(path.glob("*.onnx"))), None):
        return f"{path} holds no config.json, but an ONNX graph; give the file {graph}"
    inside = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _holds_model(folder)]
    hint = f"one of the folders in it, such as {inside[0]}" if inside else "a run folder, or one of `save_pretrained`"
    return f"{path} holds no config.json, nor does its model/; give {hint}"


def _holds_model(folder: Path) -> bool:
    """Whether a folder seems to be a model, or a run, by the names of its files."""
    return any((folder / name).is_file() for name in ("config.json", "model/config.json")) or any(folder.glob("*.gguf"))


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _asks_hub(name: str, pretrained: bool) -> bool:
    """Whether timm would ask the hub for a model: by its scheme, or for weights of a name that has no file here."""
    if ":" in name:
        return name.startswith(("hf-hub:", "hf_hub:"))
    known = timm.get_pretrained_cfg(name, allow_unregistered=True) if pretrained else None
    return known is not None and not known.file and bool(known.hf_hub_id or known.url)


def create_with_timm(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """`timm.create_model` within memory, with whole and finite weights where these are loaded."""
    if pretrained and name.startswith("local-dir:"):
        check_model(Path(name.removeprefix("local-dir:")))
    of_hub = _asks_hub(name, pretrained)
    asking = hub(name) if of_hub else nullcontext()
    with building(name, kwargs), asking, reading_weights(name, kwargs, pretrained or of_hub):  # or its description
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    if pretrained:
        check_finite_weights(model, name)
    return model
