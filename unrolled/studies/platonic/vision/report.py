"""The page of `platonic-vision`: bins, map of the models, agreement of metrics, networks of others, members."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.studies.networks import BATCH, Network
from unrolled.studies.platonic.given import GIVEN_VISION
from unrolled.studies.platonic.pairs import Pairs
from unrolled.studies.platonic.vision.cells import VisionConfig
from unrolled.studies.platonic.vision.claims import ACROSS, ALL, KNN, LEVEL, SELECTIONS, TRENDS, Bin, View
from unrolled.studies.platonic.zoo import FAMILIES, Probe, colour_of, family, group, short_name, size
from unrolled.studies.results import NOT_RUN, Results
from unrolled.studies.statistics import Array, classical_mds, number

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.report.parts import Section

_PROBES = {
    "unseen": "accuracy of a linear probe on Tiny-ImageNet at 32 px (100 classes, 1 % by chance), which no member saw",
    "held-out": "accuracy of a linear probe on held-out images of the training data; no other data were at hand, so "
    "this is not transfer",
}


def report(report: Report, config: VisionConfig, results: Results[Any]) -> None:
    """The answer, alignment by competence, who is near whom, what metrics and the networks of others say, the zoo."""
    view = View(results, config)
    pairs = view.calibrated()
    if len(pairs) == 2:
        _headline(report, view, pairs)
        _bins(report, view, pairs)
        _map(report, view, pairs[KNN])
        _metrics(report, view, pairs)
    else:
        report.headline(f"Alignment of the pairs of models: {NOT_RUN}.", [])
    _given(report, view)
    _members(report, view, pairs.get(KNN))


def _headline(report: Report, view: View, pairs: dict[str, Pairs]) -> None:
    from unrolled.report import Fact

    best = pairs[KNN]
    overall, across = (f"{view.trend(best, among):.2f}" for among in (ALL, ACROSS))
    bins = view.bins()
    bottom, top = (view.bin(best, places, ALL).gain for places in (bins[0], bins[-1]))
    report.headline(
        f"Mutual k-NN alignment above chance goes from {number(bottom)} among the least to {number(top)} among the "
        f"most competent of {len(view.zoo)} models in {len(bins)} bins; rank correlation with competence {overall} "
        f"over all pairs and {across} between different kinds (two of {TRENDS} trends: intervals at {LEVEL}).",
        [
            Fact(label="Rank correlation, all pairs", value=overall, detail=f"{view.count()} pairs"),
            Fact(label="Different kinds only", value=across, detail=f"{view.count(ACROSS)} pairs"),
            Fact(
                label="Pairs above chance",
                value=f"{view.significant(best)} of {view.count()}",
                detail="mutual k-NN, false discovery rate 5 %",
            ),
        ],
    )


def _bins(report: Report, view: View, pairs: dict[str, Pairs]) -> None:
    from unrolled.report import LineChart, Series

    config, bins = view.config, view.bins()
    x = [100 * float(view.competence[places].mean()) for places in bins]
    means = {
        (metric, among): [view.bin(scores, places, among) for places in bins]
        for metric, scores in pairs.items()
        for among in (ALL, ACROSS)
    }

    def series(metric: str, among: str, color: int) -> Series:
        rows = means[metric, among]
        return Series(label=among, x=x, y=[row.gain for row in rows], error=[row.error for row in rows], color=color)

    section = report.section(
        "Alignment within bins of competence",
        f"Competence is the {_PROBES[view.on]}. Models are ordered by it and divided into {len(bins)} bins of equal "
        "number; alignment is averaged over the pairs inside a bin. Each score has its chance level taken off and is "
        "divided by what is left, so 0 is chance and 1 identity. Two models of one kind and size differ only by seed, "
        "and fall into one bin: hence the second curve, which leaves such pairs out.",
    )
    section.figure(
        [
            LineChart(
                title=f"{metric} above chance",
                x_label="competence in %",
                series=[
                    series(metric, ALL, 0),
                    series(metric, ACROSS, 1),
                    Series(label="chance", x=x, y=[0.0] * len(x), dashed=True),
                ],
            )
            for metric in pairs
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
                *(place + 1, len(bins[place]), f"{x[place]:.1f}", _share(near), number(near.chance)),
                *(_share(apart), apart.pairs, _share(kernel), _share(kernel_apart)),
            ]
            for place, (near, apart, kernel, kernel_apart) in enumerate(zip(*means.values(), strict=True))
        ],
        caption="Raw scores beside their chance level; CKA is unbiased, 0 by chance.",
    )
    trends = [(m, among, view.trend(scores, among)) for m, scores in pairs.items() for among in SELECTIONS]
    section.table(
        ["metric", "pairs", "number", "rank correlation with competence", f"{LEVEL} interval"],
        [
            [
                *(metric, among, view.count(among), number(rho.value, 2)),
                f"{number(rho.low, 2)} to {number(rho.high, 2)}",
            ]
            for metric, among, rho in trends
        ],
        caption="Spearman between the mean competence of a pair and its alignment; the interval is a bootstrap over "
        f"models, because pairs that share a model are not independent, at {LEVEL}, so that all {TRENDS} hold together "
        "in 95 % of cases (Bonferroni). The last selection asks whether the trend is more than the difference between "
        "trained and spoiled models.",
    )


def _map(report: Report, view: View, best: Pairs) -> None:
    from unrolled.report import HeatMap, Scatter

    distance = 1 - np.clip(best.gain, 0, 1)
    np.fill_diagonal(distance, 0.0)
    points, share = classical_mds(distance)
    names = [short_name(network) for network in view.zoo]
    groups = [colour_of(network) for network in view.zoo]
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
            HeatMap(
                title="mutual k-NN above chance",
                values=best.gain,
                rows=names,
                columns=[str(place + 1) for place in range(len(names))],
            ),
        ],
        name="map",
        caption="Left: one point a model. Right: all pairs, columns in the order of the rows.",
    )
    section.text(_umap(distance, names, groups, section))


def _umap(distance: Array, names: list[str], groups: list[str], section: Section) -> str:
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


def _metrics(report: Report, view: View, pairs: dict[str, Pairs]) -> None:
    from unrolled.report import HeatMap

    agreement = view.agreement()
    near, kernel = (view.significant(scores) for scores in pairs.values())
    section = report.section(
        "Do the metrics agree?",
        f"Rank correlations over {view.count()} pairs of models, each metric at the last layers. Above chance at a "
        f"false discovery rate of 5 % are {near} pairs by mutual k-NN (best layers, corrected for the search) and "
        f"{kernel} by unbiased CKA (last layers). Untrained networks count too: any two networks that see the same "
        "pixels agree more than chance, so chance is a low bar, and untrained models are the better one.",
    )
    if agreement:
        names = list(agreement)
        values = np.array([[agreement[one][other] for other in names] for one in names])
        section.figure(HeatMap(title="Spearman", values=values, rows=names, columns=names), name="metrics")


def _given(report: Report, view: View) -> None:
    section = report.section(
        "Networks trained by others",
        "Three networks of CIFAR-10 and four of ImageNet, none of which this study trained; those of ImageNet see "
        "the same images enlarged to 96 px, far from what they were trained on. Does the zoo come nearer to them as it "
        "gets better?",
    )
    pairs = view.pairs(view.config.given)
    if pairs is None:
        section.text("Their weights are not in `data_dir`, or the images are not CIFAR-10's: not run.")
        return
    rows = []
    for name, gain in zip(GIVEN_VISION, pairs.gain.T, strict=True):
        means, rho = view.with_given(gain)
        rows.append(
            [
                *(name, *map(number, means.values()), number(rho.value, 2)),
                f"{number(rho.low, 2)} to {number(rho.high, 2)}",
            ]
        )
    section.table(
        [
            *("network", *(f"{words}, sound" for words in FAMILIES.values()), "untrained"),
            *("rank correlation", "95 % interval"),
        ],
        rows,
        caption="Mutual k-NN above chance at the best pair of layers, mean over members; rank correlation over all "
        "members between competence and this alignment, with a bootstrap interval over members, not corrected for the "
        "number of networks.",
    )


def _members(report: Report, view: View, best: Pairs | None) -> None:
    config = view.config
    table: list[list[str | int]] = []
    for place, network in enumerate(view.zoo):
        row = Results(row for row in view.results.of(Network) if row.cell == network)
        probes = [
            100 * view.results.of(Probe, on=on, **network.columns).values("accuracy") for on in ("held-out", "unseen")
        ]
        brief = ", brief" if 0 < network.images < config.member("cnn", "small", 0).images else ""
        table.append(
            [
                *(FAMILIES[family(network)], size(network), group(network) + brief, network.seed),
                *(f"{row.first('parameters', math.nan):,}", f"{network.images:,}"),
                *(f"{values:.1f}" for values in (100 * row.values("accuracy"), *probes)),
                NOT_RUN if best is None else number(view.across_kinds(best, place)),
            ]
        )
    report.section("Every model").table(
        [
            *("kind", "size", "taught", "seed", "weights", "images seen", "accuracy %", "probe %", "transfer %"),
            "alignment",
        ],
        table,
        caption="Accuracy: own classifier on all test images (of its classes). Probe: ridge classifier on the last "
        "layer. Transfer: the same on Tiny-ImageNet. Alignment: mutual k-NN above chance, mean over the sound members "
        f"of other kinds. Training lasts {config.images // BATCH} steps of {BATCH} images, far from convergence: "
        "these models are weak ones, orders of magnitude below the paper's in size and data.",
    )


def _share(row: Bin) -> str:
    return "no pair" if not row.pairs else number(row.score)
