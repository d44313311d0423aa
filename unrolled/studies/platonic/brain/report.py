"""The page of `platonic-brain`: claims, layers beside the noise ceiling, every network, names beside judgement."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING, Any

from unrolled.studies.cells import Row
from unrolled.studies.claim import EARLIER, NOBODY, Claim
from unrolled.studies.platonic.brain.cells import (
    TEXTS,
    BesideBrains,
    BrainConfig,
    Ceiling,
    Colours,
    Control,
    Given,
    OfMember,
    Things,
)
from unrolled.studies.platonic.photos import NETS
from unrolled.studies.results import NOT_RUN, Estimate, Results, Values

if TYPE_CHECKING:
    from unrolled.report import LineChart, Report, Scatter

_RECORDS = "N. Kriegeskorte et al., Neuron 2008, who have a Pearson correlation of 0.49; recomputed from the records"


def smallest_gain(results: Results[Any], config: BrainConfig) -> Estimate | Values:
    """Least difference between an ImageNet network and itself untrained, on equal resamplings."""
    import numpy as np

    gains = []
    for row in results.of(Given, trained=True):
        for control in results.of(Given, trained=False, what=row.cell.what):
            if row.cell.what in NETS:
                resampled = np.subtract(row.result["resampled"], control.result["resampled"])
                low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
                gain = row.result["score"] - control.result["score"]
                gains.append(Estimate(gain, low, high, f"{len(resampled)} resamplings of photographs and people"))
    return min(gains, key=lambda gain: gain.value, default=Values())


def best_words(results: Results[Any], config: BrainConfig) -> Estimate | Values:
    """The better of GloVe and MiniLM at things."""
    rows = [row for row in results.of(Things) if row.cell.vectors in ("glove", "minilm")]
    if not rows:
        return Values()
    best = max(rows, key=lambda row: float(row.result["score"])).result
    low, high = best["interval"]
    return Estimate(best["score"], low, high, f"{config.draws} resamplings of things and groups of people")


CLAIMS = (
    Claim(
        statement="Human and monkey IT see the 92 photographs alike (Spearman)",
        source=_RECORDS,
        published="0.439",
        value=lambda results, config: results.of(Ceiling).first("monkey", nan),
        low=0.434,
        high=0.444,
        unjudged=EARLIER,
        point=True,
    ),
    Claim(
        statement="Noise ceiling of human IT, lower bound (mean Spearman of a person with the others)",
        source=_RECORDS,
        published="0.377",
        value=lambda results, config: results.of(Ceiling).first("ceiling.0", nan),
        low=0.367,
        high=0.387,
        unjudged=EARLIER,
        point=True,
    ),
    Claim(
        statement="Noise ceiling of human IT, upper bound (mean Spearman of a person with all)",
        source=_RECORDS,
        published="0.672",
        value=lambda results, config: results.of(Ceiling).first("ceiling.1", nan),
        low=0.662,
        high=0.682,
        unjudged=EARLIER,
        point=True,
    ),
    Claim(
        statement="A trained ImageNet network is closer to human IT than the same network untrained (smallest "
        "difference)",
        source="arXiv 2405.07987, section 2.4, citing Yamins et al. 2014 and Schrimpf et al. 2018",
        published="stated, no number",
        value=smallest_gain,
        low=0.0,
        outside="networks that are as close before training: 0",
        spec="+.3f",
    ),
    Claim(
        statement="Word vectors order things as people do (larger of GloVe's and MiniLM's Spearman)",
        source="arXiv 2405.07987, section 2.4, on human judgement; no experiment there",
        published="not measured",
        unjudged=NOBODY,
        value=best_words,
    ),
)


def report(report: Report, config: BrainConfig, results: Results[Any]) -> None:
    """Headline, layers, every network, names, limits."""
    _headline(report, results)
    if results.of(Ceiling):
        _layers(report, results)
    _table(report, config, results)
    _judgements(report, results)
    report.section(
        "What this does not show",
        "92 photographs and four people: intervals are wide, and few differences between networks are certain. The "
        "best layer is chosen on the same photographs; the p-value corrects for that, the interval does not. fMRI "
        "averages over voxels and seconds. Features are averaged over a 4 x 4 grid of places, which costs fine detail.",
    )


def _compared(results: Results[Any]) -> list[Row[BesideBrains]]:
    return [row for row in results if isinstance(row.cell, BesideBrains)]


def _headline(report: Report, results: Results[Any]) -> None:
    from unrolled.report import Fact

    records = results.of(Ceiling)
    if not records:
        report.headline("The records of brains were not compared with anything.")
        return
    low, high = records.first("ceiling")
    monkey = f"{records.first('monkey'):.3f}"
    networks = [row for row in _compared(results) if row.cell.group not in ("recorded", "control", "untrained")]
    top = max(networks, key=lambda row: float(row.result["score"]), default=None)
    answer = f"Human and monkey IT correlate at {monkey}; the noise ceiling of human IT is {low:.3f} to {high:.3f}."
    if top is not None:
        floor = max((row.result["score"] for row in results.of(Control)), default=nan)
        answer += (
            f" The best layer of the best network, {top.cell.what}, reaches {top.result['score']:.3f}; pixels and "
            f"random numbers at most {floor:.3f}."
        )
    report.headline(
        answer,
        [
            Fact(label="Monkey and human IT", value=monkey, detail="Spearman, 4,186 pairs of photographs"),
            Fact(label="Noise ceiling", value=f"{low:.3f} to {high:.3f}", detail="4 people, sessions averaged"),
            Fact(
                label="Best network",
                value=NOT_RUN if top is None else f"{top.result['score']:.3f}",
                detail="" if top is None else f"{top.cell.what}, {top.result['best']}",
            ),
        ],
    )


def _layers(report: Report, results: Results[Any]) -> None:
    from unrolled.report import LineChart, Scatter, Series

    low, high = results.of(Ceiling).first("ceiling")
    panels: list[LineChart | Scatter] = []
    for trained, title in ((True, "trained on ImageNet"), (False, "the same kinds, untrained")):
        rows = [row for row in results.of(Given, trained=trained) if row.cell.what in NETS]
        series = []
        for color, row in enumerate(rows[:5]):
            line = row.result["by_layer"]
            depth = [i / (len(line) - 1) for i in range(len(line))]
            series.append(Series(label=row.cell.what.split("_")[0], x=depth, y=line, color=color))
        if series:
            ceiling = Series(label="ceiling, lower", x=[0.0, 1.0], y=[low, low], dashed=True, color=5)
            panels.append(
                LineChart(
                    title=f"Spearman with human IT, {title}",
                    x_label="depth (share of layers)",
                    series=[*series, ceiling],
                    y_range=(-0.05, 0.42),
                )
            )
    shown = [row for row in _compared(results) if row.cell.what != "monkeyIT"]
    if shown:
        panels.append(
            Scatter(
                title="human against monkey IT, best layers",
                x_label="Spearman with monkey IT",
                y_label="mean Spearman with human IT",
                x=[row.result["monkey"] for row in shown],
                y=[row.result["score"] for row in shown],
                names=[row.cell.what for row in shown],
                groups=[row.cell.group.split(" ")[0] for row in shown],
            )
        )
    section = report.section(
        "Layers",
        "Dissimilarity of two photographs is one minus the correlation of their features. Scores are means over four "
        "people of Spearman's correlation between 4,186 dissimilarities.",
    )
    if panels:
        section.figure(
            panels,
            name="layers",
            caption="One line a network. The lower bound of the noise ceiling is how well a person agrees with the "
            f"others; the upper bound, {high:.2f}, lies above the chart.",
        )


def _shown(result: Any) -> list[str]:
    low, high = result["interval"]
    return [f"{result['score']:.3f}", f"{low:.2f} to {high:.2f}"]


def _table(report: Report, config: BrainConfig, results: Results[Any]) -> None:
    rows: list[list[str]] = []
    for cell, result, _ in sorted(_compared(results), key=lambda row: (row.cell.group, -row.result["score"])):
        layer = result["best"] if len(result["layers"]) > 1 else "-"
        numbers = [f"{result[name]:.3f}" for name in ("tau", "null", "p", "monkey")]
        rows.append([cell.what, cell.group, layer, *_shown(result), *numbers])
    missing = [cell for cell in results.missing if isinstance(cell, BesideBrains)]
    rows += [[cell.what, cell.group, *[NOT_RUN] * 7] for cell in missing if not isinstance(cell, OfMember)]
    if not results.of(OfMember):
        rows.append(["members of the zoo", "CRATE, ViT, CNN", *[NOT_RUN] * 7])
    report.section("Every network").table(
        ["what", "group", "best layer", "Spearman", "95 % interval", "tau-a", "chance", "p", "monkey IT"],
        rows,
        caption=f"Best layer by human IT. Interval: {config.draws} resamplings of photographs and people. Chance and "
        f"p: {config.draws} shufflings of the photographs, each with its own best layer. Recorded: models that came "
        "with the records. Untrained: weights drawn anew. Monkey IT: its own best layer. Not run: the weights are not "
        f"in {config.data_dir}, or no members were asked for, or what they learn is not there.",
    )


def _judgements(report: Report, results: Results[Any]) -> None:
    rows = []
    for kind, what, names in ((Things, "things", TEXTS), (Colours, "colours", ("CIELAB", *TEXTS))):
        for name in names:
            for _, result, _ in results.of(kind, vectors=name):
                low, high = result["ceiling"]
                chance = f"{result['null']:.3f}", f"{result['p']:.3f}"
                rows.append([what, name, str(result["n"]), *_shown(result), *chance, f"{low:.3f} to {high:.3f}"])
            if not results.of(kind, vectors=name):
                rows.append([what, name, *[NOT_RUN] * 6])
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
