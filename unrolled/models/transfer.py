"""Starting a model from weights of the same architecture, another head or another input size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from unrolled.errors import MissingData
from unrolled.models.crate import add_registers
from unrolled.models.published import LAYOUTS, LoadReport, StateDict, fill, load_published, unwrap
from unrolled.models.registry import shipped_weights
from unrolled.reading import read_json
from unrolled.tensors import read_tensors

MASKED = "a masked autoencoder"
LANGUAGE = "a language model (or another model of sequences)"
# the first whose part is in the names of a state dict says what it is the weights of
_FAMILIES = (
    ("decoder_blocks.", MASKED),
    ("cls_attn_blocks.", "a ToST"),
    (".attn.step_representative", "a CBT"),
    (".ista.decoder", "a CRATE-alpha"),
    (".ista.dictionary", "a CRATE"),
    (".attn.subspaces.", "an attention-only transformer"),
    (".attn.qkv.", "a ViT"),
)


def family_of(names: Iterable[str]) -> str | None:
    """What the names of a state dict show it to be the weights of, as in "a CRATE"; None where they do not."""
    names = list(names)
    if not any(name.startswith("patch_embed.") for name in names):
        sequences = {"embed.weight", "head.weight"}.intersection(names) and any(n.startswith("blocks.") for n in names)
        return LANGUAGE if sequences else None
    return next((family for part, family in _FAMILIES if any(part in name for name in names)), None)


def load_weights(model: nn.Module, path: str | Path, *, head: bool = True) -> LoadReport:
    """Copy weights into `model`: everything that fits, with positions resampled and a head of another size left as it
    is.

    Args:
        model: a CRATE or timm vision transformer.
        path: a folder written by `save_pretrained` or `unrolled convert`, a run folder, a published checkpoint, a file
            with a state dict, or the name of weights that ship with the package.
        head: also copy the classifier where its size fits; False keeps the model's own, since as many classes need not
            be the same classes.

    Returns:
        What was loaded, reshaped, left out (`missing`) and not needed (`ignored`), and, of a published checkpoint,
        where the model's own settings differ from those it was published with (`settings`).

    Raises:
        ValueError: the weights belong to another architecture; the message lists what differs.
        MissingData, UnsafeFile, CorruptFile: as in `tensors.read_tensors`.
    """
    loaded, report = _read(model, Path(path))
    state = add_registers(loaded, model)
    expected = model.state_dict()
    tensors: StateDict = {}
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    classifier = tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))
    for key, tensor in state.items():
        if key not in expected:
            report.ignored[key] = "the model has no such tensor"
        elif not head and key.startswith(classifier):
            report.reshaped[key] = "not loaded: the classifier is new"
        elif tensor.shape == expected[key].shape:
            tensors[key] = tensor
        elif key.startswith(classifier):
            report.reshaped[key] = f"not loaded: {list(tensor.shape)} there, {list(expected[key].shape)} here"
        elif key == "pos_embed" and hasattr(model, "patch_embed"):
            tensors[key] = _resample_positions(tensor, model)
            report.reshaped[key] = f"resampled from {tensor.shape[1]} to {expected[key].shape[1]} tokens"
        else:
            tensors[key] = tensor  # `fill` reports it with everything else that does not fit
    # a tied parameter has several names and is stored under one of them
    stored = {expected[key].data_ptr() for key in tensors}
    needed = [key for key in expected if key not in state and not key.startswith(classifier)]
    needed = [key for key in needed if expected[key].data_ptr() not in stored]
    foreign = [key for key in report.ignored if not key.startswith(classifier)]
    if needed or foreign:
        source, here = family_of(state), family_of(expected)
        if source is not None and source != here:
            way = " or, for a classifier, `unrolled finetune` it without model=" if source == MASKED else ""
            raise ValueError(
                f"weights: {path} belongs to another architecture than {type(model).__name__}: these are weights of "
                f"{source}{f', and the model is {here}' if here else ''}; give the model they are of{way}"
            )
        raise ValueError(
            f"weights: {path} belongs to another architecture than {type(model).__name__}: "
            f"it lacks {sorted(needed)[:5]} and has {sorted(foreign)[:5]} that the model has not"
        )
    report.mapped = {key: key for key in tensors}
    if "reg_token" in state and "reg_token" not in loaded:
        report.reshaped["reg_token"] = "the weights have no registers: these are new"
    fill(model, tensors, report)
    return report


def weights_classes(path: str | Path) -> list[str] | None:
    """What the outputs of the classifier in weights stand for, in their order; None where nothing says it.

    Args:
        path: as in `load_weights`.
    """
    path = Path(path)
    if shipped_weights(path) is not None:
        config = get_pretrained_cfg(path.name)
        return list(config.label_names) if config is not None and config.label_names else None
    folder = path.parent if path.is_file() else path  # what is said of a file lies beside it
    for described in (folder / "model" / "config.json", folder / "config.json"):
        if described.is_file():
            record = read_json(described)
            names = record.get("label_names") if isinstance(record, dict) else None
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return names
            return None
    return None


def _read(model: nn.Module, path: Path) -> tuple[StateDict, LoadReport]:
    """The state dict at `path` under our names, and a report that says what it was."""
    if (shipped := shipped_weights(path)) is not None:
        return unwrap(read_tensors(shipped[0])), LoadReport("weights that ship with the package")
    if path.is_dir():
        for candidate in (path / "model.safetensors", path / "model" / "model.safetensors"):
            if candidate.is_file():
                return unwrap(read_tensors(candidate)), LoadReport("saved folder")
        raise MissingData(f"weights: {path} has no model.safetensors, nor model/model.safetensors")
    state = unwrap(read_tensors(path))
    if any(layout.matches(state) for layout in LAYOUTS):
        attention = next((block.attn for block in getattr(model, "blocks", []) if hasattr(block, "attn")), None)
        heads = getattr(attention, "heads", getattr(attention, "num_heads", None))
        source: Any = load_published(path, heads=heads)
        report = LoadReport(f"published {source.load_report.layout}", settings=_settings(source, model))
        return source.state_dict(), report
    return state, LoadReport("state dict")


def _settings(source: nn.Module, model: nn.Module) -> dict[str, str]:
    """What `model` computes otherwise than `source` on the same tensors."""
    source_args, model_args = (getattr(one, "_model_args", {}) for one in (source, model))
    names = ("step_size", "sparsity", "norm_eps", "head_norm_eps", "pooled", "compression", "eps", "residual")
    defaults = {"step_size": 0.1, "sparsity": 0.1, "pooled": "patches", "compression": "softmax", "residual": False}
    pairs = {name: [args.get(name, defaults.get(name)) for args in (source_args, model_args)] for name in names}
    return {name: f"{a} where published, {b} here" for name, (a, b) in pairs.items() if a != b}


def _resample_positions(table: Tensor, model: Any) -> Tensor:
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    if math.isqrt(table.shape[1] - prefix) ** 2 != table.shape[1] - prefix:
        raise ValueError(
            f"weights: their {table.shape[1] - prefix} positions are no square grid; build the model at the size they "
            "were trained at, load them, and then call set_input_size"
        )
    return resample_abs_pos_embed(table, new_size=list(model.patch_embed.grid_size), num_prefix_tokens=prefix)
