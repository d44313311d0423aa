"""Objects, borders, parts and pictures on the page of `crate-emergence`, and all differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unrolled.studies.crate.credits import PHOTOS
from unrolled.studies.crate.emergence import pictures
from unrolled.studies.crate.emergence.cells import PENULTIMATE, Borders, Objects, Parts, map_of
from unrolled.studies.crate.emergence.claims import STATES, ByPhoto, Difference, View, difference
from unrolled.studies.crate.emergence.maps import KEEP, MAPS
from unrolled.studies.kinds import KINDS
from unrolled.studies.results import NOT_RUN, Results, Values

if TYPE_CHECKING:
    from unrolled.report import Report


_OBJECTS = ("bbox.AP50", "bbox_moved.AP50", "bbox.AP", "segm.AP50", "segm_moved.AP50", "segm.AP")


class Change(NamedTuple):
    """What differs, of which kind, and by how much; None where it was not run."""

    change: str
    kind: str
    difference: Difference | None


def differences(view: View) -> list[Change]:
    """Every paired difference."""
    config = view.config
    changes: list[Change] = []

    def add(change: str, kind: str, a: ByPhoto, b: ByPhoto | np.ndarray | None) -> None:
        changes.append(Change(change, kind, difference(a, b)))

    every = (*config.kinds, *config.changes)
    for kind in every:
        add("training, against none", kind, view.scores(kind), view.scores(kind, "untrained"))
    for kind in every:
        add("against the centre prior", kind, view.scores(kind), view.baseline("centre prior"))
    for kind in every:
        add("against colour", kind, view.scores(kind), view.baseline("colour"))
    for kind in every[1:]:
        add(f"{KINDS[kind].words}, against CRATE", kind, view.scores(kind), view.scores("crate"))
    for kind in config.kinds:
        chosen, last = view.scores(kind), view.scores(kind, what="last_photos")
        layers = view.scores(kind, what="layer_photos")
        add("layer and head chosen, against the last layer's mean map", kind, chosen, last)
        add("layer chosen, against the last layer's best head", kind, chosen, {k: v[-1] for k, v in layers.items()})
        for name in MAPS:
            if name != map_of(kind):
                add(f"{name}, against {map_of(kind)}", kind, view.scores(kind, name=name), chosen)
        add("cut by mass, against fraction", kind, view.scores(kind, rule="mass"), chosen)
        for side in config.other_sides:
            add(f"{side} px, against {config.side} px", kind, view.scores(kind, side=side), chosen)
    return changes


def details(report: Report, view: View) -> None:
    """Objects that MaskCut finds, and borders between clusters."""
    config = view.config
    section = report.section(
        "Objects and borders",
        f"From the keys of the penultimate layer ({PENULTIMATE}) at {config.side} px. Objects: at most three by "
        "MaskCut, tau 0.15, those found first ranked first, no refinement; class-agnostic COCO average precision, "
        "times 100. Borders: those between five k-means clusters, F-measure at 0.75 % of the diagonal, nearest "
        "matching on photos at half size, which is more generous than the benchmark's. Moved: the same masks moved "
        "around the edges; one that comes back on the other side gets a box across the whole photo, so that moved "
        "boxes score higher than moved masks.",
    )
    rows: list[list[str]] = []
    lines = [
        ([KINDS[kind].words, state], view.rows(Objects, kind, state), view.rows(Borders, kind, state))
        for kind in config.kinds
        for state in STATES
    ]
    lines.append((["colour of patches", "-"], view.colour(Objects), view.colour(Borders)))
    for head, objects, borders in lines:
        rows.append(head)
        rows[-1] += [_number(objects, path, ".2f", 100) for path in _OBJECTS]
        rows[-1] += [_number(borders, path, ".3f") for path in ("f", "moved")]
    images, instances = (view.colour(Objects).first(name, NOT_RUN) for name in ("scored", "instances"))
    section.table(
        ["model", "weights", "box AP50", "moved", "box AP", "mask AP50", "moved", "mask AP", "border F", "moved"],
        rows,
        caption=f"{images} photos with {instances} objects, {config.border_photos} photos for "
        "borders. Moved: the same masks or borders, shifted at random. Published (another scale), box AP50 | AP75 | "
        "AP: CRATE-S/8 2.9 | 1.0 | 1.1, ViT-S/8 0.1 | 0.1 | 0.0, DINO-S/8 5.0 | 2.0 | 2.4. Untrained: the first seed.",
    )


def parts(report: Report, view: View) -> None:
    """Whether heads keep to their parts."""
    from unrolled.report import HeatMap

    config = view.config
    rows = []
    names: list[str] = []
    for kind in config.kinds:
        for state in STATES:
            measured = view.rows(Parts, kind, state)
            names = names or measured.first("parts", [])
            numbers = [_number(measured, key, ".3f") for key in ("consistency", "heads_chance", "images_chance")]
            numbers += [", ".join(f"{p:.3f}" for p in measured.values(key)) or "-" for key in ("heads_p", "images_p")]
            rows.append([KINDS[kind].words, state, *numbers])
    section = report.section(
        "Heads and parts",
        f"Parts are the {len(names)} commonest categories: {', '.join(names)}; COCO marks no parts of things. "
        "Consistency: the share, 0 to 1, of the variation of attention to parts that a head's identity explains, in "
        f"the penultimate layer at {config.side} px.",
    )
    section.table(
        ["model", "weights", "consistency", "heads shuffled", "photos shuffled", "p, heads", "p, photos"],
        rows,
        caption="Heads shuffled within each photo, and maps paired with other photos' parts, 200 times each. A head "
        "that always looks at one place passes the first, not the second. p of each seed.",
    )
    panels = []
    for state in STATES:
        if measured := view.rows(Parts, "crate", state):
            lift = np.array([[np.nan if v is None else v for v in row] for row in measured.first("lift")], np.float64)
            panels.append(
                HeatMap(
                    title=f"CRATE, {state}: attention to parts over their area",
                    values=lift,
                    rows=[f"head {k}" for k in range(len(lift))],
                    columns=[name.split("-")[0] for name in measured.first("parts")],
                )
            )
    if panels:
        section.figure(panels, name="parts", caption="Geometric mean over photos; 1 is as by chance. First seed.")


def show(report: Report, view: View) -> None:
    """Maps of photos that may be shown."""
    from unrolled.report import ImageGrid

    rows = pictures.rows_of(view)
    if not rows:
        return
    report.section("What it looks like").figure(
        ImageGrid(
            title=f"Maps at {view.config.side} px",
            rows=rows,
            alt="two photos, and for every kind of model a map and what of the photo is left when it is cut",
        ),
        name="pictures",
        caption=f"{PHOTOS}, here squeezed to squares; they took no part in any choice. Of each: the map of the layer "
        f"and head chosen, and the photo where its largest {KEEP:.0%} of entries lie. First seed.",
    )


def _number(rows: Results[Any], path: str, spec: str, scale: float = 1.0) -> str:
    """Mean and deviation over rows, of which what needs no network is one."""
    return f"{Values({place: scale * Results([row]).first(path) for place, row in enumerate(rows)}):{spec}}"


def short(kind: str) -> str:
    """What charts call a kind."""
    return KINDS[kind].words.split(" (")[0].split(" of width")[0]
