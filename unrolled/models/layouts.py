"""The published layouts of models of images, one function each: CRATE, CBT, CRATE-MAE, ToST; and the table of all
layouts."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.models.crate import CRATE
from unrolled.models.layouts_alpha import build_alpha, build_alpha_jax, build_clipa
from unrolled.models.layouts_language import build_bert, build_crate_gpt, build_tost_language
from unrolled.models.mapping import (
    Layout,
    Options,
    Reader,
    StateDict,
    check_heads,
    find_grid,
    find_heads,
    find_patch,
    find_rows,
    find_sizes,
    third,
)
from unrolled.models.masked import MaskedAutoencoder
from unrolled.models.tost import ToST

# width -> heads of the published models
_CRATE_HEADS = {384: 6, 576: 12, 768: 12, 1024: 16}
_CBT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
# tensors that the published models keep and never use in what is built here: pattern -> why
_DEAD_OF_MASKED = {
    "pos_embed": "the published encoder adds decoder_pos_embed",
    "decoder_embed.*": "the published decoder takes the encoder's tokens as they are",
}


def _build_crate(state: StateDict, options: Options) -> nn.Module:
    """CRATE as in Ma-Lab-Berkeley/CRATE, and its 21k demo variant with a second linear layer after the head."""
    options.refuse("a CRATE classifier", "decoder_heads")
    demo = "head.weight" in state
    reader = Reader(state, "CRATE demo (21k head)" if demo else "CRATE")
    depth = _take_frame(reader)
    for published, ours in (("1", "patch_norm"), ("2", "proj"), ("3", "norm")):
        reader.pair(f"to_patch_embedding.{published}", f"patch_embed.{ours}")
    for i in range(depth):
        _take_attention(reader, f"transformer.layers.{i}.0", f"blocks.{i}.norm1", f"blocks.{i}.attn")

    width, patch_values = find_sizes(state, "to_patch_embedding.2.weight", 2)
    published_heads = {**_CRATE_HEADS, 768: 6} if demo else _CRATE_HEADS
    heads, dim_head = find_heads(
        options, width, find_rows(state, "transformer.layers.0.0.fn.qkv.weight"), published_heads
    )
    channels, patch = find_patch(patch_values)
    grid = find_grid(state["pos_embedding"].shape[1] - 1, patch, options.image_size)
    _reorder_patches(reader, channels, patch)
    if demo:
        _compose_head(reader)
    sizes = {"dim": width, "depth": depth, "heads": heads, "dim_head": dim_head, "channels": channels}
    return _finish_frame(reader, options, patch, grid, **sizes)


def _build_cbt(state: StateDict, options: Options) -> nn.Module:
    """CBT as in QishuaiWen/CBSA, and what its repository puts on the same frame: CRATE's attention and ToST's."""
    options.refuse("a CBT classifier", "decoder_heads")
    reader = Reader(state, "CBT")
    depth = _take_frame(reader)
    stem = "to_patch_embedding.proj."
    for key in state:
        if key.startswith(stem):
            reader.take(key, f"patch_embed.proj.{key.removeprefix(stem)}")
    first = "transformer.layers.0.0.fn"
    kind = "cbsa" if f"{first}.step_x" in state else "tssa" if f"{first}.temp" in state else "mssa"
    learned = {
        "cbsa": {"proj.weight": "subspaces.weight", "step_rep": "step_representative", "step_x": "step_token"},
        "tssa": {"qkv.weight": "subspaces.weight", "temp": "temperature"},
        "mssa": {"qkv.weight": "subspaces.weight"},
    }[kind]
    for i in range(depth):
        theirs, ours = f"transformer.layers.{i}.0", f"blocks.{i}"
        reader.pair(f"{theirs}.norm", f"{ours}.norm1")
        reader.pair(f"{theirs}.fn.to_out", f"{ours}.attn.output")
        for published, name in learned.items():
            reader.take(f"{theirs}.fn.{published}", f"{ours}.attn.{name}", None if "weight" in name else torch.flatten)

    width, inner = state["cls_token"].shape[-1], reader.tensors["blocks.0.attn.subspaces.weight"].shape[0]
    if kind == "mssa":
        heads, dim_head = find_heads(options, width, inner, _CBT_HEADS)
    else:
        heads = state[f"{first}.step_x" if kind == "cbsa" else f"{first}.temp"].numel()
        dim_head = inner // heads
        check_heads(options, heads, dim_head)
    patch = 1 << (reader.depth(stem) + 1) // 2
    grid = find_grid(state["pos_embedding"].shape[1] - 1, patch, options.image_size)
    sizes = {"dim": width, "depth": depth, "heads": heads, "dim_head": dim_head}
    form = {"pooled": "leading"} if kind == "cbsa" else {}
    channels = find_sizes(state, f"{stem}0.0.weight", 4)[1]
    return _finish_frame(reader, options, patch, grid, channels=channels, stem="conv", attention=kind, **form, **sizes)


def _take_frame(reader: Reader) -> int:
    """What CRATE and CBT have in common: tokens, positions, ISTA and head; returns the number of layers."""
    depth = reader.depth("transformer.layers.")
    reader.take("cls_token", "cls_token")
    reader.take("pos_embedding", "pos_embed")
    for i in range(depth):
        reader.pair(f"transformer.layers.{i}.1.norm", f"blocks.{i}.norm2")
        reader.take(f"transformer.layers.{i}.1.fn.weight", f"blocks.{i}.ista.dictionary")
    reader.pair("mlp_head.0", "norm")
    reader.pair("mlp_head.1", "head")
    return depth


def _finish_frame(reader: Reader, options: Options, patch: int, grid: tuple[int, int], **arguments: Any) -> nn.Module:
    if options.pool == "mean":  # timm normalises after pooling there, as the published model does
        reader.tensors |= {f"fc_norm.{kind}": reader.tensors.pop(f"norm.{kind}") for kind in ("weight", "bias")}
    native = (grid[0] * patch, grid[1] * patch)
    model = CRATE(
        image_size=native,
        patch_size=patch,
        num_classes=reader.tensors["head.weight"].shape[0],
        pool=options.pool or "cls",
        **arguments,
        **options.ista(),
    )
    return reader.finish(model, options, native)


def _build_masked(state: StateDict, options: Options) -> nn.Module:
    """CRATE-MAE as in Ma-Lab-Berkeley/CRATE; the table of positions that it uses is the decoder's."""
    options.refuse("a masked autoencoder", "pool")
    reader = Reader(state, "CRATE-MAE")
    reader.ignore(_DEAD_OF_MASKED)
    depth, decoder_depth = reader.depth("blocks."), reader.depth("decoder_blocks.")
    reader.take("cls_token", "cls_token")
    reader.take("mask_token", "mask_token")
    reader.take("decoder_pos_embed", "pos_embed")
    reader.pair("patch_embed.proj", "patch_embed.proj")
    for i in range(depth):
        theirs, ours = f"blocks.{i}.layers.0", f"blocks.{i}"
        _take_attention(reader, f"{theirs}.0", f"{ours}.norm1", f"{ours}.attn")
        reader.pair(f"{theirs}.1.norm", f"{ours}.norm2")
        reader.take(f"{theirs}.1.fn.weight", f"{ours}.ista.dictionary")
    for i in range(decoder_depth):
        theirs, ours = f"decoder_blocks.{i}.layers.0", f"decoder_blocks.{i}"
        reader.pair(f"{theirs}.0.norm", f"{ours}.norm1")
        reader.take(f"{theirs}.0.fn.weight", f"{ours}.linear.weight")
        _take_attention(reader, f"{theirs}.1", f"{ours}.norm2", f"{ours}.attn")
    for name in ("norm", "decoder_norm", "decoder_pred"):
        reader.pair(name, name)
    width, channels, patch, _ = find_sizes(state, "patch_embed.proj.weight", 4)
    inner = find_rows(state, "blocks.0.layers.0.0.fn.qkv.weight")
    heads, dim_head = find_heads(options, width, inner, _CRATE_HEADS)
    decoder_heads = options.decoder_heads or heads
    if decoder_heads * dim_head != find_rows(state, "decoder_blocks.0.layers.0.1.fn.qkv.weight"):
        dim_head = 0  # differs between encoder and decoder: both then divide the width
        if inner != width or width % decoder_heads:
            raise ValueError(f"decoder_heads={decoder_heads} does not divide the rows of the decoder's projection")
    grid = find_grid(state["decoder_pos_embed"].shape[1] - 1, patch, options.image_size)
    native = (grid[0] * patch, grid[1] * patch)
    model = MaskedAutoencoder(
        image_size=native,
        patch_size=patch,
        dim=width,
        depth=depth,
        heads=heads,
        decoder_depth=decoder_depth,
        decoder_heads=decoder_heads,
        dim_head=dim_head or None,
        channels=channels,
        **options.ista(sparsity=0.5),
    )
    return reader.finish(model, options, native)


