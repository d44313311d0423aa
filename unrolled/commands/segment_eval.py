"""How well what a model separates fits what people marked: `unrolled segment --eval` and its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.commands.common import default_folder, progress, write_run
from unrolled.commands.segment_measures import Measure, Row, Settings, evaluate
from unrolled.errors import MissingData

if TYPE_CHECKING:
    from torch import nn

    from unrolled.commands.overlays import Options
    from unrolled.commands.pictures import Preparation
    from unrolled.data import MaskSource
    from unrolled.report import HeatMap, Report

Table = tuple[list[str], list[list[str]]]
_RULES = {"mass": "entries that hold {keep:g} of the mass", "fraction": "{keep:g} of the entries"}


def run_eval(
    network: nn.Module,
    prepared: Preparation,
    settings: dict[str, Any],
    options: Options,
    out: Path | None,
    quiet: bool,
) -> tuple[dict[str, Any], Path]:
    """Score `network` as the settings of the verb say; the numbers and where the report is."""
    from unrolled.commands.pictures import origin
    from unrolled.report import Provenance

    model, data = settings["model"], settings["eval"]
    source = _open(settings)
    usual: tuple[Measure, ...] = ("clusters",) if data == "bsds" else ("attention", "maskcut")
    asked = Settings(
        measures=tuple(dict.fromkeys(settings["measure"])) or usual,
        layers=tuple(settings["layers"]),
        detailed=tuple(settings["layers"]) or (-2,),
        facet=options.facet,
        mass=options.mass,
        tau=options.tau,
        objects=options.objects,
        clusters=options.clusters,
        confidence=settings["confidence"],
        batch_size=settings["batch_size"],
        seed=options.seed,
    )  # fmt: skip
    skipped = [f"{name}: missing" for name in source.missing]
    notes: list[str] = []
    began = time.perf_counter()
    count = min(settings["limit"], len(source))

    def bar(items: Iterable[int]) -> Iterable[int]:
        return progress(items, total=count, what="eval", quiet=quiet)

    left = skipped if settings["on_error"] == "skip" else None
    tables = evaluate(network, prepared, source, count, asked, bar, left, notes)
    seconds = time.perf_counter() - began
    weights = origin(model, weights=settings["weights"], pretrained=settings["pretrained"])
    result = {
        "model": model,
        "weights": weights,
        "data": source.description,
        **tables,
        "skipped": skipped,
        "notes": notes,
    }
    report = _report(result, asked)
    report.results = result
    report.provenance = Provenance.collect(config=settings, seeds=[options.seed], duration=seconds)
    return result, write_run(out or default_folder("segment", model, data), settings, report)


def _open(settings: dict[str, Any]) -> MaskSource:
    from unrolled.data import open_masks

    data = settings["eval"]
    if settings["data_dir"] is None:
        raise ValueError(f"--eval {data}: give --data-dir, the folder where the annotated images are")
    root = Path(settings["data_dir"]).expanduser()
    packed = data == "coco" and (root.is_file() or any(root.glob("coco_panoptic*.npz")))
    try:
        return open_masks(
            data,
            data_dir=root,
            split="all" if packed else "val",  # a packed sample has few photos, and nothing here is trained on them
            missing="skip" if settings["on_error"] == "skip" else "error",
        )
    except MissingData as error:  # in the words of the command line
        raise MissingData(str(error).replace("missing='skip' passes", "--on-error skip passes")) from error


def _report(result: dict[str, Any], asked: Settings) -> Report:
    from unrolled.report import Report

    report = Report(
        f"What {result['model']} tells apart, scored", question="Does what it separates fit what people marked?"
    )
    said = "The weights are random." if result["weights"] == "random" else f"Weights: {result['weights']}."
    count = max(row.get("images", row.get("photos", 0)) for name in _TABLES for row in result.get(name, []))
    left = f" {len(result['skipped'])} could not be read." if result["skipped"] else ""
    report.headline(f"{count} images of {result['data']}.{left} {said} Intervals: 95 %, bootstrap over images.")
    captions = _captions(asked)
    for name, (title, _) in _TABLES.items():
        if name in result:
            section = report.section(title)
            if name == "heads":
                section.figure(_heat_maps(result["heads"]), caption=captions["map"], name="layers-heads")
            section.table(*score_table(result, name), caption=captions[name])
    if result["skipped"] or result["notes"]:
        report.section("Notes", "\n\n".join([*result["notes"], *result["skipped"]]))
    return report


def _captions(asked: Settings) -> dict[str, str]:
    cut = f"Attention is cut by mass ({_RULES['mass'].format(keep=asked.mass)}, DINO) and by fraction "
    cut += f"({_RULES['fraction'].format(keep=asked.mass)}, the CRATE papers)."
    return {
        "attention": f"Jaccard index with the pixels of each class of things; mean over classes, then images. {cut} "
        "The best head (of baselines: the best cluster) is chosen for each class by looking at the answer, so its "
        "score is higher than any fixed head's. Interval: of the averaged map, for colour the cluster that touches the "
        "border least.",
        "layers": "Jaccard index with all things of a photo together. Best head: chosen for each photo by looking at "
        "the answer; beside it the best of as many maps moved by chance. Fixed head: the one that is best on the other "
        "half of the photos. Interval: of the averaged map, beside it the same map moved.",
        "heads": "The highest five heads of each rule by margin: Jaccard with things above that of the same map "
        "moved to anywhere, around the edges of the photo. mIoU: mean of things and background. The report's JSON "
        "holds every head.",
        "map": "Jaccard index of each layer (rows) and head (columns; last the mean map) with all things, less that of "
        "the same maps moved to anywhere: 0 is chance. Framed: the highest.",
        "maskcut": f"Class-agnostic COCO average precision of at most {asked.objects} objects a photo, MaskCut on "
        f"{asked.facet} features, tau {asked.tau:g}, no refinement. Confidence: {_rule(asked)}. AP depends on it. "
        "Intervals: 200 bootstrap samples. Moved: the model's masks, each photo's "
        "shifted at random around its edges; a mask cut in two by an edge has a box across the photo, so for this row "
        "mask AP says more than box AP.",
        "clusters": f"{asked.clusters} k-means clusters of the {asked.facet} features against the regions that "
        "people drew, by each person where there are several. Covering: the best-fitting cluster for each region, "
        "weighted by area. mIoU: clusters matched one to one to regions, of which those left over score 0, on either "
        "side. Boundary F: borders of clusters, which lie between patches, within 0.75 % of the diagonal, matched "
        "one to one.",
    }


def _rule(asked: Settings) -> str:
    from unrolled.instruments.detection import CONFIDENCE

    return CONFIDENCE[asked.confidence]


def _heat_maps(rows: Sequence[Row]) -> list[HeatMap]:
    """Margin over chance by layer and head, for each system and rule, on one scale of layers and heads."""
    from unrolled.report import HeatMap

    panels = []
    for system in dict.fromkeys(row["system"] for row in rows):
        for rule in dict.fromkeys(row["by"] for row in rows):
            own = [row for row in rows if row["system"] == system and row["by"] == rule]
            layers = list(dict.fromkeys(row["layer"] for row in own))
            values = np.array([row["margin"] for row in own]).reshape(len(layers), -1)
            peak = np.unravel_index(int(values.argmax()), values.shape)
            panels.append(
                HeatMap(
                    title=f"{system}, cut by {rule}",
                    values=values,
                    rows=[str(layer) for layer in layers],
                    columns=[*(str(head) for head in range(values.shape[1] - 1)), "mean"],
                    row_label="layer",
                    column_label="head",
                    mark=(int(peak[0]), int(peak[1])),
                )
            )
    return panels


def print_tables(result: dict[str, Any]) -> list[Table]:
    """What the terminal shows: every table that was made, in the order of the report."""
    return [score_table(result, name) for name in _TABLES if name in result]


def score_table(result: dict[str, Any], name: str) -> Table:
    """Columns and cells of one table of `run_eval`'s result."""
    return _TABLES[name][1](result[name])


