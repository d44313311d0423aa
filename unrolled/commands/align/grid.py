"""`unrolled align-grid`: every model of a file against every other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.commands.align.dependence import dependence, noted
from unrolled.commands.align.options import CompareFlags
from unrolled.commands.options import check_counts, verb
from unrolled.errors import suggestion
from unrolled.harness import Run, default_folder, settings_of
from unrolled.subjects.models import choose_device
from unrolled.subjects.options import Reading
from unrolled.terminal import say, table
from unrolled.trust import check_settings, require_typed

if TYPE_CHECKING:
    import torch

    from unrolled.alignment.models import ModelGrid
    from unrolled.data.pairs import PairSource
    from unrolled.report import Report, Section

_KEYS = ("model", "group", "competence", "layers", "pool", "pretrained", "side")
_COLUMNS = ["metric", "A", "B", "score", "chance", "z", "p", "q", "layer of A", "layer of B"]


@dataclass(frozen=True, kw_only=True)
class AlignGridOptions(CompareFlags):
    """Flags of `unrolled align-grid`."""

    grid: Path = field(kw_only=False)
    """A YAML file of models."""
    null: Literal["permutation", "moments"] = "moments"
    """`permutation` relabels samples; `moments` takes the tail of three exact moments where that is safe and relabels
    until p is resolved elsewhere; the result says which."""
    workers: int = 1
    """Processes that compare the pairs of models; needs Dask: pip install 'unrolled[many]'."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, such as tcp://host:8786, to compare on its workers instead."""
    out: Path | None = None
    """Where config.yaml, report.html, report.json and features go; default: runs/align-grid-GRID."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(workers=self.workers)


@verb
def align_grid(options: AlignGridOptions) -> None:
    """How far many models agree, every one with every other, and which pairs of them more than chance.

    The file names them: `models:` followed by lines `NAME: MODEL`, or `NAME: {model: MODEL, group: vision, competence:
    0.76, layers: ["block*"], pool: cls}`; the competence is any number to set the alignment against. Of paired data
    (--data flickr8k) `side: text` feeds a model the captions; the default is the image. A MODEL may be a folder of
    `unrolled extract` or an array file.

        unrolled align-grid models.yaml --metric mutual_knn --metric cka
        unrolled align-grid models.yaml --data cifar10 --data-dir data --workers 4
    """
    from unrolled.alignment import get_metric
    from unrolled.alignment.models import model_grid
    from unrolled.instruments.features.files import Rows, read_features

    models = read_models(options.grid)
    for metric in options.metric:
        get_metric(metric)  # before the models run: a wrong name must not cost their features
    where = choose_device(options.device)
    run = Run(options, "align-grid", options.grid.stem, "", keeps_features=True)
    paths, pairs = _features(run.folder, models, options, where)
    rows = Rows.of(read_features(next(iter(paths.values()))))
    units = dependence(options.groups, options.blocks, rows, pairs, quiet=options.quiet)
    notes: list[str] = []

    def progress(done: int, tiles: int) -> None:
        say(f"compared: {done} of {tiles} tiles", quiet=options.quiet)

    with _client(options.workers, options.scheduler) as client, noted(notes, quiet=options.quiet):
        result = model_grid(
            paths, options.metric, options={"k": options.k}, null=options.null, draws=options.draws, **units,
            seed=options.seed, folder=run.folder / "tiles", client=client, device=str(where), on_progress=progress,
        )  # fmt: skip
    record = {"models": {name: dict(entry) for name, entry in models.items()}, "pairs": _pairs(result), "notes": notes}
    text = f"{table(_COLUMNS, _rows(result))}\np: {_p_value_note(result, options.null)}"
    run.finish(_report(models, result, settings_of(options)), record, text, seeds=[options.seed])


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
        raise ValueError(f"{path}: is a folder; give the YAML file that names the models")
    if not path.exists():
        raise MissingData(f"{path}: there is no such file")
    try:
        content = read_yaml(path)
    except CorruptFile as error:
        raise ValueError(str(error)) from error
    entries = content.get("models") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or len(entries) < 2:
        raise ValueError(f"{path}: needs `models:` with at least two lines `NAME: MODEL` below it")
    models = {}
    for name, entry in entries.items():
        entry = {"model": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise ValueError(f"{path}, {name}: must be a model as text, or a mapping with `model:`")
        for key in set(entry) - set(_KEYS):
            raise ValueError(f"{path}, {name}: unknown key {key!r}; {suggestion(str(key), _KEYS)}")
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
    folder: Path, models: Mapping[str, dict[str, Any]], options: AlignGridOptions, where: torch.device
) -> tuple[dict[str, Path], PairSource | None]:
    """Where each model's features lie, computed where they are not given, and the pairs they are of where these are."""
    from unrolled.instruments.features.files import is_feature_file
    from unrolled.subjects.pairs import Paired
    from unrolled.subjects.subject import Subject, material_for

    paths = {name: Path(entry["model"]).expanduser() for name, entry in models.items()}
    run = [name for name, entry in models.items() if not is_feature_file(entry["model"])]
    if not run:
        return paths, None
    sides = [models[name].get("side") for name in run]
    material, _ = material_for(
        [models[name]["model"] for name in run], options, side=next(filter(None, sides), None), quiet=options.quiet
    )
    for i, name in enumerate(run):
        settings = {"pool": options.pool, "pretrained": options.pretrained, "layers": options.layers} | models[name]
        reading = Reading.of(
            options, model=settings["model"], layers=tuple(settings["layers"]), pool=settings["pool"],
            pretrained=settings["pretrained"], seed=options.seed + i, workers=0,
        )  # fmt: skip
        paths[name] = folder / "features" / default_folder("", name, "").name.strip("-")
        Subject.of(reading, material, where, side=sides[i] or "image").features(paths[name], quiet=options.quiet)
    return paths, material.pairs if isinstance(material, Paired) else None


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A Dask client of `workers` processes here, or of a running cluster; None if this process is enough."""
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
                    *(p_text(pair.p_value, pair.p_method), p_text(q), *pair.layers),
                ]
            )
    return rows


def _report(models: Mapping[str, dict[str, Any]], result: ModelGrid, settings: dict[str, Any]) -> Report:
    from unrolled.report import Fact, Report

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
        f"p-values are {_p_value_note(result, settings['null'])}. z is of the pair of layers alone and takes no "
        "account of the search over layers; it comes from closed-form moments under random pairing, where these are "
        "known."
    )
    shown = _rows(result)[:60]
    report.section("Pairs").table(
        _COLUMNS,
        shown,
        caption=f"{how} q: Benjamini-Hochberg over all pairs of models of a metric. "
        + (f"The first {len(shown)}; report.json has all." if len(_rows(result)) > len(shown) else ""),
    )
    return report


def _pairs(result: ModelGrid) -> list[dict[str, Any]]:
    """Every pair of models by every metric, with its q-value."""
    return [
        {**vars(pair), "q_value": q}
        for metric in result.metrics
        for pair, q in zip(result.of(metric), result.q_values(metric), strict=True)
    ]


def _p_value_note(result: ModelGrid, null: str) -> str:
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
    counted = "; ".join(f"{ways[way]} ({count:,} pairs)" for way, count in counts.items() if count)
    return f"{counted}; relabelled are {result.units}" if result.units else counted


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
