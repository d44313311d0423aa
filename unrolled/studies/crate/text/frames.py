"""The networks of `crate-text`: named frames, as wide as makes them equal in parameters or in operations."""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from unrolled.studies.language import inner_parameters, new_model, of_parameters

if TYPE_CHECKING:
    from unrolled.models import LanguageConfig

# name in this study -> whose frame it has, of `LANGUAGE_MODELS` and `ENCODERS` in `unrolled.models.sequence_config`
MODELS = {
    "GPT-2": "gpt2_nano",
    "CRATE-GPT": "crate_gpt_nano",
    "CRATE-alpha": "crate_alpha_gpt_nano",
    "ToST": "tost_gpt_nano",
    "MesaNet": "mesanet_nano",
    "GPT-2 wider": "gpt2_nano",
}
WIDER = "GPT-2 wider"  # has CRATE-GPT's operations; all others have GPT-2's parameters
MASKED_MODELS = {"BERT": "bert_nano", "CRATE-BERT": "crate_bert_nano"}
MASK = 256  # the byte that stands for a masked one


def frame_of(model: str, depth: int, dim: int, heads: int, length: int) -> LanguageConfig:
    """A model of so many layers, as wide as makes its parameters those of a GPT-2 of width `dim`, or BERT if masked.

    The wider GPT-2 has the operations of CRATE-GPT instead, as near as its heads allow.
    """
    if model == WIDER:
        return _of_operations(depth, dim, heads, length)
    return _fitted(model, "BERT" if model in MASKED_MODELS else "GPT-2", depth, dim, heads, length)


def operations(model: nn.Module, length: int) -> int:
    """Floating-point operations of predicting `length` bytes, as `unrolled.models.compare.count_flops` counts them."""
    from unrolled.models.compare import count_flops

    device = next(model.parameters()).device
    return count_flops(model.eval(), torch.zeros(1, length, dtype=torch.long, device=device))


def _of_width(name: str, width: int, depth: int, heads: int, length: int) -> LanguageConfig:
    from unrolled.models.sequence_config import language_config

    frame = {**MODELS, **MASKED_MODELS}[name]
    layers = language_config(frame).layers[:1] * depth
    size = {"dim": width, "heads": heads, "dim_head": max(1, round(width / heads)), "max_length": length}
    return language_config(frame, layers=layers, vocab_size=256 + (name in MASKED_MODELS), **size)


@cache
def _of_operations(depth: int, dim: int, heads: int, length: int) -> LanguageConfig:
    def cost(config: LanguageConfig) -> int:
        return operations(new_model(config), length)

    target = cost(_fitted("CRATE-GPT", "GPT-2", depth, dim, heads, length))
    widths = [heads * count for count in range(1, 4 * dim // heads)]
    place = bisect_left(widths, target, key=lambda width: cost(_of_width(WIDER, width, depth, heads, length)))
    near = [_of_width(WIDER, width, depth, heads, length) for width in widths[max(0, place - 1) : place + 1]]
    return min(near, key=lambda config: abs(cost(config) - target))


@cache
def _fitted(model: str, twin: str, depth: int, dim: int, heads: int, length: int) -> LanguageConfig:
    def of_width(name: str, width: int) -> LanguageConfig:
        return _of_width(name, width, depth, heads, length)

    target = inner_parameters(of_width(twin, dim))
    return of_width(model, dim) if model == twin else of_parameters(lambda width: of_width(model, width), target)
