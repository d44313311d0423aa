"""The page of `crate-attribution`: how well terms and removals agree, by layer, where they part and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.attribution.cells import AttributionConfig, Terms
from unrolled.studies.crate.attribution.claims import networks, number, shipped
from unrolled.studies.crate.causal.cells import SHIPPED
from unrolled.studies.kinds import KINDS as ROSTER
from unrolled.studies.networks import NAMES
from unrolled.studies.results import NOT_RUN, Estimate, Results, Values

if TYPE_CHECKING:
    from unrolled.report import Report

_SIX = "CRATE of 6 layers"
_COLUMNS = ("lost", "held", "random", "same_sign", "slope", "attention", "rest")


def report(report: Report, config: AttributionConfig, results: Results[Any]) -> None:
    """Headline, all heads, layers, why, limits."""
    from unrolled.report import Fact

    packaged = shipped(results, "all.lost")
    crate, vit = (number(results, config, kind, "all.lost") for kind in ("crate", "vit"))
    held = shipped(results, "all.held")
    report.headline(
        f"Over all heads and images the exact term ranks with what is lost without the head at {crate:.2f} in small "
        f"CRATEs and {vit:.2f} in ViTs (`{SHIPPED}`: {_to_three(packaged)}): in the last layer at "
        f"{number(results, config, 'crate', 'layers.-1.lost'):.2f} and "
        f"{number(results, config, 'vit', 'layers.-1.lost'):.2f}, in the first at "
        f"{number(results, config, 'crate', 'layers.0.lost'):.2f} and "
        f"{number(results, config, 'vit', 'layers.0.lost'):.2f}. They part because later attention reacts: held as it "
        f"was, {number(results, config, 'crate', 'all.held'):.2f} and "
        f"{number(results, config, 'vit', 'all.held'):.2f} (`{SHIPPED}`: {_to_three(held)}).",
        [
            Fact(label="CRATE, all layers", value=f"{crate:.3f}", detail=f"rank correlation, {crate.count}"),
            Fact(label="ViT, all layers", value=f"{vit:.3f}", detail=f"rank correlation, {vit.count}"),
            Fact(label=f"{_SIX}, all layers", value=_to_three(packaged), detail="95 % interval over images"),
        ],
    )
    _all(report, config, results)
    _layers(report, config, results)
    report.section(
        "What this does not show",
        "The term and the loss are of one logit, that of the predicted class; a logit has an arbitrary zero, and "
        "what falls with all logits changes no decision. Removing is setting to zero, which takes a network to where"
        " it never was; the mean of a head would be another question. One head is removed at a time: heads that "
        "stand in for one another look needless. The terms are those of `unrolled explain`: in CRATE they are "
        "followed through ISTA with its zeros held, in a ViT they are what the head wrote, read by the classifier "
        "directly, so that what MLPs make of it belongs to the MLPs. Networks are small, and trained briefly.",
    )


def _to_three(value: Values | Estimate | float) -> str:
    return NOT_RUN if isinstance(value, float) else f"{value:.3f}"


def _rows(results: Results[Any], config: AttributionConfig) -> list[tuple[str, Results[Terms]]]:
    rows = []
    for kind in config.kinds:
        rows.append((ROSTER[kind].words, networks(results, config, kind)))
        rows.append((f"{ROSTER[kind].words}, untrained", networks(results, config, kind, trained=False)))
    measured = results.of(Terms)
    if measured:
        rows.append((_SIX, measured.where(kind=SHIPPED)))
    return [each for each in rows if each[1]]


def _all(report: Report, config: AttributionConfig, results: Results[Any]) -> None:
    rows = [
        [name, *(f"{networks.values(f'all.{column}.value'):.3f}" for column in _COLUMNS)]
        for name, networks in _rows(results, config)
    ]
    report.section(
        "All heads",
        f"The first {config.tested:,} test images of {NAMES[config.data]}, each for its predicted class. `lost`: rank"
        " correlation, over all pairs of head and image, of the term with the logit that is lost when the head is "
        "set to zero. `held`: the same when all later attention adds what it added before. `random`: with what a "
        "change in a random direction costs, as large at every token; 0 is no relation. `same sign`: share of pairs "
        "in which term and loss have one sign. `slope`: of the loss on the term, 1 if the loss is the term. "
        "`attention`: mean size of what later attention does to the loss, over the mean size of the terms; `rest`: "
        "of what everything else does, that is norms, ISTA's zeros, and MLPs.",
    ).table(
        ["network", *(column.replace("_", " ") for column in _COLUMNS)], rows,
        caption=f"Mean ± standard deviation over seeds; the {_SIX}, `{SHIPPED}`, is one network, which ships with the "
        "package.",
    )  # fmt: skip


def _layers(report: Report, config: AttributionConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart, Series

    shown = _rows(results, config)
    if not shown:
        return

    def panel(title: str, column: str, names: list[tuple[str, Results[Terms]]]) -> LineChart:
        lines: list[Series] = []
        for name, terms in names:
            layers = list(range(len(terms.first("layers"))))
            lines.append(
                terms.curve(
                    name, lambda result: [layer[column]["value"] for layer in result["layers"]], x=layers,
                    dashed="untrained" in name,
                )
            )  # fmt: skip
        return LineChart(title=title, x_label="layer", series=lines)

    section = report.section(
        "By layer",
        "Behind an early head stand many layers that react to its absence; behind a head of the last layer only a norm "
        "(and, in CRATE, one ISTA; in a ViT, one MLP).",
    )
    section.figure(
        [panel("term and loss", "lost", shown), panel("with later attention held", "held", shown)],
        name="layers",
        caption="Rank correlation over heads of the layer and images; mean over seeds, bars: standard deviation.",
    )
    trained = [each for each in shown if "untrained" not in each[0]]
    section.figure(
        [panel("what later attention does", "attention", trained), panel("what all else does", "rest", trained)],
        name="why",
        caption="Mean size over that of the terms of the layer: 1 means as large as the terms themselves.",
    )
    record = results.of(Terms)
    packaged = record.where(kind=SHIPPED) if record else record
    if packaged:
        section.table(
            ["layer", "rank correlation", "95 % over images", "later attention held", "random change", "same sign"],
            [
                [
                    str(layer["layer"]), f"{layer['lost']['value']:.3f}",
                    f"{layer['lost']['low']:.3f} to {layer['lost']['high']:.3f}", f"{layer['held']['value']:.3f}",
                    f"{layer['random']['value']:+.3f}", f"{layer['same_sign']['value']:.0%}",
                ]
                for layer in packaged.first("layers")
            ],
            caption=f"`{SHIPPED}`.",
        )  # fmt: skip
