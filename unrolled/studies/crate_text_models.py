"""The models of the `crate-text` study, as wide as makes them equal in parameters or in operations."""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unrolled.studies.crate_text import MASKED_MODELS, MODELS, WIDER

if TYPE_CHECKING:
    from unrolled.models.sequence_config import LanguageConfig
    from unrolled.studies.crate_text import Config


def model_config(config: Config, model: str) -> LanguageConfig:
    """The frame of a model, as wide as makes its parameters those of GPT-2 (BERT, if it is masked).

    The wider GPT-2 has the operations of CRATE-GPT instead, as near as its heads allow.
    """
    if model == WIDER:
        return _of_operations(config.depth, config.dim, config.heads, config.length)
    twin = "BERT" if model in MASKED_MODELS else "GPT-2"
    return _fitted(model, twin, config.depth, config.dim, config.heads, config.length)


def _of_width(name: str, width: int, depth: int, heads: int, length: int) -> LanguageConfig:
    from unrolled.models.sequence_config import language_config

    frame = {**MODELS, **MASKED_MODELS}[name]
    layers = language_config(frame).layers[:1] * depth
    size = {"dim": width, "heads": heads, "dim_head": max(1, round(width / heads)), "max_length": length}
    return language_config(frame, layers=layers, vocab_size=256 + (name in MASKED_MODELS), **size)


@cache
def _of_operations(depth: int, dim: int, heads: int, length: int) -> LanguageConfig:
    def cost(config: LanguageConfig) -> int:
        return operations(_of_config(config), length)

    target = cost(_fitted("CRATE-GPT", "GPT-2", depth, dim, heads, length))
    widths = [heads * count for count in range(1, 4 * dim // heads)]
    place = bisect_left(widths, target, key=lambda width: cost(_of_width(WIDER, width, depth, heads, length)))
    near = [_of_width(WIDER, width, depth, heads, length) for width in widths[max(0, place - 1) : place + 1]]
    return min(near, key=lambda found: abs(cost(found) - target))


def operations(model: nn.Module, length: int) -> int:
    """Floating-point operations of predicting `length` bytes, as `unrolled.models.compare.count_flops` counts them."""
    from unrolled.models.compare import count_flops

    device = next(model.parameters()).device
    return count_flops(model.eval(), torch.zeros(1, length, dtype=torch.long, device=device))


@cache
def _fitted(model: str, twin: str, depth: int, dim: int, heads: int, length: int) -> LanguageConfig:
    def of_width(name: str, width: int) -> LanguageConfig:
        return _of_width(name, width, depth, heads, length)

    def count(name: str, width: int) -> int:
        with torch.device("meta"):
            return parameters(_of_config(of_width(name, width)))["without_embeddings"]

    target = count(twin, dim)
    if model == twin:
        return of_width(model, dim)

    def miss(width: int) -> float:
        return abs(count(model, width) / target - 1)

    low, high = 2, 8 * dim
    while high - low > 1:  # the count grows with the width
        middle = (low + high) // 2
        low, high = (middle, high) if count(model, middle) <= target else (low, middle)
    # an even width, which is faster, unless it misses by more than 1 %
    near = range(low - 1, high + 2)
    return of_width(model, min(near, key=lambda width: (miss(width) > 0.01, width % 2, miss(width))))


def build(config: Config, model: str, *, seed: int = 0, table_std: float = 0.02) -> nn.Module:
    """An untrained model, its tables of bytes and positions drawn with a standard deviation of `table_std`."""
    described = model_config(config, model)  # before seeding: the search for a width may draw random numbers
    torch.manual_seed(seed)
    network: Any = _of_config(described)
    for table in (network.embed, network.positions):
        if table is not None:
            nn.init.normal_(table.weight, std=table_std)
    return network.to(config.device)


def _of_config(config: LanguageConfig) -> nn.Module:
    from unrolled.models.encoder import build_language_model

    return build_language_model(config)


def parameters(model: nn.Module) -> dict[str, int]:
    """How many, in all and without the tables of tokens, positions and segments."""
    tables = [table for name, table in model.named_children() if name in ("embed", "positions", "segments")]
    total = sum(p.numel() for p in model.parameters())
    return {"all": total, "without_embeddings": total - sum(p.numel() for t in tables for p in t.parameters())}
