"""The report of `crate-family`: who is how accurate, at what cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate_family import (
    DIFFERENCES,
    FAMILY,
    LINEAR,
    QUADRATIC,
    Config,
    differences,
    mean,
)
from unrolled.studies.crate_members import NAMES

if TYPE_CHECKING:
    from unrolled.report import Claim, Report, Scatter, Series
    from unrolled.studies.base import Expectation

NOT_RUN = "not run"
_GROUPS = {
    "CRATE": ("crate", "attention-only"),
    "alpha": ("overcomplete", "decoupled", "alpha"),
    "linear": ("tost", "cbt", "crate-conv"),
    "ViT": ("vit", "vit-48", "vit-52"),
}
Found = dict[str, dict[str, Any]]


def build_report(
    config: Config, found: dict[str, Found], cost: dict[str, Any], sizes: dict[str, Any], *, seconds: float
) -> Report:
    """The report of what `run` measured; `found` by data set and kind."""
    from unrolled.report import Provenance, Report

    report = Report(
        "The white-box family at equal data",
        question="What does each member of the CRATE family gain over CRATE and a ViT, and what does it cost?",
    )
    report.claims = _claims(config, found, sizes)
    _headline(report, config, found)
    for data, kinds in found.items():
        _accuracy(report, config, data, kinds, cost)
    _curves(report, config, found)
    _costs(report, cost)
    _growth(report, sizes)
    _limits(report, config, found, cost)
    report.results = {"members": found, "cost": cost, "sizes": sizes}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=seconds)
    return report


def words(kind: str) -> str:
    """What tables call a kind."""
    from unrolled.studies.crate_members import KINDS

    return KINDS[kind].words


def points(values: Sequence[float], what: str = "") -> str:
    """`+1.2 ± 0.4 (CIFAR-10, 3 seeds)`, or `not run` of nothing."""
    if not values:
        return f"{NOT_RUN} ({what})" if what else NOT_RUN
    seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
    return f"{difference(values)} ({what + ', ' if what else ''}{seeds})"


def difference(values: Sequence[float]) -> str:
    """`+1.2 ± 0.4`, or `not run` of nothing."""
    if not values:
        return NOT_RUN
    return f"{fmean(values):+.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def settled(values: list[float]) -> float:
    """Their mean; NaN of fewer than two seeds, because one may be luck."""
    return mean(values) if len(values) > 1 else math.nan


def judged(expectation: Expectation, value: float, told: str) -> Claim:
    """The claim, not judged where it was not run, or with one seed only: NaN."""
    claim = expectation.judge(value, told)
    return replace(claim, reproduced=None) if math.isnan(value) else claim


def _claims(config: Config, found: dict[str, Found], sizes: dict[str, Any]) -> list[Claim]:
    from unrolled.studies.crate_costs import exponent

    claims = []
    for expectation, one, other in DIFFERENCES:
        by_data = {data: differences(kinds, one, other) for data, kinds in found.items()}
        told = "; ".join(points(values, NAMES[data]) for data, values in by_data.items())
        claims.append(judged(expectation, settled(by_data[config.data[0]]), told))
    grown = {kind: exponent(sizes["tokens"], flops) for kind, flops in sizes["flops"].items()}
    for expectation, kinds, pick in ((LINEAR, ("tost", "cbt"), max), (QUADRATIC, ("crate", "vit"), min)):
        told = ", ".join(f"{words(kind)} {grown[kind]:.2f}" for kind in kinds)
        largest = sizes["tokens"][-1] >= 4096  # smaller sizes are another claim
        claims.append(
            judged(
                expectation, pick(grown[kind] for kind in kinds) if largest else math.nan, told if largest else NOT_RUN
            )
        )
    return claims


def _headline(report: Report, config: Config, found: dict[str, Found]) -> None:
    from unrolled.report import Fact

    data = config.data[0]
    kinds = found[data]
    ranked = sorted((kind for kind in FAMILY if kinds[kind]["accuracy"]), key=lambda k: -_mean(kinds[k]))
    if not ranked:
        report.headline(f"No member trained on {NAMES[data]} is kept: accuracies are {NOT_RUN}, costs are measured.")
        return
    best, worst = ranked[0], ranked[-1]
    report.headline(
        f"On {NAMES[data]}, after {kinds[best]['images']:,} images, {words(best)} is the most accurate of "
        f"{len(ranked)} kinds ({_shown(kinds[best])} %) and {words(worst)} the least ({_shown(kinds[worst])} %).",
        [
            Fact(
                label=f"{words(kind)}, accuracy",
                value=f"{_shown(kinds[kind])} %" if kinds[kind]["accuracy"] else NOT_RUN,
                detail=f"{NAMES[data]}, {_seeds(kinds[kind])}, {kinds[kind]['parameters']:,} parameters"
                if kinds[kind]["accuracy"]
                else NAMES[data],
            )
            for kind in ("crate", "alpha", "vit")
        ],
    )


def _accuracy(report: Report, config: Config, data: str, kinds: Found, cost: dict[str, Any]) -> None:
    classes = {"cifar10": 10, "tiny-imagenet-32": 200, "digits": 10}[data]
    chance = f"{100 / classes:g}"
    images = {entry["images"] for entry in kinds.values() if entry["images"]}
    seen = f"after {images.pop():,} training images" if images else "of members that were not run"
    rows: list[list[str | int]] = []
    for kind in FAMILY:
        entry, spent = kinds[kind], cost["models"][kind]
        trained = f"{_shown(entry)}" if entry["accuracy"] else NOT_RUN
        rows.append(
            [
                words(kind),
                f"{entry['parameters']:,}" if entry["parameters"] else NOT_RUN,
                f"{spent['flops'] / 1e6:.1f}",
                len(entry["accuracy"]),
                trained,
                difference(differences(kinds, kind, "crate")) if kind != "crate" else "-",
                _percent(entry["readout"]),
                _percent(entry["readout_untrained"]),
            ]
        )
    section = report.section(
        NAMES[data],
        f"Accuracy in percent on all test images {seen}, mean and standard deviation over seeds. Every kind has 4 "
        "layers and tokens of width 96, but for two ViTs, as narrow as gives them CRATE's parameters (48) and, as near "
        "as four heads allow, its operations (52); recipe, batches and augmentation are the same for all and tuned for "
        "none. Differences to CRATE, in points, pair members of the same seed.",
    )
    section.table(
        ["model", "parameters", "MFLOPs", "seeds", "accuracy", "to CRATE", "readout", "untrained"],
        [*rows, ["chance", "-", "-", "-", chance, "-", chance, chance]],
        caption="MFLOPs of one image's forward pass, two operations a multiply-add. Readout: accuracy of a ridge "
        f"classifier on the mean of the last layer's tokens, fitted on {config.fit:,} test images and scored on up to "
        f"{config.held_out:,} others, of the first seed, trained and untrained; the untrained one is the control.",
    )
    run_here = [kind for kind in FAMILY if kinds[kind]["accuracy"]]
    if run_here:
        section.figure(
            [
                _scatter("parameters, thousands", run_here, kinds, [kinds[k]["parameters"] / 1e3 for k in run_here]),
                _scatter(
                    "MFLOPs an image", run_here, kinds, [cost["models"][kind]["flops"] / 1e6 for kind in run_here]
                ),
            ],
            name=f"accuracy-{data}",
            caption=f"{NAMES[data]}: mean over seeds; bars are one standard deviation where there are several seeds.",
        )


def _scatter(x_label: str, run_here: Sequence[str], kinds: Found, x: Sequence[float]) -> Scatter:
    from unrolled.report import Scatter

    group = {kind: name for name, members in _GROUPS.items() for kind in members}
    values = [[100 * a for a in kinds[kind]["accuracy"].values()] for kind in run_here]
    return Scatter(
        title="test accuracy, %",
        x_label=x_label,
        x=x,
        y=[fmean(value) for value in values],
        names=list(run_here),
        groups=[group[kind] for kind in run_here],
        error=[stdev(value) if len(value) > 1 else math.nan for value in values],
    )


def _curves(report: Report, config: Config, found: dict[str, Found]) -> None:
    from unrolled.report import LineChart, Series

    data = config.data[0]
    kinds = found[data]

    def series(kind: str, color: int) -> Series:
        logs = kinds[kind]["logs"]
        looks = [entry["step"] * 128 / 1000 for entry in logs[0]]
        losses = [[entry["loss"] for entry in log] for log in logs]
        columns = list(zip(*losses, strict=True))
        return Series(
            label=kind,
            x=looks,
            y=[fmean(column) for column in columns],
            error=[stdev(column) for column in columns] if len(logs) > 1 else None,
            color=color,
            dashed=kind.startswith("vit"),
        )

    panels = []
    for title, group in (
        ("CRATE and alpha", ("crate", "overcomplete", "decoupled", "alpha", "vit")),
        ("the others", ("crate", "crate-conv", "tost", "cbt", "attention-only", "vit")),
    ):
        shown = [series(kind, place) for place, kind in enumerate(group) if kinds[kind]["logs"]]
        if shown:
            panels.append(LineChart(title=f"training loss, nats: {title}", x_label="thousand images", series=shown))
    if panels:
        report.section("During training").figure(
            panels,
            name="training",
            caption=f"{NAMES[data]}: mean cross-entropy of the augmented batches since the point before, mean over "
            "seeds, bars one standard deviation.",
        )


def _costs(report: Report, cost: dict[str, Any]) -> None:
    first = cost["models"]["crate"]
    report.section(
        "What it costs",
        f"{cost['threads']} thread{'s' if cost['threads'] > 1 else ''}, float32, batches of {cost['batch']}; kinds "
        f"take turns and the shortest of {cost['rounds']} counts. Memory is the most that tensors hold at a time "
        "during one AdamW step: weights, gradients, moments and activations.",
    ).table(
        ["model", "training, images/s", "to CRATE", "inference, images/s", "to CRATE", "memory, MiB", "to CRATE"],
        [
            [
                words(kind),
                *(
                    cell
                    for key in ("training", "inference")
                    for cell in (f"{spent[key]:.0f}", f"{spent[key] / first[key]:.2f}")
                ),
                f"{spent['memory'] / 2**20:.1f}",
                f"{spent['memory'] / first['memory']:.2f}",
            ]
            for kind, spent in ((kind, cost["models"][kind]) for kind in FAMILY)
        ],
        caption=_load(cost["load"]),
    )


def _growth(report: Report, sizes: dict[str, Any]) -> None:
    from unrolled.report import LineChart, Series
    from unrolled.studies.crate_costs import exponent

    shown = ("crate", "alpha", "tost", "cbt", "attention-only", "vit")
    tokens = sizes["tokens"]

    def chart(title: str, key: str, scale: float) -> LineChart:
        return LineChart(
            title=title,
            x_label="patches",
            log_y=True,
            series=[
                Series(label=kind, x=tokens, y=[value * scale for value in sizes[key][kind]], color=place)
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


def _limits(report: Report, config: Config, found: dict[str, Found], cost: dict[str, Any]) -> None:
    wanted = len(config.data) * len(FAMILY) * len(config.seeds)
    here = sum(len(entry["accuracy"]) for kinds in found.values() for entry in kinds.values())
    missing = f" {wanted - here} of {wanted} members were {NOT_RUN}: not kept; `train=True` trains them."
    images = [entry["images"] for kinds in found.values() for entry in kinds.values() if entry["images"]]
    below = (
        f"Members see {min(images):,} to {max(images):,} images; the papers' models see hundreds of millions, at 224 "
        "pixels, with 12 to 24 layers of 4 to 10 times the width. "
        if images
        else ""
    )
    report.section(
        "What this does not show",
        below + "So few images reward models that learn fast, not those that end best. The published differences are "
        "of converged ImageNet models: only their signs are judged, or that they stay small. A sign is judged on the "
        "mean; compare it with the standard deviation over seeds before believing it. Kinds differ in stem (CBT and "
        "ToST begin with convolutions, which help on small images: compare them with the CRATE that has CBT's stem, "
        "which was added after CBT had come out far ahead of the CRATE without it) and in parameters, not only in the "
        "layer." + (missing if here < wanted else ""),
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


def _mean(entry: dict[str, Any]) -> float:
    return fmean(entry["accuracy"].values())


def _shown(entry: dict[str, Any]) -> str:
    from unrolled.report import mean_std

    return mean_std(list(entry["accuracy"].values()), scale=100)


def _seeds(entry: dict[str, Any]) -> str:
    count = len(entry["accuracy"])
    return f"{count} seeds" if count > 1 else "1 seed"


def _percent(value: float | None) -> str:
    return NOT_RUN if value is None else f"{100 * value:.1f}"
