"""`unrolled segment-eval`: how well what a model separates fits what people marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from unrolled.commands.options import verb
from unrolled.commands.segment.options import SegmentEvalOptions
from unrolled.harness import Answer, Run
from unrolled.subjects.masks import open_marked
from unrolled.subjects.models import choose_device, origin
from unrolled.terminal import progress, say, table

if TYPE_CHECKING:
    from unrolled.commands.segment.measures import Row
    from unrolled.data import MaskSource
    from unrolled.report import HeatMap, Report

Table = tuple[list[str], list[list[str]]]


@verb
def segment_eval(options: SegmentEvalOptions) -> None:
    """Score which parts of annotated images a model tells apart, without labels.

    Attention, objects or clusters are scored against what people marked, beside the same model with fresh weights,
    simple baselines and chance. `unrolled segment` paints them on pictures.

        unrolled segment-eval coco --data-dir data/coco --model runs/crate --layers 3 4 5
        unrolled segment-eval bsds --data-dir data/bsds --clusters 8
        unrolled segment-eval masks --data-dir photos --measure attention maskcut clusters --json
    """
    from unrolled.commands.segment.measures import evaluate
    from unrolled.subjects.pictures import opened_for_pictures

    where = choose_device(options.device)
    network, prepared = opened_for_pictures(options, where, stride=options.stride)
    source = _open(options)
    say(f"data: {source.description}", quiet=options.quiet)
    run = Run(options, "segment-eval", options.model, options.data)
    skipped = [f"{name}: missing" for name in source.missing]
    notes: list[str] = []
    count = min(options.limit, len(source))

    def bar(items: Iterable[int]) -> Iterable[int]:
        return progress(items, total=count, what="segment-eval", quiet=options.quiet)

    left = skipped if options.on_error == "skip" else None
    tables = evaluate(network, prepared, source, count, options, bar, left, notes)
    for photo in skipped[len(source.missing) :]:  # those that are not there were counted above
        say(f"skipped: {photo}")
    result = {
        "model": options.model, "weights": origin(options), "data": source.description, **tables, "skipped": skipped,
        "notes": notes,
    }  # fmt: skip
    text = terminal_text(result, options, words=not options.quiet)
    run.finish(_report(result, options), result, text, seeds=[options.seed])


def _open(options: SegmentEvalOptions) -> MaskSource:
    return open_marked(options.data, options.data_dir, missing="skip" if options.on_error == "skip" else "error")


def _report(result: Answer, asked: SegmentEvalOptions) -> Report:
    from unrolled.report import Report

    report = Report(
        f"What {result['model']} tells apart, scored",
        question="Does what it separates, without labels, fit what people marked?",
    )
    weights = "The weights are random." if result["weights"] == "random" else f"Weights: {result['weights']}."
    count = max(row.get("images", row.get("photos", 0)) for name in _TABLES for row in result.get(name, []))
    left = f" {len(result['skipped'])} could not be read." if result["skipped"] else ""
    report.headline(
        f"{count} images, drawn evenly from {result['data']}.{left} {weights} Intervals: 95 %, bootstrap over images."
    )
    captions = _captions(asked)
    section = report.section("What is compared")
    section.table(["system", "what it is"], _systems(result), caption="The first column of every table below.")
    shared = [(name, weights) for name, weights in _used(result, asked)[""].items() if name != "system"]
    section.table(["column", "what it is"], shared, caption="Columns that tables below share.")
    for name, (title, _, _) in _TABLES.items():
        if name in result:
            section = report.section(title)
            if name == "clusters":
                section.text(_every_patch(result["clusters"]))
            if name == "heads":
                section.figure(_heat_maps(result["heads"]), caption=captions["map"], name="layers-heads")
            section.table(*score_table(result, name), caption=captions[name])
    if result["skipped"] or result["notes"]:
        report.section("Notes", "\n\n".join([*result["notes"], *result["skipped"]]))
    return report


# what is scored -> what it is
_SYSTEMS = {
    "model": "the network that was asked for",
    "untrained": "the same network with new random weights: what the architecture gives by itself",
    "model's masks, moved": "the model's masks, each photo's shifted at random around its edges: chance",
    "colour": "no network: clusters, or objects, of the patches' mean colours",
    "centre prior": "no network: a blob in the middle of the photo",
    "whole photo": "no network: everything is marked",
    "one region": "no network: the whole photo as one region",
    "every patch": "no network: every patch a region of its own",
}


def _glossary(asked: SegmentEvalOptions) -> dict[str, dict[str, str]]:
    """Every column of every table in a line; those of all tables first, under the name ""."""
    keep = f"{asked.mass:g}"
    cut = f"how attention becomes a mask: the largest entries that hold {keep} of the mass (DINO), or a fraction {keep}"
    shared = {
        "system": "what is scored, see above",
        "layer": "counted from 0; - where there is none",
        "cut by": f"{cut} of all entries, the largest (the CRATE papers)",
        "best head": "an oracle: the head that fits best, chosen anew by looking at the answer, so more than any one "
        "head reaches (colour: the best cluster)",
        "mean head": "mean over heads",
        "averaged": "the mean of all heads' maps (colour: the cluster that touches the border least)",
        "95 %": "interval of the column before it, bootstrap over images",
        "images": "how many were scored",
    }
    return {
        "": shared,
        "attention": {},
        "layers": {
            "of chance": "the best of as many maps moved to anywhere",
            "fixed head": "the head that is best on the other half of the photos",
            "of chance, averaged": "the averaged map moved to anywhere",
        },
        "heads": {
            "head": "counted from 0; mean: the averaged map",
            "things": "Jaccard index with all things",
            "background": "Jaccard index of the rest with the background",
            "mIoU": "mean of things and background",
            "chance": "Jaccard index with things of the same map moved to anywhere, around the photo's edges",
            "margin": "things less chance",
        },
        "maskcut": {
            "box AP": "average precision, mean over overlaps of .50 to .95, of boxes around the masks",
            "box AP50": "the same at an overlap of .50 alone",
            "mask AP": "average precision of the masks themselves",
            "mask AP50": "the same at an overlap of .50 alone",
            "mask AR100": "average recall of at most 100 masks a photo",
            "masks found": "in all photos",
            "objects": "that people marked, in all photos",
        },
        "clusters": {
            "covering": "overlap of every region with its best cluster, weighted by area",
            "mIoU": "mean overlap of clusters matched one to one to regions; those left over score 0, on either side",
            "boundary Jaccard": "mean overlap of their borders, as wide as 2 % of the diagonal, matched the same way "
            "(Boundary IoU)",
            "boundary F": "of borders within 0.75 % of the diagonal of each other, matched one to one",
            "precision": "share of the clusters' borders that people drew",
            "recall": "share of what people drew that is a cluster's border",
        },
    }


def _captions(asked: SegmentEvalOptions) -> dict[str, str]:
    leads = {
        "attention": "Overlap (Jaccard index, 0 to 1) of attention with the pixels of each class of things: of each "
        "class on each photo, then the mean over the classes of a photo, then over photos. Benchmarks of segmentation "
        "pool the pixels of all photos instead. The oracle chooses the best head for each class of each photo.",
        "layers": "Overlap (Jaccard index, 0 to 1) of attention with all things of a photo together, mean over photos. "
        "The oracle chooses the best head for each photo.",
        "heads": "The highest five heads of each rule, by margin over chance. The report's JSON holds every head.",
        "map": "Jaccard index of each layer (rows) and head (columns; last the mean map) with all things, less that of "
        "the same maps moved to anywhere: 0 is chance. Framed: the highest.",
        "maskcut": f"At most {asked.objects} objects a photo, found by MaskCut on {asked.facet} features, tau "
        f"{asked.tau:g}, no refinement; classes do not matter. Masks are ranked by confidence, on which AP depends: "
        f"{_rule(asked)}. Intervals: 200 bootstrap samples. A moved mask cut in two by an edge has a box across the "
        "photo, so for that row mask AP says more than box AP.",
        "clusters": f"{asked.clusters} k-means clusters of the {asked.facet} features against the regions that people "
        "drew, by each person where there are several. Borders of clusters lie between patches.",
    }
    words = _glossary(asked)
    return leads | {
        name: " ".join([leads[name], *(f"{_capital(column)}: {meaning}." for column, meaning in words[name].items())])
        for name in _TABLES
    }


def _every_patch(rows: Sequence[Row]) -> str:
    """The model's borders beside those of a grid, which knows nothing of the photo, in a sentence."""
    key, words = ("boundary_f", "boundary F") if any("boundary_f" in row for row in rows) else (
        "boundary_jaccard", "boundary Jaccard"
    )  # fmt: skip
    best = {
        system: max((row for row in rows if row["system"] == system), key=lambda row: row.get(key) or 0.0)
        for system in ("model", "every patch")
    }
    model, grid = (best[system].get(key) or 0.0 for system in ("model", "every patch"))
    verdict = "less than" if model < grid else "more than" if model > grid else "as much as"
    return (
        f"Borders: the model's best layer, {best['model']['layer']}, has a {words} of {model:.3f}, {verdict} the "
        f"{grid:.3f} of a border around every patch, which knows nothing of the photo."
    )


