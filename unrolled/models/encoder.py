"""Masked language models: the sequence blocks without causality, segment embeddings, a head for masked tokens."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.catalogue import ModelInfo, catalogue, shipped_tags
from unrolled.errors import MissingData
from unrolled.models.building import building, no_model
from unrolled.models.sequence import LanguageModel
from unrolled.models.sequence_config import (
    ENCODERS,
    LANGUAGE_MODELS,
    EncoderConfig,
    LanguageConfig,
    SequenceConfig,
    language_config,
    language_source,
)
from unrolled.ops.recording import is_recording
from unrolled.reading import read_json


class MaskedLanguageModel(LanguageModel):
    """Token ids, some of them masked, in; logits of every token out: CRATE-BERT, and BERT with softmax layers.

    `embed`, `positions` and `segments` are added and normalised (`embed_norm`); after the blocks come `transform`, a
    GELU, `transform_norm`, and `head`, tied to `embed` with a bias of its own, as in RoBERTa.
    """

    config_class: ClassVar[type[SequenceConfig]] = EncoderConfig

    def __init__(self, config: EncoderConfig) -> None:
        """Build the model; see `EncoderConfig`."""
        super().__init__(config)
        self.segments = nn.Embedding(config.segments, config.dim) if config.segments else None
        self.embed_norm = nn.LayerNorm(config.dim)
        self.transform = nn.Linear(config.dim, config.dim)
        self.transform_norm = nn.LayerNorm(config.dim)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As a `LanguageModel`'s; the biases of the head start at 0."""
        super().reset_parameters()
        if hasattr(self, "head_bias"):  # not yet while the language model in it is built
            nn.init.zeros_(self.head_bias)
            nn.init.zeros_(self.transform.bias)

    def forward(  # type: ignore[override]
        self, tokens: Tensor, *, segments: Tensor | None = None, features: bool = False
    ) -> Tensor:
        """Predict every token from all others.

        Args:
            tokens: integer ids [b, n]; sequences of a batch are of one length.
            segments: ids of the segment of each token, [b, n]; all 0 if None.
            features: return the tokens that leave the last block instead.

        Returns:
            logits [b, n, vocab_size], or features [b, n, dim].

        Raises:
            ValueError: an empty sequence, one past the position table, or an unknown token or segment.
        """
        self._check(tokens, None)
        z = self.embed(tokens)
        if self.segments is not None:
            z = z + self.segments(self._segments(segments, tokens))
        elif segments is not None:
            raise ValueError("segments: this model has none; leave them out, or build it with segments=2")
        z, _ = self._run(z, None, False)
        if features:
            return z
        logits: Tensor = self.head(self.transform_norm(F.gelu(self.transform(z)))) + self.head_bias
        if (cap := self.config.logit_cap) is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
        """Not for this model, nor is `generate`.

        Raises:
            ValueError: always.
        """
        raise ValueError("generate: a masked language model looks both ways and cannot continue a text")

    def _segments(self, segments: Tensor | None, tokens: Tensor) -> Tensor:
        if segments is None:
            return torch.zeros_like(tokens)
        if is_recording(segments):
            return segments
        if segments.shape != tokens.shape:
            raise ValueError(f"segments: must be {tuple(tokens.shape)} as the tokens, not {tuple(segments.shape)}")
        if int(segments.min()) < 0 or int(segments.max()) >= self.config.segments:
            raise ValueError(f"segments: ids run from 0 to {self.config.segments - 1}")
        return segments


def build_language_model(config: LanguageConfig) -> LanguageModel:
    """The model of a config: a `MaskedLanguageModel` of an `EncoderConfig`, else a `LanguageModel`."""
    with building("a language model", {}):
        return MaskedLanguageModel(config) if isinstance(config, EncoderConfig) else LanguageModel(config)


def list_language_models(pattern: str = "*") -> list[ModelInfo]:
    """The named language models, also masked ones, whose name matches `pattern` (wildcards).

    Parameters are counted with the vocabulary and positions of the name (GPT-2's or RoBERTa's vocabulary), and without
    these tables; `train` builds the model with those of its tokenizer and `length`.
    """
    names = [name for name in (*LANGUAGE_MODELS, *ENCODERS) if fnmatch(name, pattern)]
    return [_info(name) for name in names]


@cache
def _info(name: str) -> ModelInfo:
    weights = ", ".join(shipped_tags(name))
    if name in catalogue():
        return catalogue()[name]._replace(weights=weights)
    with torch.device("meta"):
        model = build_language_model(language_config(name))
    counts = parameters(model)
    return ModelInfo(name, counts["all"], language_source(name), weights, counts["without_embeddings"])


def parameters(model: nn.Module) -> dict[str, int]:
    """How many: `all`, and `without_embeddings`, the tables of tokens, positions and segments."""
    tables = [table for name, table in model.named_children() if name in ("embed", "positions", "segments")]
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"all": total, "without_embeddings": total - sum(p.numel() for t in tables for p in t.parameters())}


def is_language_config(config: Any) -> bool:
    """Whether the content of a `config.json` describes a model of this module or a `LanguageModel`."""
    return isinstance(config, dict) and {"layers", "dim", "heads", "vocab_size"} <= config.keys()


def language_model_class(config: dict[str, Any]) -> type[LanguageModel]:
    """The class of the model that the content of a `config.json` describes."""
    return MaskedLanguageModel if "segments" in config else LanguageModel


def load_language_model(folder: Path | str) -> LanguageModel:
    """The language model that a run, or `save_pretrained`, left in a folder, in eval mode.

    Raises:
        MissingData: there is none.
        ValueError: the folder holds another kind of model.
    """
    path = Path(folder).expanduser()
    folders = [place for place in (path, path / "model") if (place / "config.json").is_file()]
    if not folders:
        raise MissingData(f"model: {no_model(path)}")
    config = read_json(folders[0] / "config.json")
    if not is_language_config(config):
        raise ValueError(f"model: {folders[0]} holds no language model of this package")
    return language_model_class(config).from_pretrained(folders[0]).eval()
