"""The published layouts of models of text: CRATE and ToST in GPT-2's frame, CRATE in RoBERTa's."""

from __future__ import annotations

import torch
from torch import nn

from unrolled.models.encoder import MaskedLanguageModel
from unrolled.models.mapping import Options, Reader, StateDict, check_heads, find_heads, find_rows
from unrolled.models.sequence import LanguageModel
from unrolled.models.sequence_config import EncoderConfig, LanguageConfig

# width -> heads of the published models
_HEADS = {384: 6, 576: 12, 768: 12, 1024: 16, 1280: 20, 1600: 25}
# tensors of CRATE-BERT that the head for masked tokens does not use: pattern -> why
_DEAD_OF_BERT = {
    "*embeddings.position_ids": "the numbers 0, 1, 2, ...",
    "*embeddings.token_type_ids": "zeros, for where no segments are given",
    "*pooler.*": "of heads that classify sentences",
    "cls.seq_relationship.*": "of the head that classifies pairs of sentences",
}


def build_tost_language(state: StateDict, options: Options) -> nn.Module:
    """ToST for text as in RobinWu218/ToST: nanoGPT's names, `temp` and `denom_bias` in every attention, `gamma1` and
    `gamma2` in every block, no biases.

    Raises:
        ValueError: a projection has a bias, which the published sizes do not, or heads are given that the file denies.
    """
    options.refuse("a language model", "decoder_heads", "pool", "image_size", "step_size", "sparsity")
    reader = Reader(state, "ToST (language)")
    depth = reader.depth("transformer.h.")
    biased = [key for key in state if key.endswith(("c_attn.bias", "c_proj.bias", "c_fc.bias"))]
    if biased:
        raise ValueError(f"checkpoint: {biased[0]}: projections with a bias are no published ToST language model")
    reader.ignore_causal_masks("transformer.h.*.attn.bias")
    scaled = "transformer.h.0.gamma1" in state
    reader.take("transformer.wte.weight", "embed.weight")
    reader.take("transformer.wpe.weight", "positions.weight")
    norms = [("transformer.ln_f", "norm")]
    for i in range(depth):
        theirs, ours = f"transformer.h.{i}", f"blocks.{i}"
        norms += [(f"{theirs}.ln_1", f"{ours}.norm1"), (f"{theirs}.ln_2", f"{ours}.norm2")]
        for gamma in ("gamma1", "gamma2") if scaled else ():
            reader.take(f"{theirs}.{gamma}", f"{ours}.{gamma}")
        reader.take(f"{theirs}.attn.c_attn.weight", f"{ours}.attn.subspaces.weight")
        reader.take(f"{theirs}.attn.c_proj.weight", f"{ours}.attn.output.weight")
        reader.take(f"{theirs}.attn.temp", f"{ours}.attn.temperature", lambda t: t.flatten())
        reader.take(f"{theirs}.attn.denom_bias", f"{ours}.attn.membership_bias", lambda t: t.flatten(1))
        reader.take(f"{theirs}.mlp.c_fc.weight", f"{ours}.mlp.expand.weight")
        reader.take(f"{theirs}.mlp.c_proj.weight", f"{ours}.mlp.contract.weight")
    tensors = reader.tensors
    for theirs, ours in norms:
        reader.take(f"{theirs}.weight", f"{ours}.weight")
        reader.take(f"{theirs}.bias", f"{ours}.bias", optional=True)
        tensors.setdefault(f"{ours}.bias", torch.zeros_like(tensors[f"{ours}.weight"]))
    tied = _take_head(reader, "lm_head.weight")
    words, width = tensors["embed.weight"].shape
    heads = len(tensors["blocks.0.attn.temperature"])
    check_heads(options, heads, width // heads)
    config = LanguageConfig(
        vocab_size=words,
        layers=("tssa",) * depth,
        dim=width,
        heads=heads,
        layer_args={"tssa": {"bias": False}},
        layer_scale=1.0 if scaled else None,
        mlp_ratio=len(tensors["blocks.0.mlp.expand.weight"]) / width,
        max_length=len(tensors["positions.weight"]),
        tied=tied,
    )
    return reader.finish(LanguageModel(config), options, None)


def build_crate_gpt(state: StateDict, options: Options) -> nn.Module:
    """CRATE-GPT as in Ma-Lab-Berkeley/CRATE: nanoGPT's names around CRATE's blocks, and no norm after the last."""
    options.refuse("a language model", "decoder_heads", "pool", "image_size")
    reader = Reader(state, "CRATE-GPT")
    reader.ignore_causal_masks("transformer.h.*.attn.bias")
    depth = reader.depth("transformer.h.")
    reader.take("transformer.wte.weight", "embed.weight")
    reader.take("transformer.wpe.weight", "positions.weight")
    for i in range(depth):
        theirs, ours = f"transformer.h.{i}", f"blocks.{i}"
        reader.pair(f"{theirs}.prenorm_1", f"{ours}.norm1")
        reader.take(f"{theirs}.attn.c_attn.weight", f"{ours}.attn.subspaces.weight")
        reader.pair(f"{theirs}.attn.c_proj", f"{ours}.attn.output")
        reader.pair(f"{theirs}.prenorm_2", f"{ours}.norm2")
        reader.take(f"{theirs}.ista.weight", f"{ours}.ista.dictionary")
    tied = _take_head(reader, "lm_head.weight")
    words, width = reader.tensors["embed.weight"].shape
    heads, dim_head = find_heads(options, width, find_rows(state, "transformer.h.0.attn.c_attn.weight"), _HEADS)
    config = LanguageConfig(
        vocab_size=words,
        layers=("mssa",) * depth,
        dim=width,
        heads=heads,
        dim_head=dim_head,
        second="ista",
        layer_args={"ista": options.ista()},
        max_length=len(reader.tensors["positions.weight"]),
        tied=tied,
        final_norm=False,
    )
    return reader.finish(LanguageModel(config), options, None)


def build_bert(state: StateDict, options: Options) -> nn.Module:
    """CRATE-BERT in the layout of its pull request to transformers: RoBERTa's names around CRATE's blocks."""
    options.refuse("a masked language model", "decoder_heads", "pool", "image_size")
    reader = Reader(state, "CRATE-BERT")
    reader.ignore(_DEAD_OF_BERT)
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
    reader.ignore_copy(f"{head}.decoder.bias", f"{head}.bias")
    tied = _take_head(reader, f"{head}.decoder.weight")
    tensors = reader.tensors
    words = tensors["embed.weight"]
    rows = len(tensors["positions.weight"])
    if rows % 8 == 2:  # RoBERTa counts positions from 2; the rows before are padding's
        tensors["positions.weight"] = tensors["positions.weight"][2:].contiguous()
        reader.report.reshaped["positions.weight"] = "without the two rows of padding"
    width = words.shape[1]
    inner = find_rows(state, f"{base}encoder.layer.0.attention.self.qkv.weight")
    heads, dim_head = find_heads(options, width, inner, _HEADS)
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


def _take_head(reader: Reader, published: str) -> bool:
    """Take the output matrix; whether it is the embedding, as it is where the file has none."""
    reader.take(published, "head.weight", optional=True)
    tensors = reader.tensors
    tied = "head.weight" not in tensors or torch.equal(tensors["head.weight"], tensors["embed.weight"])
    if tied:
        tensors["head.weight"] = tensors["embed.weight"]
    return tied
