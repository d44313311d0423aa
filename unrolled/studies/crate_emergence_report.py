"""The page of `crate-emergence`: claims, things by layer and head, and what strengthens it."""

from __future__ import annotations

from collections.abc import Sequence
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
from unrolled.studies.crate_emergence_maps import KEEP, MAPS, RULES
from unrolled.studies.crate_emergence_tables import (
    MISSING,
    RULE,
    STATES,
    Found,
    details,
    head_name,
    parts,
    pictures,
    plural,
    seeds_of,
    short,
)
from unrolled.studies.crate_members import KINDS

if TYPE_CHECKING:
    from unrolled.report import Claim, Report

_WORDS = {"up": "better", "down": "worse", "unclear": "no clear difference"}
Difference = dict[str, Any]


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
    _changes(report, changes)
    details(report, found)
    parts(report, found)
    pictures(report, found)
    report.section("What this does not show", _limits(config))
    report.results = raw | {"differences": changes}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=duration)
    return report


def differences(found: Found) -> list[Difference]:
    """Every paired difference: `change`, `kind`, `compared`, and what `difference` gives, or None in `result`."""
    config = found.config
    out: list[Difference] = []

    def add(change: str, kind: str, a: dict[int, np.ndarray], b: dict[int, np.ndarray] | np.ndarray) -> None:
        out.append({"change": change, "kind": kind, "result": difference(a, b)})

    every = (*config.kinds, *config.changes)
    for kind in every:
        add("training, against none", kind, found.scores(kind), found.scores(kind, "untrained"))
    for kind in every:
        add("against the centre prior", kind, found.scores(kind), found.baseline("centre prior"))
    for kind in every:
        add("against colour", kind, found.scores(kind), found.baseline("colour"))
    for kind in every[1:]:
        add(f"{KINDS[kind].words}, against CRATE", kind, found.scores(kind), found.scores("crate"))
    for kind in config.kinds:
        own = found.scores(kind)
        layers = found.scores(kind, what="layer_photos")
        add(
            "layer and head chosen, against the last layer's mean map",
            kind,
            own,
            found.scores(kind, what="last_photos"),
        )
        add("layer chosen, against the last layer's best head", kind, own, {k: v[-1] for k, v in layers.items()})
        for name in MAPS:
            if name != map_of(kind):
                add(f"{name}, against {map_of(kind)}", kind, found.scores(kind, name=name), own)
        add("cut by fraction, against mass", kind, found.scores(kind, rule="fraction"), own)
        for side in config.other_sides:
            add(f"{side} px, against {config.side} px", kind, found.scores(kind, side=side), own)
    return out


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
    both = bool(ours and theirs)
    claims[id(OBJECTS)] = _judge(
        OBJECTS,
        fmean(ours) - fmean(theirs) if both else None,
        f"{mean_std(ours, digits=2)} against {mean_std(theirs, digits=2)}" if both else MISSING,
    )
    roles = [max(cell["heads_p"], cell["images_p"]) < 0.05 for cell in found.cells("consistency", "crate", "trained")]
    control = [
        max(cell["heads_p"], cell["images_p"]) < 0.05 for cell in found.cells("consistency", "crate", "untrained")
    ]
    claims[id(ROLES)] = _judge(
        ROLES,
        sum(roles) / len(roles) if roles else None,
        f"{sum(roles)} of {len(roles)} seeds; untrained {sum(control)} of {len(control)}" if roles else MISSING,
    )
    order = (BETTER, LEARNED, PRIOR, INSIDE, JACCARD, OBJECTS, ROLES, MASKED_TOO)
    return [claims[id(claim)] for claim in order]


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
    appears, beaten, not_run = [], [], []
    for kind in (*config.kinds, *config.changes):
        own = found.scores(kind)
        training = difference(own, found.scores(kind, "untrained"))
        prior = difference(own, found.baseline("centre prior"))
        if training is None or prior is None:
            not_run.append(KINDS[kind].words)
        elif training["verdict"] == "up" and prior["verdict"] == "up":
            appears.append(KINDS[kind].words)
        else:
            why = [
                f"{_WORDS[d['verdict']]} than {what}" if d["verdict"] != "unclear" else f"no clear gain over {what}"
                for d, what in ((training, "untrained"), (prior, "a centre prior"))
                if d["verdict"] != "up"
            ]
            beaten.append(f"{KINDS[kind].words} ({', '.join(why)})")
    said = [
        f"Emergence, better than the same model untrained and than a centre prior: {', '.join(appears) or 'nowhere'}."
    ]
    said += [f"Not shown: {'; '.join(beaten)}."] if beaten else []
    said += [f"Not run: {', '.join(not_run)}."] if not_run else []
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


