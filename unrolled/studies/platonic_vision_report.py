"""The page of the study of alignment against competence: bins, map of the models, agreement of metrics, members."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.studies.platonic_members import KINDS, WORDS, Member, short_name
from unrolled.studies.platonic_zoo_stats import Pairs, classical_mds, interval, number

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.studies.platonic_vision import Config


def build(
    config: Config, records: dict[str, dict[str, Any]], found: dict[str, Any], best: Pairs, last: Pairs,
    given: Pairs | None, *, seconds: float,
) -> Report:  # fmt: skip
    """The report from what `platonic_vision.analysed` found."""
    from unrolled.report import Fact, Provenance, Report
    from unrolled.studies.platonic_vision import ACROSS, METRICS, RISES

    report = Report(
        "Do better vision models represent images more alike?",
        question="Over many small models, good and bad: does alignment between models rise with what they can do?",
    )
    trend = {(entry["metric"], entry["pairs"]): entry for entry in found["trends"]}
    overall, across = trend["mutual k-NN", "all pairs"], trend["mutual k-NN", "different kinds"]
    agree = found["agreement"][0][1:]
    weakest = min(range(len(agree)), key=lambda place: agree[place])
    report.claims = [
        RISES.judge(overall["low"], interval(overall)),
        ACROSS.judge(across["low"], interval(across)),
        METRICS.judge(agree[weakest], f"{agree[weakest]:.2f} ({found['metrics'][weakest + 1]})"),
    ]
    bottom, top = found["bins"][0]["knn all"], found["bins"][-1]["knn all"]
    report.headline(
        f"Mutual k-NN alignment above chance goes from {number(bottom['gain'])} among the least to "
        f"{number(top['gain'])} among the most competent of {len(records)} models in {config.bins} bins; rank "
        f"correlation with competence {interval(overall)} over all pairs and {interval(across)} between "
        "different kinds.",
        [
            Fact(label="Rank correlation, all pairs", value=interval(overall), detail=f"{overall['count']} pairs"),
            Fact(label="Different kinds only", value=interval(across), detail=f"{across['count']} pairs"),
            Fact(
                label="Pairs above chance",
                value=f"{found['significant']['mutual k-NN']} of {found['pairs']}",
                detail="mutual k-NN, false discovery rate 5 %",
            ),
        ],
    )
    _bins(report, config, found)
    _map(report, records, best)
    _metrics(report, found, best)
    _given(report, found, given)
    _members(report, config, records, best)
    report.results = {
        **found, "members": records, "mutual_knn": best.to_dict(), "unbiased_cka": last.to_dict(),
    }  # fmt: skip
    seeds = sorted({record["member"]["seed"] for record in records.values()})
    report.provenance = Provenance.collect(config=config, seeds=seeds, duration=seconds)
    return report


def _bins(report: Report, config: Config, found: dict[str, Any]) -> None:
    from unrolled.report import LineChart, Series

    probe = {
        "transfer": "accuracy of a linear probe on Tiny-ImageNet at 32 px (100 classes, 1 % by chance), which no "
        "member saw",
        "probe": "accuracy of a linear probe on held-out images of the training data; no other data were at hand, so "
        "this is not transfer",
    }[found["competence"]]
    bins = found["bins"]
    x = [100 * entry["competence"] for entry in bins]

    def series(label: str, key: str, field: str, color: int, dashed: bool = False) -> Series:
        values = [entry[key][field] for entry in bins]
        errors = [entry[key]["error"] for entry in bins] if field == "gain" else None
        return Series(
            label=label,
            x=x,
            y=[math.nan if value is None else value for value in values],
            error=None if errors is None else [math.nan if error is None else error for error in errors],
            color=color,
            dashed=dashed,
        )

    section = report.section(
        "Alignment within bins of competence",
        f"Competence is the {probe}. Models are ordered by it and divided into {config.bins} bins of equal number; "
        "alignment is averaged over the pairs inside a bin. Each score has its chance level taken off and is divided "
        "by what is left, so 0 is chance and 1 identity. Two models of one kind and size differ only by seed, and fall "
        "into one bin: hence the second curve, which leaves such pairs out.",
    )
    section.figure(
        [
            LineChart(
                title=title,
                x_label="competence in %",
                series=[
                    series("all pairs", f"{key} all", "gain", 0),
                    series("different kinds", f"{key} across", "gain", 1),
                    Series(label="chance", x=x, y=[0.0] * len(x), dashed=True),
                ],
            )
            for title, key in (("mutual k-NN above chance", "knn"), ("unbiased CKA above chance", "cka"))
        ],
        name="bins",
        caption=f"{config.samples} held-out images. Mutual {config.k}-NN at the best pair of layers, its chance level "
        "that of the best pair after relabelling; CKA at the last layers. Bars are jackknife standard errors over "
        "models.",
    )
    section.table(
        ["bin", "models", "competence in %", "k-NN", "by chance", "different kinds", "pairs", "CKA", "different kinds"],
        [
            [
                *(place + 1, len(entry["members"]), f"{100 * entry['competence']:.1f}"),
                *(_share(entry["knn all"]), number(entry["knn all"]["chance"])),
                *(_share(entry["knn across"]), entry["knn across"]["pairs"]),
                *(_share(entry["cka all"]), _share(entry["cka across"])),
            ]
            for place, entry in enumerate(bins)
        ],
        caption="Raw scores beside their chance level; CKA is unbiased, 0 by chance.",
    )
    section.table(
        ["metric", "pairs", "number", "rank correlation with competence", "95 % interval"],
        [
            [
                e["metric"],
                e["pairs"],
                e["count"],
                number(e["rho"], 2),
                f"{number(e['low'], 2)} to {number(e['high'], 2)}",
            ]
            for e in found["trends"]
        ],
        caption="Spearman between the mean competence of a pair and its alignment; the interval is a bootstrap over "
        "models, because pairs that share a model are not independent. The last selection asks whether the trend "
        "is more than the difference between trained and spoiled models.",
    )


def _map(report: Report, records: dict[str, dict[str, Any]], best: Pairs) -> None:
    from unrolled.report import HeatMap, Scatter

    rows = list(records.values())
    distance = 1 - np.clip(best.gain, 0, 1)
    np.fill_diagonal(distance, 0.0)
    points, share = classical_mds(distance)
    groups = [WORDS[row["member"]["kind"]] + ("" if _sound(row) else ", spoiled") for row in rows]
    names = [short_name(row["member"]) for row in rows]
    section = report.section(
        "A map of the models",
        "Models near each other agree about which images are alike. Distance is 1 minus mutual k-NN alignment above "
        "chance; classical multidimensional scaling, in which two dimensions hold "
        f"{100 * share:.0f} % of the variance, so read neighbourhoods and not distances. Spoiled members are "
        "untrained, or had shuffled labels or half of the classes.",
    )
    section.figure(
        [
            Scatter(
                title="map of the models",
                x_label="first dimension",
                y_label="second dimension",
                x=points[:, 0].tolist(),
                y=points[:, 1].tolist(),
                names=names,
                groups=groups,
                equal=True,
            ),
            HeatMap(title="mutual k-NN above chance", values=best.gain, rows=names, columns=_places(names)),
        ],
        name="map",
        caption="Left: one point a model. Right: all pairs, columns in the order of the rows.",
    )
    section.text(_umap(distance, names, groups, section))


def _umap(distance: Any, names: list[str], groups: list[str], section: Any) -> str:
    """Draw the paper's embedding where its package is installed; say so otherwise."""
    from importlib.util import find_spec

    if find_spec("umap") is None:
        return "UMAP, which the paper draws, is not installed: not run."
    import umap  # type: ignore[import-not-found, unused-ignore]

    from unrolled.report import Scatter

    near = min(15, len(distance) - 1)
    points = umap.UMAP(metric="precomputed", n_neighbors=near, random_state=0).fit_transform(distance)
    x, y = points[:, 0].tolist(), points[:, 1].tolist()
    section.figure(
        Scatter(title="UMAP", x_label="first dimension", x=x, y=y, names=names, groups=groups, equal=True), name="umap"
    )
    return f"UMAP with {near} neighbours and one seed; distances between clusters mean little."


