"""The page of `platonic-translation`: five sorts of pairs of networks, restarts, classes with their names."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from unrolled.alignment.translation.record import SIZE
from unrolled.studies.platonic.translation.cells import SORTS, FewPairs, Translated, TranslationConfig
from unrolled.studies.platonic.translation.claims import few, named, rank_gain, share, splits, top1
from unrolled.studies.platonic.translation.classes import Named
from unrolled.studies.platonic.zoo import Features, full_name
from unrolled.studies.results import NOT_RUN, Results, line
from unrolled.studies.statistics import number

if TYPE_CHECKING:
    from unrolled.report import Report


def report(report: Report, config: TranslationConfig, results: Results[Any]) -> None:
    """Headline, tables, figures, limits."""
    for part in (_headline, _sorts, _few, _tests, _restarts, _classes):
        part(report, config, results)
    report.section("What this does not show").text(
        f"Fits see {config.samples // 3:,} images, {config.photos // 3:,} photos or "
        f"{config.photos * config.texts // 3:,} captions of a side, where the published ones see tens of thousands of "
        "texts; that a map fails here does not say that the two spaces cannot be matched. Splits divide the same "
        "samples anew, and intervals over them are narrower than over new samples; the seeds of CRATE and ViT change "
        "with the split, of which there are three each. Rows are matched in their leading 64 principal directions. The "
        "paper's second refinement is left out. A test without pairs that is passed says that two spaces match beyond "
        "their spread and their clumps, not that each row is translated. Which few pairs are given is one draw a split."
    )


def _headline(report: Report, config: TranslationConfig, results: Results[Any]) -> None:
    from unrolled.report import Fact

    known = {sort: values for sort in SORTS if (values := splits(results, sort, top1))}
    if not known:
        report.headline(f"Translation: {NOT_RUN}.")
        return
    best = max(known, key=lambda sort: splits(results, sort, share).mean)
    rows = results.of(Translated, sort=best, trained=True)
    n = rows.first("n")
    bound = splits(results, best, partial(_score, "paired", "top1")).mean
    report.headline(
        f"Translated best without a single pair: {SORTS[best]}. {100 * known[best].mean:.1f} % of {n:,} held-out "
        f"samples come nearest to their partners, where chance is {100 / n:.2f} % and a map fitted to all pairs "
        f"reaches {100 * bound:.1f} %.",
        [
            Fact(
                label=SORTS[sort],
                value=f"{values.mean:.3f}",
                detail="top-1; with all pairs "
                f"{splits(results, sort, partial(_score, 'paired', 'top1')).mean:.3f}, chance "
                f"{1 / results.of(Translated, sort=sort, trained=True).first('n'):.4f}",
            )
            for sort, values in known.items()
        ],
    )


def _score(fit: str, key: str, result: Any) -> float:
    return float(result[fit][key])


def _sorts(report: Report, config: TranslationConfig, results: Results[Any]) -> None:
    section = report.section(
        "Five sorts of pairs",
        "A third of the samples is shown to the first network alone, another third to the second alone, and the map "
        "follows from how each lies to its kin. The last third scores. Shares are of what the map fitted to all pairs "
        "of both thirds reaches. Untrained: the second network, or the first where the second reads captions, has "
        "fresh weights.",
    )
    rows = []
    for sort, words in SORTS.items():
        for trained in (True, False):
            cells = results.of(Translated, sort=sort, trained=trained)
            label = words + ("" if trained else ", untrained")
            if not cells:
                rows.append([label, *[NOT_RUN] * 8])
                continue
            n = cells.first("n")
            values = [
                splits(results, sort, partial(_score, fit, key), trained=trained)
                for key in ("top1", "mean_rank")
                for fit in ("scores", "paired")
            ]
            cosine = splits(results, sort, partial(_score, "scores", "cosine"), trained=trained)
            rows.append([
                label, f"{values[0]:.3f}", f"{1 / n:.4f}", f"{values[1]:.3f}", f"{values[2]:.0f}", f"{(n + 1) / 2:.0f}",
                f"{values[3]:.1f}", f"{cosine:.2f}", f"{len(values[0])}",
            ])  # fmt: skip
    section.table(
        [
            *("networks", "top-1", "chance", "top-1 with all pairs", "mean rank", "chance", "with all pairs"),
            *("cosine", "splits"),
        ],
        rows,
        caption="Mean and standard deviation over splits; seeds of CRATE and ViT change with them. Chance: partners "
        "relabelled at random, exact.",
    )


def _few(report: Report, config: TranslationConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    kinds = {"orthogonal": "turned", "linear": "unconstrained"}
    rows = []
    for sort, words in SORTS.items():
        for kind, name in kinds.items():
            none, every = (
                splits(results, sort, lambda r, fit=fit, kind=kind: _of_kind(r, kind)[fit]["top1"])  # type: ignore[misc]
                for fit in ("scores", "paired")
            )
            given = [
                few(results, sort, pairs, lambda r, fit=fit, kind=kind: r[fit][kind]["top1"])  # type: ignore[misc]
                for pairs in config.pairs
                for fit in ("scores", "alone")
            ]
            rows.append([words, name, *(f"{each:.3f}" for each in (none, *given, every))])
    section = report.section(
        "A few pairs",
        "As above, and the partners of a few of the samples that the first network is shown are given: they take the "
        "place of the anchors, and weigh as much as all others together. Alone: a map fitted to these few and to "
        "nothing else. Unconstrained maps are ridge regressions, without pairs to the partners that the orthogonal map "
        "finds.",
    )
    section.table(
        [
            *("networks", "map", "no pair"),
            *(f"{pairs} pairs{alone}" for pairs in config.pairs for alone in ("", ", alone")),
            "all pairs",
        ],
        rows,
        caption="Top-1 accuracy, mean and standard deviation over splits.",
    )
    if results.of(FewPairs):
        section.figure(
            [
                LineChart(
                    title=title, x_label="log2 of the number of pairs",
                    series=[
                        line(
                            words, [math.log2(pairs) for pairs in config.pairs],
                            [few(results, sort, pairs, partial(_gain, fit)) for pairs in config.pairs],
                        )
                        for sort, words in SORTS.items()
                    ],
                )
                for title, fit in (("rank gain, with the rest", "scores"), ("rank gain, pairs alone", "alone"))
            ],
            name="few",
            caption="How far partners come to the front by the number of pairs, orthogonal maps: 0 as by chance, 1 "
            "where each comes first; bars are standard deviations over splits.",
        )  # fmt: skip


def _of_kind(result: Any, kind: str) -> Any:
    return result if kind == "orthogonal" else result[kind]


def _gain(fit: str, result: Any) -> float:
    return rank_gain({"scores": result[fit]["orthogonal"]})


def _tests(report: Report, config: TranslationConfig, results: Results[Any]) -> None:
    rows = []
    for trained in (True, False):
        for sort, words in SORTS.items():
            for cell, result, _ in results.of(Translated, sort=sort, trained=trained):
                if not result["controls"]:
                    continue
                controls = result["controls"]
                verdict = {True: "matches", False: "no translation found", None: "not judged"}[result["worked"]]
                rows.append([
                    words + ("" if trained else ", untrained"), f"{result['level']:.4f}", f"{max(controls):.4f}",
                    f"{len(controls)}", number(result["p_value"], 2), verdict, f"{top1(result):.4f}",
                    f"{1 / result['n']:.4f}", f"{rank_gain(result):.2f}", f"{cell.split}",
                ])  # fmt: skip
    report.section(
        "What can be said without pairs",
        "The criterion is the mean cosine of rows with the nearest row of the other side; beside it, what it is where "
        "the clusters of the second side are moved to where they might as well have been. " + f"{SIZE} Top-1 and rank "
        "gain are what pairs say afterwards.",
    ).table(
        [
            *("networks", "criterion, best of three", "rearranged, largest", "rearrangements", "p", "verdict", "top-1"),
            *("chance", "rank gain", "split"),
        ],
        rows or [[NOT_RUN] * 10],
        caption="The test ends at the first rearrangement that matches as closely; p is one over their number, or over "
        "one more if none does. Rank gain: 0 as by chance, 1 where every partner comes first.",
    )


def _restarts(report: Report, config: TranslationConfig, results: Results[Any]) -> None:
    from unrolled.report import Scatter

    points = []
    for sort, words in SORTS.items():
        for row in results.of(Translated, sort=sort, trained=True):
            result = row.result
            points += [
                (each["criterion"], rank_gain({"scores": {**result["scores"], "mean_rank": each["mean_rank"]}}), words)
                for each in result["restarts"]
            ]
    section = report.section(
        "Restarts",
        "Every attempt starts from other anchors and ends elsewhere. The one whose rows match most closely is taken; "
        "what it is worth shows only with pairs.",
    )
    rows = []
    for sort, words in SORTS.items():
        cells = results.of(Translated, sort=sort, trained=True)
        best = splits(results, sort, lambda result: max(float(each["top1"]) for each in result["restarts"]))
        every = splits(results, sort, lambda r: sum(float(each["top1"]) for each in r["restarts"]) / len(r["restarts"]))
        rows.append([
            words, f"{splits(results, sort, top1):.3f}", f"{best:.3f}", f"{every:.3f}",
            f"{len(cells.first('restarts', []))}" if cells else NOT_RUN,
        ])  # fmt: skip
    section.table(
        ["networks", "chosen without pairs", "best by pairs", "mean of all", "restarts"],
        rows,
        caption="Top-1 accuracy, mean and standard deviation over splits.",
    )
    if points:
        section.figure(
            Scatter(
                title="rank gain of a restart",
                x_label="criterion, without pairs",
                x=[point[0] for point in points],
                y=[point[1] for point in points],
                groups=[point[2] for point in points],
            ),
            name="restarts",
            caption="All restarts of all splits: what they are chosen by, and what pairs say (0 chance, 1 perfect).",
        )


def _classes(report: Report, config: TranslationConfig, results: Results[Any]) -> None:
    rows = []
    for cell, result, _ in results.of(Named):
        network = full_name(cell.side.network) if isinstance(cell.side, Features) else cell.side.given
        rows.append([
            network, cell.text, f"{result['accuracy']:.1f}", f"{result['value']:.3f}", f"{result['truth']:.3f}",
            ", ".join(result["classes"][i] for i in result["order"]),
        ])  # fmt: skip
    classes = ", ".join(results.of(Named).first("classes", ())) or NOT_RUN
    report.section(
        "Classes and their names",
        f"Means of an image network's features of each class of CIFAR-10, matched with vectors of the classes' names "
        f"by quadratic assignment of their similarities alone. Mean share right: {named(results):.2f}, of untrained "
        f"networks {named(results, trained=False):.2f}, by chance 0.1. Where untrained networks have as many right as "
        "trained ones, names are found by what colours and shapes of images say, not by anything learnt.",
    ).table(
        ["image network", "text model", "share right", "correlation found", "of the true order", "names given"],
        rows or [[NOT_RUN] * 6],
        caption=f"Names given to {classes}, in this order. Where the true order correlates less than the one found, no "
        "search could have found it by the similarities.",
    )
