"""Every model against every other: best layers, chance and p-value of each pair, in tiles that processes share.

A tile is the pairs between a few models and a few others. Where a metric needs few numbers of a layer (neighbour lists)
every model is prepared once, into a file; for others its layers are prepared once for all pairs of a tile. A tile's
result depends on the features and the options alone, so tiles give the same numbers in any order, on any number of
machines, and a stopped comparison goes on with the tiles that are missing.

The engine for several processes and machines is Dask: tiles are independent, last seconds to minutes and return a few
numbers, so what is needed is a queue, and Dask's is 1 MB of Python that runs on clusters of all kinds (SSH, Slurm,
Kubernetes). Ray would do as well and installs 80 times as much.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unrolled.alignment.chance import judged
from unrolled.alignment.dependence import Blocks, Groups, Units
from unrolled.alignment.embedding import whole_grids
from unrolled.alignment.layers import Layers, layer_grid
from unrolled.alignment.metric import Metric
from unrolled.alignment.prepared import few_numbers, load_prepared, prepare_model, save_prepared
from unrolled.alignment.registry import get_metric, metric_class, metric_name
from unrolled.alignment.significance import benjamini_hochberg
from unrolled.errors import CorruptFile, MissingData
from unrolled.instruments.features.files import Rows, check_same_samples, features_digest
from unrolled.reading import read_json
from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from unrolled.figures import HeatMap

_OF_MODEL = ("metrics", "options", "null", "device")  # what its prepared layers depend on, besides its features
Pair = tuple[str, str]
_VERSION = 3  # of what a tile holds; kept tiles of others are computed anew


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """The best-aligned layers of two models.

    Attributes:
        a, b: names of the models.
        metric: name of the metric.
        n: samples.
        score: of the best pair of layers, whose names are `layers`.
        chance: null "permutation": the mean best score of randomly paired samples; "moments": that of these layers.
        p_value: corrected for the search over layers; see `compare` for both nulls. At `significance.SMALLEST` a bound.
        z: of this pair of layers, where a closed form is known.
        calibrated: 0 at or below the 5 % threshold of the null, 1 at the best possible value ("permutation" only).
        p_method: how the p-value was found, in words.
    """

    a: str
    b: str
    metric: str
    n: int
    score: float
    chance: float
    p_value: float
    z: float | None
    calibrated: float | None
    layers: tuple[str, str]
    p_method: str


@dataclass(frozen=True, repr=False)
class ModelGrid(Tabular):
    """All pairs of models under all metrics."""

    models: list[str]
    metrics: list[str]
    pairs: list[PairScore]
    units: str = ""
    """What was relabelled, in words; "" for single rows."""

    def records(self) -> list[dict[str, Any]]:
        """A row for each pair of models and metric."""
        return [asdict(pair) for pair in self.pairs]

    def __repr__(self) -> str:
        of = f", {self.units}" if self.units else ""
        return f"ModelGrid({len(self.models)} models, {len(self.pairs)} pairs under {', '.join(self.metrics)}{of})"

    def matrix(self, metric: str, quantity: str = "score") -> NDArray[np.float64]:
        """`score`, `chance`, `p_value`, `z` or `calibrated` of row a and column b; NaN where there is no pair."""
        place = {name: i for i, name in enumerate(self.models)}
        values = np.full((len(place), len(place)), np.nan)
        pairs = {(pair.a, pair.b): getattr(pair, quantity) for pair in self.of(metric)}
        for (a, b), value in pairs.items():
            values[place[a], place[b]] = math.nan if value is None else value
            if (b, a) not in pairs:  # of a symmetric metric one direction stands for both
                values[place[b], place[a]] = values[place[a], place[b]]
        return values

    def panel(self, *, metric: str = "", quantity: str = "score") -> HeatMap:
        """A quantity of all pairs of models as a map.

        Args:
            metric: by default the first.
            quantity: as in `matrix`.
        """
        from unrolled.figures import HeatMap

        metric = metric or self.metrics[0]
        title = metric if quantity == "score" else f"{metric}, {quantity}"
        values = self.matrix(metric, quantity)
        return HeatMap(title=title, values=values, rows=self.models, columns=self.models)

    def plot(self, ax: Axes | None = None, *, metric: str = "", quantity: str = "score") -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`."""
        return self.panel(metric=metric, quantity=quantity).plot(ax)

    def of(self, metric: str) -> list[PairScore]:
        """The pairs under one metric.

        Raises:
            ValueError: it was not computed.
        """
        metric = metric_name(metric)
        if metric not in self.metrics:
            raise ValueError(f"metric: {metric!r} was not computed; there are {', '.join(self.metrics)}")
        return [pair for pair in self.pairs if pair.metric == metric]

    def q_values(self, metric: str) -> list[float]:
        """Benjamini-Hochberg adjusted p-values over all pairs of models, in the order of `of(metric)`."""
        return [float(q) for q in benjamini_hochberg([pair.p_value for pair in self.of(metric)])[0]]


