"""`unrolled align --grid`: every model of a file against every other."""

from __future__ import annotations

import contextlib
import difflib
import json as json_module
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrolled.commands.common import (
    Device,
    choose_device,
    data_settings,
    default_folder,
    images_of,
    open_model,
    say_where,
    shown_everything,
    table,
    write_run,
)
from unrolled.commands.dependence import dependence, noted
from unrolled.commands.extract import Samples, features_in
from unrolled.commands.sides import Paired, check_alone, is_paired, side_features
from unrolled.locks import hold
from unrolled.trust import check_settings, require_typed

if TYPE_CHECKING:
    from unrolled.alignment.models import ModelGrid
    from unrolled.data.pairs import PairSource
    from unrolled.report import Report, Section

_KEYS = ("model", "group", "competence", "layers", "pool", "pretrained", "side")
_COLUMNS = ["metric", "A", "B", "score", "chance", "z", "p", "q", "layer of A", "layer of B"]


def align_grid(
    grid: Path, *, device: Device, workers: int, scheduler: str | None, out: Path | None, json: bool, quiet: bool,
    **settings: Any,
) -> None:  # fmt: skip
    """Compare all models that `grid` names; `settings` are the flags of `unrolled align`."""
    from unrolled.alignment import get_metric
    from unrolled.alignment.models import model_grid
    from unrolled.instruments.features.files import Rows, read_features
    from unrolled.report.provenance import plain

    models = read_models(grid)
    folder = out or default_folder("align", grid.stem, "grid")
    where = choose_device(device)
    began = time.perf_counter()
    if settings["k"] < 1:
        raise ValueError(f"--k {settings['k']}: give at least 1")
    for metric in settings["metric"]:
        get_metric(metric)  # before the models run: a wrong name must not cost their features
    hold(folder)
    paths, pairs = _features(folder, models, settings, where, quiet)
    rows = Rows.of(read_features(next(iter(paths.values()))))
    which = dependence(settings["groups"], settings["blocks"], rows, pairs, quiet=quiet)
    notes: list[str] = []

    def progress(done: int, tiles: int) -> None:
        if not quiet:
            print(f"compared: {done} of {tiles} tiles", file=sys.stderr, flush=True)

    with _client(workers, scheduler) as client, noted(notes, quiet=quiet):
        result = model_grid(
            paths, settings["metric"], options={"k": settings["k"]}, null=settings["null"], draws=settings["draws"],
            **which, seed=settings["seed"], folder=folder / "tiles", client=client, device=str(where),
            on_progress=progress,
        )  # fmt: skip
    written = {"grid": grid, **settings, "device": device, "workers": workers, "scheduler": scheduler}
    report = _report(grid, models, result, written, time.perf_counter() - began)
    report.results["notes"] = notes
    page = write_run(folder, written, report)
    say_where(page, quiet=quiet)
    if json:
        print(json_module.dumps(plain({**report.results, "report": str(page)}), indent=2))
    else:
        print(table(_COLUMNS, _rows(result)))
        print(f"p: {_found(result, settings['null'])}")


def read_models(path: Path) -> dict[str, dict[str, Any]]:
    """The models a file names, each with at least "model".

    Raises:
        MissingData: there is no such file.
        ValueError: it is not YAML of that form; what is wrong is named.
        UnsafeFile: a model names code.
    """
    from unrolled.errors import CorruptFile, MissingData
    from unrolled.reading import read_yaml

    if path.is_dir():
        raise ValueError(f"--grid {path}: is a folder; give the YAML file that names the models")
    if not path.exists():
        raise MissingData(f"--grid {path}: there is no such file")
    try:
        content = read_yaml(path)
    except CorruptFile as error:
        raise ValueError(f"--grid {error}") from error
    entries = content.get("models") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or len(entries) < 2:
        raise ValueError(f"{path}: needs `models:` with at least two lines `NAME: MODEL` below it")
    models = {}
    for name, entry in entries.items():
        entry = {"model": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise ValueError(f"{path}, {name}: must be a model as text, or a mapping with `model:`")
        for key in set(entry) - set(_KEYS):
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_KEYS)}"
            raise ValueError(f"{path}, {name}: unknown key {key!r}; {hint}")
        if entry.get("side") not in (None, "image", "text", "text2"):
            raise ValueError(f"{path}, {name}: side must be image, text or text2, not {entry['side']!r}")
        competence = entry.get("competence")
        if competence is not None and not isinstance(competence, int | float):
            raise ValueError(f"{path}, {name}: competence must be a number, not {competence!r}")
        if isinstance(entry.get("layers"), str):
            entry["layers"] = [entry["layers"]]
        check_settings(entry, f"{path}, {name}")
        models[str(name)] = entry
    return models


