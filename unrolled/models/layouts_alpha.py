"""The published layouts of CRATE-alpha: torch, JAX, and the image tower of CLIPA."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from unrolled.models.crate import CRATE
from unrolled.models.mapping import (
    Options,
    Reader,
    StateDict,
    check_heads,
    find_grid,
    find_heads,
    find_rows,
    find_sizes,
    third,
)

# width -> heads of the published models
_ALPHA_HEADS = {192: 3, 576: 12, 768: 12, 1024: 16, 1280: 16}
# tensors of CLIPA that its image tower does not use: pattern -> why
_TEXT_TOWER = "of the text tower, which the image's embedding does not depend on"
_DEAD_OF_CLIPA = dict.fromkeys(
    ("transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection", "logit_scale"),
    _TEXT_TOWER,
)


def build_alpha(state: StateDict, options: Options) -> nn.Module:
    """CRATE-alpha as in UCSC-VLAA/CRATE-alpha's model for inference in torch."""
    options.refuse("a CRATE-alpha classifier", "decoder_heads", "pool")
    reader = Reader(state, "CRATE-alpha")
    layers = "transformer.layers." if "transformer.layers.0.1.fn.D" in state else "layers."
    depth = reader.depth(layers)
    reader.take("cls_token", "cls_token")
    reader.take("pos_embedding", "pos_embed")
    reader.pair("conv1", "patch_embed.proj")
    for i in range(depth):
        theirs, ours = f"{layers}{i}", f"blocks.{i}"
        reader.pair(f"{theirs}.0.norm", f"{ours}.norm1")
        reader.take(f"{theirs}.0.fn.qkv.weight", f"{ours}.attn.subspaces.weight")
        reader.take(f"{theirs}.0.fn.to_out.0.weight", f"{ours}.attn.output.weight", optional=True)
        reader.pair(f"{theirs}.1.norm", f"{ours}.norm2")
        reader.take(f"{theirs}.1.fn.D", f"{ours}.ista.dictionary")
        reader.take(f"{theirs}.1.fn.D1", f"{ours}.ista.decoder")
    reader.pair("mlp_head.0", "norm")
    reader.pair("mlp_head.1", "head")
    inner = find_rows(state, f"{layers}0.0.fn.qkv.weight")
    heads, dim_head = find_heads(options, state["cls_token"].shape[-1], inner, _ALPHA_HEADS)
    return _finish_alpha(reader, options, depth, heads, dim_head, head_norm_eps=1e-5)


def build_alpha_jax(state: StateDict, options: Options) -> nn.Module:
    """CRATE-alpha as trained: the tree of UCSC-VLAA/CRATE-alpha's flax model, flattened with slashes."""
    options.refuse("a CRATE-alpha classifier", "decoder_heads", "pool")
    reader = Reader(state, "CRATE-alpha (JAX)")
    depth = reader.depth("Transformer/encoderblock_", "/")
    reader.take("cls", "cls_token")
    reader.take("pos_embedding", "pos_embed")
    reader.take("embedding/kernel", "patch_embed.proj.weight", lambda t: t.permute(3, 2, 0, 1))
    biased = "head/bias" in state  # image towers of CLIPA have none there
    reader.take("embedding/bias", "patch_embed.proj.bias", optional=not biased)

    def norm(published: str, ours: str) -> None:
        reader.take(f"{published}/scale", f"{ours}.weight")
        reader.take(f"{published}/bias", f"{ours}.bias")

    for i in range(depth):
        theirs, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        attention = f"{theirs}/MultiHeadDotProductSubspaceAttention_0"
        norm(f"{theirs}/LayerNorm_0", f"{ours}.norm1")
        norm(f"{theirs}/LayerNorm_1", f"{ours}.norm2")
        reader.take(f"{attention}/proj/kernel", f"{ours}.attn.subspaces.weight", lambda t: t.flatten(1).T)
        reader.take(f"{attention}/out/kernel", f"{ours}.attn.output.weight", lambda t: t.flatten(0, 1).T)
        reader.take(f"{theirs}/OvercompleteISTABlock_0/D", f"{ours}.ista.dictionary")
        reader.take(f"{theirs}/OvercompleteISTABlock_0/D1", f"{ours}.ista.decoder")
    norm("encoder_norm", "norm")
    reader.take("head/kernel", "head.weight", lambda t: t.T)
    reader.take("head/bias", "head.bias", optional=not biased)
    if not biased:
        _zero_biases(reader)
    kernel = "Transformer/encoderblock_0/MultiHeadDotProductSubspaceAttention_0/proj/kernel"
    _, heads, dim_head = find_sizes(state, kernel, 3)
    check_heads(options, heads, dim_head)
    return _finish_alpha(reader, options, depth, heads, dim_head, head_norm_eps=1e-6)


