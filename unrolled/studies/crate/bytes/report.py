"""The page of `crate-bytes`: models beside counts and a packer, by corpus and position, what was chosen, limits."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.bytes.cells import FAMILIES, ORDER, BytesConfig, Counted
from unrolled.studies.crate.bytes.claims import View
from unrolled.studies.crate.longer import STAYS, TIMES, Length, errors_after, exponent
from unrolled.studies.language import bits
from unrolled.studies.results import NOT_RUN, Results

if TYPE_CHECKING:
    from unrolled.report import Report

_PLACES = {family: place for place, family in enumerate(FAMILIES)}  # in the palette


def report(report: Report, config: BytesConfig, results: Results[Any]) -> None:
    """Headline, models, corpora, positions, what was chosen, longer training, limits."""
    view = View(results, config)
    _headline(report, view)
    _models(report, view)
    _corpora(report, view)
    _curves(report, view)
    _trials(report, view)
    _longer(report, view)
    _limits(report, view)


def _megabytes(config: BytesConfig, steps: int) -> str:
    return f"{steps * config.batch_size * config.length / 1e6:.3g} MB"


def _headline(report: Report, view: View) -> None:
    from unrolled.report import Fact

    config = view.config
    losses = {family: view.bits(family) for family in config.families}
    ranked = sorted((family for family in losses if losses[family]), key=lambda family: losses[family].mean)
    counts = view.counts("counts.loss")
    if not ranked or counts is None:
        report.headline(f"No model is kept: losses are {NOT_RUN}.")
        return
    best, last = ranked[0], ranked[-1]
    ahead = sum(losses[family].mean < counts for family in ranked)
    report.headline(
        f"After {_megabytes(config, config.steps)} of text, {best} spends the fewest bits on a byte it never saw, "
        f"{losses[best]:.3f}, and {last} the most, {losses[last]:.3f}. Counting {ORDER} bytes in a row in all of the "
        f"training text spends {counts:.3f}: {ahead or 'none'} of {len(ranked)} models are ahead of it.",
        [Fact(label=family, value=f"{losses[family]:.3f}", detail="bits per byte") for family in ranked],
    )


def _models(report: Report, view: View) -> None:
    config = view.config
    rows: list[list[Any]] = []
    for family in config.families:
        networks, tested = view.networks(family), view.tested(family)
        if not tested:
            rows.append([family, *[NOT_RUN] * 10])
            continue
        rows.append(
            [
                *(family, networks.first("width"), f"{networks.first('parameters.without_embeddings'):,}"),
                f"{tested.first('flops') / 1e3:,.0f}",
                f"{view.bits(family):.3f}",
                f"{view.bits(family, long=True):.3f}" if family in config.longer else "",
                f"{view.bits(family, 'mixed'):.3f}",
                f"{tested.values('weight'):.2f}",
                f"{view.bits(family, 'mixed', long=True):.3f}" if family in config.longer else "",
                f"{view.bits(family, 'read.score'):+.3f}",
                f"{view.bits(family, 'repeated') - view.bits(family, 'unrepeated'):+.3f}",
            ]
        )
    for name, path in ((f"{ORDER}-gram counts, Kneser-Ney", "counts.loss"), ("xz", "xz")):
        value = view.counts(path)
        score = view.counts("counts.score") if path == "counts.loss" else None
        words = NOT_RUN if value is None else f"{value:.3f}"
        rows.append([name, *[""] * 3, words, *[""] * 4, "" if score is None else f"{score:+.3f}", ""])
    report.section(
        "Every model",
        "Bits per byte on the test parts, by which nothing was chosen, mean over the corpora; 8 is a uniform guess. "
        f"Longer: after {_megabytes(config, config.long_steps)}. With counts: the probabilities of model and counts "
        "mixed, the share of the model chosen on validation text. Late less early: the loss at positions "
        f"{config.late} to {config.late + config.window - 1} of the context less that at {config.early} to "
        f"{config.early + config.window - 1}; negative if a longer context helps. Repeated: the loss on the second "
        "half of a context that repeats its first half, less the loss on the same bytes after another first half; "
        "negative if the model copies.",
    ).table(
        [
            *("model", "width", "parameters", "kFLOPs a byte", "bits per byte", "longer", "with counts", "share"),
            *("longer, with counts", "late less early", "repeated"),
        ],
        rows,
        caption=f"Parameters without the tables of bytes and positions. {config.depth} layers, {config.heads} heads, "
        f"contexts of {config.length} bytes, {config.steps:,} steps of {config.batch_size} of them. ± one standard "
        "deviation over seeds where there are two. `xz -9e` adds so much for the test part behind the training text; "
        "it may look back further than any model here.",
    )


def _corpora(report: Report, view: View) -> None:
    config, counted = view.config, view.results.of(Counted)
    rows = []
    for corpus in config.corpora:
        sizes = counted[0].result["by_corpus"][corpus]["sizes"] if counted else None
        counts = [view.counts(path, corpus) for path in ("counts.loss", "xz")]
        rows.append(
            [
                corpus,
                f"{sizes['train']:,}" if sizes else NOT_RUN,
                *(f"{view.bits(family, corpus=corpus):.3f}" for family in config.families),
                *(NOT_RUN if value is None else f"{value:.3f}" for value in counts),
            ]
        )
    report.section(
        "By corpus",
        "All models learn from all corpora at once, a byte of each as likely as its share of the text.",
    ).table(
        ["corpus", "bytes for training", *config.families, f"{ORDER}-gram", "xz"],
        rows,
        caption=f"Bits per byte of at most {config.test_bytes:,} bytes of each test part.",
    )


def _curves(report: Report, view: View) -> None:
    from unrolled.report import LineChart

    config, edges = view.config, [0]
    while edges[-1] < config.length:
        edges.append(min(config.length, max(edges[-1] + 1, round(1.6 * edges[-1]))))
    spans = list(pairwise(edges))
    where = [(start + 1 + end) / 2 for start, end in spans]  # counted from 1

    def binned(result: Any) -> list[float]:
        curves = [result["by_corpus"][corpus]["read"]["curve"] for corpus in config.corpora]
        return [bits(fmean(fmean(curve[start:end]) for curve in curves)) for start, end in spans]

    trained = [family for family in config.families if view.tested(family)]
    if not trained:
        return
    report.section("By position and by step").figure(
        [
            LineChart(
                title="test loss (bits per byte)",
                x_label="position in the context",
                series=[view.tested(name).curve(name, binned, x=where, color=_PLACES[name]) for name in trained],
                log_x=True,
            ),
            LineChart(
                title="validation loss (bits per byte)",
                x_label="training step",
                series=[
                    view.networks(name).curve(name, "validation", "loss", color=_PLACES[name]).scaled(bits(1))
                    for name in trained
                ],
            ),
        ],
        name="positions",
        caption="Means over seeds. Left: over neighbouring positions too, wider spans further on. The last validation "
        "losses come after the learning rate has fallen to a tenth.",
    )


def _trials(report: Report, view: View) -> None:
    config = view.config
    rows = []
    for family in config.families:
        networks = view.networks(family)
        chosen = f"{networks.first('rate'):g}" if networks else NOT_RUN
        rows.append([family, *(f"{loss:.3f}" for loss in view.trials(family)), chosen])
    report.section(
        "What was chosen",
        f"The peak rate, by {len(config.rates)} trials of {_megabytes(config, config.trial_steps)} for every model "
        "alike, on validation text. All else is one for all: Muon for the matrices of the layers and AdamW (0.9, 0.95) "
        "for the rest, weight decay 0.1, gradients clipped at norm 1, a tenth of the steps for warming up and a cosine "
        f"to a tenth of the peak, initial tables with standard deviation {config.table_std:g}.",
    ).table(
        ["model", *(f"rate {rate:g}" for rate in config.rates), "chosen"],
        rows,
        caption="Validation loss at the end of a trial, bits per byte.",
    )


def _longer(report: Report, view: View) -> None:
    """An extrapolation of models with two lengths."""
    config, rows = view.config, []
    for family in config.longer:
        short, long = view.bits(family), view.bits(family, long=True)
        if not short or not long or long.mean >= short.mean:
            continue
        first, last = (
            Length(steps * config.batch_size * config.length, bits.mean, math.nan)
            for steps, bits in ((config.steps, short), (config.long_steps, long))
        )
        after = (f"{each.value:.2f}" for each in errors_after(first, last))
        rows.append([family, f"{short:.3f}", f"{long:.3f}", f"{-exponent(first, last):.3f}", *after])
    if not rows:
        return
    times = _megabytes(config, TIMES * config.long_steps)
    report.section(
        "What longer training would likely change",
        f"Nothing was trained on {times}: this is extrapolated. The power says how the loss falls with the bytes seen. "
        "Bits per byte if that goes on, and if none, half or three quarters of the loss stays for good (the floor):",
    ).table(
        [
            *("model", _megabytes(config, config.steps), _megabytes(config, config.long_steps), "power"),
            *(f"{times}, floor {words}" for words in STAYS),
        ],
        rows,
        caption="One seed of the longer training gives no interval; what seeds of the shorter one differ by stands "
        "beside it. Two lengths cannot show that the curve bends. Text has an entropy that no model goes below, so "
        "that floor 0 gives the least that is likely; the same text comes back many times.",
    )


def _limits(report: Report, view: View) -> None:
    config = view.config
    seeds = {len(view.networks(family)) for family in config.families} - {0}
    report.section(
        "What this does not show",
        "The scale is far from the published one: 57 to 940 million parameters there, billions of tokens. Here all "
        f"models have about as many parameters and see as many bytes ({_megabytes(config, config.steps)}), which costs "
        "them unequal time: operations are in the table, and MesaNet's solver is slower than its operations say. "
        "Nothing was trained at equal operations: a model that is behind one of fewer operations would be further "
        "behind there. "
        "Every model has its own published frame, so that a difference is not that of the layer alone; the two pairs "
        "with and without the convolution say what it is worth in each frame. The convolution given to softmax "
        "attention has no activation behind it, MesaNet's has one, and MesaNet without it keeps that. "
        + ("Models with one seed have no error bar. " if 1 in seeds else "")
        + "Brown is text of separate sentences, tokenised, and WikiText's words are split from their punctuation: "
        "bits per byte are low there for that reason.",
    )
