"""Any model of images, texts or sounds by one string, with the tower, the tokenizer and the input that it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.errors import CorruptFile, MissingData, UnsafeFile, require
from unrolled.models.gguf import gguf_of
from unrolled.models.given import find_weights, open_given
from unrolled.network import hub
from unrolled.reading import read_json

Kind = Literal["image", "text", "audio"]
_BLOCKS = ("block*",)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A module and how to feed it.

    Attributes:
        name: the string it was opened by.
        module: in eval mode; of a model of several modalities the tower of this kind, of an encoder-decoder the
            encoder.
        kind: what it takes.
        collate: from texts, or from waveforms (float [samples] at `rate`), to the module's keyword arguments; None for
            images, whose loader asks the module's `pretrained_cfg` or `config`.
        layers: patterns of `instruments.trace` for the layers worth comparing.
        pooling: the customary one, a name of `instruments.pooling`.
        rate: samples a second of the waveforms; 0 where it is no sound.
    """

    name: str
    module: nn.Module
    kind: Kind
    collate: Callable[[Sequence[Any]], dict[str, Tensor]] | None = None
    layers: tuple[str, ...] = _BLOCKS
    pooling: str = "mean"
    rate: int = 0


def open_encoder(
    spec: str, kind: Kind, *, data_dir: str | Path | None = None, pretrained: bool = True, max_tokens: int = 512
) -> Encoder:
    """The encoder that a string names.

    Args:
        spec: one of
            `given:NAME`: see `unrolled.models.given`; its files are in `data_dir/weights` or `data_dir`;
            `hf:ORG/NAME` or `hf:FOLDER`: a Hugging Face model. Of CLIP and its kin the tower of `kind` is taken, of an
            encoder-decoder (T5, Whisper) the encoder; language models are taken without their head;
            `hf:FILE.gguf` or `local:FILE.gguf`: a language model in a GGUF file, or in a folder that has one;
            `st:NAME`: a sentence-transformers model;
            `tv:NAME`: a torchvision model;
            anything `resolve_model` takes; for texts the module must then have a `tokenizer` of its own, a function
            from texts to the module's keyword arguments.
        kind: what it is to be fed with.
        data_dir: where given models are.
        pretrained: load the weights; otherwise draw them (given models and `st:` always have theirs).
        max_tokens: longer texts are cut, also where the model itself takes fewer.

    Raises:
        ValueError: unknown model, or one that does not take `kind`.
        MissingData: the weights are not there.
        MissingExtra: transformers or sentence-transformers is not installed.
    """
    scheme, colon, rest = spec.partition(":")
    if colon and not rest:
        raise ValueError(f"model={spec!r} names no model")
    if scheme == "given" and colon:
        given = open_given(rest, find_weights(data_dir))
        if (given.kind == "text") != (kind == "text") or kind == "audio":
            _only(spec, kind, "text" if given.kind == "text" else "image")
        return Encoder(
            name=spec, module=given.module, kind=kind, collate=given.tokenizer, layers=given.layers,
            pooling=given.pooling,
        )  # fmt: skip
    if scheme == "tv" and colon:
        _only(spec, kind, "image")
        return Encoder(name=spec, module=torchvision_model(rest, pretrained=pretrained), kind=kind)
    if scheme == "st" and colon:
        _only(spec, kind, "text")
        return _sentence_transformer(spec, rest)
    if colon and (scheme == "hf" or (scheme == "local" and gguf_of(rest, hub=False) is not None)):
        return _transformers(spec, rest, kind, pretrained=pretrained, max_tokens=max_tokens)
    return _resolved(spec, kind, pretrained=pretrained)


def torchvision_model(name: str, *, pretrained: bool = True) -> nn.Module:
    """A torchvision model with a `pretrained_cfg` that says what images it expects.

    Raises:
        ValueError: torchvision has no model of this name; the nearest are given.
        MissingData: the weights cannot be fetched.
    """
    import difflib

    from torchvision import models

    if name not in models.list_models():
        near = ", ".join(difflib.get_close_matches(name, models.list_models(), n=3)) or "see torchvision.models"
        raise ValueError(f"model: torchvision has no {name!r}; the nearest are {near}")
    weights = models.get_model_weights(name).DEFAULT
    try:
        model: nn.Module = models.get_model(name, weights=weights if pretrained else None)
    except OSError as error:
        raise MissingData(f"model: the weights of tv:{name} could not be fetched: {error}") from error
    preset = weights.transforms()
    size = getattr(preset, "crop_size", [224])[0]
    model.pretrained_cfg = {  # type: ignore[assignment]
        "input_size": (3, size, size),
        "mean": tuple(getattr(preset, "mean", (0.485, 0.456, 0.406))),
        "std": tuple(getattr(preset, "std", (0.229, 0.224, 0.225))),
        "interpolation": "bilinear",
        "crop_pct": min(1.0, size / getattr(preset, "resize_size", [size])[0]),
    }
    return model.eval()


