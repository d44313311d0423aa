"""All layers of one model against all layers of another, each layer prepared once for several metrics."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unrolled.alignment.metric import Features, Metric, Representation
from unrolled.alignment.registry import get_metric
from unrolled.ops.rows import as_rows, check_kind
from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.figures import HeatMap

LayerFeatures = Features | Mapping[str, Features] | Iterable[Features | tuple[str, Features]]


@dataclass(frozen=True, repr=False)
class Layers:
    """The layers of one model, prepared for some metrics.

    Attributes:
        names: layer names.
        n: samples.
        prepared: per metric (by its repr), one entry a layer; None for layers without variance.
        constant: names of these layers, such as a class token before the first block.
        device: where all of them are.
    """

    names: list[str]
    n: int
    prepared: dict[str, list[Any]]
    constant: list[str]
    device: torch.device | None = None

    def __repr__(self) -> str:
        return f"Layers({len(self.names)} layers of {self.n} samples, prepared for {', '.join(self.prepared)})"

    def of(self, metric: Metric) -> list[Any]:
        """Prepared layers for one metric.

        Raises:
            ValueError: the layers were not prepared for it.
        """
        if repr(metric) not in self.prepared:
            raise ValueError(f"layers were prepared for {', '.join(self.prepared)}, not {metric!r}: prepare them again")
        return self.prepared[repr(metric)]


@dataclass(frozen=True, repr=False)
class Grid(Tabular):
    """Scores of all pairs of layers [layers of a, layers of b], with mean and standard deviation by chance if known."""

    scores: Tensor
    null_mean: Tensor | None
    null_std: Tensor | None

    def records(self) -> list[dict[str, Any]]:
        """A row for each pair of layers, which count from 0."""
        known = {"score": self.scores, "null_mean": self.null_mean, "null_std": self.null_std}
        tables = {key: value.tolist() for key, value in known.items() if value is not None}
        rows, columns = self.scores.shape
        return [
            {"a": i, "b": j, **{key: table[i][j] for key, table in tables.items()}}
            for i in range(rows)
            for j in range(columns)
        ]

    def __repr__(self) -> str:
        rows, columns = self.scores.shape
        best = self.scores.nan_to_num(-math.inf).max() if self.scores.numel() else math.nan
        return f"Grid({rows} x {columns} layers, best score {float(best):.4g})"

    def panel(self) -> HeatMap:
        """The scores as a map, layers counted from 0."""
        from unrolled.figures import HeatMap

        rows, columns = ([str(i) for i in range(size)] for size in self.scores.shape)
        values = self.scores.double().cpu().numpy()
        return HeatMap(
            title="score", values=values, rows=rows, columns=columns, row_label="layer of a", column_label="layer of b"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`."""
        return self.panel().plot(ax)


def prepare_layers(features: LayerFeatures, metrics: Sequence[str | Metric], what: str = "") -> Layers:
    """Prepare every layer for every metric; the kernels that several metrics need are computed once a layer.

    Args:
        features: [n, d] of one layer (of pandas too), [n, layers, d], a mapping from names to [n, d], or an iterable
            of [n, d] or of (name, [n, d]) pairs. A generator is consumed one layer at a time, so features need not fit
            memory together.
        metrics: names or metric objects.
        what: the features are called in errors, before the layer.

    Raises:
        ValueError: no layers, layers with different numbers of samples, bad features (named), or all layers constant.
    """
    chosen = [get_metric(metric) for metric in metrics]
    names: list[str] = []
    constant: list[str] = []
    prepared: dict[str, list[Any]] = {repr(metric): [] for metric in chosen}
    n, device, side = 0, None, f"{what}: " if what else ""
    for name, layer in named_layers(features, what or "features"):
        names.append(name)
        with _of_side(side):
            checked = as_rows(layer, name)
        rows = len(checked)
        if n and rows != n:
            raise ValueError(f"{side}layer {name} has {rows} samples and {names[0]} {n}: rows must be the same samples")
        if device is not None and checked.device != device:
            raise ValueError(f"{side}layer {name} is on {checked.device} and {names[0]} on {device}: move one")
        n, device = rows, checked.device
        try:
            with _of_side(side):
                rep: Representation | None = Representation(checked, name)
        except ValueError as error:
            if "zero variance" not in str(error):
                raise
            rep = None
            constant.append(name)
        for metric in chosen:
            prepared[repr(metric)].append(None if rep is None else _prepared(metric, rep, f"{side}{name}"))
    if not names:
        raise ValueError(f"{what or 'features'} hold no layers")
    if len(constant) == len(names):
        raise ValueError(f"{side}all layers have zero variance ({', '.join(names)}): similarity is undefined")
    return Layers(names, n, prepared, constant, device)


