"""The published layouts, one function each: CRATE, CRATE-alpha (torch, JAX, CLIPA), CRATE-MAE, ToST, CRATE-BERT."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from unrolled.models.crate import CRATE
from unrolled.models.encoder import MaskedLanguageModel
from unrolled.models.layouts_language import build_tost_language
from unrolled.models.mapping import Layout, Options, Reader, StateDict, find_grid, find_heads, find_patch, find_sizes
from unrolled.models.masked import MaskedAutoencoder
from unrolled.models.sequence_config import EncoderConfig
from unrolled.models.tost import ToST

# width -> heads of the published models
_CRATE_HEADS = {384: 6, 576: 12, 768: 12, 1024: 16}
_ALPHA_HEADS = {192: 3, 576: 12, 768: 12, 1024: 16, 1280: 16}


def _build_crate(state: StateDict, options: Options) -> nn.Module:
    """CRATE as in Ma-Lab-Berkeley/CRATE, and its 21k demo variant with a second linear layer after the head."""
    options.refuse("a CRATE classifier", "decoder_heads")
    demo = "head.weight" in state
    reader = Reader(state, "CRATE demo (21k head)" if demo else "CRATE")
    depth = reader.depth("transformer.layers.")
    reader.take("cls_token", "cls_token")
    reader.take("pos_embedding", "pos_embed")
    for published, ours in (("1", "patch_norm"), ("2", "proj"), ("3", "norm")):
        reader.pair(f"to_patch_embedding.{published}", f"patch_embed.{ours}")
    for i in range(depth):
        theirs, ours = f"transformer.layers.{i}", f"blocks.{i}"
        _take_attention(reader, f"{theirs}.0", f"{ours}.norm1", f"{ours}.attn")
        reader.pair(f"{theirs}.1.norm", f"{ours}.norm2")
        reader.take(f"{theirs}.1.fn.weight", f"{ours}.ista.dictionary")
    reader.pair("mlp_head.0", "norm")
    reader.pair("mlp_head.1", "head")

    width, patch_values = find_sizes(state, "to_patch_embedding.2.weight", 2)
    published_heads = {**_CRATE_HEADS, 768: 6} if demo else _CRATE_HEADS
    heads, dim_head = find_heads(options, width, _rows(state, "transformer.layers.0.0.fn.qkv.weight"), published_heads)
    channels, patch = find_patch(patch_values)
    grid = find_grid(state["pos_embedding"].shape[1] - 1, patch, options.image_size)
    _reorder_patches(reader, channels, patch)
    if demo:
        _compose_head(reader)
    if options.pool == "mean":  # timm normalises after pooling there, as the published model does
        reader.tensors |= {f"fc_norm.{kind}": reader.tensors.pop(f"norm.{kind}") for kind in ("weight", "bias")}
    native = (grid[0] * patch, grid[1] * patch)
    model = CRATE(
        image_size=native,
        patch_size=patch,
        num_classes=reader.tensors["head.weight"].shape[0],
        dim=width,
        depth=depth,
        heads=heads,
        dim_head=dim_head,
        pool=options.pool or "cls",
        channels=channels,
        **options.ista(),
    )
    return reader.finish(model, options, native)


def _build_alpha(state: StateDict, options: Options) -> nn.Module:
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
    inner = _rows(state, f"{layers}0.0.fn.qkv.weight")
    heads, dim_head = find_heads(options, state["cls_token"].shape[-1], inner, _ALPHA_HEADS)
    return _finish_alpha(reader, options, depth, heads, dim_head, head_norm_eps=1e-5)


def _build_alpha_jax(state: StateDict, options: Options) -> nn.Module:
    """CRATE-alpha as trained: the tree of UCSC-VLAA/CRATE-alpha's flax model, flattened with slashes."""
    options.refuse("a CRATE-alpha classifier", "decoder_heads", "pool")
    reader = Reader(state, "CRATE-alpha (JAX)")
    depth = reader.depth("Transformer/encoderblock_", "/")
    reader.take("cls", "cls_token")
    reader.take("pos_embedding", "pos_embed")
    reader.take("embedding/kernel", "patch_embed.proj.weight", lambda t: t.permute(3, 2, 0, 1))
    reader.take("embedding/bias", "patch_embed.proj.bias")

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
    reader.take("head/bias", "head.bias")
    kernel = "Transformer/encoderblock_0/MultiHeadDotProductSubspaceAttention_0/proj/kernel"
    _, heads, dim_head = find_sizes(state, kernel, 3)
    _agree(options, heads, dim_head)
    return _finish_alpha(reader, options, depth, heads, dim_head, head_norm_eps=1e-6)


