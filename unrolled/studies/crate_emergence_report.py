"""The page of `crate-emergence`: claims, things by layer and head, and what strengthens it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.studies.base import Expectation
from unrolled.studies.crate_emergence import (
    BETTER,
    INSIDE,
    JACCARD,
    LEARNED,
    MASKED_TOO,
    OBJECTS,
    PRIOR,
    ROLES,
    Config,
    difference,
    map_of,
)
from unrolled.studies.crate_emergence_maps import KEEP, MAPS, RULE, RULES
from unrolled.studies.crate_emergence_tables import (
    MISSING,
    STATES,
    Difference,
    Found,
    details,
    differences,
    head_name,
    parts,
    pictures,
    plural,
    seeds_of,
    short,
)
from unrolled.studies.crate_members import KINDS, Member, images_seen

if TYPE_CHECKING:
    from unrolled.report import Claim, Report

_WORDS = {"up": "better", "down": "worse", "unclear": "no clear difference"}


def build(config: Config, raw: dict[str, Any], duration: float) -> Report:
    """The report of what `run` found."""
    from unrolled.report import Provenance, Report

    found = Found(config, raw)
    report = Report(
        "Segmentation that nobody taught",
        question="Do objects and parts appear in the layers of small CRATEs, more than in ViTs and than by chance, and "
        "what strengthens it?",
    )
    changes = differences(found)
    report.claims = _claims(found)
    _headline(report, found)
    _things(report, found)
    _layers(report, found)
    _changes(report, config, changes)
    details(report, found)
    parts(report, found)
    pictures(report, found)
    report.section("What this does not show", _limits(config))
    report.results = _brief(raw) | {"differences": changes}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=duration)
    return report


def _claims(found: Found) -> list[Claim]:
    from unrolled.report import mean_std

    crate, vit = found.scores("crate"), found.scores("vit")
    layers = found.scores("crate", what="layer_photos")
    pairs = [
        (BETTER, difference(crate, vit)),
        (LEARNED, difference(crate, found.scores("crate", "untrained"))),
        (PRIOR, difference(crate, found.baseline("centre prior"))),
        (INSIDE, difference(crate, {place: table[-1] for place, table in layers.items()})),
        (MASKED_TOO, difference(found.scores("mae"), found.scores("mae", "untrained"))),
    ]
    claims = {id(claim): _judge(claim, None if d is None else 100 * d["low"], _said(d)) for claim, d in pairs}
    own = [float(values.mean()) for values in crate.values()]
    claims[id(JACCARD)] = _judge(
        JACCARD,
        fmean(own) if own else None,
        f"{mean_std(own, digits=3)}, layer and head chosen on other photos" if own else MISSING,
    )
    ours, theirs = (
        [100 * cell["bbox"]["AP50"] for cell in found.cells("objects", kind, "trained")] for kind in ("crate", "vit")
    )
    apart = [a - b for a, b in zip(ours, theirs, strict=False)]
    colour = 100 * found.raw["colour"]["objects"]["bbox"]["AP50"]
    claims[id(OBJECTS)] = _judge(
        OBJECTS,
        min(apart) if apart else None,
        f"{mean_std(ours, digits=2)} against {mean_std(theirs, digits=2)}; colour of patches {colour:.2f}"
        if apart
        else MISSING,
    )
    heads = {state: found.cells("consistency", "crate", state) for state in STATES}
    plain = fmean(map(_excess, heads["untrained"]))
    passed = [max(c["heads_p"], c["images_p"]) < 0.05 and _excess(c) > plain for c in heads["trained"]]
    claims[id(ROLES)] = _judge(
        ROLES,
        sum(passed) / len(passed) if passed else None,
        f"{sum(passed)} of {plural(len(passed), 'seed')}; consistency above chance "
        f"{mean_std([_excess(c) for c in heads['trained']], digits=3)}, untrained {plain:.3f}"
        if passed
        else MISSING,
    )
    token = difference(found.scores("mae", name="class token"), found.scores("mae", "untrained", name="class token"))
    if token is not None:
        claim = claims[id(MASKED_TOO)]
        claims[id(MASKED_TOO)] = replace(claim, measured=f"{claim.measured}; read by the class token {_said(token)}")
    order = (BETTER, LEARNED, PRIOR, INSIDE, JACCARD, OBJECTS, ROLES, MASKED_TOO)
    return [claims[id(claim)] for claim in order]


def _excess(cell: dict[str, Any]) -> float:
    """Consistency above that of either shuffle."""
    return float(cell["consistency"] - max(cell["heads_chance"], cell["images_chance"]))


def _judge(claim: Expectation, value: float | None, measured: str) -> Claim:
    """A claim nothing was run for is not judged."""
    from unrolled.report import Claim

    if value is not None:
        return claim.judge(value, measured)
    return Claim(statement=claim.statement, source=claim.source, published=claim.published, measured=measured)


def _said(d: dict[str, Any] | None) -> str:
    if d is None:
        return MISSING
    return (
        f"{100 * d['mean']:+.1f} ({100 * d['low']:+.1f} to {100 * d['high']:+.1f}), {plural(len(d['seeds']), 'seed')}"
    )


def _headline(report: Report, found: Found) -> None:
    from unrolled.report import Fact, mean_std

    config = found.config
    every = (*config.kinds, *config.changes)
    own = {kind: found.scores(kind) for kind in every}
    learned = {kind: difference(own[kind], found.scores(kind, "untrained")) for kind in every}
    beyond = {kind: difference(own[kind], found.baseline("centre prior")) for kind in every}
    said = [
        f"Training makes maps fit things better in {_having(learned, 'up') or 'no kind of model'}"
        + (f", not clearly in {unclear}" if (unclear := _having(learned, "unclear")) else "")
        + (f"; worse in {worse}" if (worse := _having(learned, "down")) else "")
        + f". A bump in the middle of the photo, as large a mask, is beaten by {_having(beyond, 'up') or 'none'}."
    ]
    if all(d is None for d in learned.values()):
        said = ["No trained model is kept, so that nothing is said of what training does."]
    if (d := difference(own["crate"], found.scores("vit"))) is not None:
        said.append(f"CRATE against ViT: {_WORDS[d['verdict']]}, {_said(d)}, in hundredths of the Jaccard index.")
    missing = [KINDS[kind].words for kind in every if learned[kind] is None]
    said += [f"Not run: {', '.join(missing)}."] if missing else []
    facts = []
    for kind in config.kinds:
        values = [float(v.mean()) for v in found.scores(kind).values()]
        plain = [float(v.mean()) for v in found.scores(kind, "untrained").values()]
        facts.append(
            Fact(
                label=KINDS[kind].words,
                value=mean_std(values, digits=3) if values else MISSING,
                detail=f"Jaccard with things; untrained {mean_std(plain, digits=3)}",
            )
        )
    middle = float(found.baseline("centre prior").mean())
    facts.append(Fact(label="centre prior", value=f"{middle:.3f}", detail="Jaccard with things"))
    report.headline(" ".join(said), facts)


def _having(results: dict[str, dict[str, Any] | None], verdict: str) -> str:
    """Kinds with this verdict, in words."""
    return ", ".join(KINDS[kind].words for kind, d in results.items() if d is not None and d["verdict"] == verdict)


def _things(report: Report, found: Found) -> None:
    from unrolled.instruments.overlap import bootstrap_interval
    from unrolled.report import mean_std

    config = found.config
    count = next(r for r in found.runs("crate", "untrained") if r is not None)["photos"]
    section = report.section(
        "Things against background",
        f"Photos at {config.side} px; models were trained at 32. The largest {KEEP:.0%} of a map's entries are kept, "
        "the CRATE papers' rule. DINO's, which keeps as much of the mass, is in the second table: there a diffuse map "
        "makes a larger mask, and for things of this size larger masks score better, up to the whole photo, "
        "so that claims are judged where all masks are as large. Layer and head (or the mean over heads) are the best "
        f"on {count[0]} photos and scored on {count[1]} others. Masked autoencoders are read by similarity to a seed "
        "patch instead of the class token, which their loss does not train.",
    )
    columns = ["model", "weights", "Jaccard", "95 %", "layer and head", "moved", "last layer, mean map"]
    rows: list[list[str]] = []
    for kind in (*config.kinds, *config.changes):
        for state in STATES:
            runs = [r for r in found.runs(kind, state) if r is not None]
            head = [KINDS[kind].words, state]
            if not runs:
                rows.append([*head, MISSING, *["-"] * 6])
                continue
            own = [r["maps"][map_of(kind)][RULE] for r in runs]
            photos = np.array([o["picked_photos"] for o in own])
            low, high = bootstrap_interval(photos.mean(0))
            places = [f"{o['picked'][0] + 1}/{head_name(o['picked'][1], runs[0]['heads'])}" for o in own]
            best = [max(zip(o["best"], o["best_chance"], strict=True)) for o in own]
            rows.append(
                [*head, mean_std(photos.mean(1).tolist(), digits=3), f"{low:.3f} to {high:.3f}", ", ".join(places),
                 mean_std([o["picked_chance"] for o in own], digits=3),
                 mean_std([fmean(o["last_photos"]) for o in own], digits=3),
                 mean_std([b for b, _ in best], digits=3), mean_std([c for _, c in best], digits=3)]
            )  # fmt: skip
    for name in ("centre prior", "colour", "whole photo", "best patches"):
        values = found.baseline(name)
        low, high = bootstrap_interval(values)
        rows.append([name, "-", f"{values.mean():.3f}", f"{low:.3f} to {high:.3f}", *["-"] * 5])
    section.table(
        [*columns, "best head by photo", "of moved"],
        rows,
        caption=f"Jaccard index with the pixels of all things, ± one standard deviation over {seeds_of(config)}; "
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
                cells = []
                for rule in RULES:
                    for what in ("picked_photos", "picked_chance"):
                        means = [
                            float(v.mean()) for v in found.scores(kind, state, what=what, name=name, rule=rule).values()
                        ]
                        cells.append(mean_std(means, digits=3) if means else MISSING)
                rows.append([KINDS[kind].words, name, state, *cells])
    section.table(
        ["model", "map", "weights", "by mass", "moved", "by fraction", "moved"],
        rows,
        caption="Every way of reading, layer and head chosen for each on the other photos. "
        + "; ".join(f"{name}: {said}" for name, said in MAPS.items())
        + f". By mass: the largest entries that hold {KEEP:.0%} of the map's sum.",
    )


def _layers(report: Report, found: Found) -> None:
    from unrolled.report import HeatMap, LineChart, Series

    config = found.config
    section = report.section("Layers and heads")
    panels = []
    for rule in RULES:
        series = []
        for i, kind in enumerate(config.kinds):
            for state in STATES:
                tables = found.scores(kind, state, what="layer_photos", rule=rule)
                if tables:
                    curves = np.stack([table.mean(1) for table in tables.values()])
                    error = curves.std(0, ddof=1).tolist() if len(curves) > 1 else None
                    series.append(
                        Series(
                            label=short(kind) + ("" if state == "trained" else ", untr."),
                            x=list(range(1, curves.shape[1] + 1)),
                            y=curves.mean(0).tolist(),
                            error=error,
                            color=i,
                            dashed=state == "untrained",
                        )
                    )
        middle = float(found.baseline("centre prior").mean())
        depth = len(series[0].x)
        if rule == RULE:
            series.append(
                Series(label="centre prior", x=[1, depth], y=[middle, middle], color=len(config.kinds), dashed=True)
            )
        panels.append(LineChart(title=f"Jaccard with things, cut by {rule}", x_label="layer", series=series))
    section.figure(
        panels,
        name="layers",
        caption="In every layer the head that is best on the choosing photos, scored on the others. Dashed: untrained, "
        f"and a centre prior of the same size. Bars: one standard deviation over {seeds_of(config)}.",
    )
    maps = []
    for kind in config.kinds:
        for state in STATES:
            run = next((r for r in found.runs(kind, state) if r is not None), None)
            if run is None:
                continue
            own = run["maps"][map_of(kind)][RULE]
            values = np.array(own["report"]) - np.array(own["chance"])
            maps.append(
                HeatMap(
                    title=f"{KINDS[kind].words}, {state}",
                    values=values,
                    rows=[str(layer + 1) for layer in range(len(values))],
                    columns=[head_name(k, run["heads"]) for k in range(run["heads"] + 1)],
                    row_label="layer",
                    column_label="head",
                    mark=(own["picked"][0], own["picked"][1]),
                )
            )
    section.figure(
        maps,
        name="heads",
        caption="Jaccard with things above that of the same maps moved: 0 is chance. First seed that was run; "
        "framed: the layer and head chosen on the other photos.",
    )


def _changes(report: Report, config: Config, changes: Sequence[Difference]) -> None:
    rows = []
    for entry in changes:
        d = entry["result"]
        head = [entry["change"], KINDS[entry["kind"]].words]
        if d is None:
            rows.append([*head, MISSING, "-", "-", "-"])
            continue
        rows.append(
            [*head, f"{100 * d['mean']:+.1f}", f"{100 * d['low']:+.1f} to {100 * d['high']:+.1f}",
             ", ".join(f"{100 * value:+.1f}" for value in d["seeds"]), _WORDS[d["verdict"]]]
        )  # fmt: skip
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


def _grouped(config: Config, changes: Sequence[Difference], verdict: str) -> str:
    """Changes of a model or of how it is read that have this verdict, each with the kinds it has it for."""
    groups: dict[str, list[str]] = {}
    for entry in changes:
        result, change = entry["result"], entry["change"]
        if result is None or result["verdict"] != verdict or change.startswith(("against", "training")):
            continue
        if "against CRATE" in change and entry["kind"] not in (*config.changes, "alpha"):
            continue  # another model, not a change of this one
        groups.setdefault(change, []).append(short(entry["kind"]))
    return "; ".join(
        change if "against CRATE" in change else f"{change} ({', '.join(k)})" for change, k in groups.items()
    )


def _brief(value: Any) -> Any:
    """Results without what they hold for every photo, which the cells keep, to five digits."""
    if isinstance(value, dict):
        return {key: _brief(item) for key, item in value.items() if not str(key).endswith("_photos")}
    if isinstance(value, (list, tuple)):
        return [_brief(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _limits(config: Config) -> str:
    seen = images_seen(config, Member(kind="crate", data=config.data))
    return (
        f"Models are 4 layers of 96 and were trained on {seen:,} images of 32 pixels in patches of 4; the "
        "published ones 14 million images at 224 px. "
        f"At {config.side} px positions are interpolated. Many of COCO's "
        "things are small and at the border: a Jaccard index here cannot be compared with VOC's. Things are taken "
        "together, not by class. The photos are few, so that differences of a point or two stay unclear; intervals "
        "cover photos, not seeds, of which there are at most three. Choosing among 20 maps on other photos is honest "
        "but noisy. That claims are judged by fraction was decided after one seed had been read by both rules: by mass "
        "models differ mostly in how peaked their maps are. After the same seed three criteria were made stricter: the "
        "choice of layer must gain more than nothing, MaskCut must win with every seed, and heads must beat untrained "
        "ones. The seed patch and the subspace energy are readings of "
        "ours for models without a trained class "
        "token. No recipe was tuned for any kind. Longer training, larger width and other training photos: not run."
        + (
            " The photos were made up: numbers of this run test the code and nothing else."
            if config.source != "coco"
            else ""
        )
    )
