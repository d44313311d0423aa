"""Where things happen in a transformer: the stacks of blocks in a model, and the parts of a block by their role.

Nothing here knows a model class of this package. Parts are recognised by the attribute names that timm, Hugging Face
and PyTorch use, so a model written tomorrow in the same habit is understood too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = ("attn", "attention", "self_attn", "self_attention", "SelfAttention", "mssa", "tssa", "cbsa", "mesa")
# what timm's convnets have in a slot `attn`: nothing, or a gate of channels
GATES = (
    *("Identity", "SEModule", "EffectiveSEModule", "EcaModule", "CecaModule", "CbamModule", "LightCbamModule"),
    *("GlobalContext", "GatherExcite"),
)
SIDE_BY_SIDE = ("attns", "ffns")  # lists inside a block whose elements all read the same tokens
SECOND = ("ista", "mlp", "ffn", "feed_forward", "feedforward", "DenseReluDense")
# first and last module of a second half that has no module of its own
SECOND_PAIRS = (
    ("linear1", "linear2"),
    ("fc1", "fc2"),
    ("intermediate", "output.dropout"),
    ("ffn", "ffn_output"),
)
# a norm that reads the tokens between the halves; of several that exist the first listed is meant
MIDDLE_NORM = (
    "norm2",
    "ln_2",
    "layernorm_after",
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "layer_norm2",
    "final_layer_norm",
    "mlp_norm",
    "norm_2",
    "layer_norm_2",
)
# norms that stand behind a half: what they return is what the half adds; and the norm before the second half, if any
BEHIND = (
    ("post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm"),  # Gemma 2, OLMo 2
    ("post_self_attn_layernorm", "post_mlp_layernorm", "post_attention_layernorm"),  # GLM 4
)
# parameters that a block multiplies what its first and its second half return by, before it adds it
FACTORS = (("lambda_1", "gamma_1"), ("lambda_2", "gamma_2"))
FINAL_NORM = ("norm", "layernorm", "ln_f", "final_layernorm", "final_layer_norm", "post_layernorm")
LATE_NORM = ("norm_f", "layer_norm")  # a final norm where it comes after the blocks, beside them
HEAD = ("head", "classifier", "lm_head", "score", "cls", "generator_lm_head", "vocab_projector")
# the attention of a decoder to an encoder's tokens, and the norm before it
CROSS = ("encoder_attn", "EncDecAttention", "crossattention", "cross_attn", "multihead_attn")
CROSS_NORM = ("encoder_attn_layer_norm", "ln_cross_attn")
# what puts heads together, and how many there are
OUTPUT = (
    *("output", "proj", "out_proj", "o_proj", "c_proj", "output.dense", "dense", "out_lin", "to_out", "o"),
    *("attn.o", "Wo", "projection_layer"),
)
HEADS = ("heads", "num_heads", "num_attention_heads", "n_heads", "n_head", "nheads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads")
HEAD_WIDTH = ("head_dim", "attention_head_size", "key_value_proj_dim")
VALUE = ("v_proj", "value", "v_lin", "to_v", "v")
# queries, keys and values in one projection: all queries, all keys, all values; or a head's three after one another
FUSED = ("qkv", "c_attn", "qkv_proj", "Wqkv")
INTERLEAVED = ("query_key_value",)


@dataclass(frozen=True)
class Stack:
    """Blocks that follow each other. `prefix` is empty for the only or main one, else like `"decoder/"`."""

    prefix: str
    blocks: tuple[tuple[str, nn.Module], ...]
    """Module path and module of each block, in order."""

    def name(self, index: int) -> str:
        """Stable name of block `index`, e.g. `"block03"`."""
        return f"{self.prefix}block{index:02d}"


@dataclass(frozen=True)
class Parts:
    """The parts of one block by role. None where a block has no such part."""

    attention: nn.Module | None
    """The attention layer itself."""
    branch: nn.Module | None
    """Its output is what attention adds to the residual stream (after layer scale and stochastic depth)."""
    halves: tuple[nn.Module, ...]
    """The first of these to run after attention reads Z+half."""
    second: nn.Module | None
    """Its output is what the second half adds, or, for ISTA, what replaces the tokens."""
    second_name: str
    cross: nn.Module | None = None
    """In a decoder, its output is what attention to the encoder's tokens adds, after `halves`."""
    entry: nn.Module | None = None
    """What the second half begins with: its input is what that half reads, normed or not."""
    factors: tuple[Any, Any] = (None, None)
    """What the block multiplies the outputs of `branch` and `second` by before it adds them; None: it does not."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside data-parallel and Fabric wrappers.

    Raises:
        ValueError: it is none, or it or a part of it is compiled or scripted; its hooks would be silently skipped.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: must be a torch module, not {type(model).__name__}; unrolled.create_model makes one")
    for path, module in model.named_modules():
        if kind := _skips_hooks(module):
            raise ValueError(
                f"model: {path or 'it'} is {kind}, and {kind} code skips hooks; pass the model as it was before that"
            )
    while True:
        children = list(model.children())
        inner = getattr(model, "module", None)
        if len(children) == 1 and isinstance(inner, nn.Module) and inner is children[0]:
            model = inner
        else:
            return model


def _skips_hooks(module: nn.Module) -> str:
    """What was made of a module, if hooks on the parts of it do not run; else nothing."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted"
    attributes = vars(module)  # asking a module for what it does not have is slow, and this is asked of every one
    forward: Any = attributes.get("forward", type(module).forward)
    by_hand = hasattr(forward, "_torchdynamo_orig_callable") and not getattr(forward, "_torchdynamo_disable", False)
    if by_hand or "_orig_mod" in attributes["_modules"] or attributes.get("_compiled_call_impl") is not None:
        return "compiled"
    return ""


