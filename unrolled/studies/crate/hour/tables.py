"""Photos and explanations on the page of `crate-hour`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.studies.crate.emergence.claims import PLACES, Difference, difference, head_name
from unrolled.studies.crate.emergence.maps import KEEP, MAPS
from unrolled.studies.crate.hour.cells import Removed
from unrolled.studies.crate.hour.networks import WORDS, given
from unrolled.studies.crate.hour.photos import Cuts, Things
from unrolled.studies.crate.hour.removal import METHODS, RANDOM, WAYS
from unrolled.studies.crate.hour.view import MAP, View, hundredths
from unrolled.studies.results import NOT_RUN, Values

if TYPE_CHECKING:
    from unrolled.report import Report, Series


def against_middle(view: View, weights: str) -> str:
    """Whether the maps of trained weights fit things better than a bump in the middle, in words; "" of none."""
    apart = difference(view.photos(weights), view.baseline())
    return "" if apart is None else {"up": "better", "down": "worse", "unclear": "no better"}[apart.verdict]


def ahead_of_middle(view: View) -> str:
    """Which networks fit things better than that bump, corrected for all comparisons, in a sentence; "" of none."""
    bump, by = view.baseline(), []
    for name in view.config.looked_at:
        apart = difference(view.photos(name), bump, of=view.comparisons)
        if apart is not None and apart.verdict == "up":
            by.append(f"{WORDS.get(name, name)} {apart.estimate:+.1f}")
    many = f"corrected for {view.comparisons} comparisons"
    return f"Those that do, {many}, in hundredths of the Jaccard index: {', '.join(by)}." if by else ""


def things(report: Report, view: View) -> None:
    """Maps against things."""
    config = view.config
    names = config.twins
    rows = [_things_row(view, name, trained) for name in config.looked_at for trained in (True, False)]
    for baseline in ("centre prior", "colour", "best patches"):
        if (scores := view.baseline(baseline)) is not None:
            words = {"centre prior": "bump in the middle"}.get(baseline, baseline)
            rows.append([words, "-", mean({0: scores}), _ends({0: scores}), *["-"] * 4])
    count = (view.of(Things, given(config.crate)) or {}).get("photos", [NOT_RUN, NOT_RUN])
    section = report.section(
        "Segmentation that nobody taught",
        f"The class token's attention, of which the largest {KEEP:.0%} of entries are kept, against all pixels of "
        f"COCO's things. {PLACES} Layer and head, or the mean over heads, are the best on {count[0]} photos and "
        f"scored on {count[1]} others. Moved: the same masks moved around the edges. The bump and the maps make masks "
        "of one size. Colour: of three k-means clusters the one that touches the border least. Best patches: the "
        "ceiling that patches set.",
    )
    section.table(
        ["network", "weights", "Jaccard", "95 %", "layer/head", "moved", "against the bump", "against fresh"],
        rows,
        caption="Differences in hundredths, 95 % by a bootstrap over photos; against fresh weights the wider of that "
        f"and of the interval over seeds. {len(config.looked_at)} networks, each of one training, are compared with "
        "the bump, and these intervals are not corrected for that; those of *At other sizes* are.",
    )
    if lines := _by_layer(view):
        from unrolled.report import LineChart

        section.figure(
            [LineChart(title=f"Jaccard with things, {config.side} px", x_label="layer", series=lines)],
            name="things",
            caption="In every layer the head that is best on the choosing photos, scored on the others; fresh weights: "
            "one standard deviation over seeds as bars.",
        )
    others = [name for name in MAPS if name != MAP]
    section.table(
        ["map", *(f"{WORDS.get(name, name)}{state}" for name in names for state in ("", ", fresh"))],
        [
            [
                each,
                *(mean(view.photos(name, trained=trained, name=each)) for name in names for trained in (True, False)),
            ]
            for each in (MAP, *others)
        ],
        caption="Jaccard index of every kind of map, its own layer and head chosen. "
        + "; ".join(f"{name}: {words}" for name, words in MAPS.items())
        + ".",
    )


def _things_row(view: View, name: str, trained: bool) -> list[str]:
    head = [WORDS.get(name, name), "trained" if trained else "fresh"]
    scores = view.photos(name, trained=trained)
    if not scores:
        return [*head, NOT_RUN, *["-"] * 5]
    measured = list(view.rows(Things, name, trained=trained).values())
    picked = [row["maps"][MAP]["picked"] for row in measured]
    moved = Values({i: row["maps"][MAP]["picked_chance"] for i, row in enumerate(measured)})
    fresh = view.against_fresh(name) if trained else None
    return [
        *head, mean(scores), _ends(scores),
        ", ".join(f"{layer}/{head_name(place, measured[0]['heads'])}" for layer, place in picked), f"{moved:.3f}",
        apart(difference(scores, None if (bump := view.baseline()) is None else dict.fromkeys(scores, bump))),
        "-" if fresh is None else f"{fresh.judged:+.1f}",
    ]  # fmt: skip


def _by_layer(view: View) -> list[Series]:
    from unrolled.report import Series
    from unrolled.studies.results import line

    lines: list[Series] = []
    for color, name in enumerate(view.config.twins):
        for trained in (True, False):
            scores = view.photos(name, trained=trained, what="layer_photos")
            if scores:
                depth = len(next(iter(scores.values())))
                means = [
                    Values({seed: float(table[layer].mean()) for seed, table in scores.items()})
                    for layer in range(depth)
                ]
                words = f"{WORDS.get(name, name)}{'' if trained else ': fresh'}"
                lines.append(line(words, range(depth), means, color=color, dashed=not trained))
    if lines and (bump := view.baseline()) is not None:
        y = [float(bump.mean())] * 2
        lines.append(Series(label="bump in the middle", x=[0, len(lines[0].x) - 1], y=y, color=2, dashed=True))
    return lines


def objects(report: Report, view: View) -> None:
    """MaskCut against things."""
    config = view.config
    rows = []
    for name in (*config.looked_at, None):
        for trained in config.states(name):
            head = [
                WORDS.get(name, name) if name else "colour of patches",
                "-" if not name else ("trained" if trained else "fresh"),
            ]
            rows.append([*head, *cut_columns(view, Cuts, name, trained)])
    report.section(
        "Objects in the keys",
        f"At {config.side} px. MaskCut: at most three objects in the keys of a layer (tau 0.15), together, against "
        "all things; the layer is chosen on the other half of the photos. Bump: in the middle, as large as each mask.",
    ).table(
        ["network", "weights", "MaskCut, Jaccard", "layer", "less the bump"],
        rows,
        caption="Difference to the bump in hundredths, 95 % by a bootstrap over photos (of fresh weights of the mean "
        "over seeds).",
    )


def cut_columns(view: View, cell: type[Cuts], name: str | None, trained: bool, **columns: Any) -> list[str]:
    """What MaskCut's objects fit, in which layers, and less a bump as large."""
    rows = view.rows(cell, name, trained=trained, **columns)
    if not rows:
        return [NOT_RUN, "-", "-"]
    masks, bump = (view.by_photo(cell, name, what, trained=trained, **columns) for what in ("jaccard", "middle"))
    layers = ", ".join(str(row["layer"]) for row in rows.values()) if name else "-"
    return [mean(masks), layers, apart(difference(masks, bump))]


