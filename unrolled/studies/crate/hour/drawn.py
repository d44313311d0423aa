"""Other sizes, regions that people drew, and roles of heads on the page of `crate-hour`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unrolled.studies.crate.emergence.claims import difference, excess, head_name
from unrolled.studies.crate.hour.networks import WORDS
from unrolled.studies.crate.hour.photos import CutRegions, Cuts, Edges, Heads, Roles, Things
from unrolled.studies.crate.hour.tables import apart, cut_columns, mean
from unrolled.studies.crate.hour.view import MAP, View
from unrolled.studies.results import NOT_RUN, Values

if TYPE_CHECKING:
    from unrolled.report import Report


def sizes(report: Report, view: View) -> None:
    """Maps and objects at other sizes."""
    config = view.config
    if not config.other_sides:
        return
    rows = []
    for side in sorted((config.side, *config.other_sides)):
        for name in config.looked_at:
            scores = view.photos(name, side=side)
            if not scores:
                rows.append([f"{side} px", WORDS.get(name, name), NOT_RUN, *["-"] * 7])
                continue
            row = view.rows(Things, name, side=side)[0]
            layer, head = row["maps"][MAP]["picked"]
            bump = view.baseline(side=side)
            fresh = list(view.photos(name, trained=False, side=side).values())[:1]
            rows.append(
                [
                    f"{side} px", WORDS.get(name, name), mean(scores), f"{layer}/{head_name(head, row['heads'])}",
                    apart(difference(scores, bump)), apart(difference(scores, bump, of=view.comparisons)),
                    apart(difference(scores, fresh[0] if fresh else None)),
                    *cut_columns(view, Cuts, name, True, side=side),
                ]
            )  # fmt: skip
    report.section(
        "At other sizes",
        "The same photos, maps and objects at other sizes; the networks were trained at 32 px. Against fresh weights "
        "of the first seed. MaskCut above the size of the other tables was not run: its cost grows with the cube of "
        "the patches.",
    ).table(
        [
            *("photos at", "network", "Jaccard", "layer/head", "against the bump", "corrected"),
            "against fresh",
            *("MaskCut, Jaccard", "layer", "MaskCut less the bump"),
        ],
        rows,
        caption="Differences in hundredths, 95 % by a bootstrap over photos. Corrected: each interval at 1 - 0.05 / "
        f"{view.comparisons}, so that all {view.comparisons} hold in at least 95 % of cases.",
    )


def regions(report: Report, view: View) -> None:
    """Heads, objects and borders against regions that people drew."""
    config = view.config
    heads, keys = [], []
    for name in (*config.looked_at, None):
        for trained in config.states(name):
            who = [WORDS.get(name, name), "trained" if trained else "fresh"] if name else ["colour of patches", "-"]
            keys.append([*who, *cut_columns(view, CutRegions, name, trained), *_edges(view, name, trained)])
            if name:
                heads.append([*who, *_heads(view, name, trained)])
    section = report.section(
        "Regions that people drew",
        f"BSDS500 at {config.side} px: five to eight people cut each photo into regions, which are objects, parts of "
        "objects and grounds, without names. It marks no things, so that maps are asked whether *some* head's map is a "
        "region: the Jaccard index of every region, of 2 % to half of the photo, with as many of the largest entries "
        "of the best head's attention as it has patches. Moved: the best head of the maps moved around the edges, "
        f"which has as many tries; the bump has one. Layers are chosen on {config.cut} photos, scores are of "
        f"{config.cut} others.",
    )
    section.table(
        ["network", "weights", "best head, Jaccard", "layer", "less moved", "less the bump", "less fresh"],
        heads,
        caption="Differences in hundredths, 95 % by a bootstrap over photos, of fresh weights of the mean over seeds; "
        "less fresh: the wider of that and of the interval over seeds.",
    )
    section.table(
        [
            *("network", "weights", "MaskCut, Jaccard", "layer", "less the bump"),
            *("borders, F", "layer", "moved"),
        ],
        keys,
        caption="In the keys. MaskCut: every object against the region that fits it best, of each person. Borders: "
        "F-measure of those between five clusters, on photos at half size, nearest matching; of fresh weights the "
        "first seed.",
    )


def _heads(view: View, name: str, trained: bool) -> list[str]:
    rows = view.rows(Heads, name, trained=trained)
    if not rows:
        return [NOT_RUN, *["-"] * 4]
    scores, moved, bump = (view.by_photo(Heads, name, what, trained=trained) for what in ("jaccard", "moved", "middle"))
    against = view.region_gain(name) if trained else None
    layers = ", ".join(str(row["layer"]) for row in rows.values())
    return [
        mean(scores), layers, apart(difference(scores, moved)), apart(difference(scores, bump)),
        "-" if against is None else f"{against.judged:+.1f}",
    ]  # fmt: skip


def _edges(view: View, name: str | None, trained: bool) -> list[str]:
    rows = list(view.rows(Edges, name, trained=trained).values())
    if not rows:
        return [NOT_RUN, "-", "-"]
    low, high = rows[0]["interval"]
    layer = str(rows[0]["layer"]) if name else "-"
    return [f"{rows[0]['f']:.3f} [{low:.3f}, {high:.3f}]", layer, f"{rows[0]['moved']:.3f}"]


def roles(report: Report, view: View) -> None:
    """Whether heads keep to their parts."""
    config = view.config
    rows, names = [], []
    for name in config.looked_at:
        for trained in config.states(name):
            head = [WORDS.get(name, name), "trained" if trained else "fresh"]
            for row in list(view.rows(Roles, name, trained=trained).values())[:1]:
                names = _short(row["parts"])
                head += [f"{row['consistency']:.3f}", *(f"{row[f'{null}_chance']:.3f}" for null in ("heads", "images"))]
                head += [f"{row[f'{null}_p']:.3f}" for null in ("heads", "images")]
            rows.append(head if len(head) > 2 else [*head, NOT_RUN, *["-"] * 4])
    section = report.section(
        "Whether heads have roles",
        f"No data set at hand marks parts of things: a stand-in are the {config.parts} commonest things and stuffs of "
        f"{config.photos} of COCO's photos: {', '.join(names) or NOT_RUN}. Consistency: the share, 0 to 1, of the "
        "variation of attention to them that a head's identity explains, in the penultimate layer at "
        f"{config.side} px. Heads shuffled: chance if heads had no roles; photos shuffled, if each looked at a place.",
    )
    section.table(
        ["network", "weights", "consistency", "heads shuffled", "photos shuffled", "p, heads", "p, photos"],
        rows,
        caption="200 shuffles. Fresh weights: the first seed.",
    )
    from unrolled.report import HeatMap

    panels = []
    for name in config.looked_at:
        for row in view.rows(Roles, name).values():
            panels.append(
                HeatMap(
                    title=f"{WORDS.get(name, name)}: attention to parts over their area",
                    rows=[f"head {head}" for head in range(len(row["lift"]))],
                    columns=_short(row["parts"]),
                    values=np.array(row["lift"], dtype=np.float64),  # None of a part that no photo has is NaN
                )
            )
    if panels:
        section.figure(panels, name="roles", caption="Geometric mean over photos; 1 is as by chance.")


def _short(parts: Sequence[str]) -> list[str]:
    """Names of COCO's categories, without what says that several were merged."""
    return [name.removesuffix("-merged") for name in parts]


def role_excess(view: View) -> Values:
    """Consistency of the CRATE's heads above the higher of the two kinds of chance."""
    return Values({seed: excess(row) for seed, row in view.rows(Roles, view.config.crate).items()})