def check_values(model: nn.Module) -> None:
    """What changes or measures activations needs some.

    Raises:
        ValueError: the model is on the meta device.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("model: is on the meta device and has no values; build it on a real one")


def find_stacks(model: nn.Module) -> list[Stack]:
    """All stacks of transformer blocks, in module order; empty if there is none.

    Lists of blocks that own an attention layer are taken, but not the layers side by side in a parallel block; where
    there are none, the outermost lists whose every element contains one somewhere.
    """
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 0
        if path.rsplit(".", 1)[-1] not in SIDE_BY_SIDE
    ]
    stacks = [item for item in lists if all(_direct_attention(b) is not None for b in item[1])]
    if not stacks:
        for path, module in lists:
            inside = any(path.startswith(f"{outer}.") for outer, _ in stacks)
            if not inside and all(attention_layer(b) is not None for b in module):
                stacks.append((path, module))
    merged: dict[str, list[tuple[str, nn.Module]]] = {}
    shared = _shared_parts([path for path, _ in stacks])
    for path, module in stacks:
        prefix = "" if len(stacks) == 1 else _prefix(path.split(".")[shared:])
        blocks = ((f"{path}.{key}".lstrip("."), block) for key, block in module.named_children())
        merged.setdefault(prefix, []).extend(blocks)
    return [Stack(prefix, tuple(blocks)) for prefix, blocks in merged.items()]


def find_parts(block: nn.Module) -> Parts:
    """The parts of `block` by role; none of them where several attention layers share it, as in parallel blocks."""
    attention = attention_layer(block)
    if attention is None or len(attention_layers(block)) > 1:
        return Parts(None, None, (), None, "mlp")
    name = next((n for n in SECOND if _has(block, n)), "mlp")
    start = second = descendant(block, SECOND)
    if second is None or _has(block, "ffn_output"):
        for first, last in SECOND_PAIRS:
            start, second = _get(block, first), _get(block, last)
            if start is not None and second is not None:
                break
            start = second = None
    entry = start
    behind = next((names for names in BEHIND if _has(block, names[0]) and _has(block, names[1])), None)
    middle = child(block, MIDDLE_NORM if behind is None else behind[2:])
    inner_norm = child(attention, ("LayerNorm", "self_attn_layer_norm", "ln"))
    adds = inner_norm is not None and _has(attention, "output.dropout")  # to its tokens, inside, after a norm inside
    if middle is None and adds:
        middle = child(block, ("LayerNorm", "ln"))
    cross = descendant(block, CROSS)
    # T5 keeps each part of a block in a list, with the norm that it reads through
    parts = _get(block, "layer")
    if middle is None and isinstance(parts, nn.ModuleList) and len(parts) > 1:
        middle = child(parts[1], ("layer_norm",))
    # without a norm of its own in between, the second half reads Z+half only in post-norm blocks
    post_norm = _has(block, "intermediate") or _has(block, "sa_layer_norm") or _has(block, "full_layer_layer_norm")
    reads = (child(block, CROSS_NORM), cross, middle, start if middle is not None or post_norm or behind else None)
    halves = [m for m in reads if m is not None]
    branch = attention
    separate = _has(block, "drop_path1") or _has(block, "ls1")  # else one stochastic depth may serve both halves
    for path in ("ls1", "layer_scale1", "drop_path1") if separate else ("layer_scale1", "drop_path"):
        branch = _get(block, path) or branch
    if _has(attention, "output.LayerNorm") or adds:  # BERT adds and normalises inside its attention
        branch = _get(attention, "output.dropout") or branch
    if _has(attention, "attn") and inner_norm is not None:  # and so does MPNet, whose attention is further inside
        branch = _get(attention, "dropout") or branch
    # Bloom adds to its tokens inside its halves, after these
    if branch is attention:
        branch = child(attention, ("dense",)) or branch
    if second is not None:
        second = child(second, ("dense_4h_to_h",)) or second
        if _has(block, "norm_2"):  # MPT too, in its second
            second = child(second, ("down_proj",)) or second
    raw = second
    for path in ("ls2", "layer_scale2", "drop_path2"):
        second = _get(block, path) or second
    if behind is not None:
        branch, second = _get(block, behind[0]) or branch, _get(block, behind[1]) or second
    multiplier = _attribute(block, "residual_multiplier")
    factors = (multiplier, multiplier) if isinstance(multiplier, float) and multiplier != 1 else (
        _weights(block, FACTORS[0]) if branch is attention else None,
        _weights(block, FACTORS[1]) if second is raw else None,
    )  # fmt: skip
    kind = "ista" if name == "ista" else "mlp"
    return Parts(attention, branch, tuple(halves), second, kind, cross, entry, factors)


def attention_layers(block: nn.Module) -> list[nn.Module]:
    """The attention layers of a block that its tokens pass: one in most, several where they stand side by side."""
    if (direct := _direct_attention(block)) is not None:
        return [direct]
    layers: dict[str, nn.Module] = {}
    for path, module in block.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in layers)
        if not inside and path.rsplit(".", 1)[-1] in ATTENTION and type(module).__name__ not in GATES:
            layers[path] = module
    return list(layers.values())


def attention_layer(block: nn.Module) -> nn.Module | None:
    """The attention layer of a block, or the first of several inside it."""
    return _direct_attention(block) or next(iter(attention_layers(block)), None)


def _direct_attention(block: nn.Module) -> nn.Module | None:
    layer = child(block, ATTENTION)
    return None if type(layer).__name__ in GATES else layer


def _weights(block: nn.Module, names: tuple[str, ...]) -> Tensor | None:
    """The first parameter of the block with one of `names`."""
    return next((weight for name in names if (weight := block._parameters.get(name)) is not None), None)


def final_sites(model: nn.Module, stacks: list[Stack]) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of what comes after the blocks: `norm`, `fc_norm`, `head`, with the prefix of their stack."""
    inside = tuple(f"{path}." for stack in stacks for path, _ in stack.blocks)
    seen: set[str] = set()
    order = {"norm": 0, "fc_norm": 1, "head": 2}
    roles = {"fc_norm": "fc_norm", **dict.fromkeys(FINAL_NORM, "norm"), **dict.fromkeys(HEAD, "head")}
    sites: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        parts = path.split(".")
        if path.startswith(inside) or len(parts) > 3 or isinstance(module, nn.Identity):
            continue
        named = (s.prefix for s in stacks if s.prefix and any(part.startswith(s.prefix[:-1]) for part in parts))
        prefix = next(named, "")
        role = roles.get(parts[-1].removeprefix(f"{prefix[:-1]}_"))
        if parts[-1] in LATE_NORM and _is_behind(model, path, stacks):
            role = "norm"
        if parts[-1] in ("head", "decoder") and (logits := _decoder(model, path)) is not None:
            role = "head" if module is logits else None  # ModernBERT's `head` is a layer before its classifier
        if role is None or any("embed" in part for part in parts):
            continue
        if f"{prefix}{role}" not in seen:
            seen.add(f"{prefix}{role}")
            sites.append((f"{prefix}{role}", module))
    yield from sorted(sites, key=lambda item: order[item[0].rsplit("/", 1)[-1]])