def _cell(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def _between(ends: Sequence[float | None]) -> str:
    return f"{_cell(ends[0])}-{_cell(ends[1])}"


def _layer(row: Row) -> list[str]:
    return [row["system"], "-" if row["layer"] is None else str(row["layer"])]


def _attention(rows: Sequence[Row]) -> Table:
    columns = ["system", "layer", "cut by", "best head", "mean head", "averaged", "95 %", "images"]
    return columns, [
        [*_layer(row), row["by"] or "-", *(_cell(row[key]) for key in ("best", "mean", "averaged")),
         _between((row["low"], row["high"])), str(row["images"])]
        for row in rows
    ]  # fmt: skip


def _layers(rows: Sequence[Row]) -> Table:
    columns = ["system", "layer", "cut by", "best head", "of chance", "fixed head", "mean head", "averaged", "95 %"]
    return [*columns, "of chance, averaged", "photos"], [
        [*_layer(row), row["by"] or "-", *(_cell(row[k]) for k in ("best", "chance", "fixed", "mean", "averaged")),
         _between((row["low"], row["high"])), _cell(row["chance_averaged"]), str(row["photos"])]
        for row in rows
    ]  # fmt: skip


def _heads(rows: Sequence[Row]) -> Table:
    shown: list[Row] = []
    for system in dict.fromkeys(row["system"] for row in rows):
        for rule in dict.fromkeys(row["by"] for row in rows):
            own = [row for row in rows if row["system"] == system and row["by"] == rule]
            shown += sorted(own, key=lambda row: -row["margin"])[:5]
    columns = ["system", "layer", "head", "cut by", "things", "95 %", "background", "mIoU", "chance", "margin"]
    return [*columns, "95 % of margin"], [
        [*_layer(row), "mean" if row["head"] is None else str(row["head"]), row["by"], _cell(row["things"]),
         _between((row["low"], row["high"])), *(_cell(row[k]) for k in ("background", "miou", "chance")),
         f"{row['margin']:+.3f}", f"{row['margin_low']:+.3f} to {row['margin_high']:+.3f}"]
        for row in shown
    ]  # fmt: skip


def _maskcut(rows: Sequence[Row]) -> Table:
    columns = ["system", "layer", "box AP", "95 %", "box AP50", "mask AP", "95 %", "mask AP50", "mask AR100"]
    cells = []
    for row in rows:
        box, mask = row["bbox"], row["segm"]
        cells.append(
            [*_layer(row), _cell(box["AP"]), _between(box["interval"]["AP"]), _cell(box["AP50"]), _cell(mask["AP"]),
             _between(mask["interval"]["AP"]), _cell(mask["AP50"]), _cell(mask["AR100"]), str(row["predicted"]),
             str(row["instances"])]
        )  # fmt: skip
    return [*columns, "masks found", "objects"], cells


def _clusters(rows: Sequence[Row]) -> Table:
    edges = any("boundary_f" in row for row in rows)
    columns = ["system", "layer", "covering", "95 %", "mIoU", "95 %"]
    columns += ["boundary F", "95 %", "precision", "recall"] if edges else []
    cells = []
    for row in rows:
        line = [*_layer(row), _cell(row["covering"]), _between(row["covering_interval"]), _cell(row["miou"]),
                _between(row["miou_interval"])]  # fmt: skip
        if edges:
            line += [_cell(row.get("boundary_f")), _between(row.get("boundary_interval", (None, None)))]
            line += [_cell(row.get("precision")), _cell(row.get("recall"))]
        cells.append([*line, str(row["images"])])
    return [*columns, "images"], cells


_TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], Table]]] = {
    "attention": ("Attention against classes of things", _attention),
    "layers": ("Things against background, by layer", _layers),
    "heads": ("Things against background, by layer and head", _heads),
    "maskcut": ("Objects", _maskcut),
    "clusters": ("Regions", _clusters),
}
