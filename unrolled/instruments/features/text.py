"""Features of texts and sounds: batched by length, pooled without padding, kept on disk as those of images are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.instruments.features.extraction import FeatureSet, extract, feature_key

Collate = Callable[[Sequence[Any]], dict[str, Tensor]]
"""From samples to the keyword arguments of a model."""


def extract_texts(
    model: nn.Module,
    texts: Sequence[str],
    collate: Collate,
    *,
    layers: str | Sequence[str] = ("embed", "block*"),
    pooling: str = "mean",
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    name: str = "",
    data: str = "",
    cache: str | Path | None = None,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> FeatureSet:
    """Run a text model over texts and keep one vector per layer and text.

    Texts of like length share a batch, so that little is padding; rows come back in the order given. Equal texts are
    run once.

    Args:
        model: a module that takes what `collate` returns and that `trace` understands.
        texts: n texts, none empty.
        collate: from texts to keyword arguments, int64 [b, n]; pooling leaves out what `attention_mask` says is
            padding.
        layers: patterns of layer names, see `features.layer_names`.
        pooling: name in `POOLINGS`: `mean` over the tokens of the text, `last` its last token, `max`; `cls` is the
            first token, whatever it is: a class token in BERT, no summary of anything in a causal model; `cls+mean` is
            that token beside the mean of those after it.
        batch_size: texts of one forward pass.
        dtype, autocast, name, data, cache: as in `features.extract`; a kept set counts only for the same texts.
        progress: given the batches and their number; returns the batches.

    Returns:
        Features [n, d] of every layer, without `indices`.

    Raises:
        ValueError: no texts, an empty one (the first rows are named), unknown pooling or layers, features that are not
            finite.
        CorruptFile: the kept set is damaged.
    """
    distinct, batches, description = _batched(texts, collate, batch_size, data)
    options: dict[str, Any] = {"layers": layers, "pooling": pooling, "dtype": dtype, "autocast": autocast}
    options |= _first_token(pooling)
    key = feature_key(model, data=description, **options)
    if cache is not None and (Path(cache) / key[:32] / "features.json").is_file():
        return FeatureSet.load(Path(cache) / key[:32])
    shown = batches if progress is None else progress(batches, len(batches))
    features = extract(model, shown, name=name, data=description, **options)
    places = {text: row for row, text in enumerate(distinct)}
    rows = torch.tensor([places[text] for text in texts])
    ordered = {layer: value[rows] for layer, value in features.items()}
    result = replace(features, layers=ordered, data=data or description, key=key)
    if cache is not None:
        result.save(Path(cache) / key[:32])
    return result


def text_feature_key(
    model: nn.Module,
    texts: Sequence[str],
    collate: Collate,
    *,
    layers: str | Sequence[str] = ("embed", "block*"),
    batch_size: int = 64,
    data: str = "",
    **options: Any,
) -> str:
    """The key that `extract_texts` gives its result; texts are collated but not run. Arguments as there."""
    options |= _first_token(options.get("pooling", "mean"))
    return feature_key(model, layers=layers, data=_batched(texts, collate, batch_size, data)[2], **options)


def _first_token(pooling: str) -> dict[str, int]:
    """Language models do not say that they have a class token."""
    return {"prefix": 1} if pooling in ("cls", "cls+mean") else {}


def extract_waveforms(
    model: nn.Module,
    waveforms: Sequence[Any],
    collate: Collate,
    *,
    layers: str | Sequence[str] = "block*",
    pooling: str = "mean",
    batch_size: int = 16,
    autocast: torch.dtype | None = None,
    name: str = "",
    data: str = "",
) -> FeatureSet:
    """Run an audio model over waveforms and keep one vector per layer and waveform.

    Only waveforms of one length share a batch, so that no model ever sees padding that it would have to be told about.

    Args:
        waveforms: float [samples] each, at the rate the model expects.
        collate: from waveforms of one length to keyword arguments.
        model, layers, pooling, batch_size, autocast, name, data: as in `extract_texts`.

    Raises:
        ValueError: no waveforms, an empty one, unknown pooling or layers, features that are not finite.
    """
    lengths = [len(wave) for wave in waveforms]
    if not lengths or not all(lengths):
        raise ValueError("waveforms: there is not one" if not lengths else f"waveforms: {lengths.index(0)} is empty")
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])

    def batches() -> Iterator[dict[str, Tensor]]:
        start = 0
        while start < len(order):
            stop = start
            while stop < len(order) and stop - start < batch_size and lengths[order[stop]] == lengths[order[start]]:
                stop += 1
            yield collate([waveforms[i] for i in order[start:stop]])
            start = stop

    features = extract(
        model, batches(), layers=layers, pooling=pooling, autocast=autocast, name=name, data=data or "waveforms"
    )
    rows = torch.tensor(order).argsort()
    return replace(features, layers={layer: value[rows] for layer, value in features.items()}, key="")


def _batched(
    texts: Sequence[str], collate: Collate, batch_size: int, data: str
) -> tuple[list[str], list[dict[str, Tensor]], str]:
    """The distinct texts by length, their batches, and what tells these data from others."""
    empty = [row for row, text in enumerate(texts) if not text.strip()]
    if not len(texts) or empty:
        named = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        raise ValueError(f"texts: {f'rows {named} are empty' if empty else 'there is not one'}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    distinct = sorted(dict.fromkeys(texts), key=lambda text: (len(text), text))
    batches = [collate(distinct[i : i + batch_size]) for i in range(0, len(distinct), batch_size)]
    # the ids, and not only the texts, tell apart what tokenizers and limits make of them
    return distinct, batches, f"{data} texts {_digest(texts, batches)}".strip()


def _digest(texts: Sequence[str], batches: Sequence[dict[str, Tensor]]) -> str:
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode() + b"\0")
    for batch in batches:
        for name, value in sorted(batch.items()):
            total.update(f"{name} {tuple(value.shape)}".encode())
            total.update(value.contiguous().numpy().tobytes())
    return f"sha256:{total.hexdigest()[:32]}"
