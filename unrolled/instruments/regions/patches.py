"""What the patches of an image look like inside a model: the class token's attention, and features by layer and facet.

One forward pass, and one attention row per head: no `[n, n]` map is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unrolled.instruments.anatomy import Stack, find_parts, find_stacks, unwrap
from unrolled.instruments.features.layout import Layout, check_in_rows, in_rows
from unrolled.instruments.features.pooling import prefix_tokens
from unrolled.instruments.weights import eva_heads, turned
from unrolled.modes import evaluating
from unrolled.tables import Brief

Facet = Literal["key", "query", "value", "token"]
FACETS = ("key", "query", "value", "token")

_Projected = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, repr=False)
class Patches(Brief):
    """Records of `read_patches`; prefix tokens are left out of every tensor, patches are in row-major order."""

    layers: tuple[int, ...]
    """Indices of the blocks read, from 0."""
    grid: tuple[int, int]
    """(H, W) in patches, n = H W."""
    query: str
    """Whose attention it is: `"class token"`, or `"mean of patch tokens"` for a model without one."""
    attention: Tensor | None
    """`[layers, b, h, n]` float32: softmax over the patches of each head's logits, rows sum to 1."""
    features: dict[str, Tensor]
    """Facet -> `[layers, b, n, d]`, heads side by side, in the model's dtype; only `facet_layers` where given."""
    feature_layers: tuple[int, ...]
    """Indices of the blocks whose features were kept."""
    blank: Tensor
    """Boolean `[b]`: images of one colour. Their patches differ by position alone: an object in one is invented."""


@torch.no_grad()
def read_patches(
    model: nn.Module,
    images: Tensor,
    *,
    layers: Sequence[int] | None = None,
    facets: Sequence[Facet] = (),
    facet_layers: Sequence[int] | None = None,
    attention: bool = True,
    prefix: int | None = None,
    grid: tuple[int, int] | None = None,
) -> Patches:
    """Run `model` once and keep the class token's attention and the patches' features.

    White-box attention (one projection: `"key"`, `"query"` and `"value"` are all U_k^T z of the normalised tokens),
    timm's ViT and EVA attention (DINOv3), and Hugging Face vision transformers without rotary or relative positions are
    understood.

    Args:
        model: run in eval mode and left as it was.
        images: preprocessed, `[b, c, h, w]`, on any device; moved to the model's device and dtype.
        layers: which blocks, from 0; negative ones count from the end (the papers read the penultimate, -2). Default
            all.
        facets: features to keep; `"token"` is the block's output.
        facet_layers: blocks whose features are kept, among `layers`; default all of them. Features of every block of a
            large batch do not fit in memory where its attention rows do.
        attention: whether to compute attention. Where the model has no class token the query is the mean of the patch
            tokens' queries, and `query` of the record says so.
        prefix: tokens before the patches (class token, registers); default what the model says.
        grid: (H, W) of the patches; default from their number and the shape of the image.

    Raises:
        ValueError: no transformer blocks, an attention layer whose queries and keys are unknown, an unknown facet, a
            layer out of range, non-finite pixels, or a number of tokens that forms no grid.
    """
    unknown = [facet for facet in facets if facet not in FACETS]
    if unknown:
        raise ValueError(f"facets: unknown {unknown[0]!r}; choose from {', '.join(FACETS)}")
    if images.dim() != 4 or 0 in images.shape or not images.is_floating_point():
        raise ValueError(
            f"images: needs preprocessed floating images [b, c, h, w], got {images.dtype} {tuple(images.shape)}"
        )
    if not bool(images.isfinite().all()):
        raise ValueError("images: hold NaN or infinite pixels")
    inner = unwrap(model)
    stack = main_stack(inner)
    chosen = _layers(layers, len(stack.blocks))
    detailed = chosen if facet_layers is None else _layers(facet_layers, len(stack.blocks))
    if not set(detailed) <= set(chosen):
        raise ValueError(f"facet_layers={list(detailed)}: must be among layers={list(chosen)}")
    prefix, has_class = prefix_of(inner, prefix)
    attend: dict[int, Tensor] = {}
    features: dict[tuple[str, int], Tensor] = {}
    handles: list[RemovableHandle] = []
    projected = bool({"key", "query", "value"} & set(facets))
    weight = next(inner.parameters())
    try:
        for index in chosen:
            block = stack.blocks[index][1]
            if attention or (projected and index in detailed):
                read = _reader(block, attention=attention, name=stack.name(index))

                def listen(
                    q: Tensor, k: Tensor, v: Tensor, scale: float, turn: _Turn | None = None, index: int = index
                ) -> None:
                    if attention:
                        pair = (q, k) if turn is None else (turn(q), turn(k))
                        attend[index] = _attend(*pair, scale, prefix, has_class)
                    for facet, value in zip(("query", "key", "value"), (q, k, v), strict=True):
                        if facet in facets and index in detailed:
                            features[facet, index] = value[..., prefix:, :].transpose(-3, -2).flatten(-2)

                handles.append(read(listen))
            if "token" in facets and index in detailed:
                handles.append(
                    block.register_forward_hook(
                        lambda _, args, out, index=index: features.__setitem__(
                            ("token", index), (out if isinstance(out, Tensor) else out[0])[:, prefix:].clone()
                        )
                    )
                )
        with evaluating(inner), Layout(inner, prefix) as layout:
            inner(images.to(weight))
    finally:
        for handle in handles:
            handle.remove()
    if attend:
        count = next(iter(attend.values())).shape[-1]
    else:
        count = next(iter(features.values())).shape[1] if features else 0
    return Patches(
        layers=chosen,
        grid=grid_of(count, images.shape[-2:], grid, layout.grid(stack.prefix)),
        query="class token" if has_class else "mean of patch tokens",
        attention=torch.stack([attend[i] for i in chosen]) if attention else None,
        features={facet: torch.stack([features[facet, i] for i in detailed]) for facet in facets},
        feature_layers=detailed if facets else (),
        blank=of_one_colour(images),
    )


