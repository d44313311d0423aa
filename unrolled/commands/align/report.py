"""The table and the page of `unrolled align`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unrolled.alignment import Comparison
    from unrolled.commands.align.options import AlignOptions
    from unrolled.report import Report

COLUMNS = ["metric", "score", "null", "p", "interval at this n", "z of the pair", "layer of A", "layer of B"]

_Z = "z: of this pair of layers alone, in standard deviations by chance; the search over layers is not corrected."


def row(name: str, result: Comparison) -> list[str]:
    """One metric in the order of `COLUMNS`."""
    from unrolled.alignment import p_text

    interval = "-" if result.interval is None else f"{result.interval[0]:.4g} to {result.interval[1]:.4g}"
    p = "-" if result.p_value is None else p_text(result.p_value, result.p_method)
    z = "-" if result.z is None else f"{result.z:.3g}"
    return [name, f"{result.score:.4g}", f"{result.chance:.4g}", p, interval, z, *result.best]


def p_value_note(names: tuple[str, ...], results: list[Comparison]) -> str:
    """How the p-values were found."""
    ways = {each.p_method for each in results}
    methods = [f"{name}: {each.p_method or 'none'}" for name, each in zip(names, results, strict=True)]
    units = f"; relabelled are {results[0].units}" if results[0].units else ""
    return f"p: {'; '.join(methods) if len(ways) > 1 else ways.pop() or 'none'}{units}"


def _how(options: AlignOptions, n: int) -> str:
    """What null, p and interval of the table mean in this run."""
    from unrolled.alignment.scale import LARGE

    if n > LARGE:
        return (
            "Null: one pair of layers where samples are paired at random. p: over relabellings of the sampled queries, "
            "the search over layers included. Interval: 95 %, over the choice of queries alone; subsamples are not "
            f"drawn above {LARGE:,} samples. {_Z}"
        )
    null = (
        f"Null: mean of the best pair of layers in {options.draws} relabellings of the samples; p: the share of "
        f"them that reach the score, so the search over layers is corrected. {_Z}"
        if options.null == "permutation"
        else "Null and z: of this pair of layers alone, exact under random pairing where a closed form is known; p is "
        "corrected for the search over layers, z is not."
    )
    return (
        f"{null} Interval: 95 %, of what {n:,} samples like these score with this pair of layers; it is not of a "
        "population, as scores depend on how many samples there are, nor over the search."
    )


def align_report(options: AlignOptions, results: list[Comparison], n: int, notes: list[str]) -> Report:
    """The page of a comparison of two."""
    from unrolled.alignment.significance import p_phrase
    from unrolled.report import Fact, HeatMap, Report

    a, b, named = options.a, options.b, list(zip(options.metric, results, strict=True))
    report = Report(f"{a} and {b}", question="How far do two representations of the same samples agree?")
    facts = [
        Fact(
            label=name,
            value=f"{each.score:.3g}",
            detail=f"by chance {each.chance:.3g}"
            + ("" if each.p_value is None else f", {p_phrase(each.p_value, each.p_method)}"),
        )
        for name, each in named
    ]
    name, first = named[0]
    report.headline(
        f"The layers that agree best, {first.best[0]} of A and {first.best[1]} of B, have {name} {first.score:.3g} on "
        f"{n:,} samples, where chance gives {first.chance:.3g}.",
        facts,
    )
    section = report.section("Scores")
    section.table(
        COLUMNS,
        [row(name, each) for name, each in named],
        caption=f"{_how(options, n)} Found by {p_value_note(options.metric, results)}. In full: "
        + ", ".join(each.metric for each in results)
        + "."
        + "".join(f" Note: {note}." for note in notes),
    )
    if results[0].held_out is not None:
        rows: list[list[str | float]] = [
            [name, *each.held_out.pair, each.held_out.score, each.held_out.chance, each.held_out.p_value]
            for name, each in named
            if each.held_out is not None
        ]
        columns = ["metric", "layer of A", "layer of B", "score", "null", "p"]
        section.table(columns, rows, caption="Layers chosen on one half of the samples, judged on the other.")
    layers = report.section("Layer by layer")
    for name, each in named:
        names_a, names_b = each.layers
        panel = HeatMap(
            title=name,
            values=each.scores.cpu().double().numpy(),
            rows=names_a,
            columns=names_b,
            row_label="A",
            column_label="B",
            mark=(names_a.index(each.best[0]), names_b.index(each.best[1])),
        )
        layers.figure(
            panel, caption=f"{each.metric} of all layers of A ({a}) and B ({b}), {n:,} samples. Framed: best."
        )
    return report