def _decoder(model: nn.Module, path: str) -> nn.Module | None:
    """The linear `decoder` behind a `head` in the parent of a module, if that is how logits are made."""
    parent = path.rpartition(".")[0]
    around = model.get_submodule(parent) if parent else model
    decoder = _get(around, "decoder")
    return decoder if _has(around, "head") and _rows(decoder) is not None else None


def _is_behind(model: nn.Module, path: str, stacks: list[Stack]) -> bool:
    """Whether a module comes after a list of blocks in the same parent."""
    parent, _, name = path.rpartition(".")
    lists = {block_path.rpartition(".")[0] for stack in stacks for block_path, _ in stack.blocks}
    beside = {each.rpartition(".")[2] for each in lists if each.rpartition(".")[0] == parent}
    order = [each for each, _ in (model.get_submodule(parent) if parent else model).named_children()]
    return bool(beside) and max(map(order.index, beside)) < order.index(name)


def head_subspaces(block: nn.Module) -> Tensor:
    """The subspaces of a block's heads, U_k, as `theory` takes them.

    White-box attention: its own `subspaces`. A plain transformer: its per-head value projections, the directions of the
    tokens that each head reads out; where several heads of queries share one of keys and values (grouped queries), that
    head's, once. Biases are no part of a subspace.

    Returns:
        `[h, d, p]` in the weight's dtype, detached.

    Raises:
        ValueError: the block has no attention layer, or none whose projection is known.
    """
    return _values_in(block)[1].detach().mT


