"""The report of `platonic-brain`: claims, layers beside the noise ceiling, and tables from its cells."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from unrolled.studies.platonic_brain import (
    CEILING_HIGH,
    CEILING_LOW,
    MONKEY,
    TEXTS,
    TRAINED,
    WORDS,
    Config,
    smallest_gain,
)

if TYPE_CHECKING:
    from unrolled.report import Report, Series
    from unrolled.studies.platonic.human import Brains

Cells = list[dict[str, Any]]


def make_report(
    config: Config, records: Brains, results: Cells, words: Cells, missing: list[str], members: int, began: float
) -> Report:
    """The report from all cells; `missing` networks and an absent zoo are said to be not run."""
    from unrolled.report import Fact, Provenance, Report
    from unrolled.studies.platonic.human import noise_ceiling, unit_ranks, upper

    report = Report(
        "Networks beside brains and human judgement",
        question="Do networks find the same pictures, things and colours alike as brains and people do?",
    )
    low, high = noise_ceiling(records.human)
    monkey = float(unit_ranks(upper(records.monkey)) @ unit_ranks(upper(records.human.mean(0))))
    gain = smallest_gain(results)
    things = {c["name"]: c for c in words if c["what"] == "things"}
    best_words = max((c["score"] for c in things.values()), default=math.nan)
    report.claims = [
        MONKEY.judge(monkey, f"{monkey:.3f}"),
        CEILING_LOW.judge(low, f"{low:.3f}"),
        CEILING_HIGH.judge(high, f"{high:.3f}"),
        TRAINED.judge(gain, "not run" if math.isnan(gain) else f"{gain:+.3f}"),
        WORDS.judge(best_words, f"{best_words:.3f}" if things else "not run"),
    ]
    networks = [c for c in results if c["group"] not in ("recorded", "control", "untrained")]
    top = max(networks, key=lambda c: float(c["score"])) if networks else None
    floor = max(c["score"] for c in results if c["group"] == "control")
    said = f"Human and monkey IT correlate at {monkey:.3f}; the noise ceiling of human IT is {low:.3f} to {high:.3f}."
    if top is not None:
        said += (
            f" The best layer of the best network, {top['name']}, reaches {top['score']:.3f}; pixels and random "
            f"numbers at most {floor:.3f}."
        )
    report.headline(
        said,
        [
            Fact(label="Monkey and human IT", value=f"{monkey:.3f}", detail="Spearman, 4,186 pairs of photographs"),
            Fact(label="Noise ceiling", value=f"{low:.3f} to {high:.3f}", detail="4 people, sessions averaged"),
            Fact(
                label="Best network",
                value="not run" if top is None else f"{top['score']:.3f}",
                detail="" if top is None else f"{top['name']}, {top['best']}",
            ),
        ],
    )
    _layers(report, results, (low, high))
    _table(report, config, results, missing, members)
    _judgements(report, config, words)
    report.section(
        "What this does not show",
        "92 photographs and four people: intervals are wide, and few differences between networks are certain. The "
        "best layer is chosen on the same photographs; the p-value corrects for that, the interval does not. fMRI "
        "averages over voxels and seconds. Features are averaged over a 4 x 4 grid of places, which costs fine detail.",
    )
    report.results = {"networks": results, "words": words, "missing": missing, "ceiling": [low, high], "monkey": monkey}
    report.provenance = Provenance.collect(config=config, seeds=[config.seed], duration=time.perf_counter() - began)
    return report


def _layers(report: Report, results: Cells, ceiling: tuple[float, float]) -> None:
    from unrolled.report import LineChart, Scatter, Series

    def flat(label: str, value: float) -> Series:
        return Series(label=label, x=[0.0, 1.0], y=[value, value], dashed=True, color=5)

    panels: list[LineChart | Scatter] = []
    for group, title in (("ImageNet", "trained on ImageNet"), ("untrained", "the same kinds, untrained")):
        cells = [c for c in results if c["group"] == group and len(c["by_layer"]) > 1]
        if group == "untrained":
            names = {c["name"] for c in results if c["group"] == "ImageNet"}
            cells = [c for c in cells if c["name"] in names]
        series = []
        for color, c in enumerate(cells[:5]):
            depth = [i / (len(c["by_layer"]) - 1) for i in range(len(c["by_layer"]))]
            series.append(Series(label=c["name"].split("_")[0], x=depth, y=c["by_layer"], color=color))
        if series:
            panels.append(
                LineChart(
                    title=f"Spearman with human IT, {title}",
                    x_label="depth (share of layers)",
                    series=[*series, flat("ceiling, lower", ceiling[0])],
                    y_range=(-0.05, 0.42),
                )
            )
    shown = [c for c in results if c["name"] != "monkeyIT"]
    panels.append(
        Scatter(
            title="human against monkey IT, best layers",
            x_label="Spearman with monkey IT",
            y_label="mean Spearman with human IT",
            x=[c["monkey"] for c in shown],
            y=[c["score"] for c in shown],
            names=[c["name"] for c in shown],
            groups=[c["group"].split(" ")[0] for c in shown],
        )
    )
    report.section(
        "Layers",
        "Dissimilarity of two photographs is one minus the correlation of their features. Scores are means over four "
        "people of Spearman's correlation between 4,186 dissimilarities.",
    ).figure(
        panels,
        name="layers",
        caption="One line a network. The lower bound of the noise ceiling is how well a person agrees with the others; "
        f"the upper bound, {ceiling[1]:.2f}, lies above the chart.",
    )


def _table(report: Report, config: Config, results: Cells, missing: list[str], members: int) -> None:
    rows: list[list[str]] = [
        [
            c["name"], c["group"], c["best"] if len(c["layers"]) > 1 else "-", f"{c['score']:.3f}",
            f"{c['interval'][0]:.2f} to {c['interval'][1]:.2f}", f"{c['tau']:.3f}", f"{c['null']:.3f}", f"{c['p']:.3f}",
            f"{c['monkey']:.3f}",
        ]
        for c in sorted(results, key=lambda c: (c["group"], -c["score"]))
    ]  # fmt: skip
    rows += [[name, "given network", *["not run"] * 7] for name in missing]
    if not members:
        rows.append(["members of the zoo", "CRATE, ViT, CNN", *["not run"] * 7])
    report.section("Every network").table(
        ["what", "group", "best layer", "Spearman", "95 % interval", "tau-a", "chance", "p", "monkey IT"],
        rows,
        caption=f"Best layer by human IT. Interval: {config.draws} resamplings of photographs and people. Chance and "
        f"p: {config.draws} shufflings of the photographs, each with its own best layer. Recorded: models that came "
        "with the records. Untrained: weights drawn anew. Monkey IT: its own best layer. Not run: the weights are not "
        f"in {config.data_dir}, or no zoo is kept in {config.zoo}.",
    )


def _judgements(report: Report, config: Config, words: Cells) -> None:
    found = {(c["what"], c["name"]): c for c in words}
    rows = []
    for what, names in (("things", TEXTS), ("colours", ("CIELAB", *TEXTS))):
        for name in names:
            c = found.get((what, name))
            if c is None:
                rows.append([what, name, *["not run"] * 6])
                continue
            rows.append(
                [
                    what, name, str(c["n"]), f"{c['score']:.3f}", f"{c['interval'][0]:.2f} to {c['interval'][1]:.2f}",
                    f"{c['null']:.3f}", f"{c['p']:.3f}", f"{c['ceiling'][0]:.3f} to {c['ceiling'][1]:.3f}",
                ]
            )  # fmt: skip
    report.section(
        "Names beside human judgement",
        "Things: cosine of embeddings learnt from odd-one-out choices, four groups of people. Colours: ratings of "
        "five groups; a colour's name is the nearest of 949 in the xkcd survey, and pairs that a group did not rate "
        "count as 3.5 of 7, as in the source. Vectors of names are means over tokens.",
    ).table(
        ["what", "vectors", "n", "Spearman", "95 % interval", "chance", "p", "noise ceiling"],
        rows,
        caption="Mean over groups of people; interval, chance and p as above. A group is a mean over many people, so "
        "this ceiling is higher than one of single people.",
    )