def _capital(text: str) -> str:
    return text if text[1:2].isupper() else text[0].upper() + text[1:]


def _rule(asked: SegmentEvalOptions) -> str:
    from unrolled.instruments.regions.detection import CONFIDENCE

    return CONFIDENCE[asked.confidence]


def _heat_maps(rows: Sequence[Row]) -> list[HeatMap]:
    """Margin over chance by layer and head, for each system and rule, on one scale of layers and heads."""
    import numpy as np

    from unrolled.report import HeatMap

    panels = []
    for system in dict.fromkeys(row["system"] for row in rows):
        for rule in dict.fromkeys(row["by"] for row in rows):
            chosen = [row for row in rows if row["system"] == system and row["by"] == rule]
            layers = list(dict.fromkeys(row["layer"] for row in chosen))
            values = np.array([row["margin"] for row in chosen]).reshape(len(layers), -1)
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


def terminal_text(result: Answer, asked: SegmentEvalOptions, *, words: bool) -> str:
    """Every table that was made under its title, in the order of the report, then what rows and columns mean."""
    parts = []
    for name, (title, unit, _) in _TABLES.items():
        if name in result:
            parts.append(f"{title}: {unit}\n{table(*score_table(result, name), left=2)}")
            if name == "clusters":
                parts.append(_every_patch(result["clusters"]))
    if words:
        lines = [f"  {name}: {meaning}" for name, meaning in _systems(result)]
        parts.append("\n".join(["Rows", *lines]))
        for name, columns in _used(result, asked).items():
            title = f"Columns of {_TABLES[name][0]}" if name else "Columns"
            parts.append("\n".join([title, *(f"  {column}: {meaning}" for column, meaning in columns.items())]))
    return "\n\n".join(parts)