def explanations(report: Report, view: View) -> None:
    """Deletion and insertion."""
    config = view.config
    names, rows, fresh = config.looked_at, [], []
    for name in names:
        seeds = [seed for seed in config.seeds if view.area(name, "deletion", RANDOM, seed=seed) is not None]
        learnt = view.area(name, "deletion", RANDOM) is not None
        for method in METHODS:
            who = [WORDS.get(name, name), method]
            if learnt:
                gains = [hundredths(view.better(name, way, method, RANDOM)) for way in WAYS]
                logits = [view.better(name, way, method, RANDOM, scale="logit") for way in WAYS]
                rows.append([*who, *(f"{gain:+.1f}" for gain in gains), *(f"{gain:+.2f}" for gain in logits)])
            if seeds:
                by_way = [
                    Values({seed: 100 * view.better(name, way, method, RANDOM, seed=seed).value for seed in seeds})
                    for way in WAYS
                ]
                fresh.append([*who, *(f"{values:+.1f}" for values in by_way)])
    section = report.section(
        "Explanations: patches removed and kept",
        f"Of the first {config.explained} test images ({config.explained_fresh} for fresh weights), patches are "
        "replaced by the mean colour in the order a method gives them (deletion), or all others are (insertion), and "
        "the network runs again. The area between a method's curve and that of random orders, by image: positive is "
        "better. " + "; ".join(f"{name}: {words}" for name, words in METHODS.items()) + ".",
    )
    section.table(
        ["network", "order", "deletion, probability", "insertion, probability", "deletion, logit", "insertion, logit"],
        rows,
        caption="Areas to those of random orders: probability of the predicted class in hundredths, its logit as it "
        "is; 95 % by a bootstrap over images.",
    )
    if fresh:
        section.table(
            ["network, fresh weights", "order", "deletion, probability", "insertion, probability"],
            fresh,
            caption="The same of networks that learnt nothing, with the deviation over seeds; their probabilities "
            "hardly differ from 0.1.",
        )
    from unrolled.report import LineChart, Series

    panels = []
    for name in names:
        if (measured := view.of(Removed, given(name))) is None:
            continue
        for way in WAYS:
            lines = [
                Series(label=method, x=measured["shares"], y=record["curve"], dashed=method == RANDOM)
                for method, record in measured["probability"][way].items()
            ]
            share = "share of patches removed" if way == "deletion" else "share of patches kept"
            title = f"{WORDS.get(name, name)}, {way}: probability of the predicted class"
            panels.append(LineChart(title=title, x_label=share, series=lines, y_range=(0, 1)))
    if panels:
        section.figure(panels, name="removal", caption="Deletion: lower is better. Insertion: higher is better.")


def mean(scores: dict[int, np.ndarray]) -> str:
    """Over photos, with its deviation over seeds."""
    return f"{Values({seed: float(each.mean()) for seed, each in scores.items()}):.3f}"


def _ends(scores: dict[int, np.ndarray]) -> str:
    from unrolled.instruments.regions.overlap import bootstrap_interval

    low, high = bootstrap_interval(np.mean(list(scores.values()), axis=0))
    return f"{low:.3f} to {high:.3f}"


def apart(value: Difference | None) -> str:
    """A difference in hundredths with its interval over photos."""
    return "-" if value is None or math.isnan(value.estimate.value) else f"{value.estimate:+.1f}"