def model_grid(
    features: Mapping[str, str | Path],
    metrics: Sequence[str] = ("mutual_knn",),
    *,
    options: Mapping[str, Any] | None = None,
    null: str = "permutation",
    draws: int = 200,
    groups: Groups | None = None,
    blocks: Blocks | None = None,
    seed: int = 0,
    tile: int = 8,
    folder: str | Path | None = None,
    client: Any = None,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
    on_prepared: Callable[[int, int], None] | None = None,
) -> ModelGrid:
    """Compare all pairs of models.

    Args:
        features: name of a model -> features of the same samples as `read_features` takes them. Workers on other
            machines must find them under the same path.
        metrics: names.
        options: of the metrics that have them, e.g. `{"k": 20}`.
        null: "permutation", or "moments" (closed form for most pairs, so that hundreds of models take minutes).
        draws: relabellings of a pair.
        groups, blocks: which rows depend on each other, as in `compare`; relabelled whole, and never in closed form.
        seed: of the relabellings.
        tile: models on either side of a tile. One that does not fit memory is cut in four and tried again.
        folder: keeps finished tiles, and in `prepared` the neighbour lists of every model, so that a stopped comparison
            goes on. Without one such lists lie in a temporary folder.
        client: a `dask.distributed.Client`; without one all is done in this process.
        device: where features are compared.
        on_progress: given finished and all tiles, after each.
        on_prepared: given models whose lists are prepared, and all, after each.

    Raises:
        ValueError: fewer than two models, tile below 1, models of different samples (both are named), bad features.
    """
    names = list(features)
    if len(names) < 2:
        raise ValueError(f"features: give at least two models, not {len(names)}")
    if tile < 1:
        raise ValueError(f"tile={tile}: must be at least 1")
    metrics = [metric_name(metric) for metric in metrics]
    for metric in metrics:
        metric_of(metric, options)
    digests = {name: features_digest(path) for name, path in features.items()}
    both_ways = not all(get_metric(metric).symmetric for metric in metrics)
    shared = {
        "metrics": metrics, "options": dict(options or {}), "null": null, "draws": draws, "seed": seed,
        "both_ways": both_ways, "device": device, "blocks": blocks, "groups": _codes(groups), "version": _VERSION,
    }  # fmt: skip
    jobs = [
        {**shared, "rows": rows, "columns": columns, "order": names,
         "paths": {name: str(Path(features[name]).expanduser().resolve()) for name in dict.fromkeys(rows + columns)},
         "prepared": {}}
        for rows, columns in tiles(names, tile)
    ]  # fmt: skip
    store = None if folder is None else Path(folder)
    keys = [_key(job, digests) for job in jobs]
    results: list[list[dict[str, Any]] | None] = [_stored(store, key) for key in keys]
    missing = [i for i, result in enumerate(results) if result is None]
    done = len(jobs) - len(missing)
    with contextlib.ExitStack() as stack:
        lists = None if store is None else store / "prepared"
        if lists is None and client is None and len(jobs) > 1:
            lists = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unrolled-grid-")))
        if lists is not None:
            _prepare_all([jobs[i] for i in missing], lists, digests, client, on_prepared)
        if on_progress is not None and done:
            on_progress(done, len(jobs))
        for i, result in _run(score_tile, [jobs[i] for i in missing], client):
            results[missing[i]] = result
            _keep(store, keys[missing[i]], result)
            done += 1
            if on_progress is not None:
                on_progress(done, len(jobs))
    pairs = [PairScore(**{**pair, "layers": tuple(pair["layers"])}) for result in results for pair in result or []]
    place = {name: i for i, name in enumerate(names)}
    pairs.sort(key=lambda pair: (metrics.index(pair.metric), place[pair.a], place[pair.b]))
    return ModelGrid(names, metrics, pairs, Units.of(pairs[0].n, groups, blocks).description)


