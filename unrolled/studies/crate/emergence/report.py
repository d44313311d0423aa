"""The page of `crate-emergence`: things by layer and head, what strengthens it, and what else was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.studies.crate.emergence import tables
from unrolled.studies.crate.emergence.cells import EmergenceConfig, Segmentation, map_of
from unrolled.studies.crate.emergence.claims import PLACES, STATES, Difference, View, difference, head_name, plural
from unrolled.studies.crate.emergence.maps import KEEP, MAPS, RULE, RULES
from unrolled.studies.crate.emergence.tables import Change
from unrolled.studies.kinds import DEPTH, KINDS
from unrolled.studies.networks import images_seen
from unrolled.studies.results import NOT_RUN, Results, Values

if TYPE_CHECKING:
    from unrolled.instruments.regions.segmentation import Threshold
    from unrolled.report import Report

_WORDS = {"up": "better", "down": "worse", "unclear": "no clear difference"}


def report(report: Report, config: EmergenceConfig, results: Results[Any]) -> None:
    """Headline, things, layers and heads, changes, objects and borders, parts, pictures, limits."""
    view = View(results, config)
    _headline(report, view)
    _things(report, view)
    _layers(report, view)
    _changes(report, config, tables.differences(view))
    tables.details(report, view)
    tables.parts(report, view)
    tables.show(report, view)
    report.section("What this does not show", _limits(config))


def _headline(report: Report, view: View) -> None:
    from unrolled.report import Fact

    config = view.config
    every = (*config.kinds, *config.changes)
    learned = {kind: view.learned(kind) for kind in every}
    beyond = {kind: difference(view.scores(kind), view.baseline("centre prior")) for kind in every}
    words = [
        f"Training makes maps fit things better in {_having(learned, 'up') or 'no kind of model'}"
        + (f", not clearly in {unclear}" if (unclear := _having(learned, "unclear")) else "")
        + (f"; worse in {worse}" if (worse := _having(learned, "down")) else "")
        + f". A bump in the middle of the photo, as large a mask, is beaten by {_having(beyond, 'up') or 'none'}."
    ]
    if all(apart is None for apart in learned.values()):
        words = ["No trained model is kept, so that nothing is said of what training does."]
    if (apart := difference(view.scores("crate"), view.scores("vit"))) is not None:
        words.append(f"CRATE against ViT: {_WORDS[apart.verdict]}, {apart}, in hundredths of the Jaccard index.")
    missing = [KINDS[kind].words for kind in every if learned[kind] is None]
    words += [f"Not run: {', '.join(missing)}."] if missing else []
    facts = [
        Fact(
            label=KINDS[kind].words,
            value=f"{view.means(kind):.3f}",
            detail=f"Jaccard with things; untrained {view.means(kind, 'untrained'):.3f}",
        )
        for kind in config.kinds
    ]
    if (middle := view.baseline("centre prior")) is not None:
        facts.append(Fact(label="centre prior", value=f"{middle.mean():.3f}", detail="Jaccard with things"))
    report.headline(" ".join(words), facts)


def _having(differences: Mapping[str, Difference | None], verdict: str) -> str:
    """Kinds with this verdict, in words."""
    return ", ".join(
        KINDS[kind].words for kind, apart in differences.items() if apart is not None and apart.verdict == verdict
    )


def _things(report: Report, view: View) -> None:
    from unrolled.instruments.regions.overlap import bootstrap_interval

    config = view.config
    seeds = plural(len(config.seeds), "seed")
    count = view.results.of(Segmentation).first("photos", [NOT_RUN, NOT_RUN])
    section = report.section(
        "Things against background",
        f"Photos at {config.side} px; models were trained at 32. The largest {KEEP:.0%} of a map's entries are kept, "
        "the CRATE papers' rule. DINO's, which keeps as much of the mass, is in the second table: there a diffuse map "
        "makes a larger mask, and for things of this size larger masks score better, up to the whole photo, "
        f"so that claims are judged where all masks are as large. {PLACES} Layer and head (or the mean over heads) are "
        f"the best on {count[0]} photos and scored on {count[1]} others. Masked autoencoders are read by similarity to "
        "a seed patch instead of the class token, which their loss does not train.",
    )
    columns = ["model", "weights", "Jaccard", "95 %", "layer and head", "moved", "last layer, mean map"]
    rows: list[list[str]] = []
    for kind in (*config.kinds, *config.changes):
        for state in STATES:
            if not (measured := view.rows(Segmentation, kind, state)):
                rows.append([KINDS[kind].words, state, NOT_RUN, *["-"] * 6])
                continue
            results = [row.result["maps"][map_of(kind)][RULE] for row in measured]
            best = [max(zip(each["best"], each["best_chance"], strict=True)) for each in results]
            low, high = bootstrap_interval(np.mean([each["picked_photos"] for each in results], axis=0))
            heads = measured.first("heads")
            numbers = [
                [each["picked_chance"] for each in results],
                [fmean(each["last_photos"]) for each in results],
                *zip(*best, strict=True),
            ]
            rows.append(
                [
                    *(KINDS[kind].words, state, f"{view.means(kind, state):.3f}", f"{low:.3f} to {high:.3f}"),
                    ", ".join(f"{each['picked'][0]}/{head_name(each['picked'][1], heads)}" for each in results),
                    *(f"{Values(dict(enumerate(each))):.3f}" for each in numbers),
                ]
            )
    for name in ("centre prior", "colour", "whole photo", "best patches"):
        if (values := view.baseline(name)) is None:
            continue
        low, high = bootstrap_interval(values)
        rows.append([name, "-", f"{values.mean():.3f}", f"{low:.3f} to {high:.3f}", *["-"] * 5])
    section.table(
        [*columns, "best head by photo", "of moved"],
        rows,
        caption=f"Jaccard index with the pixels of all things, ± one standard deviation over {seeds}; "
        "intervals: bootstrap over photos of the seeds' mean. Moved: the same masks moved around the edges of the "
        "photo, as connected but anywhere. Best head by photo, the papers' score, looks at the answer, in the layer "
        "where that is highest; beside it the same of moved maps. Colour: of three k-means clusters the one that "
        "touches the border least. "
        "Best patches: the ceiling that patches of this size set.",
    )
    rows = []
    for kind in config.kinds:
        for name in MAPS:
            for state in STATES:
                means = [
                    f"{view.means(kind, state, what=what, name=name, rule=rule):.3f}"
                    for rule in RULES
                    for what in ("picked_photos", "picked_chance")
                ]
                rows.append([KINDS[kind].words, name, state, *means])
    section.table(
        ["model", "map", "weights", "by mass", "moved", "by fraction", "moved"],
        rows,
        caption="Every way of reading, layer and head chosen for each on the other photos. "
        + "; ".join(f"{name}: {words}" for name, words in MAPS.items())
        + f". By mass: the largest entries that hold {KEEP:.0%} of the map's sum.",
    )


def _layers(report: Report, view: View) -> None:
    from unrolled.report import HeatMap, LineChart, Series

    config = view.config
    if not view.results.of(Segmentation):
        return
    section = report.section("Layers and heads")
    panels, middle = [], view.baseline("centre prior")
    for rule in RULES:
        lines = [
            view.rows(Segmentation, kind, state).curve(
                tables.short(kind) + ("" if state == "trained" else ", untr."),
                _by_layer(kind, rule),
                x=range(DEPTH),
                color=color,
                dashed=state == "untrained",
            )
            for color, kind in enumerate(config.kinds)
            for state in STATES
            if view.rows(Segmentation, kind, state)
        ]
        if rule == RULE and middle is not None:
            y = [float(middle.mean())] * 2
            lines.append(Series(label="centre prior", x=[0, DEPTH - 1], y=y, color=len(config.kinds), dashed=True))
        panels.append(LineChart(title=f"Jaccard with things, cut by {rule}", x_label="layer", series=lines))
    section.figure(
        panels,
        name="layers",
        caption="In every layer the head that is best on the choosing photos, scored on the others. Dotted: untrained, "
        f"and a centre prior of the same size. Bars: one standard deviation over {plural(len(config.seeds), 'seed')}.",
    )
    maps = []
    for kind in config.kinds:
        for state in STATES:
            if not (measured := view.rows(Segmentation, kind, state)):
                continue
            scores, heads = measured.first("maps")[map_of(kind)][RULE], measured.first("heads")
            values = np.array(scores["report"]) - np.array(scores["chance"])
            maps.append(
                HeatMap(
                    title=f"{KINDS[kind].words}, {state}",
                    values=values,
                    rows=[str(layer) for layer in range(len(values))],
                    columns=[head_name(head, heads) for head in range(heads + 1)],
                    row_label="layer",
                    column_label="head",
                    mark=(scores["picked"][0], scores["picked"][1]),
                )
            )
    section.figure(
        maps,
        name="heads",
        caption="Jaccard with things above that of the same maps moved: 0 is chance. First seed that was run; "
        "framed: the layer and head chosen on the other photos.",
    )


def _by_layer(kind: str, rule: Threshold) -> Callable[[Mapping[str, Any]], list[float]]:
    return lambda result: [fmean(photos) for photos in result["maps"][map_of(kind)][rule]["layer_photos"]]


def _changes(report: Report, config: EmergenceConfig, changes: Sequence[Change]) -> None:
    rows = []
    for change, kind, apart in changes:
        head = [change, KINDS[kind].words]
        if apart is None:
            rows.append([*head, NOT_RUN, "-", "-", "-"])
            continue
        mean, low, high = apart.estimate.value, apart.estimate.low, apart.estimate.high
        by_seed = ", ".join(f"{value:+.1f}" for value in apart.seeds)
        rows.append([*head, f"{mean:+.1f}", f"{low:+.1f} to {high:+.1f}", by_seed, _WORDS[apart.verdict]])
    helps, hurts = _grouped(config, changes, "up"), _grouped(config, changes, "down")
    report.section(
        "What strengthens it",
        "Differences in Jaccard index, times 100, on the same photos; each side has its own layer and head, chosen on "
        "other photos. Better or worse is said where the interval excludes zero and every seed agrees.\n\n"
        + f"Strengthens: {helps or 'nothing that was tried'}.\n\n"
        + f"Weakens: {hurts or 'nothing that was tried'}.",
    ).table(
        ["change", "model", "difference", "95 %", "by seed", "verdict"],
        rows,
        caption="Intervals: bootstrap over photos of the mean over seeds; the spread between seeds is not in them.",
    )


def _grouped(config: EmergenceConfig, changes: Sequence[Change], verdict: str) -> str:
    """Changes of a model or of how it is read that have this verdict, each with the kinds it has it for."""
    groups: dict[str, list[str]] = {}
    for change, kind, apart in changes:
        if apart is None or apart.verdict != verdict or change.startswith(("against", "training")):
            continue
        if "against CRATE" in change and kind not in (*config.changes, "alpha"):
            continue  # another model, not a change of this one
        groups.setdefault(change, []).append(tables.short(kind))
    return "; ".join(
        change if "against CRATE" in change else f"{change} ({', '.join(k)})" for change, k in groups.items()
    )


def _limits(config: EmergenceConfig) -> str:
    seen = images_seen(config.images, config.data)
    return (
        f"Models are 4 layers of 96 and were trained on {seen:,} images of 32 pixels in patches of 4; the "
        "published ones 14 million images at 224 px. "
        f"At {config.side} px positions are interpolated. Many of COCO's "
        "things are small and at the border: a Jaccard index here cannot be compared with VOC's. Things are taken "
        "together, not by class. The photos are few, so that differences of a point or two stay unclear; intervals "
        "in tables cover photos alone, and verdicts take the wider of those over photos and over seeds, of which there "
        "are at most three. Choosing among 20 maps on other photos is honest "
        "but noisy. That claims are judged by fraction was decided after one seed had been read by both rules: by mass "
        "models differ mostly in how peaked their maps are. After the same seed three criteria were made stricter: the "
        "choice of layer must gain more than nothing, MaskCut must win by its interval over seeds, and heads must "
        "beat untrained ones. The seed patch and the subspace energy are readings of "
        "ours for models without a trained class "
        "token. No recipe was tuned for any kind. Longer training, larger width and other training photos: not run."
        + (
            " The photos were made up: numbers of this run test the code and nothing else."
            if config.source != "coco"
            else ""
        )
    )