def _build_tost(state: StateDict, options: Options) -> nn.Module:
    """ToST for images as in RobinWu218/ToST."""
    options.refuse("a ToST classifier", "decoder_heads", "pool", "step_size", "sparsity")
    reader = Reader(state, "ToST")
    depth, classes = reader.depth("blocks."), reader.depth("cls_attn_blocks.")
    halvings = (reader.depth("patch_embed.proj.") + 1) // 2
    biased = "blocks.0.attn.qkv.bias" in state
    kinds = ("weight", "bias") if biased else ("weight",)
    reader.take("cls_token", "cls_token")
    reader.pair("pos_embeder.token_projection", "pos_embed.token_projection")
    for key in state:
        if key.startswith("patch_embed.proj."):
            reader.take(key, key)
    for i in range(depth):
        block = f"blocks.{i}"
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            reader.pair(f"{block}.{name}", f"{block}.{name}")
        for half in ("1", "2"):
            reader.take(f"{block}.gamma{half}", f"{block}.ls{half}.gamma")
        reader.take(f"{block}.attn.temp", f"{block}.attn.temperature", lambda t: t.flatten())
        for kind in kinds:
            reader.take(f"{block}.attn.qkv.{kind}", f"{block}.attn.subspaces.{kind}")
        reader.pair(f"{block}.attn.to_out.0", f"{block}.attn.output")
    for i in range(classes):
        block = f"cls_attn_blocks.{i}"
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj"):
            reader.pair(f"{block}.{name}", f"{block}.{name}")
        for half in ("1", "2"):
            reader.take(f"{block}.gamma{half}", f"{block}.gamma{half}")
        for kind in kinds:
            for part, name in enumerate("qkv"):
                reader.take(f"{block}.attn.qkv.{kind}", f"{block}.attn.{name}.{kind}", partial(third, part))
    for name in ("norm", "head"):
        reader.pair(name, name)
    width, patch = state["head.weight"].shape[1], 1 << halvings
    heads = state["blocks.0.attn.temp"].numel()
    check_heads(options, heads, width // heads)
    model = ToST(
        image_size=options.image_size or (224 if 224 % patch == 0 else patch),
        patch_size=patch,
        num_classes=state["head.weight"].shape[0],
        dim=width,
        depth=depth,
        heads=heads,
        channels=state["patch_embed.proj.0.0.weight"].shape[1],
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        qkv_bias=biased,
        cls_attn_layers=classes,
    )
    return reader.finish(model, options, None)


def _take_attention(reader: Reader, published: str, norm: str, attention: str) -> None:
    reader.pair(f"{published}.norm", norm)
    reader.take(f"{published}.fn.qkv.weight", f"{attention}.subspaces.weight")
    # one head of full width has no output matrix; where one is missing otherwise, `Reader.finish` says so
    reader.pair(f"{published}.fn.to_out.0", f"{attention}.output", optional=True)


def _reorder_patches(reader: Reader, channels: int, patch: int) -> None:
    """Published patches are flattened (row, column, channel); ours (channel, row, column)."""

    def reorder(t: Tensor) -> Tensor:
        return t.unflatten(-1, (patch, patch, channels)).movedim(-1, -3)

    tensors, reshaped = reader.tensors, reader.report.reshaped
    for key in ("patch_embed.patch_norm.weight", "patch_embed.patch_norm.bias"):
        tensors[key] = reorder(tensors[key]).flatten()
        reshaped[key] = "reordered to (channel, row, column)"
    tensors["patch_embed.proj.weight"] = reorder(tensors["patch_embed.proj.weight"]).contiguous()
    reshaped["patch_embed.proj.weight"] = "reordered to (channel, row, column)"


def _compose_head(reader: Reader) -> None:
    """Two linear layers in a row are one; composed in float64."""
    state, tensors = reader.state, reader.tensors
    first, bias = tensors["head.weight"].double(), tensors["head.bias"].double()
    second = state["head.weight"].double()
    tensors["head.weight"] = (second @ first).to(tensors["head.weight"].dtype)
    tensors["head.bias"] = (second @ bias + state["head.bias"].double()).to(tensors["head.bias"].dtype)
    reader.report.mapped |= {"head.weight": "head.weight", "head.bias": "head.bias"}
    reader.report.reshaped["head.weight"] = "mlp_head.1 and head composed into one linear layer"


LAYOUTS = [
    Layout("CRATE", ("to_patch_embedding.2.weight",), _build_crate),
    Layout("CRATE-alpha", ("transformer.layers.0.1.fn.D", "layers.0.1.fn.D"), build_alpha),
    Layout("CRATE-alpha (JAX)", ("Transformer/encoderblock_0/OvercompleteISTABlock_0/D",), build_alpha_jax),
    Layout("CRATE-alpha (CLIPA)", ("visual.transformer.resblocks.0.mlp.c_fc",), build_clipa),
    Layout("CRATE-MAE", ("decoder_blocks.0.layers.0.0.fn.weight",), _build_masked),
    Layout("CBT", ("to_patch_embedding.proj.0.0.weight",), _build_cbt),
    Layout("ToST", ("pos_embeder.token_projection.weight", "blocks.0.attn.temp"), _build_tost),
    Layout("ToST (language)", ("transformer.h.0.attn.denom_bias",), build_tost_language),
    Layout("CRATE-GPT", ("transformer.h.0.ista.weight",), build_crate_gpt),
    Layout(
        "CRATE-BERT",
        ("crate.encoder.layer.0.attention.self.qkv.weight", "encoder.layer.0.attention.self.qkv.weight"),
        build_bert,
    ),
]
