"""Features of samples: one vector a layer and sample, pooled while a model runs, kept on disk with what made them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.checksums import file_digest, is_whole, sealed
from unrolled.errors import CorruptFile, MissingData
from unrolled.instruments.anatomy import unwrap
from unrolled.instruments.features.layout import Layout, check_visible
from unrolled.instruments.features.padding import Padding
from unrolled.instruments.features.pooling import Pooling, get_pooling
from unrolled.instruments.trace import trace
from unrolled.modes import evaluating
from unrolled.ops.rows import as_floats
from unrolled.precision import note_if_slow
from unrolled.reading import read_json

logger = logging.getLogger(__name__)
FORMAT = "unrolled.features/2"
_READING = 2  # raised when tokens are pooled otherwise, so that features stored before are not taken for these
_FIRST = "unrolled.features/1"  # its indices counted what had been drawn from the data, not rows of the data
_SEAL = "record"  # the checksum of all else in `features.json`
_RECORD, _ARRAYS = "features.json", "features.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSet(Mapping[str, Tensor]):
    """Features of the same samples in several layers: a mapping from layer to [n, d], which `alignment.compare` takes.

    Attributes:
        layers: name -> features [n, d] on the CPU, in the order of the model; all of one dtype.
        model: what made them, in words.
        data: what they are of, in words.
        pooling: how tokens became a vector.
        indices: int64 [n], which samples of the data: rows of the split, or pairs, that `data` names; None where nobody
            said.
        labels: int64 [n], their classes; None for samples without.
        weights: SHA-256 of the model's weights.
        key: SHA-256 of everything the features follow from: equal keys, equal features.
        skipped: samples that could not be read and are not among the rows, with the reason.
    """

    layers: dict[str, Tensor] = field(repr=False)
    model: str = ""
    data: str = ""
    pooling: str = ""
    indices: Tensor | None = field(default=None, repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    weights: str = ""
    key: str = ""
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers is empty: a feature set has at least one layer")
        shapes = {name: tuple(value.shape) for name, value in self.layers.items()}
        if len({shape[0] for shape in shapes.values() if len(shape) == 2}) != 1 or any(
            len(shape) != 2 for shape in shapes.values()
        ):
            raise ValueError(f"layers must be [n, d] with one n, got {shapes}")
        for name, value in (("indices", self.indices), ("labels", self.labels)):
            if value is not None and len(value) != self.samples:
                raise ValueError(f"{name}: {len(value)} for {self.samples} samples")

    def __getitem__(self, name: str) -> Tensor:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def samples(self) -> int:
        """Number of rows of every layer."""
        return len(next(iter(self.layers.values())))

    @property
    def dtype(self) -> torch.dtype:
        """Of the features."""
        return next(iter(self.layers.values())).dtype

    @property
    def checksum(self) -> str:
        """SHA-256 of names, shapes, dtypes and values of all layers."""
        return tensors_checksum(self.layers.items())

    def save(self, folder: str | Path) -> Path:
        """Write `features.safetensors` and, last, `features.json`; return the folder, which is made if need be.

        A write that is cut short leaves a folder that `load` refuses, never one that reads as whole.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = list(self.layers)
        arrays = {f"layers/{name}": value.contiguous() for name, value in self.layers.items()}
        for name, value in (("indices", self.indices), ("labels", self.labels)):
            if value is not None:
                arrays[name] = value.contiguous()
        part = folder / f"{_ARRAYS}.{os.getpid()}.part"
        try:
            save_file(arrays, part)
            size, digest = part.stat().st_size, file_digest(part)
            os.replace(part, folder / _ARRAYS)
            record = {
                "format": FORMAT, "model": self.model, "data": self.data, "pooling": self.pooling,
                "dtype": str(self.dtype).removeprefix("torch."), "samples": self.samples, "layers": names,
                "dims": {name: value.shape[1] for name, value in self.layers.items()}, "weights": self.weights,
                "key": self.key, "skipped": self.skipped, "checksum": self.checksum, "bytes": size, "sha256": digest,
            }  # fmt: skip
            part.write_bytes(sealed(record, _SEAL) + b"\n")
            os.replace(part, folder / _RECORD)
        finally:
            part.unlink(missing_ok=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> FeatureSet:
        """Read a folder that `save` wrote.

        Raises:
            MissingData: there is no feature set in it.
            CorruptFile: a file is truncated, altered or of another format; it is named.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder).expanduser()
        record = read_descriptors(folder)
        path = folder / _ARRAYS
        if not path.is_file():
            raise CorruptFile(f"{path} is missing, although {_RECORD} describes it; extract again")
        if path.stat().st_size != record["bytes"]:
            raise CorruptFile(
                f"{path} has {path.stat().st_size:,} bytes instead of {record['bytes']:,}: it is truncated or belongs "
                "to another extraction; extract again"
            )
        if file_digest(path) != record["sha256"]:
            raise CorruptFile(f"{path} does not have the checksum that {_RECORD} gives: it was altered; extract again")
        try:
            arrays = load_file(path)
            layers = {name: arrays[f"layers/{name}"] for name in record["layers"]}
        except (SafetensorError, KeyError) as error:
            raise CorruptFile(f"{path} cannot be read: {error}; extract again") from error
        words = {name: record[name] for name in ("model", "data", "pooling", "weights", "key", "skipped")}
        indices = arrays.get("indices") if record["format"] == FORMAT else None
        return cls(layers=layers, indices=indices, labels=arrays.get("labels"), **words)


def read_descriptors(folder: str | Path) -> dict[str, Any]:
    """What `features.json` says: model, data, pooling, dtype, samples, layers, dims, key, checksums.

    Raises:
        MissingData: there is no such file.
        CorruptFile: it is truncated or of another format.
    """
    path = Path(folder).expanduser() / _RECORD
    if not path.is_file():
        raise MissingData(f"{path.parent} holds no feature set ({_RECORD}); `unrolled extract` writes one")
    record = read_json(path)
    needed = ("model", "data", "pooling", "weights", "key", "skipped", "layers", "bytes", "sha256")
    if (
        not isinstance(record, dict)
        or record.get("format") not in (FORMAT, _FIRST)
        or any(name not in record for name in needed)
    ):
        raise CorruptFile(f"{path} does not describe features of the format {FORMAT}; extract again")
    if _SEAL not in record:
        logger.warning("note: %s has no checksum of its own, so damage to it would not be noticed", path)
    elif not is_whole(record, _SEAL):
        raise CorruptFile(f"{path} is damaged: it does not have the checksum it was written with; extract again")
    return record


def layer_names(model: nn.Module, layers: str | Sequence[str] = "block*") -> list[str]:
    """The names of `trace` that patterns mean, in the order of the model.

    `*` and `?` stay within one part of a name, so that `block*` is the blocks' outputs and `block*/half` what lies
    halfway; `layer*` of a CNN is its stages. A pattern that matches nothing so is tried as in `trace`, where `*` also
    crosses parts and any module path counts.

    Raises:
        ValueError: a pattern matches nothing; the nearest names are given.
    """
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        raise ValueError("layers: is empty; give names or patterns")
    known = trace(model).names
    selected: set[str] = set()
    others: list[str] = []
    for pattern in wanted:
        parts = re.split(r"[/.]", pattern)
        matched = {name for name in known if _parts_match(re.split(r"[/.]", name), parts)}
        if not matched:
            try:
                others += trace(model, patterns=pattern).names
            except ValueError as error:
                raise ValueError(f"layers: {str(error).removeprefix('patterns: ')}") from error
        selected |= matched
    selected |= set(others)
    return [name for name in dict.fromkeys([*known, *others]) if name in selected]


def feature_key(
    model: nn.Module, *, data: str, layers: str | Sequence[str] = "block*", pooling: str = "mean", inputs: str = "",
    dtype: torch.dtype = torch.float32, autocast: torch.dtype | None = None, prefix: int | None = None,
) -> str:  # fmt: skip
    """SHA-256 of architecture, weights, data, layers, pooling and precision; arguments as in `extract`."""
    inner = unwrap(model)
    settings = {
        "format": FORMAT, "reading": _READING,
        "architecture": f"{type(inner).__module__}.{type(inner).__qualname__} {inner!r}",
        "weights": weights_checksum(inner), "data": data, "inputs": inputs, "layers": layer_names(model, layers),
        "pooling": pooling, "dtype": str(dtype), "autocast": str(autocast), "prefix": prefix,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 of names, shapes, dtypes and values of all parameters and saved buffers."""
    return tensors_checksum((name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor))


def extract(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    *,
    layers: str | Sequence[str] = "block*",
    pooling: str | Pooling = "mean",
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    prefix: int | None = None,
    name: str = "",
    data: str = "",
    inputs: str = "",
    cache: str | Path | None = None,
) -> FeatureSet:
    """Run `model` over samples and keep one vector per layer and sample.

    Tokens are pooled the moment they exist, so memory holds one batch of activations and the result. The model is run
    in eval mode on the device it is on, and left as it was, also after an error.

    Args:
        model: any module that `trace` understands.
        images: preprocessed images [n, c, h, w], or an iterable of batches: tensors, tuples or lists that begin with
            one, objects with `images` (and `indices`, `labels`, `skipped`), or mappings of a model's keyword arguments,
            whose `attention_mask` [b, n] marks padding (in a decoder `decoder_attention_mask`).
        layers: patterns of layer names, see `layer_names`.
        pooling: name in `POOLINGS`, or a function `Tokens` -> [b, d]. A layer that is [b, d] already is left alone, and
            a feature map [b, c, h, w] (or [b, h, w, c]: which one follows from the shape of the images) is a row of
            tokens.
        batch_size: samples of one forward pass, where `images` is a tensor.
        dtype: of the stored features.
        autocast: run in mixed precision, e.g. torch.bfloat16.
        prefix: tokens before the patches (class token, registers); default what the model says, else how many its
            parameters of such names hold, each checked against the number of tokens: none before a class token joins.
        name, data: model and data in words; they stay with the features.
        inputs: preprocessing in words.
        cache: folder of feature sets. One with the same model, weights, `data`, `inputs`, layers, pooling and precision
            is read instead of computed; otherwise the result is added. Needs `data` unless `images` is a tensor.

    Raises:
        ValueError: unknown pooling or layers (the nearest are given), no samples, features that are not finite (layer
            and rows named), a layer that has no row per sample, tokens that are neither patches nor known to precede
            them, padding that cannot be told from tokens, a masked autoencoder that was given no `noise`.
        CorruptFile: the cached set is damaged.
    """
    pool = get_pooling(pooling)
    pooled_by = pooling if isinstance(pooling, str) else getattr(pooling, "__name__", "own")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    if isinstance(images, Tensor):
        if images.dim() != 4 or not len(images):
            raise ValueError(f"images must be [n, c, h, w] with n >= 1, got shape {tuple(images.shape)}")
        data = data if data or cache is None else f"sha256:{tensors_checksum([('images', images)])}"
    chosen = layer_names(model, layers)
    key = ""
    if isinstance(pooling, str) and data:
        key = feature_key(model, data=data, layers=chosen, pooling=pooling, inputs=inputs, dtype=dtype,
                          autocast=autocast, prefix=prefix)  # fmt: skip
    if cache is not None:
        if not key:
            raise ValueError("cache: needs data= to tell data sets apart, and a pooling that has a name in POOLINGS")
        if (Path(cache) / key[:32] / _RECORD).is_file():
            return FeatureSet.load(Path(cache) / key[:32])
    layout = Layout(model, prefix)
    padding = Padding(unwrap(model))
    source: Iterable[Any] = images.split(batch_size) if isinstance(images, Tensor) else images
    pooled: dict[str, list[Tensor]] = {layer: [] for layer in chosen}
    details: dict[str, list[Tensor]] = {"indices": [], "labels": []}
    skipped: list[str] = []
    current: dict[str, Any] = {}

    def masked(layer: str, value: Tensor) -> Tensor | None:
        tokens = value.dim() == 3 and not layout.reads_images(layer)
        return padding.mask(layer, value.shape[1], current["arguments"]) if tokens else None

    def reduce(layer: str, value: Tensor) -> Tensor:
        out = value if value.dim() == 2 else pool(layout.tokens(layer, value, masked(layer, value)))
        if out.dim() != 2 or len(out) != current["rows"]:
            raise ValueError(
                f"layers: {layer} gives {tuple(out.shape)} for {current['rows']} samples, not one row each; leave it "
                "out or use another pooling"
            )
        return out.to("cpu", dtype)

    where = next((p for p in model.parameters()), torch.zeros(()))
    note_if_slow(autocast, where.device.type)
    with evaluating(model), torch.no_grad(), trace(model, patterns=chosen, reduce=reduce) as recorded, layout:
        for batch in source:
            skipped += list(getattr(batch, "skipped", ()))
            current["arguments"] = arguments = _arguments(batch, where)
            current["rows"] = len(next(iter(arguments.values())))
            if "noise" not in arguments:
                check_visible(unwrap(model))
            if not current["rows"]:
                continue
            with torch.autocast(where.device.type, dtype=autocast, enabled=autocast is not None):
                model(arguments[""]) if "" in arguments else model(**arguments)
            for layer in chosen:
                values = recorded.get(layer, [])
                if len(values) != 1:
                    raise ValueError(f"layers: {layer} ran {len(values)} times in a forward pass; leave it out")
                pooled[layer].append(values[0])
            recorded.clear()
            for about, values in details.items():
                if isinstance(value := getattr(batch, about, None), Tensor):  # a tensor's `indices` is a method
                    values.append(value.cpu())
    if not pooled[chosen[0]]:
        raise ValueError("images: there is not one sample")
    features = {layer: torch.cat(pooled.pop(layer)) for layer in chosen}
    for layer, value in features.items():
        check_finite(value, layer, "use another precision, or look at these samples")
    result = FeatureSet(
        layers=features, model=name or type(unwrap(model)).__name__, data=data, pooling=pooled_by,
        weights=weights_checksum(unwrap(model)), key=key, skipped=skipped,
        **{about: torch.cat(values) if values else None for about, values in details.items()},
    )  # fmt: skip
    if cache is not None:
        result.save(Path(cache) / key[:32])
    return result


def check_finite(features: Tensor | np.ndarray, name: str, fix: str, *, block: int = 65_536) -> None:
    """Raise ValueError naming the rows of `features` [n, d] that hold NaN or infinite values; read block by block."""
    bad = []
    for start in range(0, len(features), block):
        rows = as_floats(features[start : start + block], name)
        bad += [start + row for row in (~torch.isfinite(rows).all(1)).nonzero()[:, 0].tolist()]
    if bad:
        named = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise ValueError(f"{name}: NaN or infinite values in {len(bad)} of {len(features)} rows ({named}); {fix}")


def _arguments(batch: Any, like: Tensor) -> dict[str, Tensor]:
    """Keyword arguments of the model ("": the one positional), on its device and in its dtype."""
    if isinstance(batch, Mapping):
        given = {str(name): value for name, value in batch.items() if isinstance(value, Tensor)}
    else:
        first = getattr(batch, "images", batch[0] if isinstance(batch, tuple | list) and batch else batch)
        given = {"": first} if isinstance(first, Tensor) else {}
    if not given:
        raise ValueError(f"images: a batch is a {type(batch).__name__}, in which there is no tensor")
    return {
        name: value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
        for name, value in given.items()
    }


def _parts_match(name: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(name) == len(pattern) and all(fnmatchcase(a, b) for a, b in zip(name, pattern, strict=True))


def tensors_checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of names, shapes, dtypes and values."""
    total = hashlib.sha256()
    for name, value in tensors:
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
