"""Prepared layers of a model in a file, for metrics that need few numbers a sample: nothing is searched twice.

The neighbour lists of 12 layers of 10,000 samples are 5 MB, their features 180 to 370. What the null distribution needs
of each (`SparseEmbedding.totals` and `shape`) lies beside them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unrolled.alignment.embedded import Shape, SparseEmbedding
from unrolled.alignment.layers import Layers, prepare_layers
from unrolled.alignment.metric import Metric
from unrolled.errors import CorruptFile
from unrolled.instruments.features.files import Rows, read_features
from unrolled.ops.permutation_moments import OrbitSums
from unrolled.tensors import read_tensors

_WORDS = "words"  # names and the like, as bytes of JSON


def few_numbers(metrics: Sequence[Metric]) -> list[Metric]:
    """Those of the metrics whose prepared layers are worth a file: O(n k) numbers each."""
    return [metric for metric in metrics if metric.few_numbers]


def prepare_model(name: str, path: str, metrics: Sequence[Metric], device: str = "cpu") -> tuple[Layers, Rows]:
    """Layers of the features at `path`, prepared for some metrics, and the samples they are of.

    Raises:
        ValueError: bad features, of the model `name`; and what `read_features` raises.
    """
    features = read_features(path)
    layers: Mapping[str, Any] = {layer: torch.as_tensor(value).to(device) for layer, value in features.items()}
    try:
        return prepare_layers(layers, metrics), Rows.of(features)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def save_prepared(file: Path, layers: Layers, rows: Rows, *, shapes: bool) -> None:
    """Write layers whose metrics are all of `few_numbers`; with `shapes` also what null "moments" needs of each."""
    from safetensors.torch import save_file

    arrays: dict[str, Tensor] = {}
    for m, entries in enumerate(layers.prepared.values()):
        for i, entry in enumerate(entries):
            if isinstance(entry, SparseEmbedding):
                arrays |= {f"{m}.{i}.{key}": value for key, value in _packed(entry, shapes).items()}
            elif entry is not None:
                arrays[f"{m}.{i}.lists"] = entry.int()
    words = {
        "names": layers.names, "n": layers.n, "constant": layers.constant, "metrics": list(layers.prepared),
        "samples": rows.samples, "data": rows.data,
    }  # fmt: skip
    arrays[_WORDS] = torch.from_numpy(np.frombuffer(json.dumps(words).encode(), dtype=np.uint8).copy())
    if rows.indices is not None:
        arrays["indices"] = rows.indices
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.stem}.{os.getpid()}.part")
    save_file({key: value.cpu().contiguous() for key, value in arrays.items()}, part)
    part.replace(file)


def load_prepared(file: Path, device: str = "cpu") -> tuple[Layers, Rows]:
    """What `save_prepared` wrote.

    Raises:
        MissingData: there is no such file.
        CorruptFile: it is truncated or was written by something else.
    """
    arrays = read_tensors(file)
    try:
        words = json.loads(arrays.pop(_WORDS).numpy().tobytes())
        rows = Rows(words["samples"], words["data"], arrays.pop("indices", None))
        parts: dict[tuple[int, int], dict[str, Tensor]] = {}
        for key, value in arrays.items():
            metric, layer, field = key.split(".")
            parts.setdefault((int(metric), int(layer)), {})[field] = value
        n, count = words["n"], len(words["names"])
        prepared = {
            metric: [_unpacked(parts[m, i], n, device) if (m, i) in parts else None for i in range(count)]
            for m, metric in enumerate(words["metrics"])
        }
    except (KeyError, ValueError) as error:
        raise CorruptFile(f"{file} does not hold prepared layers ({error}): delete it") from error
    return Layers(words["names"], n, prepared, words["constant"], torch.device(device)), rows


def _packed(entry: SparseEmbedding, shapes: bool) -> dict[str, Tensor]:
    arrays = {"columns": entry.columns.int(), "scale": torch.tensor(entry.scale, dtype=torch.float64)}
    arrays["totals"] = entry.totals
    plain = bool((entry.values == 1).all())
    arrays["values"] = entry.values[:0] if plain else entry.values  # of lists without ties all are 1
    if shapes:
        sums = entry.shape.sums
        arrays |= {f"sums{order}": torch.from_numpy(values) for order, values in enumerate(sums.sums)}
        arrays["share"] = torch.tensor(entry.shape.share, dtype=torch.float64)
    return arrays


def _unpacked(arrays: Mapping[str, Tensor], n: int, device: str) -> Any:
    columns = arrays["lists"] if "lists" in arrays else arrays["columns"]
    if columns.ndim != 2 or len(columns) != n or int(columns.min()) < 0 or int(columns.max()) >= n:
        raise ValueError(f"neighbours of {n} samples are out of range")
    columns = columns.long().to(device)
    if "lists" in arrays:
        return columns
    values = arrays["values"].to(device)
    entry = SparseEmbedding(columns, values if len(values) else values.new_ones(columns.shape), float(arrays["scale"]))
    known: dict[str, Any] = {"totals": arrays["totals"].to(device)}
    if "share" in arrays:
        sums = tuple(arrays[f"sums{order}"].numpy() for order in range(3))
        known["shape"] = Shape(OrbitSums(n, False, sums), float(arrays["share"]))  # type: ignore[arg-type]
    vars(entry).update(known)  # where `cached_property` looks
    return entry
