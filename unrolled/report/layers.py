"""The part of a report that shows what every layer does, from the records of `instruments.trace_report`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from unrolled.figures.lines import LineChart, Series
from unrolled.figures.words import number
from unrolled.report.document import Report
from unrolled.report.parts import Section

TraceResult = Mapping[str, Any]
Row = Mapping[str, float]

_EXPLANATION = """
A CRATE layer is one step on the sparse rate reduction objective: attention (MSSA) compresses the tokens against the \
layer's own subspaces, which should lower Rᶜ, and ISTA makes them sparse in its dictionary, which should lower the \
non-zero fraction, while R, the volume of all tokens together, should stay large. Lower Rᶜ at high R means tokens that \
fit the subspaces and still differ. A plain transformer has no such objective; its subspaces are taken to be its \
heads' value projections.
"""


def trace_section(
    report: Report,
    traces: Mapping[str, TraceResult | Sequence[TraceResult]],
    *,
    title: str = "What each layer does",
    images: str = "images",
) -> Section:
    """Add a section with rates, sparsity, rank and incoherence by layer, every model beside its untrained control.

    Args:
        report: what the section is added to.
        traces: label -> what `instruments.trace_report` returned, or several of these, one per seed.
        title: heading of the section.
        images: what the images are, for the caption, e.g. `"test images"`.

    Returns:
        The section, to which more can be added.

    Raises:
        ValueError: no traces, or seeds of one model with different numbers of layers.
    """
    if not traces:
        raise ValueError("traces is empty: give at least one model's trace")
    runs = {label: [results] if isinstance(results, Mapping) else list(results) for label, results in traces.items()}
    for label, results in runs.items():
        if len({len(result["layers"]) for result in results}) > 1:
            raise ValueError(f"traces[{label!r}]: its seeds have different numbers of layers")
    first = next(iter(runs.values()))[0]
    seeds = max(len(results) for results in runs.values())
    samples = int(first["images"] if "images" in first else first["sequences"])
    spread = (
        f"Mean over {seeds} seeds, each on the same {samples:,} {images}; bars are one standard deviation over seeds."
        if seeds > 1
        else f"Mean over {samples:,} {images}; bars are one standard error of it."
        if samples > 1
        else "Of a single sample, so without error bars."
    )
    controlled = any(result.get("control") for results in runs.values() for result in results)
    dashes = " Dotted lines with hollow markers: the same architecture with fresh weights." if controlled else ""
    published = " Rᶜ is the published hook's, whose scale differs." if first.get("protocol") == "published" else ""
    panels = [_chart(name, read, error, runs) for name, read, error in _quantities()]
    section = report.section(title, _EXPLANATION)
    for label, results in runs.items():
        section.text(_in_words(label, results))
    section.figure(
        panels,
        name="layers",
        caption=f"{spread}{dashes} R and Rᶜ at ε = {first['eps']:g}, of tokens divided by their norms, at Z½, that is "
        f"between attention and the second half of the layer.{published}",
    )
    return section


def _in_words(label: str, results: Sequence[TraceResult]) -> str:
    """What the curves of one model do from the first layer to the last, beside the control."""

    def ends(key: str, which: str) -> str:
        first, last = (fmean(result[which][at][key] for result in results) for at in (0, -1))
        return f"{number(first)} → {number(last)}"

    def both(key: str) -> str:
        control = f" (untrained {ends(key, 'control')})" if all(result.get("control") for result in results) else ""
        return ends(key, "layers") + control

    layers = list(zip(*(result["layers"] for result in results), strict=True))
    changes = [fmean(row["subspace_rate_half"] - row["subspace_rate_z"] for row in layer) for layer in layers]
    lowered = sum(change < 0 for change in changes)
    return (
        f"{label}, first layer → last: Rᶜ {both('subspace_rate')} nats, R {both('rate')} nats, non-zero fraction "
        f"{both('nonzero')}. Attention lowers Rᶜ in {lowered} of {len(layers)} layers; its mean change is "
        f"{number(fmean(changes))} nats."
    )


def _quantities() -> list[tuple[str, Callable[[Row], float], Callable[[Row], float]]]:
    def plain(key: str) -> tuple[Callable[[Row], float], Callable[[Row], float]]:
        return (lambda row: row[key]), (lambda row: row.get(f"{key}_se", math.nan))

    return [
        ("Rᶜ, coding rate in the subspaces (nats)", *plain("subspace_rate")),
        (
            "Change of Rᶜ by attention, Z to Z½ (nats)",
            lambda row: row["subspace_rate_half"] - row["subspace_rate_z"],
            lambda row: math.nan,
        ),
        ("Non-zero fraction after the layer", *plain("nonzero")),
        ("R, coding rate of all tokens (nats)", *plain("rate")),
        ("Effective rank of the tokens", *plain("effective_rank")),
        ("Incoherence of the heads' subspaces", lambda row: row["incoherence"], lambda row: math.nan),
    ]


def _chart(
    title: str, read: Callable[[Row], float], error: Callable[[Row], float], runs: Mapping[str, Sequence[TraceResult]]
) -> LineChart:
    series = []
    for color, (label, results) in enumerate(runs.items()):
        for key, name in (("layers", label), ("control", f"{label} untrained")):
            rows = [result[key] for result in results if result.get(key)]
            if not rows:
                continue
            by_layer = list(zip(*rows, strict=True))
            spread = [stdev(map(read, layer)) if len(layer) > 1 else float(error(layer[0])) for layer in by_layer]
            series.append(
                Series(
                    label=name,
                    x=[layer[0]["layer"] for layer in by_layer],
                    y=[fmean(map(read, layer)) for layer in by_layer],
                    error=spread,
                    color=color,
                    dashed=key == "control",
                )
            )
    return LineChart(title=title, x_label="layer", series=series)
