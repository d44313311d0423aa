"""The page of `crate-family`: accuracies and differences, training curves, costs, and how they grow with tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.compared import accuracy, difference, of_kind, trained
from unrolled.studies.crate.costs import exponent
from unrolled.studies.crate.family.cells import FAMILY, Cost, FamilyConfig, Growth, Readout
from unrolled.studies.kinds import KINDS
from unrolled.studies.networks import BATCH, NAMES, Data, Network
from unrolled.studies.results import NOT_RUN, Results

if TYPE_CHECKING:
    from unrolled.report import LineChart, Report, Scatter

_GROUPS = {
    "CRATE": ("crate", "attention-only"),
    "alpha": ("overcomplete", "decoupled", "alpha"),
    "linear": ("tost", "cbt", "crate-conv"),
    "ViT": ("vit", "vit-48", "vit-52"),
}
_CLASSES = {"cifar10": 10, "tiny-imagenet-32": 200, "digits": 10}


def report(report: Report, config: FamilyConfig, results: Results[Any]) -> None:
    """Headline, one section a data set, training, costs, growth, limits."""
    _headline(report, config, results)
    for data in config.data:
        _accuracy(report, config, results, data)
    _curves(report, config, results)
    _costs(report, results.of(Cost))
    _growth(report, results.of(Growth))
    _limits(report, config, results)


def words(kind: str) -> str:
    """What tables call a kind."""
    return KINDS[kind].words


def _headline(report: Report, config: FamilyConfig, results: Results[Any]) -> None:
    from unrolled.report import Fact

    data = config.data[0]
    scores = {kind: accuracy(results, kind, data) for kind in FAMILY}
    ranked = sorted((kind for kind in FAMILY if scores[kind]), key=lambda kind: -scores[kind].mean)
    if not ranked:
        report.headline(f"No network trained on {NAMES[data]} is kept: accuracies are {NOT_RUN}, costs are measured.")
        return
    best, worst = ranked[0], ranked[-1]
    facts = []
    for kind in ("crate", "alpha", "vit"):
        parameters = trained(results, kind, data).first("parameters", 0)
        detail = f"{NAMES[data]}, {scores[kind].count}, {parameters:,} parameters" if scores[kind] else NAMES[data]
        value = f"{scores[kind]:.1f} %" if scores[kind] else NOT_RUN
        facts.append(Fact(label=f"{words(kind)}, accuracy", value=value, detail=detail))
    report.headline(
        f"On {NAMES[data]}, after {_seen(results, data)} images, {words(best)} is the most accurate of {len(ranked)} "
        f"kinds ({scores[best]:.1f} %) and {words(worst)} the least ({scores[worst]:.1f} %).",
        facts,
    )


def _seen(results: Results[Any], data: Data) -> str:
    return f"{max(row.cell.images for row in results.of(Network, data=data)):,}"


def _accuracy(report: Report, config: FamilyConfig, results: Results[Any], data: Data) -> None:
    chance = f"{100 / _CLASSES[data]:g}"
    run_here = [kind for kind in FAMILY if accuracy(results, kind, data)]
    seen = f"after {_seen(results, data)} training images" if run_here else "of networks that were not run"
    costs = results.of(Cost).first("models", {})
    rows: list[list[str | int]] = []
    for kind in FAMILY:
        scores, row = accuracy(results, kind, data), trained(results, kind, data)
        rows.append(
            [
                words(kind),
                f"{row.first('parameters'):,}" if row else NOT_RUN,
                f"{costs[kind]['flops'] / 1e6:.1f}" if costs else NOT_RUN,
                len(scores),
                f"{scores:.1f}",
                "-" if kind == "crate" else f"{difference(results, kind, 'crate', data):+.1f}",
                *(_readout(results, kind, data, state) for state in (True, False)),
            ]
        )
    section = report.section(
        NAMES[data],
        f"Accuracy in percent on all test images {seen}, mean and standard deviation over seeds. Every kind has 4 "
        "layers and tokens of width 96, but for two ViTs, as narrow as gives them CRATE's parameters (48) and, as near "
        "as four heads allow, its operations (52); recipe, batches and augmentation are the same for all and tuned for "
        "none. Differences to CRATE, in points, pair networks of the same seed.",
    )
    section.table(
        ["model", "parameters", "MFLOPs", "seeds", "accuracy", "to CRATE", "readout", "untrained"],
        [*rows, ["chance", "-", "-", "-", chance, "-", chance, chance]],
        caption="MFLOPs of one image's forward pass, two operations a multiply-add. Readout: accuracy of a ridge "
        f"classifier on the mean of the last layer's tokens, fitted on {config.fit:,} test images and scored on up to "
        f"{config.held_out:,} others, of the first seed, trained and untrained; the untrained one is the control.",
    )
    if run_here and costs:
        parameters = [trained(results, kind, data).first("parameters") / 1e3 for kind in run_here]
        flops = [costs[kind]["flops"] / 1e6 for kind in run_here]
        section.figure(
            [
                _scatter("parameters, thousands", results, data, run_here, parameters),
                _scatter("MFLOPs an image", results, data, run_here, flops),
            ],
            name=f"accuracy-{data}",
            caption=f"{NAMES[data]}: mean over seeds; bars are one standard deviation where there are several seeds.",
        )


def _readout(results: Results[Any], kind: str, data: Data, state: bool) -> str:
    return f"{100 * of_kind(results, Readout, kind, data, trained=state).values('accuracy'):.1f}"


def _scatter(x_label: str, results: Results[Any], data: Data, kinds: Sequence[str], x: Sequence[float]) -> Scatter:
    from unrolled.report import Scatter

    group = {kind: name for name, members in _GROUPS.items() for kind in members}
    scores = [accuracy(results, kind, data) for kind in kinds]
    return Scatter(
        title="test accuracy, %",
        x_label=x_label,
        x=x,
        y=[values.mean for values in scores],
        names=list(kinds),
        groups=[group[kind] for kind in kinds],
        error=[values.deviation for values in scores],
    )


def _curves(report: Report, config: FamilyConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    data = config.data[0]
    panels = []
    for title, group in (
        ("CRATE and alpha", ("crate", "overcomplete", "decoupled", "alpha", "vit")),
        ("the others", ("crate", "crate-conv", "tost", "cbt", "attention-only", "vit")),
    ):
        lines = []
        for place, kind in enumerate(group):
            if rows := trained(results, kind, data):
                x = [point["step"] * BATCH / 1000 for point in rows.first("curve")]
                lines.append(rows.curve(kind, "curve", "loss", x=x, color=place, dashed=kind.startswith("vit")))
        if lines:
            panels.append(LineChart(title=f"training loss, nats: {title}", x_label="thousand images", series=lines))
    if panels:
        report.section("During training").figure(
            panels,
            name="training",
            caption=f"{NAMES[data]}: mean cross-entropy of the augmented batches since the point before, mean over "
            "seeds, bars one standard deviation.",
        )


def _costs(report: Report, rows: Results[Cost]) -> None:
    if not rows:
        return
    cost = rows[0].result
    first = cost["models"]["crate"]
    table = []
    for kind, spent in cost["models"].items():
        speeds = [(f"{spent[name]:.0f}", f"{spent[name] / first[name]:.2f}") for name in ("training", "inference")]
        memory = (f"{spent['memory'] / 2**20:.1f}", f"{spent['memory'] / first['memory']:.2f}")
        table.append([words(kind), *speeds[0], *speeds[1], *memory])
    report.section(
        "What it costs",
        f"{cost['threads']} thread{'s' if cost['threads'] > 1 else ''}, float32, batches of {cost['batch']}; kinds "
        f"take turns and the shortest of {cost['rounds']} counts. Memory is the most that tensors hold at a time "
        "during one AdamW step: weights, gradients, moments and activations.",
    ).table(
        ["model", "training, images/s", "to CRATE", "inference, images/s", "to CRATE", "memory, MiB", "to CRATE"],
        table,
        caption=_load(cost["load"]),
    )


def _growth(report: Report, rows: Results[Growth]) -> None:
    from unrolled.report import LineChart, Series

    if not rows:
        return
    sizes = rows[0].result
    tokens = sizes["tokens"]
    shown = ("crate", "alpha", "tost", "cbt", "attention-only", "vit")

    def chart(title: str, key: str, scale: float) -> LineChart:
        return LineChart(
            title=title,
            x_label="patches",
            log_y=True,
            series=[
                Series(label=kind, x=tokens, y=sizes[key][kind], color=place).scaled(scale)
                for place, kind in enumerate(shown)
            ],
        )

    report.section(
        "Cost against tokens",
        "One image's forward pass as the image grows, patches kept. An exponent of 1 is linear in the number of "
        "tokens, 2 quadratic; it is taken between the two largest sizes.",
    ).figure(
        [chart("GFLOPs an image", "flops", 1e-9), chart("milliseconds an image", "seconds", 1e3)],
        name="tokens",
        caption=f"Vertical axes are logarithmic. {_load(sizes['load'])}",
    ).table(
        ["model", *(f"{count:,} tokens, ms" for count in tokens), "exponent, operations", "exponent, time"],
        [
            [
                words(kind),
                *(f"{1e3 * value:.2f}" for value in sizes["seconds"][kind]),
                *(f"{exponent(tokens, sizes[key][kind]):.2f}" for key in ("flops", "seconds")),
            ]
            for kind in sizes["seconds"]
        ],
        caption="Milliseconds of one image's forward pass; exponents of operations and of time in the tokens.",
    )


def _limits(report: Report, config: FamilyConfig, results: Results[Any]) -> None:
    wanted = len(config.data) * len(FAMILY) * len(config.seeds)
    images = [row.cell.images for row in results.of(Network)]
    missing = f" {wanted - len(images)} of {wanted} networks were {NOT_RUN}." if len(images) < wanted else ""
    few = (
        f"Networks see {min(images):,} to {max(images):,} images; the papers' models see hundreds of millions, at 224 "
        "pixels, with 12 to 24 layers of 4 to 10 times the width. "
        if images
        else ""
    )
    report.section(
        "What this does not show",
        few + "So few images reward models that learn fast, not those that end best. The published differences are "
        "of converged ImageNet models: only their signs are judged, or that they stay small. Kinds differ in stem (CBT "
        "and ToST begin with convolutions, which help on small images: compare them with the CRATE that has CBT's "
        "stem, which was added after CBT had come out far ahead of the CRATE without it) and in parameters, not only "
        "in the layer." + missing,
    )


def _load(load: Sequence[float | None]) -> str:
    values = [value for value in load if value is not None and math.isfinite(value)]
    if not values:
        return "Whether the machine was busy is not known."
    if max(values) <= 1.2:  # this process itself counts for one
        return f"The machine did nothing else (load average {values[0]:.1f} before)."
    return (
        f"The machine was busy with other work (load average {values[0]:.1f} before, {values[-1]:.1f} after): speeds "
        "are too low; ratios, which hold less exactly too, are what to read."
    )
