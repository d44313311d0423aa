"""The table and the page of `unrolled align`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unrolled.alignment import Comparison
    from unrolled.commands.align.options import AlignOptions
    from unrolled.commands.align.twins import Twin
    from unrolled.report import Report

_Z = "z: of this pair of layers alone, in standard deviations by chance; the search over layers is not corrected."


def score_table(
    names: Sequence[str], results: Sequence[Comparison], twins: Sequence[Twin]
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, a metric each: the score beside chance and beside the untrained twins."""
    from unrolled.alignment import p_text

    beside = [f"{twin.side} untrained" for twin in twins]
    columns = ["metric", "score", "chance", *beside, "p", "95 % interval of the score", "z of the pair"]
    rows = []
    for i, (name, each) in enumerate(zip(names, results, strict=True)):
        interval = "-" if each.interval is None else f"{each.interval[0]:.4g} to {each.interval[1]:.4g}"
        p = "-" if each.p_value is None else p_text(each.p_value, each.p_method)
        z = "-" if each.z is None else f"{each.z:.3g}"
        scores = [f"{value:.4g}" for value in (each.score, each.chance, *(twin.scores[i] for twin in twins))]
        rows.append([name, *scores, p, interval, z, *each.best])
    return [*columns, "layer of A", "layer of B"], rows


def p_value_note(names: tuple[str, ...], results: list[Comparison]) -> str:
    """How the p-values were found."""
    from unrolled.alignment.significance import SHOWN

    ways = {each.p_method for each in results}
    methods = [f"{name}: {each.p_method or 'none'}" for name, each in zip(names, results, strict=True)]
    units = f"; relabelled are {results[0].units}" if results[0].units else ""
    bound = f"; not shown below {SHOWN:g}, which no relabelling has checked" if any(map(_tiny, results)) else ""
    return f"p: {'; '.join(methods) if len(ways) > 1 else ways.pop() or 'none'}{units}{bound}"


def _tiny(result: Comparison) -> bool:
    from unrolled.alignment.significance import SHOWN

    return result.p_value is not None and result.p_value < SHOWN


def _how(options: AlignOptions, n: int) -> str:
    """What chance, p and interval of the table mean in this run."""
    from unrolled.alignment.scale import LARGE

    if n > LARGE:
        return (
            "Chance: one pair of layers where samples are paired at random. p: over relabellings of the sampled "
            "queries, the search over layers included. Interval: 95 %, over the choice of queries alone; subsamples "
            f"are not drawn above {LARGE:,} samples. {_Z}"
        )
    chance = (
        f"Chance: mean of the best pair of layers in {options.draws} relabellings of the samples; p: the share of "
        f"them that reach the score, so the search over layers is corrected. {_Z}"
        if options.null == "permutation"
        else "Chance and z: of this pair of layers alone, exact under random pairing where a closed form is known; p "
        "is corrected for the search over layers, z is not."
    )
    return (
        f"{chance} Interval: 95 %, of what {n:,} samples like these score with this pair of layers; it is not of a "
        "population, as scores depend on how many samples there are, nor over the search."
    )


def align_report(
    options: AlignOptions, results: list[Comparison], n: int, notes: list[str], *,
    twins: Sequence[Twin] = (), random: Sequence[str] = (),
) -> Report:  # fmt: skip
    """The page of a comparison of two.

    Args:
        options: of the run.
        results: a metric each.
        n: samples.
        notes: on them.
        twins: either side with fresh weights.
        random: the sides, "A" or "B", that have random weights.
    """
    from unrolled.alignment.significance import p_phrase
    from unrolled.commands.align.words import layer_words, training_words
    from unrolled.report import Fact, HeatMap, Report

    specs = {"A": options.a, "B": options.b}
    a, b = (f"{spec}{' (random weights)' if side in random else ''}" for side, spec in specs.items())
    named = list(zip(options.metric, results, strict=True))
    report = Report(f"{a} and {b}", question="How far do two representations of the same samples agree?")
    facts = [
        Fact(
            label=name,
            value=f"{each.score:.3g}",
            detail=f"chance {each.chance:.3g}"
            + ("" if each.p_value is None else f", {p_phrase(each.p_value, each.p_method)}"),
        )
        for name, each in named
    ]
    name, first = named[0]
    report.headline(
        f"The layers that agree best, {first.best[0]} of A and {first.best[1]} of B, have {name} {first.score:.3g} on "
        f"{n:,} samples, where chance gives {first.chance:.3g}"
        + "".join(f" and an untrained {twin.side} {twin.scores[0]:.3g}" for twin in twins)
        + {0: ".", 1: f". {''.join(random)} has random weights.", 2: ". Both have random weights."}[len(random)],
        facts,
    )
    section = report.section("Scores")
    for i, (name, each) in enumerate(named):
        if words := training_words(each, name, i, twins, random):
            section.text(words)
    section.table(
        *score_table(options.metric, results, twins),
        caption=f"{_how(options, n)} {p_value_note(options.metric, results)}. In full: "
        + ", ".join(each.metric for each in results)
        + "."
        + (" Untrained: the best pair of layers with fresh weights on that side." if twins else "")
        + "".join(f" Note: {note}." for note in notes),
    )
    if results[0].held_out is not None:
        rows: list[list[str | float]] = [
            [name, *each.held_out.pair, each.held_out.score, each.held_out.chance, each.held_out.p_value]
            for name, each in named
            if each.held_out is not None
        ]
        columns = ["metric", "layer of A", "layer of B", "score", "chance", "p"]
        section.table(columns, rows, caption="Layers chosen on one half of the samples, judged on the other.")
    layers = report.section("Layer by layer")
    for name, each in named:
        if words := layer_words(each, name):
            layers.text(words)
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
            panel,
            caption=f"{each.metric} of all layers of A ({a}) and B ({b}), {n:,} samples. Framed: best. "
            + panel.scale_words(),
        )
    return report
