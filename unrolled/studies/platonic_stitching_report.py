"""The page of the study of stitching: accuracy kept by depth, units in common, every pair."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from unrolled.studies.platonic_stitching import CONTROL, EARLY, ROSETTA, SEEDS, flat, kept, summary

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.studies.platonic_stitching import Config


def build(config: Config, stitched: list[dict[str, Any]], matched: list[dict[str, Any]], *, seconds: float) -> Report:
    """The report from all stitched networks and all matched pairs."""
    from unrolled.report import Fact, Provenance, Report

    by_sort = summary(stitched)
    means = {sort: flat(values) for sort, values in by_sort.items()}
    trained = [cell for cell in stitched if cell["sort"] in ("another seed", "another kind")]
    first, last = min(config.cuts), max(config.cuts)
    early = fmean(kept(c) for c in trained if c["cut"] == first) - fmean(kept(c) for c in trained if c["cut"] == last)
    other = [pair for pair in matched if pair["sort"] == "another kind"]
    fewest = min(other, key=lambda pair: pair["found"])
    report = Report(
        "Stitching networks, and units they share",
        question="Can one network go on from another's layer through one affine map, and do they have units in common?",
    )
    spare = means["another seed"] - means["untrained"]
    report.claims = [
        SEEDS.judge(means["another seed"], f"{means['another seed']:.2f}"),
        CONTROL.judge(spare, f"{means['another seed']:.2f} - {means['untrained']:.2f} = {spare:.2f}"),
        EARLY.judge(early, f"{early:+.2f}") if len(config.cuts) > 1 else _not_run(),
        ROSETTA.judge(fewest["found"], f"{fewest['found']} of {min(fewest['units'])} possible"),
    ]
    report.headline(
        f"Behind the front of a network of another seed, a back keeps {100 * means['another seed']:.0f} % of its "
        f"accuracy, of another kind {100 * means['another kind']:.0f} %, and behind an untrained front "
        f"{100 * means['untrained']:.0f} %.",
        [Fact(label=f"Kept behind {sort}", value=f"{100 * mean:.0f} %") for sort, mean in means.items()],
    )
    _stitching(report, config, stitched, by_sort)
    _rosetta(report, config, matched)
    report.results = {"stitched": stitched, "rosetta": matched}
    report.provenance = Provenance.collect(config=config, seeds=(0, 1, 7), duration=seconds)
    return report


def _not_run() -> Any:
    from unrolled.report import Claim

    return Claim(statement=EARLY.statement, source=EARLY.source, published=EARLY.published, measured="not run")


def _stitching(
    report: Report, config: Config, stitched: list[dict[str, Any]], by_sort: dict[str, dict[int, list[float]]]
) -> None:
    from unrolled.report import LineChart, Series

    def line(place: int, sort: str) -> Series:
        cuts = sorted(by_sort[sort])
        values = [by_sort[sort][cut] for cut in cuts]
        spread = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        dashed = sort in ("itself", "untrained")
        return Series(label=sort, x=cuts, y=[fmean(v) for v in values], error=spread, color=place, dashed=dashed)

    section = report.section(
        "Stitching by depth",
        "Both networks are frozen; one affine map, the same at every place, carries the front's layer into the back's. "
        f"It starts from the ridge regression between the two layers on {config.matched} training images and is then "
        f"trained for {config.stitch_steps} steps on the labels. What is kept is the accuracy of the whole as a share "
        "of the back's own, on the same held-out images; above 1 means better than the back's own network. The two "
        "controls: a network stitched to itself, and an untrained front, whose later blocks cannot have learned "
        "anything. An untrained front that keeps much says that the back and the map do the work, not that networks "
        "agree.",
    )
    section.figure(
        LineChart(
            title="accuracy kept",
            x_label="blocks or stages of the front",
            series=[line(place, sort) for place, sort in enumerate(by_sort)],
        ),
        name="kept",
        caption="Means over pairs; bars are one standard deviation over pairs. Untrained: the front alone is "
        "untrained.",
    )
    section.table(
        ["sort", "front", "back", "cut", "regression %", "trained %", "the back's own %", "kept"],
        [
            [
                *(c["sort"], c["front"], c["back"], c["cut"]),
                *(f"{100 * c['regressed']:.1f}", f"{100 * c['accuracy']:.1f}", f"{100 * c['reference']:.1f}"),
                f"{kept(c):.2f}",
            ]
            for c in stitched
        ],
        caption=f"Accuracy on {config.tested} held-out images at most. Between a CNN and a transformer, places are "
        "averaged to the other grid, and class tokens are learned constants. A cut counts blocks: depths of different "
        "kinds correspond only roughly.",
    )


def _rosetta(report: Report, config: Config, matched: list[dict[str, Any]]) -> None:
    section = report.section(
        "Rosetta neurons",
        "Units of all blocks of two networks, correlated over images and a 4 x 4 grid of places. A pair counts if each "
        "is the other's best and their correlation exceeds what the best of all pairs reaches in 95 % of relabellings "
        "of the images, which keep where a unit likes to fire. Units of an untrained network follow colours and edges, "
        "and so have partners too: what they share with trained ones is the measure for the rest.",
    )
    section.table(
        ["sort", "networks", "units", "mutual pairs", "above threshold", "share", "best", "median", "threshold"],
        [
            [
                *(pair["sort"], f"{pair['a']}, {pair['b']}", f"{pair['units'][0]}, {pair['units'][1]}"),
                *(pair["mutual"], pair["found"], f"{pair['found'] / min(pair['units']):.2f}"),
                *(f"{pair['best'][0]:.2f}", f"{pair['median']:.2f}", f"{pair['threshold']:.2f}"),
            ]
            for pair in matched
        ],
        caption=f"{config.units} held-out images, {config.draws} relabellings. Share: of the smaller network's units.",
    )
