"""The published layout of the token-statistics language model, ToST in GPT-2's frame."""

from __future__ import annotations

import torch
from torch import nn

from unrolled.models.mapping import Options, Reader, StateDict
from unrolled.models.sequence import LanguageModel
from unrolled.models.sequence_config import LanguageConfig


def build_tost_language(state: StateDict, options: Options) -> nn.Module:
    """ToST for text as in RobinWu218/ToST: nanoGPT's names, `temp` and `denom_bias` in every attention, no biases.

    Raises:
        ValueError: a projection has a bias, which the published sizes do not, or heads are given that the file denies.
    """
    options.refuse("a language model", "decoder_heads", "pool", "image_size", "step_size", "sparsity")
    reader = Reader(state, "ToST (language)")
    depth = reader.depth("transformer.h.")
    biased = [key for key in state if key.endswith(("c_attn.bias", "c_proj.bias", "c_fc.bias"))]
    if biased:
        raise ValueError(f"checkpoint: {biased[0]}: projections with a bias are no published ToST language model")
    reader.take("transformer.wte.weight", "embed.weight")
    reader.take("transformer.wpe.weight", "positions.weight")
    norms = [("transformer.ln_f", "norm")]
    for i in range(depth):
        theirs, ours = f"transformer.h.{i}", f"blocks.{i}"
        norms += [(f"{theirs}.ln_1", f"{ours}.norm1"), (f"{theirs}.ln_2", f"{ours}.norm2")]
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
    reader.take("lm_head.weight", "head.weight", optional=True)
    words = tensors["embed.weight"]
    tied = "head.weight" not in tensors or torch.equal(tensors["head.weight"], words)
    tensors["head.weight"] = words if tied else tensors["head.weight"]
    width, heads = words.shape[1], len(tensors["blocks.0.attn.temperature"])
    if options.heads not in (None, heads) or options.dim_head not in (None, width // heads):
        raise ValueError(f"heads, dim_head: the file has {heads} x {width // heads}; leave them out")
    config = LanguageConfig(
        vocab_size=len(words),
        layers=("tssa",) * depth,
        dim=width,
        heads=heads,
        layer_args={"tssa": {"bias": False}},
        mlp_ratio=len(tensors["blocks.0.mlp.expand.weight"]) / width,
        max_length=len(tensors["positions.weight"]),
        tied=tied,
    )
    return reader.finish(LanguageModel(config), options, None)