def value_reader(block: nn.Module) -> nn.Module:
    """The module of a block whose input its heads' subspaces are of: the tokens that attention reads, normed or not.

    Raises:
        ValueError: as `head_subspaces`.
    """
    return _values_in(block)[0]


def _values_in(block: nn.Module) -> tuple[nn.Module, Tensor]:
    """The module that has the value projections, and their weights, `[h, p, d]`."""
    attention = attention_layer(block)
    if attention is None:
        raise ValueError(f"{type(block).__name__}: has no attention layer, so no subspaces")
    if (count := len(attention_layers(block))) > 1:
        raise ValueError(
            f"{type(block).__name__}: has {count} attention layers side by side, so no one set of subspaces; "
            "give each of them to head_subspaces in a module of its own"
        )
    for module in attention.modules():
        if (values := _values_of(module)) is not None:
            return module, values
    raise ValueError(
        f"{type(attention).__name__}: cannot tell its heads' subspaces; needs a Linear named `subspaces`, one of "
        f"{FUSED + INTERLEAVED} or one of {VALUE}, and a head count"
    )


def _values_of(attention: nn.Module) -> Tensor | None:
    """Weights of the values of each head that has some, `[h, p, d]`; None if unknown."""
    heads = head_count(attention, attention)
    if isinstance(attention, nn.MultiheadAttention):
        joined = attention.in_proj_weight
        value = attention.v_proj_weight if joined is None else joined.chunk(3)[-1]
        return value.unflatten(0, (attention.num_heads, -1))
    if (weight := _rows(child(attention, ("subspaces",)))) is not None:
        return None if heads is None else weight.unflatten(0, (heads, -1))
    kv_heads = _count(KEY_VALUE_HEADS, attention, getattr(attention, "config", None)) or heads
    width = _count(HEAD_WIDTH, attention)
    if (weight := _rows(child(attention, VALUE))) is not None:
        if width is None and kv_heads is None:
            return None
        return weight.unflatten(0, (-1, width) if width is not None else (kv_heads or 1, -1))
    if heads is None or kv_heads is None:
        return None
    fused = _rows(child(attention, FUSED))
    weight = _rows(child(attention, INTERLEAVED))
    if fused is not None and _attribute(attention, "multi_query") is False:  # GPT-BigCode: a head's three together
        weight, fused = fused, None
    if weight is not None:
        return weight.unflatten(0, (kv_heads, heads // kv_heads + 2, -1))[:, -1]
    if (weight := fused) is not None and type(attention).__name__ == "CodeGenAttention":
        # four groups of heads, each with its queries, values and keys
        return weight.unflatten(0, (4, 3, heads // 4, -1))[:, 1].flatten(0, 1)
    if weight is not None:
        width = len(weight) // (heads + 2 * kv_heads)
        return weight[-kv_heads * width :].unflatten(0, (kv_heads, width))
    return None


def _rows(module: nn.Module | None) -> Tensor | None:
    """The weight of a linear map, [out, in]; Hugging Face's Conv1D keeps it [in, out], quantised layers give it out."""
    weight: Any = getattr(module, "weight", None)
    if callable(weight) and not isinstance(weight, Tensor):
        weight = weight()
    if isinstance(weight, Tensor) and weight.is_quantized:
        weight = weight.dequantize()
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    return weight.mT if is_transposed(module) else weight


def is_transposed(module: nn.Module | None) -> bool:
    """Whether a linear map keeps its weight as [in, out], as Hugging Face's Conv1D does."""
    return type(module).__name__ == "Conv1D"


def output_projection(attention: nn.Module) -> nn.Module | None:
    """The layer that puts heads together again: its input is what they computed, side by side; None if unknown."""
    for path in OUTPUT:
        module = _get(attention, path)
        if module is not None and _rows(module) is not None:
            return module
    for name, module in attention.named_children():
        if name.lower().endswith("attention") and (projection := output_projection(module)) is not None:
            return projection
    return None


def input_width(projection: nn.Module) -> int:
    """How many numbers a linear map is given."""
    weight = _rows(projection)
    assert weight is not None
    return weight.shape[1]


def head_count(attention: nn.Module, model: nn.Module) -> int | None:
    """How many heads write into the output projection; of grouped queries, the heads of queries. None if unknown."""
    configs = (getattr(attention, "config", None), getattr(model, "config", None))
    return _count(HEADS, *attention.modules(), *configs)


def _count(names: tuple[str, ...], *places: object) -> int | None:
    """The first of these whole numbers that one of the places has."""
    for place in places:
        for name in names:
            count = _attribute(place, name)
            if isinstance(count, int) and not isinstance(count, bool):
                return count
    return None


def child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first direct child with one of `names`."""
    return next((inner for name in names if (inner := _get(module, name)) is not None), None)


def descendant(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first direct child with one of `names`, or else the first module of that name further inside."""
    direct = child(module, names)
    if direct is not None:
        return direct
    return next((m for path, m in module.named_modules() if path.rsplit(".", 1)[-1] in names), None)


def _get(module: nn.Module, path: str) -> nn.Module | None:
    current: object = module
    for part in path.split("."):
        current = _attribute(current, part)
    return current if isinstance(current, nn.Module) else None


def _attribute(place: object, name: str) -> object:
    """`getattr(place, name, None)`, without the long way on which a module finds that it has no such thing."""
    if not isinstance(place, nn.Module):
        return getattr(place, name, None)
    attributes = vars(place)
    for value in (attributes.get(name), attributes["_modules"].get(name)):
        if value is not None:
            return value
    return getattr(place, name, None) if hasattr(type(place), name) else None


def _has(module: nn.Module, path: str) -> bool:
    return _get(module, path) is not None


def _shared_parts(paths: list[str]) -> int:
    """How many parts of several paths are the same in all, from the left."""
    columns = zip(*(path.split(".") for path in paths), strict=False)
    return next((place for place, column in enumerate(columns) if len(set(column)) > 1), 0)


def _prefix(parts: list[str]) -> str:
    """Of the parts that set a list apart: `blocks`, `0` -> "", `decoder_blocks`, `decoder.layers` -> "decoder/"."""
    top = parts[0]
    for ending in ("blocks", "block", "layers", "layer", "stages"):
        if top == ending or top.isdigit():
            return ""
        top = top.removesuffix(f"_{ending}")
    return f"{top}/"