def _things(report: Report, found: Found) -> None:
    from unrolled.instruments.overlap import bootstrap_interval
    from unrolled.report import mean_std

    config = found.config
    count = next(r for r in found.runs("crate", "untrained") if r is not None)["photos"]
    section = report.section(
        "Things against background",
        f"Photos at {config.side} px, twice the side that models were trained at, cut where {KEEP:.0%} of a map's mass "
        f"is kept. Layer and head (or the mean over heads) are the best on {count[0]} photos and scored on "
        f"{count[1]} others. Masked autoencoders are read by similarity to a seed patch instead of the class token, "
        "which their loss does not train.",
    )
    columns = ["model", "map", "weights", "Jaccard", "95 %", "layer and head", "shuffled", "last layer, mean map"]
    rows: list[list[str]] = []
    for kind in (*config.kinds, *config.changes):
        for state in STATES:
            runs = [r for r in found.runs(kind, state) if r is not None]
            head = [KINDS[kind].words, map_of(kind), state]
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
        rows.append([name, "-", "-", f"{values.mean():.3f}", f"{low:.3f} to {high:.3f}", *["-"] * 5])
    section.table(
        [*columns, "best head by photo", "of shuffled"],
        rows,
        caption=f"Jaccard index with the pixels of all things, ± one standard deviation over {seeds_of(config)}; "
        "intervals: bootstrap over photos of the seeds' mean. Shuffled: the same masks with their patches moved at "
        "random. Best head by photo, the papers' score, looks at the answer, in the layer where that is highest; "
        "beside it the same of shuffled maps. Colour: of three k-means clusters the one that touches the border least. "
        "Best patches: the ceiling that patches of this size set.",
    )
    rows = []
    for kind in config.kinds:
        for name in MAPS:
            cells = []
            for rule in RULES:
                for state in STATES:
                    means = [float(v.mean()) for v in found.scores(kind, state, name=name, rule=rule).values()]
                    cells.append(mean_std(means, digits=3) if means else MISSING)
            rows.append([KINDS[kind].words, name, *cells])
    section.table(
        ["model", "map", "mass", "mass, untrained", "fraction", "fraction, untrained"],
        rows,
        caption="Every way of reading, layer and head chosen for each on the other photos. "
        + "; ".join(f"{name}: {said}" for name, said in MAPS.items())
        + f". Fraction: {KEEP:.0%} of the entries are kept, the CRATE papers' rule, which fixes a mask's size.",
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
        series.append(
            Series(label="centre prior", x=[1, depth], y=[middle, middle], color=len(config.kinds), dashed=True)
        )
        panels.append(LineChart(title=f"Jaccard with things, cut by {rule}", x_label="layer", series=series))
    section.figure(
        panels,
        name="layers",
        caption="In every layer the head that is best on the choosing photos, scored on the others. Dashed: untrained, "
        f"and the centre prior. Bars: one standard deviation over {seeds_of(config)}.",
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
        caption="Jaccard with things above that of the same maps shuffled: 0 is chance. First seed that was run; "
        "framed: the layer and head chosen on the other photos.",
    )


def _changes(report: Report, changes: Sequence[Difference]) -> None:
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
    helps = [f"{e['change']} ({KINDS[e['kind']].words})" for e in changes if _against(e, "up")]
    hurts = [f"{e['change']} ({KINDS[e['kind']].words})" for e in changes if _against(e, "down")]
    report.section(
        "What strengthens it",
        "Differences in Jaccard index, times 100, on the same photos; each side has its own layer and head, chosen on "
        "other photos. Better or worse is said where the interval excludes zero and every seed agrees.\n\n"
        + f"Strengthens: {'; '.join(helps) or 'nothing that was tried'}.\n\n"
        + f"Weakens: {'; '.join(hurts) or 'nothing that was tried'}.",
    ).table(
        ["change", "model", "difference", "95 %", "by seed", "verdict"],
        rows,
        caption="Intervals: bootstrap over photos of the mean over seeds; the spread between seeds is not in them.",
    )


def _against(entry: Difference, verdict: str) -> bool:
    """Whether a change, not a comparison with a baseline, has this verdict."""
    result = entry["result"]
    return result is not None and result["verdict"] == verdict and not entry["change"].startswith("against")


def _limits(config: Config) -> str:
    return (
        "Models are 4 layers of 96, saw 32-pixel images in patches of 4 for a few hundred steps, and 200 classes; the "
        f"published ones 14 million images at 224 px. At {config.side} px positions are interpolated. Many of COCO's "
        "things are small and at the border: a Jaccard index here cannot be compared with VOC's. Things are taken "
        "together, not by class. The photos are few, so that differences of a point or two stay unclear; intervals "
        "cover photos, not seeds, of which there are at most three. Choosing among 20 maps on other photos is honest "
        "but noisy. The seed patch and the subspace energy are readings of ours for models without a trained class "
        "token. No recipe was tuned for any kind."
        + (
            " The photos were made up: numbers of this run test the code and nothing else."
            if config.source != "coco"
            else ""
        )
    )
