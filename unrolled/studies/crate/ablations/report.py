"""The page of `crate-ablations`: accuracies, layer curves, and what R^c says about accuracy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.ablations.cells import ABLATIONS, KINDS, SAME_LAYER, AblationsConfig, Layers
from unrolled.studies.crate.ablations.claims import PREDICTORS, Relation, crate, ratio, relation_of
from unrolled.studies.crate.compared import accuracy, difference, of_kind
from unrolled.studies.kinds import DEPTH
from unrolled.studies.kinds import KINDS as ROSTER
from unrolled.studies.networks import NAMES, Data, Network, images_seen
from unrolled.studies.results import NOT_RUN, Results, Values

if TYPE_CHECKING:
    from unrolled.report import Report, Scatter

_PANELS = (
    ("steps", ("crate", "step-0.02", "step-0.5", "sparsity-0.02", "sparsity-0.5")),
    ("layers", ("crate", "tied", "learned", "derived", "negated")),
)


def report(report: Report, config: AblationsConfig, results: Results[Any]) -> None:
    """Headline; for each data set accuracies, layers and correlations; limits."""
    _headline(report, config, results)
    for data in config.data:
        if any(accuracy(results, kind, data) for kind in KINDS):
            _table(report, config, results, data)
            _curves(report, results, data)
            _relations(report, config, results, data)
        else:
            report.section(NAMES[data], f"All networks trained on {NAMES[data]}: {NOT_RUN}.")
    _limits(report, config, results)


def _headline(report: Report, config: AblationsConfig, results: Results[Any]) -> None:
    from unrolled.report import Fact

    data = config.data[0]
    scores = accuracy(results, "crate", data)
    if not scores:
        report.headline(f"No CRATE trained on {NAMES[data]} is kept: what is compared with it was {NOT_RUN}.")
        return
    last, same = (relation_of(results, config, "last", data, among) for among in (KINDS, SAME_LAYER))
    report.headline(
        f"On {NAMES[data]}, the rank correlation of accuracy with R^c at the last layer is {last.of_kinds:+.2f}"
        f"{last.confidence}; over CRATE and its ablations alone {same.of_kinds:+.2f}{same.confidence}."
        if math.isfinite(last.of_kinds.value) and math.isfinite(same.of_kinds.value)
        else f"On {NAMES[data]}, too few kinds were run to say whether R^c predicts accuracy.",
        [
            Fact(
                label="CRATE, accuracy",
                value=f"{scores:.1f} %",
                detail=f"{NAMES[data]}, {images_seen(config.images, data):,} images, seeds: {len(scores)}",
            ),
            Fact(
                label="R^c, last to first layer",
                value=f"{ratio(crate(results, config)):.2f}",
                detail=f"untrained {ratio(crate(results, config, trained=False)):.2f}",
            ),
        ],
    )


def _table(report: Report, config: AblationsConfig, results: Results[Any], data: Data) -> None:
    rows: list[list[str | int]] = []
    for kind in KINDS:
        scores = accuracy(results, kind, data)
        layers, control = (of_kind(results, Layers, kind, data, trained=state) for state in (True, False))
        rows.append(
            [
                ROSTER[kind].words,
                len(scores),
                f"{scores:.1f}",
                f"{difference(results, kind, 'crate', data):+.1f}" if kind != "crate" or not scores else "-",
                *(f"{layers.values(f'subspace_rate.{place}'):.0f}" for place in (0, -1)),
                *(_beside(ratio(layers, key), ratio(control, key)) for key in ("subspace_rate", "orthonormal")),
                _beside(layers.values("nonzero.-1"), control.values("nonzero.-1")),
            ]
        )
    seeds = accuracy(results, "crate", data)
    noise = f" Seeds of CRATE differ by a standard deviation of {seeds.deviation:.1f} points." if len(seeds) > 1 else ""
    report.section(
        NAMES[data],
        "Accuracy in percent on all test images; differences to CRATE, in points, pair networks of the same seed."
        f"{noise} R^c in nats an image, on normalised tokens at Z+half with eps {config.eps:g}, over the first "
        f"{config.samples} test images.",
    ).table(
        ["model", "seeds", "accuracy", "to CRATE", "R^c first", "last", "last / first", "orthonormal", "non-zero"],
        rows,
        caption="In parentheses, the untrained network. Orthonormal: last to first layer again, each head's subspace "
        "with an orthonormal basis, so that the norm of U_k does not count. Non-zero: share of entries after the last "
        "layer. Mean and standard deviation over seeds. `tied` also has no bias in its output.",
    )


def _beside(values: Values, control: Values) -> str:
    return f"{values:.2f} ({control:.2f})" if values else NOT_RUN


def _curves(report: Report, results: Results[Any], data: Data) -> None:
    from unrolled.report import LineChart

    panels = []
    for key, title in (("subspace_rate", "R^c, nats"), ("nonzero", "share of non-zero entries")):
        for name, group in _PANELS:
            lines = [(kind, of_kind(results, Layers, kind, data)) for kind in group]
            lines.append(("untrained", of_kind(results, Layers, "crate", data, trained=False)))
            series = [
                rows.curve(label, key, x=range(1, DEPTH + 1), color=place, dashed=label == "untrained")
                for place, (label, rows) in enumerate(lines)
                if rows
            ]
            if series:
                panels.append(LineChart(title=f"{title}: {name}", x_label="layer", series=series))
    if panels:
        report.section(f"By layer, {NAMES[data]}").figure(
            panels,
            name=f"layers-{data}",
            caption="Mean over seeds, bars one standard deviation where there are several. Dotted: CRATE untrained.",
        )


def _relations(report: Report, config: AblationsConfig, results: Results[Any], data: Data) -> None:
    section = report.section(
        f"Does R^c predict accuracy on {NAMES[data]}?",
        "Spearman's correlation with test accuracy: over networks, and over kinds after averaging their seeds, which "
        "are not independent. Intervals are bootstraps over kinds and p-values permutations of kinds, two-sided; "
        f"{len(PREDICTORS)} predictors are tried, so a single p of {0.05 / len(PREDICTORS):.3f} is what 0.05 would be "
        "for one. A negative sign means that less goes with more accuracy. The last two are controls: what R^c says "
        "before training, and size.",
    )
    for among, caption in (
        (KINDS, "All {kinds} kinds with MSSA, {networks} networks."),
        (SAME_LAYER, "CRATE and its ablations only, {kinds} kinds and {networks} networks."),
    ):
        relations = {words: relation_of(results, config, key, data, among) for key, words in PREDICTORS.items()}
        first = next(iter(relations.values()))
        section.table(
            ["predictor", "rho, networks", "rho, kinds, and 95 % interval", "p"],
            [[words, *_numbers(each)] for words, each in relations.items()],
            caption=caption.format(kinds=first.kinds, networks=first.networks),
        )
    section.figure(
        [
            _scatter(results, data, "R^c, last layer, nats", "subspace_rate"),
            _scatter(results, data, "R^c, orthonormal bases, last layer, nats", "orthonormal"),
        ],
        name=f"predicts-{data}",
        caption="Every network.",
    )


def _numbers(relation: Relation) -> list[str]:
    if not math.isfinite(relation.of_kinds.value):
        return ["undefined" if relation.enough else NOT_RUN] * 3
    return [f"{relation.of_networks:+.2f}", f"{relation.of_kinds:+.2f}", f"{relation.p:.3f}"]


def _scatter(results: Results[Any], data: Data, x_label: str, key: str) -> Scatter:
    from unrolled.report import Scatter

    groups = {"crate": "CRATE", **dict.fromkeys(ABLATIONS, "ablation")}
    x: list[float] = []
    y: list[float] = []
    names: list[str] = []
    for kind in KINDS:
        rates = of_kind(results, Layers, kind, data).values(f"{key}.-1")
        scores = accuracy(results, kind, data).by
        both = [seed for seed in rates.by if seed in scores]
        x += [rates.by[seed] for seed in both]
        y += [scores[seed] for seed in both]
        names += [kind] * len(both)
    return Scatter(
        title="test accuracy, %", x_label=x_label, x=x, y=y, names=names, groups=[groups.get(n, "other") for n in names]
    )


def _limits(report: Report, config: AblationsConfig, results: Results[Any]) -> None:
    wanted = len(config.data) * len(KINDS) * len(config.seeds)
    count, first = len(results.of(Network)), config.data[0]
    missing = f" {wanted - count} of {wanted} networks were {NOT_RUN}." if count < wanted else ""
    single = [ROSTER[kind].words for kind in KINDS if len(accuracy(results, kind, first)) == 1]
    noisy = (
        f" Of one seed only on {NAMES[first]}: {', '.join(single)}; such a difference means something only if it is "
        "several standard deviations over CRATE's seeds."
        if single and len(config.seeds) > 1
        else ""
    )
    report.section(
        "What this does not show",
        "A correlation over a handful of kinds, chosen by us, says nothing of other kinds, of longer training or of "
        "larger models, and nothing of causes: a kind that changes R^c changes other things too. R^c compares kinds "
        "fairly only if their subspaces have the same scale, which nothing enforces; the orthonormal version and the "
        "untrained control are there to tell. A rate that is low because the tokens have collapsed is no "
        "compression of anything worth keeping: the objective is R - R^c. Four layers are a short curve, and the "
        f"published models have 12 to 24 layers and see hundreds of millions of images.{noisy}{missing}",
    )