def _transformers(spec: str, name: str, kind: Kind, *, pretrained: bool, max_tokens: int) -> Encoder:
    from unrolled.models.resolve import resolve_model

    whole: Any = resolve_model(spec, pretrained=pretrained)
    module = tower_of(whole, kind)
    config: Any = module.config
    if getattr(config, "use_cache", False):
        config.use_cache = False
    if kind == "image":
        if not any(isinstance(part, nn.Conv2d) for part in module.modules()):
            raise ValueError(f"model: {spec} ({type(whole).__name__}) does not take images")
        return Encoder(name=spec, module=module, kind=kind)
    if kind == "text":
        if not any(isinstance(part, nn.Embedding) for part in module.modules()):
            raise ValueError(f"model: {spec} ({type(whole).__name__}) does not take texts")
        limit = min(max_tokens, int(getattr(config, "max_position_embeddings", 0) or max_tokens))
        layers = ("embed", *_BLOCKS, "norm") if _has_norm(module) else ("embed", *_BLOCKS)
        return Encoder(name=spec, module=module, kind=kind, collate=_tokenizer(spec, name, limit), layers=layers)
    return _audio(spec, name, module)


def tower_of(whole: Any, kind: Kind) -> Any:
    """The part of a model of several modalities, or of an encoder-decoder, that takes this kind."""
    tower = getattr(whole, {"image": "vision_model", "text": "text_model", "audio": "audio_model"}[kind], None)
    if isinstance(tower, nn.Module):
        return tower
    return whole.get_encoder() if getattr(getattr(whole, "config", None), "is_encoder_decoder", False) else whole


def part_name(whole: nn.Module, part: nn.Module) -> str:
    """The path of a part, such as a tower, in a model; empty for the model itself."""
    return next(path for path, module in whole.named_modules() if module is part)


def _has_norm(module: nn.Module) -> bool:
    names = {"norm", "ln_f", "final_layer_norm", "final_layernorm"}
    return any(name.rsplit(".", 1)[-1] in names and name.count(".") < 2 for name, _ in module.named_modules())


def hub_tokenizer(spec: str, name: str) -> Any:
    """The tokenizer of a Hugging Face model, as transformers has it.

    Raises:
        MissingExtra: transformers is not installed.
        MissingData: there is none, or it cannot be read.
    """
    gguf = gguf_of(name)
    transformers = gguf.require(spec) if gguf else require("transformers", extra="hf", feature=f"model {spec}")
    place, file = (gguf.folder, {"gguf_file": gguf.file}) if gguf else (name, {})
    try:
        with hub(place), gguf.reading() if gguf else nullcontext():
            return transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False, **file)
    except CorruptFile:
        raise
    except (OSError, ValueError) as error:
        raise MissingData(f"model: {spec} has no tokenizer that could be read: {str(error).splitlines()[0]}") from error


def _tokenizer(spec: str, name: str, limit: int) -> Callable[[Sequence[str]], dict[str, Tensor]]:
    tokenizer = hub_tokenizer(spec, name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"

    def collate(texts: Sequence[str]) -> dict[str, Tensor]:
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}

    return collate


def _audio(spec: str, name: str, module: nn.Module) -> Encoder:
    transformers = require("transformers", extra="hf", feature=f"model {spec}")
    try:
        with hub(name):
            features = transformers.AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MissingData(f"model: {spec} has no feature extractor: {str(error).splitlines()[0]}") from error
    rate = int(getattr(features, "sampling_rate", 0))
    if not rate:
        raise ValueError(f"model: {spec} ({type(module).__name__}) does not take sound")

    def collate(waves: Sequence[Any]) -> dict[str, Tensor]:
        inputs = features([np.asarray(wave, np.float32) for wave in waves], sampling_rate=rate, return_tensors="pt")
        return {key: value for key, value in inputs.items() if isinstance(value, Tensor) and key != "attention_mask"}

    return Encoder(name=spec, module=module, kind="audio", collate=collate, rate=rate)


