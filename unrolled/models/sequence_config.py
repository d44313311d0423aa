"""Configs of the sequence models, and the sizes that have names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from unrolled.errors import suggestion

# names of what `sequence_blocks` holds; a second half in REPLACING returns the new tokens, the others an update
LAYERS = ("softmax", "linear", "delta", "mesa", "mesanet", "mssa", "tssa")
NORMS = ("layernorm", "rmsnorm", "none")
SECOND = ("mlp", "relu", "swiglu", "ista", "overcomplete", "none")
REPLACING = ("ista",)
_DEEPEST = 10_000  # a number beyond any memory is no depth
POSITIONS = ("learned", "sinusoidal", "first_layer", "none")


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """What regressors and language models share.

    Attributes:
        layers: one name of `LAYERS` a block: "softmax", "linear", "delta", "mesa", "mesanet", "mssa" or
            "tssa".
        dim: d, token width.
        heads: heads of every layer.
        dim_head: width of a head; `dim / heads` if None.
        layer_args: further arguments by name, e.g. `{"mesa": {"normalize": True}, "ista": {"sparsity": 0.5}}`.
        second: second half of every block, a name of `SECOND`: "mlp" (GELU), "relu", "swiglu", "ista",
            "overcomplete" (CRATE-alpha's) or "none".
        mlp_ratio: hidden width of the second half over `dim`; ISTA has none.
        norm: before each half and at the end: "layernorm", "rmsnorm" or "none".
        positions: "learned" rows added to the tokens, "sinusoidal" ones, "first_layer" (sinusoids of width
            `dim`, concatenated to what queries and keys of the first layer read and to nothing else), or "none"; rotary
            ones are of a layer: `layer_args={"softmax": {"rotary": 10000.0}}`.
        max_length: rows of the learned table, and of what "tssa" learns by position; all else knows no limit.
        dropout: on the embedded tokens and on what each half adds, in training.
        init_std: of all weights but those of MSSA, TSSA and the ISTAs, which keep their own; PyTorch's default if None.
        layer_scale: what the elements of gamma start at, a learned vector by which what each half adds is multiplied;
            None for none.
        clip: tokens are clipped to [-clip, clip] after every block; None for no clipping.
        causal: each token sees itself and those before it. False, for encoders, is for "softmax" and "mssa".
    """

    layers: tuple[str, ...]
    dim: int
    heads: int
    dim_head: int | None = None
    layer_args: dict[str, dict[str, Any]] = field(default_factory=dict)
    second: str = "mlp"
    mlp_ratio: float = 4.0
    norm: str = "layernorm"
    positions: str = "learned"
    max_length: int = 1024
    dropout: float = 0.0
    init_std: float | None = 0.02
    layer_scale: float | None = None
    clip: float | None = None
    causal: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            raise ValueError(f"layers={self.layers!r}: give one name a block, e.g. ({self.layers!r},) * 4, or a depth")
        object.__setattr__(self, "layers", tuple(self.layers))  # JSON has no tuples
        if not self.layers:
            raise ValueError("layers: is empty; name at least one layer, e.g. ('softmax',)")
        for name in self.layers:
            if name not in LAYERS:
                raise ValueError(f"layers: {name!r} is not known; choose from {', '.join(LAYERS)}")
        for argument, known in (("second", SECOND), ("norm", NORMS), ("positions", POSITIONS)):
            if getattr(self, argument) not in known:
                raise ValueError(f"{argument}={getattr(self, argument)!r}: choose one of {', '.join(known)}")
        if not self.causal and (recurrent := set(self.layers) - {"softmax", "mssa"}):
            raise ValueError(f"causal=False: {', '.join(sorted(recurrent))} reads one way only; use softmax or mssa")
        if unknown := set(self.layer_args) - set(self.layers) - {self.second}:
            raise ValueError(f"layer_args: {', '.join(sorted(unknown))} is neither a layer nor the second half here")
        if self.layer_scale is not None and self.second in REPLACING:
            raise ValueError(f"layer_scale: second={self.second!r} replaces the tokens and adds nothing; leave it out")
        if min(self.dim, self.heads, self.dim_head or 1, self.max_length) < 1:
            raise ValueError("dim, heads, dim_head and max_length must be at least 1")
        if self.dim_head is None and self.dim % self.heads:
            raise ValueError(f"heads={self.heads} does not divide dim={self.dim}: change one, or give dim_head")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be in [0, 1)")
        for argument in ("mlp_ratio", "init_std", "clip"):
            value = getattr(self, argument)
            if value is not None and not value > 0:
                raise ValueError(f"{argument}={value}: must be positive")

    @property
    def width(self) -> int:
        """Width of a head."""
        return self.dim_head or self.dim // self.heads


@dataclass(frozen=True, kw_only=True)
class RegressorConfig(SequenceConfig):
    """Config of a `SequenceRegressor`, with the settings of the in-context experiments as defaults.

    Attributes:
        input_dim: width of an observation.
        output_dim: width of a prediction; `input_dim` if None.
        embedding: "linear" maps observations to tokens and tokens to predictions; "none" takes constructed tokens of
            width `dim` as they are, and reads the prediction off their first `output_dim` channels.
    """

    input_dim: int
    output_dim: int | None = None
    embedding: str = "linear"
    second: str = "none"
    norm: str = "none"
    positions: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding not in ("linear", "none"):
            raise ValueError(f"embedding={self.embedding!r}: choose 'linear' or 'none'")
        if min(self.input_dim, self.output_dim or 1) < 1:
            raise ValueError("input_dim and output_dim must be at least 1")
        if self.embedding == "none" and (self.input_dim != self.dim or (self.output_dim or self.dim) > self.dim):
            raise ValueError(
                f"embedding='none' takes tokens as they are: input_dim={self.input_dim} must be dim={self.dim}, and "
                "output_dim at most that"
            )


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(SequenceConfig):
    """Config of a `LanguageModel`, with GPT-2's frame as defaults.

    Attributes:
        vocab_size: number of tokens.
        tied: the output matrix is the embedding.
        logit_cap: c of c tanh(logits / c), 30 in MesaNet; None for none.
        final_norm: normalise what leaves the last block. GPT-2 does, the published CRATE-GPT does not.
    """

    vocab_size: int
    tied: bool = True
    logit_cap: float | None = None
    final_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.causal and not isinstance(self, EncoderConfig):
            raise ValueError("causal=False: use EncoderConfig and a MaskedLanguageModel")
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size}: must be at least 1")
        if self.logit_cap is not None and not self.logit_cap > 0:
            raise ValueError(f"logit_cap={self.logit_cap}: must be positive")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(LanguageConfig):
    """Config of a `MaskedLanguageModel`, with RoBERTa's frame as defaults.

    Attributes:
        segments: number of segment embeddings; 0 for none.
        final_norm: normalise what leaves the last block. The head has a norm of its own.
    """

    causal: bool = False
    max_length: int = 512
    final_norm: bool = False
    segments: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.causal:
            raise ValueError("causal=True: a masked language model looks both ways; use LanguageConfig")
        if self.segments < 0:
            raise ValueError(f"segments={self.segments}: must not be negative")


# CRATE-GPT (60M parameters) and GPT-2 (124M) share their frame; MesaNet as in arXiv 2506.05233. The widths of the other
# published models are not known: alpha and ToST here have that of CRATE-GPT. For alpha that makes 110M where 120M is
# published; 14 layers would make 122M, width 832 126M, and query, key and value of their own 124M. The published small
# alpha, 57M, is what width 512 and depth 12 make (57.2M without positions)
_GPT2: dict[str, Any] = {"vocab_size": 50257, "max_length": 1024}
_ALPHA: dict[str, Any] = {"second": "overcomplete", "layer_args": {"mssa": {"bias": False}}, **_GPT2}
_ROBERTA: dict[str, Any] = {"vocab_size": 50265, "max_length": 512}
_MESANET: dict[str, Any] = {
    "vocab_size": 50257,
    "max_length": 2048,
    "second": "swiglu",
    "mlp_ratio": 3.0,
    "norm": "rmsnorm",
    "positions": "none",
    "dim_head": 128,
    "logit_cap": 30.0,
}
# LLaMA's frame (arXiv 2302.13971), the softmax model of today; its SwiGLU is 8/3 as wide as the tokens
_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "max_length": 2048,
    "second": "swiglu",
    "mlp_ratio": 8 / 3,
    "norm": "rmsnorm",
    "positions": "none",
    "layer_args": {"softmax": {"rotary": 10000.0}},
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "crate_gpt_base": {"layers": ("mssa",) * 12, "dim": 768, "heads": 12, "second": "ista", **_GPT2},
    "crate_gpt_nano": {"layers": ("mssa",) * 4, "dim": 128, "heads": 4, "second": "ista", **_GPT2},
    "crate_alpha_gpt_nano": {"layers": ("mssa",) * 4, "dim": 128, "heads": 4, **_ALPHA},
    "crate_alpha_gpt_base": {"layers": ("mssa",) * 12, "dim": 768, "heads": 12, **_ALPHA},
    "tost_gpt_base": {"layers": ("tssa",) * 12, "dim": 768, "heads": 12, **_GPT2},
    "tost_gpt_nano": {"layers": ("tssa",) * 4, "dim": 128, "heads": 4, **_GPT2},
    "gpt2_nano": {"layers": ("softmax",) * 4, "dim": 128, "heads": 4, **_GPT2},
    "gpt2_base": {"layers": ("softmax",) * 12, "dim": 768, "heads": 12, **_GPT2},
    "llama_nano": {"layers": ("softmax",) * 4, "dim": 128, "heads": 4, **_LLAMA},
    "mesanet_nano": {"layers": ("mesanet",) * 4, "dim": 128, "heads": 4, **{**_MESANET, "dim_head": 32}},
    "mesanet_140m": {"layers": ("mesanet",) * 14, "dim": 768, "heads": 6, **_MESANET},
    "mesanet_440m": {"layers": ("mesanet",) * 28, "dim": 1024, "heads": 8, **_MESANET},
    "mesanet_940m": {"layers": ("mesanet",) * 28, "dim": 1536, "heads": 12, **_MESANET},
}

ENCODERS: dict[str, dict[str, Any]] = {
    "crate_bert_base": {"layers": ("mssa",) * 12, "dim": 768, "heads": 12, "second": "ista", **_ROBERTA},
    "crate_bert_nano": {"layers": ("mssa",) * 4, "dim": 128, "heads": 4, "second": "ista", **_ROBERTA},
    "bert_base": {"layers": ("softmax",) * 12, "dim": 768, "heads": 12, **_ROBERTA},
    "bert_nano": {"layers": ("softmax",) * 4, "dim": 128, "heads": 4, **_ROBERTA},
}

# beginning of a name -> what `unrolled list` says it is
_SOURCES = {
    "crate_gpt": "CRATE-GPT",
    "crate_alpha_gpt": "CRATE-alpha, arXiv 2405.20299, on GPT-2's frame",
    "tost_gpt": "ToST, arXiv 2412.17810, on GPT-2's frame",
    "gpt2": "GPT-2, the baseline of CRATE-GPT",
    "llama": "LLaMA, arXiv 2302.13971: rotary positions, RMSNorm, SwiGLU",
    "mesanet": "MesaNet, arXiv 2506.05233",
    "crate_bert": "CRATE-BERT, masked",
    "bert": "BERT in RoBERTa's frame, masked, the baseline of CRATE-BERT",
}


def language_source(name: str) -> str:
    """What a model of `LANGUAGE_MODELS` or `ENCODERS` is, e.g. `text: CRATE-GPT`."""
    return "text: " + _SOURCES[name.rsplit("_", 1)[0]]


def language_config(name: str, **overrides: Any) -> LanguageConfig:
    """The config of a model of `LANGUAGE_MODELS` or, an `EncoderConfig`, of `ENCODERS`.

    Args:
        name: of the model.
        overrides: fields of the config; or `depth`, the number of blocks: the layers in their order, as often as need
            be. `layers` may then be one name.

    Raises:
        ValueError: no model of that name, or a field that does not fit.
    """
    sizes = {**LANGUAGE_MODELS, **ENCODERS}
    if name not in sizes:
        raise ValueError(f"name={name!r} is not known; {suggestion(name, sizes)}")
    kind = EncoderConfig if name in ENCODERS else LanguageConfig
    known = {f.name for f in dataclasses.fields(kind)} | {"depth"}
    if unknown := set(overrides) - known:
        raise ValueError(f"{', '.join(sorted(unknown))}: not a field of {kind.__name__} ({', '.join(sorted(known))})")
    values = {**sizes[name], **overrides}
    depth = values.pop("depth", None)
    if depth is not None:
        if type(depth) is not int or not 1 <= depth <= _DEEPEST:
            raise ValueError(f"depth={depth!r}: give a number of blocks, 1 to {_DEEPEST:,}")
        layers = (values["layers"],) if isinstance(values["layers"], str) else tuple(values["layers"])
        values["layers"] = tuple(islice(cycle(layers), depth))
    return kind(**values)