def _systems(result: Answer) -> list[tuple[str, str]]:
    """What is scored in some table, in words."""
    present = {row["system"] for name in _TABLES for row in result.get(name, [])}
    return [(name, meaning) for name, meaning in _SYSTEMS.items() if name in present]


def _used(result: Answer, asked: SegmentEvalOptions) -> dict[str, dict[str, str]]:
    """What `_glossary` says of the columns that are there."""
    present = {name: score_table(result, name)[0] for name in _TABLES if name in result}
    anywhere = [column for columns in present.values() for column in columns]
    used = {
        name: {
            column: meaning
            for column, meaning in words.items()
            if column in present.get(name, () if name else anywhere)
        }
        for name, words in _glossary(asked).items()
    }
    return {name: words for name, words in used.items() if words}


def score_table(result: Answer, name: str) -> Table:
    """Columns and cells of one table of the result."""
    return _TABLES[name][2](result[name])


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


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
    return [*columns, "of chance, averaged", "images"], [
        [*_layer(row), row["by"] or "-", *(_cell(row[k]) for k in ("best", "chance", "fixed", "mean", "averaged")),
         _between((row["low"], row["high"])), _cell(row["chance_averaged"]), str(row["photos"])]
        for row in rows
    ]  # fmt: skip


def _heads(rows: Sequence[Row]) -> Table:
    shown: list[Row] = []
    for system in dict.fromkeys(row["system"] for row in rows):
        for rule in dict.fromkeys(row["by"] for row in rows):
            chosen = [row for row in rows if row["system"] == system and row["by"] == rule]
            shown += sorted(chosen, key=lambda row: -row["margin"])[:5]
    columns = ["system", "layer", "head", "cut by", "things", "95 %", "background", "mIoU", "chance", "margin"]
    return [*columns, "95 %"], [
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
    columns = ["system", "layer", "covering", "95 %", "mIoU", "95 %", "boundary Jaccard", "95 %"]
    columns += ["boundary F", "95 %", "precision", "recall"] if edges else []
    cells = []
    for row in rows:
        line = [*_layer(row), _cell(row["covering"]), _between(row["covering_interval"]), _cell(row["miou"]),
                _between(row["miou_interval"]), _cell(row["boundary_jaccard"]),
                _between(row["boundary_jaccard_interval"])]  # fmt: skip
        if edges:
            line += [_cell(row.get("boundary_f")), _between(row.get("boundary_interval", (None, None)))]
            line += [_cell(row.get("precision")), _cell(row.get("recall"))]
        cells.append([*line, str(row["images"])])
    return [*columns, "images"], cells


_OVERLAP = "Jaccard index, 0 to 1, of each photo, then averaged; best head: an oracle"
# name in the result -> title, what its numbers are, columns and cells
_TABLES: dict[str, tuple[str, str, Callable[[Sequence[Row]], Table]]] = {
    "attention": ("Attention against classes of things", _OVERLAP, _attention),
    "layers": ("Things against background, by layer", _OVERLAP, _layers),
    "heads": ("Things against background, by layer and head", "Jaccard index, 0 to 1; the best five heads", _heads),
    "maskcut": ("Objects", "average precision, 0 to 1", _maskcut),
    "clusters": ("Regions", "overlap, 0 to 1", _clusters),
}