def tiles(names: Sequence[str], size: int) -> Iterator[tuple[list[str], list[str]]]:
    """Blocks of at most `size` names against blocks not before them: together every unordered pair once."""
    blocks = [list(names[i : i + size]) for i in range(0, len(names), size)]
    for i, rows in enumerate(blocks):
        for columns in blocks[i:]:
            if rows != columns or len(rows) > 1:
                yield rows, columns


def score_tile(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All pairs of one tile, as plain values; called by workers."""
    import torch

    try:
        return _score_tile(job)
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        rows, columns = job["rows"], job["columns"]
        if not _out_of_memory(error) or len(rows) + len(columns) <= 2:
            raise
        warnings.warn(
            f"a tile of {len(rows)} x {len(columns)} models did not fit memory: going on with tiles half as wide",
            stacklevel=2,
        )
        halves = [[side[: -(-len(side) // 2)], side[-(-len(side) // 2) :]] for side in (rows, columns)]
        scores = []
        for i, first in enumerate(halves[0]):
            for j, second in enumerate(halves[1]):
                if first and second and not (rows == columns and i > j):
                    scores += score_tile({**job, "rows": first, "columns": second})
        return scores


def metric_of(name: str, options: Mapping[str, Any] | None) -> Metric:
    """The metric, with those of `options` that it takes."""
    import inspect

    kind = metric_class(name)
    known = inspect.signature(kind).parameters if kind else {}
    return get_metric(name, **{key: value for key, value in (options or {}).items() if key in known})


def keep_prepared(job: Mapping[str, Any]) -> None:
    """Prepare the layers of one model and write them where tiles look for them; called by workers."""
    metrics = few_numbers([metric_of(name, job["options"]) for name in job["metrics"]])
    layers, rows = prepare_model(job["name"], job["path"], metrics, job["device"])
    save_prepared(Path(job["file"]), layers, rows, shapes=job["null"] == "moments")


def _score_tile(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    chosen = {name: metric_of(name, job["options"]) for name in job["metrics"]}
    prepared: dict[str, Layers] = {}
    rows: dict[str, Rows] = {}
    for name in dict.fromkeys([*job["rows"], *job["columns"]]):
        prepared[name], current = _prepared(job, name, list(chosen.values()))
        for other, known in rows.items():
            check_same_samples(known, current, other, name)
        rows[name] = current
    units = Units.of(current.samples, job["groups"], job["blocks"])
    place = {name: i for i, name in enumerate(job["order"])}
    pairs = [(a, b) for a in job["rows"] for b in job["columns"] if place[a] < place[b]]
    scored = []
    for name, metric in chosen.items():
        scores, nulls = _whole_tile(metric, prepared, units, job)
        for a, b in pairs:
            scored.append(_score(a, b, name, metric, prepared, units, job, scores.get((a, b)), nulls.get((a, b))))
            if job["both_ways"] and not metric.symmetric:
                scored.append(_score(b, a, name, metric, prepared, units, job))
    return scored


def _prepared(job: Mapping[str, Any], name: str, metrics: Sequence[Metric]) -> tuple[Layers, Rows]:
    """A model's layers for all metrics: from its file as far as they are kept, else from its features."""
    path, device, file = job["paths"][name], job["device"], job["prepared"].get(name)
    if file is None:
        return prepare_model(name, path, metrics, device)
    try:
        layers, rows = load_prepared(Path(file), device)
    except (MissingData, CorruptFile):
        keep_prepared({**job, "name": name, "path": path, "file": file})
        layers, rows = load_prepared(Path(file), device)
    rest = [metric for metric in metrics if repr(metric) not in layers.prepared]
    if rest:
        more, rows = prepare_model(name, path, rest, device)
        layers = replace(layers, prepared=layers.prepared | more.prepared)
    return layers, rows


def _whole_tile(
    metric: Metric, prepared: Mapping[str, Layers], units: Units, job: Mapping[str, Any]
) -> tuple[dict[Pair, Tensor], dict[Pair, Tensor]]:
    """Layer grids of all pairs of a tile, and their best values after each relabelling if these are asked for.

    Empty where one grid for all saves nothing, or would round a pair's values otherwise than the pair alone.
    """
    import torch

    rows, columns = job["rows"], job["columns"]
    left, right = ([layer for model in side for layer in prepared[model].of(metric)] for side in (rows, columns))
    if not whole_grids([*left, *right]):
        return {}, {}
    ends = [np.cumsum([0, *(len(prepared[model].names) for model in side)]) for side in (rows, columns)]
    scores, nulls = metric.grid(left, right), []
    if job["null"] == "permutation":
        for grid in metric.null_grids(left, right, units.relabellings(job["draws"], job["seed"])):
            best = np.maximum.reduceat(grid.nan_to_num(-math.inf).numpy(), ends[0][:-1], axis=0)
            nulls.append(np.maximum.reduceat(best, ends[1][:-1], axis=1))
    of_pair, best_of_pair = {}, {}
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            of_pair[a, b] = scores[ends[0][i] : ends[0][i + 1], ends[1][j] : ends[1][j + 1]]
            if nulls:
                best_of_pair[a, b] = torch.tensor([best[i, j] for best in nulls], dtype=torch.float64)
    return of_pair, best_of_pair


def _score(
    a: str, b: str, name: str, metric: Metric, prepared: Mapping[str, Layers], units: Units, job: Mapping[str, Any],
    scores: Tensor | None = None, null_best: Tensor | None = None,
) -> dict[str, Any]:  # fmt: skip
    left, right, chosen = prepared[a], prepared[b], metric.for_units(units)
    grid = layer_grid(left, right, chosen, scores=scores)
    result = judged(left, right, chosen, grid, units, job["null"], job["draws"], job["seed"], null_best=null_best)
    assert result.p_value is not None
    return asdict(
        PairScore(
            a=a, b=b, metric=name, n=result.n, score=result.score, chance=result.chance, p_value=result.p_value,
            z=result.z, calibrated=result.calibrated, layers=result.best, p_method=result.p_method,
        )
    )  # fmt: skip


def _codes(groups: Groups | None) -> list[int] | None:
    """Groups as numbers, which travel to workers."""
    if groups is None:
        return None
    values = np.asarray(groups)
    codes = np.unique(values.astype(str) if values.dtype == object else values, return_inverse=True)[1]
    return [int(code) for code in codes]


def _prepare_all(
    jobs: list[dict[str, Any]], folder: Path, digests: Mapping[str, str], client: Any,
    on_prepared: Callable[[int, int], None] | None,
) -> None:  # fmt: skip
    """Prepare every model of the jobs once, as far as its prepared layers are small, and tell the jobs where they lie.

    What is in the folder is not made again.
    """
    if not jobs:
        return
    few = [repr(metric) for metric in few_numbers([metric_of(name, jobs[0]["options"]) for name in jobs[0]["metrics"]])]
    if not few:
        return
    wanted: dict[str, dict[str, Any]] = {}
    for job in jobs:
        for name, path in job["paths"].items():
            key = json.dumps([_VERSION, digests[name], few, job["null"] == "moments", job["device"]])
            file = str(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors")
            job["prepared"][name] = file
            wanted[file] = {**{key: job[key] for key in _OF_MODEL}, "name": name, "path": path, "file": file}
    absent = [each for file, each in wanted.items() if not Path(file).is_file()]
    done = len(wanted) - len(absent)
    for _ in _run(keep_prepared, absent, client):
        done += 1
        if on_prepared is not None:
            on_prepared(done, len(wanted))


def _run(
    function: Callable[[dict[str, Any]], Any], jobs: list[dict[str, Any]], client: Any
) -> Iterator[tuple[int, Any]]:
    """Place and result of each job, in the order in which they end."""
    if client is None:
        for i, job in enumerate(jobs):
            yield i, function(job)
        return
    from dask.distributed import as_completed

    futures = {future: i for i, future in enumerate(client.map(function, jobs, pure=False))}
    for future in as_completed(list(futures)):
        yield futures[future], future.result()


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(
        words in str(error).lower() for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _key(job: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """What a tile's result depends on: features and options, not where the files lie."""
    settings = {key: value for key, value in job.items() if key not in ("paths", "order", "prepared")}
    settings["features"] = {name: digests[name] for name in job["paths"]}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def _stored(store: Path | None, key: str) -> list[dict[str, Any]] | None:
    if store is None or not (store / f"{key}.json").is_file():
        return None
    try:
        rows: list[dict[str, Any]] = read_json(store / f"{key}.json")
    except CorruptFile:  # cut short while it was written
        return None
    return rows


def _keep(store: Path | None, key: str, result: list[dict[str, Any]]) -> None:
    if store is None:
        return
    store.mkdir(parents=True, exist_ok=True)
    part = store / f"{key}.{os.getpid()}.part"
    part.write_text(json.dumps(result), encoding="utf-8")
    part.replace(store / f"{key}.json")
