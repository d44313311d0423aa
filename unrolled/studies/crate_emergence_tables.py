"""Objects, borders, parts and pictures on the page of `crate-emergence`, and the names that its tables use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.studies.crate_emergence import PENULTIMATE, Config, difference, map_of, scores
from unrolled.studies.crate_emergence_maps import KEEP, MAPS, RULE
from unrolled.studies.crate_members import KINDS

if TYPE_CHECKING:
    from unrolled.report import Report

MISSING = "not run"
Difference = dict[str, Any]
STATES = ("trained", "untrained")


class Found:
    """What `run` found, by question."""

    def __init__(self, config: Config, found: dict[str, Any]) -> None:
        self.config, self.raw = config, found

    def runs(self, kind: str, state: str, side: int | None = None) -> list[dict[str, Any] | None]:
        """Segmentation of every seed, None where not run."""
        table = self.raw["segmentation"][str(side or self.config.side)]
        runs: list[dict[str, Any] | None] = table.get(kind, {}).get(state, [])
        return runs

    def scores(
        self, kind: str, state: str = "trained", *, what: str = "picked_photos", side: int | None = None,
        name: str = "", rule: str = RULE,
    ) -> dict[int, np.ndarray]:  # fmt: skip
        """See `scores`; the map is the kind's own unless named."""
        return scores(self.runs(kind, state, side), name or map_of(kind), rule, what)

    def baseline(self, name: str, side: int | None = None) -> np.ndarray:
        """Jaccard by photo of what needs no model."""
        return np.asarray(self.raw["baselines"][str(side or self.config.side)][name])

    def cells(self, table: str, kind: str, state: str) -> list[dict[str, Any]]:
        """Those of `objects`, `borders` or `consistency` that were run."""
        return [cell for cell in self.raw[table].get(kind, {}).get(state, []) if cell is not None]


def differences(found: Found) -> list[Difference]:
    """Every paired difference: `change`, `kind`, and what `difference` gives, or None in `result`."""
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
        add("cut by mass, against fraction", kind, found.scores(kind, rule="mass"), own)
        for side in config.other_sides:
            add(f"{side} px, against {config.side} px", kind, found.scores(kind, side=side), own)
    return out


def details(report: Report, found: Found) -> None:
    """Objects that MaskCut finds, and borders between clusters."""
    from unrolled.report import mean_std

    config = found.config
    section = report.section(
        "Objects and borders",
        f"From the keys of the penultimate layer ({PENULTIMATE + 1}) at {config.side} px. Objects: at most three by "
        "MaskCut, tau 0.15, those found first ranked first, no refinement; class-agnostic COCO average precision, "
        "times 100. Borders: those between five k-means clusters, F-measure at 0.75 % of the diagonal, nearest "
        "matching on photos at half size, which is more generous than the benchmark's. Moved: the same masks moved "
        "around the edges; one that comes back on the other side gets a box across the whole photo, so that moved "
        "boxes score higher than moved masks.",
    )
    columns = ["model", "weights", "box AP50", "moved", "box AP", "mask AP50", "moved", "mask AP", "border F", "moved"]
    rows: list[list[str]] = []

    def line(head: list[str], objects: Sequence[dict[str, Any]], borders: Sequence[dict[str, Any]]) -> None:
        def of(pick: Callable[[dict[str, Any]], float]) -> str:
            return mean_std([100 * pick(cell) for cell in objects], digits=2)

        if not objects or not borders:
            rows.append([*head, MISSING, *["-"] * 7])
            return
        rows.append(
            [*head, of(lambda c: c["bbox"]["AP50"]), of(lambda c: c["bbox_moved"]["AP50"]),
             of(lambda c: c["bbox"]["AP"]), of(lambda c: c["segm"]["AP50"]), of(lambda c: c["segm_moved"]["AP50"]),
             of(lambda c: c["segm"]["AP"]), mean_std([cell["f"] for cell in borders], digits=3),
             mean_std([cell["moved"] for cell in borders], digits=3)]
        )  # fmt: skip

    for kind in config.kinds:
        for state in STATES:
            line([KINDS[kind].words, state], found.cells("objects", kind, state), found.cells("borders", kind, state))
    line(["colour of patches", "-"], [found.raw["colour"]["objects"]], [found.raw["colour"]["borders"]])
    photos = found.raw["colour"]["objects"]
    section.table(
        columns,
        rows,
        caption=f"{photos['images']} photos with {photos['instances']} objects, {config.border_photos} photos for "
        "borders. Moved: the same masks or borders, shifted at random. Published (another scale), box AP50 | AP75 | "
        "AP: CRATE-S/8 2.9 | 1.0 | 1.1, ViT-S/8 0.1 | 0.1 | 0.0, DINO-S/8 5.0 | 2.0 | 2.4. Untrained: the first seed.",
    )


def parts(report: Report, found: Found) -> None:
    """Whether heads keep to their parts."""
    from unrolled.report import HeatMap, mean_std

    config = found.config
    rows = []
    names: list[str] = []
    for kind in config.kinds:
        for state in STATES:
            cells = found.cells("consistency", kind, state)
            if not cells:
                rows.append([KINDS[kind].words, state, MISSING, *["-"] * 4])
                continue
            names = names or cells[0]["parts"]
            rows.append(
                [KINDS[kind].words, state, mean_std([c["consistency"] for c in cells], digits=3),
                 mean_std([c["heads_chance"] for c in cells], digits=3),
                 mean_std([c["images_chance"] for c in cells], digits=3),
                 ", ".join(f"{c['heads_p']:.3f}" for c in cells), ", ".join(f"{c['images_p']:.3f}" for c in cells)]
            )  # fmt: skip
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
        cells = found.cells("consistency", "crate", state)
        if cells:
            lift = np.array([[np.nan if v is None else v for v in row] for row in cells[0]["lift"]], np.float64)
            panels.append(
                HeatMap(
                    title=f"CRATE, {state}: attention to parts over their area",
                    values=lift,
                    rows=[f"head {k + 1}" for k in range(len(lift))],
                    columns=[name.split("-")[0] for name in cells[0]["parts"]],
                )
            )
    if panels:
        section.figure(panels, name="parts", caption="Geometric mean over photos; 1 is as by chance. First seed.")


def pictures(report: Report, found: Found) -> None:
    """Maps of photos that may be shown."""
    from unrolled.report import ImageGrid
    from unrolled.studies.crate_emergence_pictures import rows_of

    rows = rows_of(found)
    report.section("What it looks like").figure(
        ImageGrid(
            title=f"Maps at {found.config.side} px",
            rows=rows,
            alt="two photos, and for every kind of model a map and what of the photo is left when it is cut",
        ),
        name="pictures",
        caption="scikit-learn's two sample photos (CC BY 2.0, danielbuechele and vultilion on Flickr; here squeezed to "
        "squares), which took no part in any choice. Of each: the map of the layer and head chosen, and the photo "
        f"where its largest {KEEP:.0%} of entries lie. First seed.",
    )


def head_name(index: int, heads: int) -> str:
    """What tables call a head, from 1; the last is the mean over heads."""
    return "mean" if index == heads else str(index + 1)


def short(kind: str) -> str:
    """What charts call a kind."""
    return KINDS[kind].words.split(" (")[0].split(" of width")[0]


def seeds_of(config: Config) -> str:
    """How many seeds, in words."""
    return plural(len(config.seeds), "seed")


def plural(count: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