def _sentence_transformer(spec: str, name: str) -> Encoder:
    package = require("sentence_transformers", extra="st", feature=f"model {spec}")
    _check_modules(name)
    try:
        with hub(name):
            whole = package.SentenceTransformer(name, device="cpu")
    except OSError as error:
        raise MissingData(f"model: {spec} could not be read: {str(error).splitlines()[0]}") from error
    pooling = "mean"
    for part in whole:
        if getattr(part, "pooling_mode_cls_token", False):
            pooling = "cls"
        elif getattr(part, "pooling_mode_max_tokens", False):
            pooling = "max"
        elif getattr(part, "pooling_mode_lasttoken", False):
            pooling = "last"

    def collate(texts: Sequence[str]) -> dict[str, Tensor]:
        inputs = whole.tokenize(list(texts))
        return {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}

    module: nn.Module = whole[0].auto_model
    return Encoder(
        name=spec, module=module.eval(), kind="text", collate=collate, layers=("embed", *_BLOCKS), pooling=pooling
    )


def _check_modules(name: str) -> None:
    """Refuse a folder whose modules.json names classes of others: sentence-transformers imports whatever it says there,
    also from files of the folder itself.

    Raises:
        UnsafeFile: naming the class.
    """
    path = Path(name).expanduser() / "modules.json"
    if not path.is_file():
        return
    parts = read_json(path)
    for part in parts if isinstance(parts, list) else [parts]:
        kind = part.get("type") if isinstance(part, dict) else part
        if not str(kind).startswith("sentence_transformers."):
            raise UnsafeFile(
                f"{path}: would import {kind}, which no file may do; if you trust it, build it in a function of yours "
                "and give that as package.module:factory"
            )


def _resolved(spec: str, kind: Kind, *, pretrained: bool) -> Encoder:
    from unrolled.models.resolve import resolve_model
    from unrolled.models.sequence import LanguageModel

    module = resolve_model(spec, pretrained=pretrained)
    if kind == "image":
        return Encoder(name=spec, module=module, kind=kind)
    collate = getattr(module, "tokenizer", None)
    if kind == "audio":
        raise ValueError(f"model: {spec} is not known to take sounds; give hf:ORG/NAME")
    if not callable(collate):
        is_text = "brings no `tokenizer` that turns texts into its arguments"
        what = is_text if isinstance(module, LanguageModel) else "is a model of images, and these are texts"
        raise ValueError(
            f"model: {spec} {what}; give one of texts, hf:ORG/NAME, hf:FOLDER, st:NAME or given:NAME, or images instead"
        )
    return Encoder(name=spec, module=module, kind=kind, collate=collate)


def _only(spec: str, kind: Kind, takes: Kind) -> None:
    if kind != takes:
        raise ValueError(f"model: {spec} takes {takes}s, not side={kind!r}; give it side={takes!r}, or swap the models")


def waveform(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Sound as one channel, float32 [samples] in -1..1, at `wanted` samples a second.

    Args:
        samples: [samples] or [samples, channels]; integers are scaled by the range of their type.
        rate: of `samples`, per second.
        wanted: of the result, per second.

    Raises:
        ValueError: no samples, or values that are not finite.
    """
    from math import gcd

    from scipy.signal import resample_poly

    values = np.asarray(samples)
    if values.size == 0 or values.ndim not in (1, 2):
        raise ValueError(f"waveform: needs [samples] or [samples, channels], not {values.shape}")
    if values.dtype.kind in "iu":
        bits = np.iinfo(values.dtype)
        middle = 0 if values.dtype.kind == "i" else (bits.max + 1) / 2
        values = (values.astype(np.float64) - middle) / (bits.max - middle + 1)
    if not np.isfinite(values).all():
        raise ValueError("waveform: NaN or infinite samples")
    values = values.mean(1) if values.ndim == 2 else values
    if rate != wanted:
        common = gcd(rate, wanted)
        values = resample_poly(values, wanted // common, rate // common)
    resampled: np.ndarray = torch.as_tensor(values, dtype=torch.float32).numpy()
    return resampled