def of_one_colour(images: Tensor) -> Tensor:
    """Which images `[..., c, h, w]` have one colour: boolean `[...]`. Channels may differ, as normalised ones do."""
    return (images.amax((-2, -1)) - images.amin((-2, -1)) <= 1e-6).all(-1)


def _attend(q: Tensor, k: Tensor, scale: float, prefix: int, has_class: bool) -> Tensor:
    """Softmax over patches for one query: `[b, h, n, p]` each -> `[b, h, patches]`."""
    row = q[..., :1, :] if has_class else q[..., prefix:, :].mean(-2, keepdim=True)
    logits = row @ k[..., prefix:, :].mT * scale
    return logits.squeeze(-2).float().softmax(-1)


_Turn = Callable[[Tensor], Tensor]  # what rotary positions do to queries and keys; features are read before it
_Listen = Callable[..., None]


def _reader(block: nn.Module, *, attention: bool, name: str) -> Callable[[_Listen], RemovableHandle]:
    """How to hear a block's queries, keys and values `[b, h, n, p]`: a function that registers the hook."""
    layer: Any = find_parts(block).attention
    kind = (type(layer).__module__, type(layer).__name__)
    single = callable(getattr(layer, "project", None)) and isinstance(getattr(layer, "subspaces", None), nn.Linear)
    if single and (not attention or _answers_one_query(layer)):

        def white_box(listen: _Listen) -> RemovableHandle:
            def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
                w = out.unflatten(-1, (layer.heads, -1)).transpose(-3, -2)
                listen(w, w, w, w.shape[-1] ** -0.5)

            handle: RemovableHandle = layer.subspaces.register_forward_hook(hook)
            return handle

        return white_box
    if kind == ("timm.layers.attention", "Attention"):  # a subclass may compute something else

        def timm(listen: _Listen) -> RemovableHandle:
            def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
                q, k, v = out.unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
                listen(layer.q_norm(q), layer.k_norm(k), v, layer.scale)

            handle: RemovableHandle = layer.qkv.register_forward_hook(hook)
            return handle

        return timm
    if kind == ("timm.models.eva", "EvaAttention"):

        def rotary(listen: _Listen) -> RemovableHandle:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                rope = kwargs.get("rope", args[1] if len(args) > 1 else None)
                q, k, v = eva_heads(layer, args[0])
                listen(q, k, v, layer.scale, None if rope is None else lambda z: turned(layer, z, rope))

            handle: RemovableHandle = layer.register_forward_pre_hook(hook, with_kwargs=True)
            return handle

        return rotary
    if layer is not None and _plain_projections(layer, attention):

        def hugging_face(listen: _Listen) -> RemovableHandle:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                z = args[0] if args else kwargs["hidden_states"]
                heads = [
                    getattr(layer, f"{part}_proj")(z).unflatten(-1, (-1, layer.head_dim)).transpose(-3, -2)
                    for part in "qkv"
                ]
                listen(heads[0], heads[1], heads[2], layer.head_dim**-0.5)

            handle: RemovableHandle = layer.register_forward_pre_hook(hook, with_kwargs=True)
            return handle

        return hugging_face
    raise ValueError(
        f"model: {name} has {type(layer).__name__}, whose attention weights are not known; understood are MSSA, timm's "
        "Attention and EvaAttention, and Hugging Face's vision attention without rotary positions. Use "
        "facets=('token',), attention=False"
    )


