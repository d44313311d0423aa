"""The table and the page of `unrolled translate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unrolled.terminal import table

if TYPE_CHECKING:
    from unrolled.alignment.translation import Scores
    from unrolled.report import Report

_COLUMNS = ["fit", "top-1", "mean rank", "cosine"]


def _names(record: Mapping[str, Any]) -> dict[str, str]:
    k = record["pairs"]
    return {"unpaired": f"{k} pairs" if k else "without pairs", "paired": "all pairs"}


def _rows(record: Mapping[str, Any]) -> list[list[str]]:
    scores = record["scores"]
    rows = [
        [name, f"{each['top1']:.4f}", f"{each['mean_rank']:.1f}", f"{each['cosine']:.3f}"]
        for name, each in ((name, scores[key]) for key, name in _names(record).items())
    ]
    unpaired = scores["unpaired"]
    chance = ["partners shuffled", f"{unpaired['chance']:.4f}", f"{unpaired['chance_rank']:.1f}"]
    return [*rows, [*chance, f"{unpaired['shuffled_cosine']:.3f}"]]


def answer_text(record: Mapping[str, Any]) -> str:
    """Scores beside chance and the bound, and the verdict that needs no pairs."""
    n = record["scores"]["unpaired"]["n"]
    layers = " to ".join(record["layers"])
    return f"{table(_COLUMNS, _rows(record))}\n{layers}; {n:,} held-out pairs\n{record['verdict']}"


def translate_report(record: Mapping[str, Any], scores: Mapping[str, Scores]) -> Report:
    """The page.

    Args:
        record: the answer.
        scores: "unpaired" and "paired", for the figure.
    """
    from unrolled.report import Fact, LineChart, Report, Scatter, Series

    a, b = (f"{record[side]}{' (random weights)' if side.upper() in record['random'] else ''}" for side in ("a", "b"))
    unpaired, paired = (record["scores"][name] for name in ("unpaired", "paired"))
    report = Report(f"{a} to {b}", question="Can features of one model be turned into another's without pairs?")
    directions = " and ".join(str(each) for each in dict.fromkeys(record["directions"]))
    how = f"{record['pairs']} pairs" if record["pairs"] else "no pair"
    report.headline(
        f"A map fitted with {how} brings {100 * unpaired['top1']:.1f} % of {unpaired['n']:,} held-out samples nearest "
        f"to their partners, chance {100 * unpaired['chance']:.2f} %, a map fitted to all pairs "
        f"{100 * paired['top1']:.1f} %. {record['verdict']}",
        [
            Fact(label="Top-1", value=f"{unpaired['top1']:.3f}", detail=f"chance {unpaired['chance']:.4f}"),
            Fact(label="Mean rank", value=f"{unpaired['mean_rank']:.1f}", detail=f"of {unpaired['n']:,}"),
            Fact(label="Top-1 with all pairs", value=f"{paired['top1']:.3f}", detail="the upper bound"),
        ],
    )
    series = [
        Series(label=name, x=list(line.x), y=list(line.y), color=color)
        for color, (name, line) in enumerate(
            (name, scores[key].panel().series[0]) for key, name in _names(record).items()
        )
    ]
    chance = scores["unpaired"].panel().series[1]
    report.section("Where partners come").table(
        _COLUMNS,
        _rows(record),
        caption=f"Layer {record['layers'][0]} of A, {record['layers'][1]} of B, {record['map']} map between the "
        f"leading {directions} principal directions. Fitted to {record['fitted'][0]:,} samples of A and other "
        f"{record['fitted'][1]:,} of B; scored on {unpaired['n']:,} that neither saw, by cosine of centred features. "
        "Shuffled: partners relabelled at random, exact.",
    ).figure(
        LineChart(
            title="share of partners among the nearest k",
            x_label="log10 of k",
            series=[*series, Series(label=chance.label, x=list(chance.x), y=list(chance.y), dashed=True)],
        ),
        name="ranks",
        caption="How many translations have their partner among the nearest k, for every k.",
    )
    restarts = record["restarts"]
    section = report.section(
        "Restarts",
        "Every attempt begins from other anchors. The one with the largest criterion is taken, which knows no pair; "
        "what pairs say of each stands beside it. " + record["verdict"],
    )
    section.table(
        ["restart", "anchors agree", "criterion", "agreement with the chosen", "top-1", "mean rank", ""],
        [
            [
                str(each["restart"]), "-" if each["anchors"] is None else f"{each['anchors']:.3f}",
                f"{each['criterion']:.4f}", f"{each['agreement']:.2f}", f"{each['top1']:.4f}",
                f"{each['mean_rank']:.1f}", "chosen" if each["chosen"] else "",
            ]
            for each in restarts
        ],
        caption="Anchors agree: correlation of the matched centroids' similarities. Criterion: mean cosine of rows "
        "with the nearest of the other side, both ways. Agreement: mean cosine of translations.",
    )  # fmt: skip
    section.figure(
        Scatter(
            title="mean rank of partners",
            x_label="criterion, without pairs",
            x=[each["criterion"] for each in restarts],
            y=[each["mean_rank"] for each in restarts],
            names=["chosen" if each["chosen"] else "" for each in restarts],
        ),
        name="restarts",
        caption="Restarts: what they are chosen by, and what pairs say. Good ones lie at the lower right."
        + (
            f" The best of three restarts has {record['level']:.4f} on the average; with B's clusters rearranged it is "
            f"{max(record['controls']):.4f} at most ({len(record['controls'])} rearrangements)."
            if record["controls"]
            else ""
        ),
    )
    return report