def _metrics(report: Report, found: dict[str, Any], best: Pairs) -> None:
    from unrolled.report import HeatMap

    names = found["metrics"]
    significant = found["significant"]
    report.section(
        "Do the metrics agree?",
        f"Rank correlations over {found['pairs']} pairs of models, each metric at the last layers. Above chance at a "
        f"false discovery rate of 5 % are {significant['mutual k-NN']} pairs by mutual k-NN (best layers, corrected "
        f"for the search) and {significant['unbiased CKA']} by unbiased CKA (last layers). Untrained networks count "
        "too: any two networks that see the same pixels agree more than chance, so chance is a low bar, and untrained "
        "models are the better one.",
    ).figure(
        HeatMap(title="Spearman", values=np.asarray(found["agreement"]), rows=names, columns=names), name="metrics"
    )


def _given(report: Report, found: dict[str, Any], given: Pairs | None) -> None:
    section = report.section(
        "Networks trained by others",
        "Three networks of CIFAR-10 and four of ImageNet, none of which this study trained; those of ImageNet see "
        "the same images enlarged to 96 px, far from what they were trained on. Does the zoo come nearer to them as it "
        "gets better?",
    )
    if given is None:
        section.text("Their weights are not in `data_dir`, or the images are not CIFAR-10's: not run.")
        return
    section.table(
        ["network", *(f"{WORDS[kind]}, sound" for kind in KINDS), "untrained", "rank correlation", "95 % interval"],
        [
            [
                entry["name"],
                *(number(entry["mean"][kind]) for kind in (*KINDS, "untrained")),
                *(number(entry["rho"], 2), f"{number(entry['low'], 2)} to {number(entry['high'], 2)}"),
            ]
            for entry in found["given"]
        ],
        caption="Mutual k-NN above chance at the best pair of layers, mean over members; rank correlation over all "
        "members between competence and this alignment, with a bootstrap interval over members.",
    )