def _answers_one_query(layer: Any) -> bool:
    """Whether white-box attention is softmax over tokens, which it says by offering `attention(z, query=...)`."""
    method = getattr(layer, "attention", None)
    return callable(method) and "query" in inspect.signature(method).parameters


def _plain_projections(layer: nn.Module, attention: bool) -> bool:
    names = {name for name, _ in layer.named_children()}
    if not {"q_proj", "k_proj", "v_proj"} <= names or not isinstance(getattr(layer, "head_dim", None), int):
        return False
    plain = names <= {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj"}
    return not attention or (plain and "position_embeddings" not in inspect.signature(layer.forward).parameters)


def main_stack(model: nn.Module) -> Stack:
    """The blocks that read the image.

    Raises:
        ValueError: the model has none.
    """
    stacks = find_stacks(model)
    if not stacks:
        raise ValueError(f"model: {type(model).__name__} has no transformer blocks, so no tokens to read")
    return next((stack for stack in stacks if not stack.prefix), stacks[0])


def _layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(depth))
    outside = [layer for layer in layers if not -depth <= layer < depth]
    if outside or not layers:
        raise ValueError(f"layers={list(layers)}: choose from 0 to {depth - 1}, or -{depth} to -1")
    return tuple(layer % depth for layer in layers)


def prefix_of(model: nn.Module, prefix: int | None) -> tuple[int, bool]:
    """`prefix_tokens` of a model whose other tokens are patches, row after row; one that says nothing of them must be
    told, since a wrong number may form a grid too.

    Raises:
        ValueError: it must be told, or its patches are in another order.
    """
    check_in_rows(model)
    count, has_class = prefix_tokens(model, prefix)
    known = any(getattr(model, name, None) is not None for name in ("num_prefix_tokens", "config"))
    if prefix is None and not (known or has_class):
        raise ValueError(f"prefix: {type(model).__name__} does not say how many tokens precede its patches; give it")
    return count, has_class


def grid_of(
    count: int, image: Sequence[int], grid: tuple[int, int] | None, made: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Rows and columns of `count` patches of an image [h, w], or those given.

    Args:
        count: of the patches.
        image: its shape.
        grid: given by hand.
        made: as the model made them of the image, where that is known.

    Raises:
        ValueError: they are not as many.
    """
    shape = grid or made or in_rows(count, (image[0], image[1]))
    if shape is None or shape[0] * shape[1] != count:
        but = "" if shape is None else f", not {shape[0]} x {shape[1]}"
        raise ValueError(
            f"grid: {count} patch tokens of a {image[0]} x {image[1]} image form no grid{but}; "
            "give grid=(H, W), or prefix= if there are other tokens before the patches"
        )
    return shape