def _features(
    folder: Path, models: Mapping[str, dict[str, Any]], settings: dict[str, Any], where: Any, quiet: bool
) -> tuple[dict[str, Path], PairSource | None]:
    """Where each model's features lie, computed where they are not given, and the pairs they are of where these are."""

    from unrolled.instruments.features.files import is_feature_file

    run = [name for name, entry in models.items() if not is_feature_file(entry["model"])]
    paths = {name: Path(entry["model"]).expanduser() for name, entry in models.items() if name not in run}
    if not run:
        return paths, None
    sides = {name: models[name].get("side") for name in run}
    if is_paired(settings["data"], next(filter(None, sides.values()), None), None):
        pairs = Paired.choose(settings["data"], settings["split"], settings["data_dir"], None, settings["images"])
        for i, name in enumerate(run):
            entry = models[name]
            paths[name] = folder / "features" / default_folder("", name, "").name.strip("-")
            side_features(
                paths[name], entry["model"], pairs, sides[name] or "image", where=where, data_dir=settings["data_dir"],
                layers=tuple(entry.get("layers", settings["layers"])), pool=entry.get("pool", settings["pool"]),
                pretrained=entry.get("pretrained", settings["pretrained"]), image_size=settings["image_size"],
                batch_size=settings["batch_size"], precision=settings["precision"], seed=settings["seed"] + i,
                quiet=quiet,
            )  # fmt: skip
        return {name: paths[name] for name in models}, pairs.pairs
    for name in run:
        check_alone(models[name]["model"], False)
    found = [
        data_settings(
            models[name]["model"], None, data=settings["data"], data_dir=settings["data_dir"], image_size=None
        )
        for name in run
    ]
    own = next((each for each in found if each["data_dir"] is not None), found[0])
    everything = images_of(own, settings["split"], quiet=quiet)
    samples = Samples.choose(everything, settings["images"], f"{own['data']} ({settings['split']})")
    for i, (name, data) in enumerate(zip(run, found, strict=True)):
        entry = models[name]
        network = shown_everything(
            open_model(
                entry["model"],
                pretrained=entry.get("pretrained", settings["pretrained"]),
                classes=len(everything.classes),
                seed=settings["seed"] + i,
            )
        ).to(where)
        paths[name] = folder / "features" / default_folder("", name, "").name.strip("-")
        features_in(
            paths[name], network, samples, name=name, layers=tuple(entry.get("layers", settings["layers"])),
            pool=entry.get("pool", settings["pool"]), image_size=settings["image_size"] or data["image_size"],
            batch_size=settings["batch_size"], precision=settings["precision"], quiet=quiet,
        )  # fmt: skip
    return {name: paths[name] for name in models}, None


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A Dask client of `workers` processes here, or of a running cluster; None if this process is enough."""
    if workers < 1:
        raise ValueError(f"--workers {workers}: give at least 1")
    if workers == 1 and scheduler is None:
        yield None
        return
    require_typed("scheduler", scheduler)
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        from unrolled.errors import MissingExtra

        raise MissingExtra("--workers and --scheduler need Dask: pip install 'unrolled[many]'") from error
    if scheduler is not None:
        with Client(scheduler, timeout="20s") as client:
            yield client
        return
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=40) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _rows(result: ModelGrid) -> list[list[str]]:
    from unrolled.alignment import p_text

    rows = []
    for metric in result.metrics:
        for pair, q in sorted(
            zip(result.of(metric), result.q_values(metric), strict=True), key=lambda each: each[0].p_value
        ):
            z = "-" if pair.z is None else f"{pair.z:.3g}"
            rows.append(
                [
                    *(metric, pair.a, pair.b, f"{pair.score:.4g}", f"{pair.chance:.4g}", z),
                    *(p_text(pair.p_value), p_text(q), *pair.layers),
                ]
            )
    return rows


def _report(
    grid: Path, models: Mapping[str, dict[str, Any]], result: ModelGrid, settings: dict[str, Any], seconds: float
) -> Report:
    from unrolled.report import Fact, Provenance, Report

    report = Report(f"{len(models)} models compared", question="Which models agree, and is it more than chance?")
    first = result.metrics[0]
    pairs, q_values = result.of(first), result.q_values(first)
    beyond = sum(q <= 0.05 for q in q_values)
    best = max(pairs, key=lambda pair: pair.z if pair.z is not None else -math.log(max(pair.p_value, 1e-300)))
    report.headline(
        f"{beyond} of {len(pairs)} pairs agree beyond chance at a false discovery rate of 5 % ({first}); furthest "
        f"beyond it are {best.a} and {best.b} with {best.score:.3g}, where chance gives {best.chance:.3g}.",
        [Fact(label="Models", value=str(len(models))), Fact(label="Samples", value=f"{pairs[0].n:,}")],
    )
    for metric in result.metrics:
        _section(report.section(metric), metric, models, result)
    how = (
        f"p-values are {_found(result, settings['null'])}. z is of the pair of layers alone and takes no account of "
        "the search over layers; it comes from closed-form moments under random pairing, where these are known."
    )
    shown = _rows(result)[:60]
    report.section("Pairs").table(
        _COLUMNS,
        shown,
        caption=f"{how} q: Benjamini-Hochberg over all pairs of models of a metric. "
        + (f"The first {len(shown)}; report.json has all." if len(_rows(result)) > len(shown) else ""),
    )
    report.results = {
        "models": {name: dict(entry) for name, entry in models.items()},
        "pairs": [
            {**vars(pair), "q_value": q}
            for metric in result.metrics
            for pair, q in zip(result.of(metric), result.q_values(metric), strict=True)
        ],
    }
    report.provenance = Provenance.collect(config=settings, seeds=[settings["seed"]], duration=seconds)
    return report


def _found(result: ModelGrid, null: str) -> str:
    """How the p-values were found, each way with the number of pairs, and what was relabelled."""
    ways = {
        "Pearson III": "tails of three exact moments (Pearson III), times the number of pairs of layers",
        "Pareto": "Pareto tails of relabellings, none of which reached the score",
        "": "shares of relabellings whose best pair of layers reaches the score"
        + (", drawn until ten do" if null == "moments" else ""),
    }
    counts = dict.fromkeys(ways, 0)
    for pair in result.pairs:
        counts[next(way for way in ways if pair.p_method.startswith(way))] += 1
    said = "; ".join(f"{ways[way]} ({count:,} pairs)" for way, count in counts.items() if count)
    return f"{said}; relabelled are {result.units}" if result.units else said


def _section(section: Section, metric: str, models: Mapping[str, dict[str, Any]], result: ModelGrid) -> None:
    """Matrix, clusters, map and trend of one metric."""
    import numpy as np
    from scipy.cluster.hierarchy import linkage

    from unrolled.alignment.registry import get_metric
    from unrolled.report import HeatMap, Scatter, Tree

    kind = get_metric(metric)
    scores = result.matrix(metric)
    both = (scores + scores.T) / 2
    top = kind.range[1] if kind.higher_is_closer else kind.range[0]
    off = ~np.eye(len(both), dtype=bool)
    far = np.abs((top if math.isfinite(top) else np.nanmax(both[off])) - both)
    np.fill_diagonal(far, 0.0)
    far = np.nan_to_num(far, nan=float(np.nanmax(far)))
    names = list(models)
    if len(names) > 2:
        tree = Tree(
            title=f"clusters by {metric}",
            merges=linkage(far[np.triu_indices(len(names), 1)], "average"),
            leaves=names,
            x_label="distance: best possible score minus score",
        )
        order = tree.order()
    else:
        tree, order = None, list(range(len(names)))
    ordered = [names[i] for i in order]
    section.figure(
        [
            HeatMap(title=metric, values=scores[np.ix_(order, order)], rows=ordered, columns=ordered),
            *([tree] if tree is not None else []),
        ],
        caption="Best pair of layers of every pair of models, like beside like. "
        + ("" if kind.symmetric else "Rows predict columns."),
        name=f"{metric}-matrix",
    )
    groups = [str(entry.get("group", "")) for entry in models.values()]
    if len(names) > 3:
        place = _map(far)
        section.figure(
            Scatter(
                title=f"map of models by {metric}", x_label="classical scaling of the distances",
                x=place[:, 0], y=place[:, 1], names=names, groups=groups if any(groups) else (), equal=True,
            ),
            caption="Models that agree lie close; two dimensions cannot show all distances.",
            name=f"{metric}-map",
        )  # fmt: skip
    known = [i for i, entry in enumerate(models.values()) if entry.get("competence") is not None]
    if len(known) > 2:
        _trend(section, metric, models, both, known, groups)


def _trend(
    section: Section,
    metric: str,
    models: Mapping[str, dict[str, Any]],
    scores: Any,
    known: list[int],
    groups: list[str],
) -> None:
    """Alignment with the others (of other groups, where there are groups) against competence."""
    import numpy as np
    from scipy.stats import spearmanr

    from unrolled.report import Scatter

    names = list(models)
    divided = len(set(groups)) > 1

    def others(i: int) -> list[int]:
        return [j for j in range(len(names)) if j != i and (not divided or groups[j] != groups[i])]

    x = [float(models[names[i]]["competence"]) for i in known]
    y = [float(np.nanmean(scores[i, others(i)])) for i in known]
    rho = spearmanr(x, y)
    section.figure(
        Scatter(
            title=f"mean {metric} with " + ("models of other groups" if divided else "the other models"),
            x_label="competence",
            x=x,
            y=y,
            names=[names[i] for i in known],
            groups=[groups[i] for i in known] if any(groups) else (),
        ),
        caption=f"Competence as the file gives it. Spearman {rho.statistic:.2f} (p = {rho.pvalue:.2g}, {len(known)} "
        "models; they are not independent, so p is too small).",
        name=f"{metric}-trend",
    )


def _map(far: Any) -> Any:
    """Two coordinates a model, by classical multidimensional scaling of its distances."""
    import numpy as np

    centre = np.eye(len(far)) - 1 / len(far)
    values, vectors = np.linalg.eigh(-0.5 * centre @ far**2 @ centre)
    return vectors[:, -2:][:, ::-1] * np.sqrt(values[-2:][::-1].clip(min=0))