def _members(report: Report, config: Config, records: dict[str, dict[str, Any]], best: Pairs) -> None:
    rows = list(records.values())
    kinds = [row["member"]["kind"] for row in rows]
    table = []
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if kinds[j] != kinds[i] and _sound(rows[j])]
        mean = float(best.gain[i, others].mean()) if others else math.nan
        member = row["member"]
        table.append(
            [
                *(WORDS[member["kind"]], member["size"], _taught(member), member["seed"]),
                *(f"{row['parameters']:,}", f"{row['images']:,}", f"{100 * row['accuracy']:.1f}"),
                *(f"{100 * row['probe']:.1f}", _percent(row["transfer"]), number(mean)),
            ]
        )
    report.section("Every model").table(
        [
            "kind",
            "size",
            "taught",
            "seed",
            "weights",
            "images seen",
            "accuracy %",
            "probe %",
            "transfer %",
            "alignment",
        ],
        table,
        caption="Accuracy: own classifier on all test images (of its classes). Probe: ridge classifier on the last "
        "layer. Transfer: the same on Tiny-ImageNet. Alignment: mutual k-NN above chance, mean over the sound members "
        f"of other kinds. Training lasts {config.steps} steps of {config.batch_size} images, far from convergence: "
        "these models are weak ones, orders of magnitude below the paper's in size and data.",
    )


def _sound(row: dict[str, Any]) -> bool:
    return bool(row["member"]["taught"] == "labels" and not row["member"]["classes"])


def _taught(member: dict[str, Any]) -> str:
    fields = {name: value for name, value in member.items() if name != "name"}
    fields["classes"] = tuple(fields["classes"])
    return Member(**fields).group + (", brief" if member["share"] < 1 else "")


def _places(names: list[str]) -> list[str]:
    return [str(place + 1) for place in range(len(names))]


def _share(entry: dict[str, Any]) -> str:
    return "no pair" if not entry["pairs"] else number(entry["score"])


def _percent(value: float | None) -> str:
    return "not run" if value is None else f"{100 * value:.1f}"