def _build_clipa(state: StateDict, options: Options) -> nn.Module:
    """CRATE-alpha as the image tower of CLIPA; the classifier's outputs are the image's embedding, not yet normalised.

    The text tower, a plain transformer, is left out: the report lists its tensors as ignored.
    """
    options.refuse("a CLIPA image tower", "decoder_heads", "pool")
    reader = Reader(state, "CRATE-alpha (CLIPA)")
    depth = reader.depth("visual.transformer.resblocks.")
    reader.take("visual.class_embedding", "cls_token", lambda t: t[None, None])
    reader.take("visual.positional_embedding", "pos_embed", lambda t: t[None])
    reader.take("visual.conv1.weight", "patch_embed.proj.weight")
    for i in range(depth):
        theirs, ours = f"visual.transformer.resblocks.{i}", f"blocks.{i}"
        stacked = state.get(f"{theirs}.attn.in_proj_weight")
        if stacked is not None and not all(torch.equal(_third(0, stacked), _third(k, stacked)) for k in (1, 2)):
            raise ValueError(f"checkpoint: {theirs}.attn: query, key and value differ; this is no subspace attention")
        reader.pair(f"{theirs}.ln_1", f"{ours}.norm1")
        reader.pair(f"{theirs}.ln_2", f"{ours}.norm2")
        reader.take(f"{theirs}.attn.in_proj_weight", f"{ours}.attn.subspaces.weight", partial(_third, 0))
        reader.take(f"{theirs}.attn.out_proj.weight", f"{ours}.attn.output.weight")
        reader.take(f"{theirs}.mlp.c_fc", f"{ours}.ista.dictionary")
        reader.take(f"{theirs}.mlp.c_proj", f"{ours}.ista.decoder")
    reader.pair("visual.ln_post", "norm")
    reader.take("visual.proj", "head.weight", lambda t: t.T)
    tensors = reader.tensors
    for name in ("patch_embed.proj", "head"):  # the published tower has no biases there
        tensors[f"{name}.bias"] = tensors[f"{name}.weight"].new_zeros(len(tensors[f"{name}.weight"]))
    width = tensors["cls_token"].shape[-1]
    heads, dim_head = find_heads(options, width, width, _ALPHA_HEADS)
    return _finish_alpha(reader, options, depth, heads, dim_head, head_norm_eps=1e-6)


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