def build_clipa(state: StateDict, options: Options) -> nn.Module:
    """CRATE-alpha as the image tower of CLIPA; the classifier's outputs are the image's embedding, not yet normalised.

    The text tower, a plain transformer, is left out.
    """
    options.refuse("a CLIPA image tower", "decoder_heads", "pool")
    reader = Reader(state, "CRATE-alpha (CLIPA)")
    reader.ignore(_DEAD_OF_CLIPA)
    depth = reader.depth("visual.transformer.resblocks.")
    reader.take("visual.class_embedding", "cls_token", lambda t: t[None, None])
    reader.take("visual.positional_embedding", "pos_embed", lambda t: t[None])
    reader.take("visual.conv1.weight", "patch_embed.proj.weight")
    for i in range(depth):
        theirs, ours = f"visual.transformer.resblocks.{i}", f"blocks.{i}"
        stacked = state.get(f"{theirs}.attn.in_proj_weight")
        if stacked is not None and not all(torch.equal(third(0, stacked), third(k, stacked)) for k in (1, 2)):
            raise ValueError(f"checkpoint: {theirs}.attn: query, key and value differ; this is no subspace attention")
        reader.pair(f"{theirs}.ln_1", f"{ours}.norm1")
        reader.pair(f"{theirs}.ln_2", f"{ours}.norm2")
        reader.take(f"{theirs}.attn.in_proj_weight", f"{ours}.attn.subspaces.weight", partial(third, 0))
        reader.take(f"{theirs}.attn.out_proj.weight", f"{ours}.attn.output.weight")
        reader.take(f"{theirs}.mlp.c_fc", f"{ours}.ista.dictionary")
        reader.take(f"{theirs}.mlp.c_proj", f"{ours}.ista.decoder")
    reader.pair("visual.ln_post", "norm")
    reader.take("visual.proj", "head.weight", lambda t: t.T)
    _zero_biases(reader)
    width = reader.tensors["cls_token"].shape[-1]
    heads, dim_head = find_heads(options, width, width, _ALPHA_HEADS)
    return _finish_alpha(reader, options, depth, heads, dim_head, head_norm_eps=1e-6)


def _zero_biases(reader: Reader) -> None:
    """The published image towers have no biases in their stem and head."""
    for name in ("patch_embed.proj", "head"):
        weight = reader.tensors[f"{name}.weight"]
        reader.tensors[f"{name}.bias"] = weight.new_zeros(len(weight))


def _finish_alpha(
    reader: Reader, options: Options, depth: int, heads: int, dim_head: int, *, head_norm_eps: float
) -> nn.Module:
    tensors = reader.tensors
    width, channels, patch, _ = find_sizes(tensors, "patch_embed.proj.weight", 4)
    grid = find_grid(tensors["pos_embed"].shape[1] - 1, patch, options.image_size)
    native = (grid[0] * patch, grid[1] * patch)
    model = CRATE(
        image_size=native,
        patch_size=patch,
        num_classes=tensors["head.weight"].shape[0],
        dim=width,
        depth=depth,
        heads=heads,
        dim_head=dim_head,
        channels=channels,
        stem="linear",
        sparsifier="overcomplete",
        expansion=tensors["blocks.0.ista.dictionary"].shape[1] // width,
        decoupled=True,
        residual=True,
        bias=False,
        norm_eps=1e-6,
        head_norm_eps=head_norm_eps,
        **options.ista(),
    )
    return reader.finish(model, options, native)
