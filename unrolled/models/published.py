"""Reading published checkpoints: layouts are detected from their keys, shapes imply the rest, nothing is unpickled
blindly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unrolled.errors import CorruptFile
from unrolled.models.layouts import LAYOUTS
from unrolled.models.mapping import LoadReport, Options, StateDict, fill
from unrolled.tensors import read_tensors

__all__ = ["LAYOUTS", "LoadReport", "StateDict", "fill", "load_published", "unwrap"]


def load_published(
    path: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    dim_head: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    pool: str | None = None,
    step_size: float | None = None,
    sparsity: float | None = None,
    allow: Sequence[str] = (),
) -> nn.Module:
    """Build the model a published checkpoint belongs to, with its weights.

    Args:
        path: `.pth`, `.pth.tar`, `.pt`, `.safetensors`, or `.npz` of a JAX tree; the state dict may be bare or under
            `state_dict` or `model`, its keys with or without `module.`.
        heads: number of subspaces. Shapes do not tell it, except of ToST, CBT and JAX trees: needed when the width is
            not a published one.
        decoder_heads: the same for the decoder of a masked autoencoder; default `heads`.
        dim_head: dimension of a subspace; default: rows of the projection / heads.
        image_size: input size to use, an int or (height, width); default: the one it was trained at. Positions are
            resampled.
        pool: `"cls"` (default) or `"mean"`, which the file does not tell.
        step_size: eta of ISTA; default 0.1, as published.
        sparsity: lambda of ISTA; default as published: 0.5 for masked autoencoders, else 0.1.
        allow: names from `tensors.ALLOWED_GLOBALS` that the file may construct besides tensors.

    Returns:
        The model, in eval mode; `model.load_report` is a `LoadReport`.

    Raises:
        ValueError: unknown layout, several at once, tensors that do not fit together, a tensor that the published
            models of the layout do not have (leaving it out would change the output), or something shapes do not tell
            is missing.
        UnsafeFile: the file would have to run code to be read.
        CorruptFile: the file is truncated or damaged.
    """
    state = unwrap(read_tensors(path, allow=allow))
    options = Options(heads, decoder_heads, dim_head, image_size, pool, step_size, sparsity)
    matching = [layout for layout in LAYOUTS if layout.matches(state)]
    if len(matching) > 1:
        names = " and ".join(layout.name for layout in matching)
        raise ValueError(f"{path}: holds keys of {names} at once; save the state dict of one model alone")
    for layout in matching:
        try:
            return layout.build(state, options).eval()
        except (IndexError, KeyError, RuntimeError, TypeError, ZeroDivisionError) as error:
            # a layout reads sizes off tensors before their shapes are known to fit
            raise ValueError(
                f"{path}: has keys of {layout.name}, but its tensors do not fit together: {error}"
            ) from error
    shown = ", ".join(sorted(state)[:4])
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise ValueError(f"{path}: no published layout has these keys ({shown}, ...); known layouts: {known}")


def unwrap(checkpoint: Any) -> StateDict:
    """The state dict inside a checkpoint, whatever it is wrapped in, without `module.` prefixes.

    A tree of dicts, as flax has, is flattened with slashes.
    """
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict):
        raise ValueError(f"checkpoint: holds a {type(checkpoint).__name__}, not a dict of tensors")
    try:
        state = _flatten(checkpoint)
    except RecursionError as error:
        raise CorruptFile("checkpoint: is nested too deeply to be read, or holds itself") from error
    for prefix in ("module.", "_orig_mod."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    for prefix in ("params/", "img/"):  # a training state holds optimiser moments under the same names
        if any(key.startswith(f"{prefix}Transformer/") or key.startswith(f"{prefix}img/") for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not state:
        raise ValueError("checkpoint: holds no tensors")
    return state


def _flatten(tree: dict[Any, Any], prefix: str = "") -> StateDict:
    state: StateDict = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):
            state[f"{prefix}{key}"] = value
        elif isinstance(value, dict):
            state |= _flatten(value, f"{prefix}{key}/")
    return state