@contextmanager
def _of_side(side: str) -> Iterator[None]:
    """Errors within are of features that are called so."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{side}{error}") from error


def _prepared(metric: Metric, rep: Representation, name: str) -> Any:
    """A layer prepared; what metrics call x in errors is called by its name."""
    try:
        return metric.prepare(rep)
    except ValueError as error:
        raise ValueError(re.sub(r"^x(?= has )", lambda _: name, str(error))) from error


def named_layers(features: LayerFeatures, what: str = "features") -> Iterator[tuple[str, Features]]:
    """Pairs of layer name and features [n, d] from any of the forms `prepare_layers` takes.

    Raises:
        ValueError: none of these forms; it is called `what`, and the line of code that mends it is said.
    """
    layers: Iterable[Any]
    if isinstance(features, str | os.PathLike):
        raise ValueError(f"{what} is a path: give what it holds, such as numpy.load({str(features)!r})")
    check_kind(features, what)
    if hasattr(features, "__array__") and not isinstance(features, Tensor | np.ndarray):  # such as a table of pandas
        features = np.asarray(features)
        check_kind(features, what)
    if isinstance(features, Mapping):
        layers = features.items()
    elif isinstance(features, Tensor | np.ndarray):
        if features.ndim not in (2, 3):
            as_rows(features, what)
        layers = [features[:, i] for i in range(features.shape[1])] if features.ndim == 3 else [features]
    elif isinstance(features, Iterable):
        if isinstance(features, list | tuple) and features and _is_row(features[0]):
            stack = {Tensor: "torch.stack", np.ndarray: "numpy.stack"}.get(type(features[0]), "numpy.array")
            raise ValueError(
                f"{what} is a list of rows, and lists are of layers, [n, d] each: give {stack}({what}) for one layer"
            )
        layers = features
    else:
        raise ValueError(f"{what} must be [n, d], layers of that, or a mapping of them, not {type(features).__name__}")
    names = set()
    for i, layer in enumerate(layers):
        name, rows = layer if isinstance(layer, tuple) else (f"layer{i:02d}", layer)
        if name in names:
            raise ValueError(f"{what} has two layers of the name {name!r}: give each its own")
        names.add(name)
        yield name, rows


def _is_row(layer: Any) -> bool:
    """Whether this is the features of one sample."""
    if isinstance(layer, list | tuple):
        return bool(layer) and isinstance(layer[0], int | float)
    return getattr(layer, "ndim", 2) == 1


def layer_grid(a: Layers, b: Layers, metric: str | Metric, *, scores: Tensor | None = None) -> Grid:
    """Scores of all pairs of prepared layers (unless known), with closed-form null moments where the metric has them.

    Raises:
        ValueError: different numbers of samples, or layers not prepared for this metric.
    """
    metric = get_metric(metric)
    check_paired(a, b)
    rows, columns = a.of(metric), b.of(metric)
    moments = metric.null_moments(rows, columns)
    mean, std = (None, None) if moments is None else (moments[0], moments[1].sqrt())
    return Grid(metric.grid(rows, columns) if scores is None else scores, mean, std)


def best_pair(scores: Tensor, metric: Metric) -> tuple[int, int]:
    """Row and column of the closest pair of layers; missing scores are passed over."""
    toward = scores if metric.higher_is_closer else -scores
    flat = int(torch.nan_to_num(toward, nan=-math.inf).argmax())
    return flat // scores.shape[1], flat % scores.shape[1]


def check_paired(a: Layers, b: Layers) -> None:
    """Raise ValueError unless both sides have the same number of samples, on one device."""
    if a.n != b.n:
        raise ValueError(f"features_a has {a.n} samples and features_b {b.n}: rows must be the same samples")
    if a.device != b.device:
        raise ValueError(f"features_a is on {a.device} and features_b on {b.device}: move one with .to(...)")
