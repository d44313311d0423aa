"""What places are called elsewhere: module paths, as captum and nnsight take them, and the hooks of TransformerLens."""

from __future__ import annotations

import difflib
import re
from typing import Literal, NamedTuple

from torch import nn

from unrolled.instruments.anatomy import find_stacks, unwrap
from unrolled.instruments.sites import paths_of, sites_of

# place in a block, in our names -> hook of a block, in those of TransformerLens
_HOOKS = {
    "attn": "hook_attn_out",
    "half": "hook_resid_mid",
    "mlp": "hook_mlp_out",
    "": "hook_resid_post",
    "attention": "attn.hook_pattern",
    "attn/heads": "attn.hook_z",
}
_OUTSIDE = {"embed": "blocks.0.hook_resid_pre", "norm": "ln_final.hook_out", "head": "unembed.hook_out"}
# other hooks at which the same tensor is
_SAME = {"ln_final.hook_normalized": "norm", "hook_unembed": "head"}


class Place(NamedTuple):
    """Where the tensor of a name is in a model."""

    path: str
    """Of the module, as `model.get_submodule` takes it."""
    side: Literal["input", "output"]
    """Whether the module is given the tensor or returns it, as its first."""


def module_places(model: nn.Module) -> dict[str, Place]:
    """Where every name of `trace(model, heads=True)` is, for tools that take modules or their paths.

    Attention weights are in no module, nor is a half that its block multiplies (Granite). `block03/attn/heads` is there
    with its heads side by side, `[b, n, h * p]`.
    The other way round: `{place: name for name, place in module_places(model).items()}`.

    Args:
        model: any module; it does not run.

    Returns:
        In the order of the model. A module that one name takes the input of may be another's output.
    """
    inner = unwrap(model)
    stacks = find_stacks(inner)
    paths = {module: path for path, module in inner.named_modules()}
    sites = sites_of(inner, stacks, heads=True) if stacks else paths_of(inner)
    places: dict[str, Place] = {}
    for site in sites:
        if site.factor is not None:
            continue
        places.setdefault(site.name, Place(paths[site.module], "input" if site.when == "before" else "output"))
    return places


def to_transformer_lens(name: str) -> str:
    """The hook of TransformerLens that has the tensor of a name: `block03/attn` -> `blocks.3.hook_attn_out`.

    Its bridge to Hugging Face models has the same numbers. With `fold_ln` and its like (compatibility mode) the model
    is another, with the same predictions.

    Raises:
        ValueError: it has none.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match = re.fullmatch(r"block(\d+)(?:/(.+))?", name)
    if match is None or (match[2] or "") not in _HOOKS:
        raise ValueError(
            f"name: {name!r} has no hook in TransformerLens; those that have are {', '.join(_OUTSIDE)} and, of a "
            f"block such as block03, {', '.join('block03' + ('/' + key if key else '') for key in _HOOKS)}"
        )
    return f"blocks.{int(match[1])}.{_HOOKS[match[2] or '']}"


def from_transformer_lens(hook: str) -> str:
    """The name of the tensor at a hook of TransformerLens: `blocks.3.hook_attn_out` -> `block03/attn`.

    Raises:
        ValueError: no trace has it; the nearest hooks are given.
    """
    outside = {theirs: ours for ours, theirs in _OUTSIDE.items()} | _SAME
    if hook in outside:
        return outside[hook]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    inside = {theirs: ours for ours, theirs in _HOOKS.items()}
    if match and match[2] == "hook_resid_pre":  # what enters a block leaves the one before it
        return f"block{int(match[1]) - 1:02d}"
    if match is None or match[2] not in inside:
        layer = match[1] if match else "0"
        known = [*outside, *(f"blocks.{layer}.{each}" for each in inside)]
        near = difflib.get_close_matches(hook, known, n=3, cutoff=0.3) or known[:3]
        raise ValueError(f"hook: no trace has {hook!r}; the nearest are {', '.join(near)}")
    block, part = f"block{int(match[1]):02d}", inside[match[2]]
    return f"{block}/{part}" if part else block