def _build_masked(state: StateDict, options: Options) -> nn.Module:
    """CRATE-MAE as in Ma-Lab-Berkeley/CRATE; the table of positions that it uses is the decoder's."""
    options.refuse("a masked autoencoder", "pool")
    reader = Reader(state, "CRATE-MAE")
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
    inner = _rows(state, "blocks.0.layers.0.0.fn.qkv.weight")
    heads, dim_head = find_heads(options, width, inner, _CRATE_HEADS)
    decoder_heads = options.decoder_heads or heads
    if decoder_heads * dim_head != _rows(state, "decoder_blocks.0.layers.0.1.fn.qkv.weight"):
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
        reader.take(f"{block}.attn.qkv.weight", f"{block}.attn.subspaces.weight")
        reader.pair(f"{block}.attn.to_out.0", f"{block}.attn.output")
    for i in range(classes):
        block = f"cls_attn_blocks.{i}"
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj"):
            reader.pair(f"{block}.{name}", f"{block}.{name}")
        for half in ("1", "2"):
            reader.take(f"{block}.gamma{half}", f"{block}.gamma{half}")
        for part, name in enumerate("qkv"):
            reader.take(f"{block}.attn.qkv.weight", f"{block}.attn.{name}.weight", partial(_third, part))
    for name in ("norm", "head"):
        reader.pair(name, name)
    biased = [key for key in state if key.endswith("attn.qkv.bias")]
    if biased:
        raise ValueError(f"checkpoint: {biased[0]}: projections with a bias are no published ToST")
    width, patch = state["head.weight"].shape[1], 1 << halvings
    heads = state["blocks.0.attn.temp"].numel()
    _agree(options, heads, width // heads)
    model = ToST(
        image_size=options.image_size or (224 if 224 % patch == 0 else patch),
        patch_size=patch,
        num_classes=state["head.weight"].shape[0],
        dim=width,
        depth=depth,
        heads=heads,
        channels=state["patch_embed.proj.0.0.weight"].shape[1],
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        cls_attn_layers=classes,
    )
    return reader.finish(model, options, None)


def _build_bert(state: StateDict, options: Options) -> nn.Module:
    """CRATE-BERT in the layout of its pull request to transformers: RoBERTa's names around CRATE's blocks."""
    options.refuse("a masked language model", "decoder_heads", "pool", "image_size")
    reader = Reader(state, "CRATE-BERT")
    base = "crate." if any(key.startswith("crate.encoder.") for key in state) else ""
    depth = reader.depth(f"{base}encoder.layer.")
    embeddings = f"{base}embeddings"
    reader.take(f"{embeddings}.word_embeddings.weight", "embed.weight")
    reader.take(f"{embeddings}.position_embeddings.weight", "positions.weight")
    reader.take(f"{embeddings}.token_type_embeddings.weight", "segments.weight")
    reader.pair(f"{embeddings}.LayerNorm", "embed_norm")
    for i in range(depth):
        theirs, ours = f"{base}encoder.layer.{i}", f"blocks.{i}"
        reader.pair(f"{theirs}.attention.self.prenorm", f"{ours}.norm1")
        reader.take(f"{theirs}.attention.self.qkv.weight", f"{ours}.attn.subspaces.weight")
        reader.pair(f"{theirs}.attention.output.dense", f"{ours}.attn.output")
        reader.pair(f"{theirs}.output.prenorm", f"{ours}.norm2")
        reader.take(f"{theirs}.output.weight", f"{ours}.ista.dictionary")
    bert = "cls.predictions.bias" in state
    head = "cls.predictions" if bert else "lm_head"
    reader.pair(f"{head}.transform.dense" if bert else f"{head}.dense", "transform")
    reader.pair(f"{head}.transform.LayerNorm" if bert else f"{head}.layer_norm", "transform_norm")
    reader.take(f"{head}.bias", "head_bias")
    reader.take(f"{head}.decoder.weight", "head.weight", optional=True)
    tensors = reader.tensors
    words = tensors["embed.weight"]
    tied = "head.weight" not in tensors or bool((tensors["head.weight"] == words).all())
    tensors["head.weight"] = words if tied else tensors["head.weight"]
    rows = len(tensors["positions.weight"])
    if rows % 8 == 2:  # RoBERTa counts positions from 2; the rows before are padding's
        tensors["positions.weight"] = tensors["positions.weight"][2:].contiguous()
        reader.report.reshaped["positions.weight"] = "without the two rows of padding"
    width = words.shape[1]
    inner = _rows(state, f"{base}encoder.layer.0.attention.self.qkv.weight")
    heads, dim_head = find_heads(options, width, inner, _CRATE_HEADS)
    config = EncoderConfig(
        vocab_size=len(words),
        layers=("mssa",) * depth,
        dim=width,
        heads=heads,
        dim_head=dim_head,
        second="ista",
        layer_args={"ista": options.ista()},
        max_length=len(tensors["positions.weight"]),
        segments=len(tensors["segments.weight"]),
        tied=tied,
    )
    return reader.finish(MaskedLanguageModel(config), options, None)


def _take_attention(reader: Reader, published: str, norm: str, attention: str) -> None:
    reader.pair(f"{published}.norm", norm)
    reader.take(f"{published}.fn.qkv.weight", f"{attention}.subspaces.weight")
    # one head of full width has no output matrix; where one is missing otherwise, `Reader.finish` says so
    reader.pair(f"{published}.fn.to_out.0", f"{attention}.output", optional=True)


def _third(part: int, t: Tensor) -> Tensor:
    return t.chunk(3)[part]


def _rows(state: StateDict, key: str) -> int:
    if key not in state:
        raise ValueError(f"checkpoint: {key} is missing; the file is not a whole checkpoint")
    return state[key].shape[0]


def _agree(options: Options, heads: int, dim_head: int) -> None:
    """Where the file tells the heads, refuse others."""
    if options.heads not in (None, heads) or options.dim_head not in (None, dim_head):
        raise ValueError(f"heads, dim_head: the file has {heads} x {dim_head}; leave them out")


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
    Layout("CRATE-alpha", ("transformer.layers.0.1.fn.D", "layers.0.1.fn.D"), _build_alpha),
    Layout("CRATE-alpha (JAX)", ("Transformer/encoderblock_0/OvercompleteISTABlock_0/D",), _build_alpha_jax),
    Layout("CRATE-alpha (CLIPA)", ("visual.transformer.resblocks.0.mlp.c_fc",), _build_clipa),
    Layout("CRATE-MAE", ("decoder_blocks.0.layers.0.0.fn.weight",), _build_masked),
    Layout("ToST", ("pos_embeder.token_projection.weight", "blocks.0.attn.temp"), _build_tost),
    Layout("ToST (language)", ("transformer.h.0.attn.denom_bias",), build_tost_language),
    Layout(
        "CRATE-BERT",
        ("crate.encoder.layer.0.attention.self.qkv.weight", "encoder.layer.0.attention.self.qkv.weight"),
        _build_bert,
    ),
]
