"""The page of `crate-text`: models beside counts and controls, loss by position, masked bytes, costs, samples."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.text.cells import ORDERS, Cost, Counted, CrateTextConfig, Sized, Written
from unrolled.studies.crate.text.claims import View
from unrolled.studies.crate.text.frames import MASKED_MODELS, MODELS, WIDER
from unrolled.studies.language import bits
from unrolled.studies.results import NOT_RUN, Results

if TYPE_CHECKING:
    from unrolled.report import Report

_PLACES = {model: place for place, model in enumerate(MODELS)}  # in the palette


def report(report: Report, config: CrateTextConfig, results: Results[Any]) -> None:
    """Headline, models, positions, masked bytes, costs, what was chosen, samples, limits."""
    view = View(results, config)
    _headline(report, view)
    _models(report, view)
    _positions(report, view)
    _masked(report, view)
    _costs(report, config, results.of(Cost))
    _choices(report, view)
    _samples(report, results)
    _limits(report, view)


def _headline(report: Report, view: View) -> None:
    from unrolled.report import Fact

    config = view.config
    losses = {model: view.bits(model) for model in MODELS}
    ranked = sorted(view.models, key=lambda model: losses[model].mean)
    counts = view.networks("GPT-2").first("parameters.without_embeddings")
    size = NOT_RUN if counts is None else f"{counts:,}"
    parts = [
        f"On {config.corpus}, after {_seen(config)} bytes and with about {size} parameters without embeddings, the "
        "models spend "
        + ", ".join(f"{losses[model]:.3f} ({model})" for model in ranked if model != WIDER)
        + f" bits on a byte they never saw; a GPT-2 of CRATE's operations {losses[WIDER]:.3f}."
    ]
    if ngrams := view.results.of(Counted).first("ngrams"):
        order = _best_order(ngrams)
        best = bits(ngrams[str(order)]["loss"])
        ahead = [model for model in MODELS if losses[model] and losses[model].mean < best]
        verdict = f"ahead of it are {', '.join(ahead)}." if ahead else "no model is ahead of it."
        parts.append(f"Counting {order} bytes in a row in all of the training part spends {best:.3f}: {verdict}")
    report.headline(
        " ".join(parts),
        [Fact(label=model, value=f"{losses[model]:.3f}", detail="bits per byte, test part") for model in MODELS],
    )


def _seen(config: CrateTextConfig) -> str:
    return f"{config.steps * config.batch_size * config.length / 1e6:.2f} million"


def _best_order(ngrams: Mapping[str, Any]) -> int:
    return min(ORDERS, key=lambda order: ngrams[str(order)]["loss"])


def _size(networks: Results[Sized]) -> list[Any]:
    """Width, parameters and seeds, as tables say them."""
    if not networks:
        return [NOT_RUN] * 4
    counts = networks.first("parameters")
    return [networks.first("width"), f"{counts['without_embeddings']:,}", f"{counts['all']:,}", len(networks)]


def _models(report: Report, view: View) -> None:
    config = view.config
    rows: list[list[Any]] = [
        [
            *(model, *_size(view.networks(model))),
            f"{view.bits(model):.3f}",
            f"{view.bits(model, 'score'):.3f}",
            f"{view.bits(model, part='untrained'):.2f}",
            f"{view.bits(model, disordered=True):.2f}",
            f"{view.bits(model, part='shuffled'):.3f}",
        ]
        for model in MODELS
    ]
    counted = view.results.of(Counted)
    for order, counts in counted.first("ngrams", {}).items():
        name = {"1": "unigram", "2": "bigram"}.get(order, f"{order}-gram")
        measured = [f"{bits(counts['loss']):.3f}", f"{bits(counts['score']):.3f}"]
        rows.append([f"{name} counts", *[""] * 4, *measured, *[""] * 3])
    sizes = counted.first("sizes", dict.fromkeys(("train", "val", "test"), 0))
    report.section(
        "Every model",
        "Bits per byte are on the test part, by which nothing was chosen; 8 is a uniform guess. Late less early is the "
        f"loss at positions {config.late} to {config.late + config.window - 1} of the context less that at "
        f"{config.early} to {config.early + config.window - 1}: negative if a longer context helps. The n-gram rows "
        "count bytes of the training part, mixed over orders (Witten-Bell), and see no more of the excerpt than the "
        "models; their late less early says how much of a change is that these excerpts happen to be harder late.\n\n"
        "Two controls destroy the order of bytes. Read shuffled: the trained model on test excerpts whose bytes are "
        "permuted; one that uses order must do far worse than on text. Trained on shuffled: the same model trained "
        f"{config.trial_steps} steps on permuted text and tested on permuted text; the unigram counts are the best "
        "that is possible there, and a model below them would be seeing the byte it predicts.",
    ).table(
        [
            *("model", "width", "parameters without embeddings", "parameters", "seeds", "bits per byte"),
            *("late less early", "untrained", "read shuffled", "trained on shuffled"),
        ],
        rows,
        caption=f"{config.corpus}: {sizes['train']:,} bytes for training, {sizes['val']:,} for validation, "
        f"{sizes['test']:,} for the test (at most {config.test_bytes:,} used). {config.depth} layers, {config.heads} "
        f"heads, {config.steps:,} steps of {config.batch_size} excerpts of {config.length} bytes for all. Embeddings "
        "are the tables of bytes and positions; output matrices are tied. ± one standard deviation over seeds; trained "
        "on shuffled has one seed.",
    )


def _positions(report: Report, view: View) -> None:
    from unrolled.report import LineChart, Series

    config, edges = view.config, [0]
    while edges[-1] < config.length:
        edges.append(min(config.length, max(edges[-1] + 1, round(1.6 * edges[-1]))))
    spans = list(pairwise(edges))
    where = [(start + end - 1) / 2 for start, end in spans]

    def binned(result: Mapping[str, Any]) -> list[float]:
        return [bits(fmean(result["curve"][start:end])) for start, end in spans]

    losses = [view.tested(model).curve(model, binned, x=where, color=_PLACES[model]) for model in view.models]
    if ngrams := view.results.of(Counted).first("ngrams"):
        orders = enumerate(sorted({2, _best_order(ngrams)}), 5)
        losses += [
            Series(label=f"{order}-gram", x=where, y=binned(ngrams[str(order)]), color=place, dashed=True)
            for place, order in orders
        ]
    training = [
        view.networks(model).curve(model, "validation", "loss", color=_PLACES[model]).scaled(bits(1))
        for model in view.models
    ]
    panels = [
        LineChart(title=title, x_label=x_label, series=series)
        for title, x_label, series in (
            ("test loss (bits per byte)", "position in the context", losses),
            ("validation loss (bits per byte)", "training step", training),
        )
        if series
    ]
    section = report.section(
        "By position and by step",
        "A model without memory would be flat after its first bytes, as the bigram is.",
    )
    if panels:
        section.figure(
            panels,
            name="positions",
            caption="Means over seeds; bars are one standard deviation where there are several. Left: over "
            "neighbouring positions too, wider spans further on; dotted lines count bytes. The last validation losses "
            "come after the learning rate has fallen to a tenth.",
        )


def _masked(report: Report, view: View) -> None:
    config = view.config
    rows: list[list[Any]] = [
        [
            *(model, *_size(view.networks(model))),
            f"{view.filled(model):.3f}",
            f"{100 * view.filled(model, 'accuracy'):.1f}",
            f"{view.filled(model, part='untrained'):.2f}",
        ]
        for model in MASKED_MODELS
    ]
    gains = ""
    if unigram := view.results.of(Counted).first("masked"):
        rows.append(["unigram counts", *[""] * 4, f"{unigram['loss']:.3f}", f"{100 * unigram['accuracy']:.1f}", ""])
        gain = {model: unigram["loss"] - view.filled(model).mean for model in MASKED_MODELS if view.filled(model)}
        if gain:
            words = " and ".join(f"{value:.3f} nats ({model})" for model, value in gain.items())
            gains = f" The models gain {words} on the unigram."
            if min(gain.values()) < 0.05:
                gains += " A gain below 0.05 nats means that a model has hardly begun to read."
    report.section(
        "Masked bytes",
        "15 % of the bytes are chosen; of these 80 % are masked, 10 % replaced, 10 % left, and all are predicted from "
        f"both sides.{gains}",
    ).table(
        [
            *("model", "width", "parameters without embeddings", "parameters", "seeds"),
            *("loss (nats per masked byte)", "accuracy (%)", "untrained loss"),
        ],
        rows,
        caption=f"Test part, the same masks for all. {config.masked_steps:,} steps of {config.batch_size} excerpts of "
        f"{config.length} bytes; settings chosen on validation text.",
    )


def _costs(report: Report, config: CrateTextConfig, costs: Results[Cost]) -> None:
    rows = [
        [
            model,
            f"{cost['operations'] / 1e3:,.0f}",
            f"{cost['bytes_per_second']:,.0f}",
            f"{cost['cached_ms']:.2f}",
            f"{cost['recomputed_ms']:.2f}",
            f"{cost['state']:,}",
        ]
        for row in costs
        for model, cost in row.result.items()
    ]
    report.section(
        "What they cost",
        "Equal parameters are not equal costs: CRATE's layers are wider, so that its attention and its memory are too, "
        "and MesaNet solves a linear system for every byte by conjugate gradients. The wider GPT-2 is as wide as gives "
        "it CRATE-GPT's operations, as near as its heads allow, and so has more parameters. The memory of CRATE holds "
        "one tensor where that of GPT-2 holds two; that of ToST and MesaNet does not grow with the context.",
    ).table(
        [
            *("model", "kFLOPs per byte", "bytes/s in training", "decoding, ms per byte", "the same, recomputed"),
            "numbers remembered",
        ],
        rows or [[NOT_RUN] * 6],
        caption=f"kFLOPs: matrix products and attention of predicting {config.length} bytes, two operations a "
        f"multiply-add. Timed on one thread: forward and backward pass of {config.batch_size} excerpts of "
        f"{config.length} bytes, minimum of 7; decoding of {config.length - 1} bytes one at a time from one byte, "
        f"minimum of 3, models interleaved. Numbers remembered after {config.length} bytes, in all layers.",
    )


def _choices(report: Report, view: View) -> None:
    config = view.config
    pairs = [(rate, std) for rate in config.rates for std in config.table_stds]
    rows = []
    for model in (*MODELS, *MASKED_MODELS):
        scale, networks = 1.0 if model in MASKED_MODELS else bits(1.0), view.networks(model)
        chosen = f"{networks.first('rate'):g}, {networks.first('table_std'):g}" if networks else NOT_RUN
        rows.append([model, *(f"{scale * loss:.3f}" for loss in view.trials(model)), chosen])
    share = len(pairs) * config.trial_steps / config.steps
    report.section(
        "What was chosen",
        f"Every model tried the same {len(pairs)} settings for {config.trial_steps} steps each (masked ones "
        f"{config.masked_trial_steps}), in all {100 * share:.0f} % of the steps of one training, and kept the one with "
        "the lowest loss on validation text: peak learning rate, and standard deviation of the initial tables of bytes "
        "and positions. The latter is GPT-2's 0.02 or ten times that, because a layer of CRATE hands on its tokens "
        "only through ISTA, which drops what is small beside the attention's update. AdamW (0.9, 0.95), weight decay "
        "0.1, gradients clipped at norm 1, a tenth of the steps for warming up and a cosine to a tenth of the peak, "
        "for all.",
    ).table(
        ["model", *(f"{rate:g}, std {std:g}" for rate, std in pairs), "chosen"],
        rows,
        caption="Validation loss at the end of a trial: bits per byte, for masked models nats per masked byte.",
    )


def _samples(report: Report, results: Results[Any]) -> None:
    def shown(text: str) -> str:
        return text.replace("\n", " / ")

    samples = {model: results.of(Written, model=model) for model in MODELS}
    prompt = results.of(Written).first("prompt")
    after = "" if prompt is None else f": “{shown(prompt)}”"
    report.section(
        "What they write",
        "Drawn at temperature 0.8 with one seed for all, after the first bytes of the test part" + after + ". Not "
        "picked by hand.",
    ).table(
        ["model", "continuation"],
        [[model, shown(rows.first("text", NOT_RUN))] for model, rows in samples.items()],
        caption="First seed of each; / is a line end.",
    )


def still_falling(view: View) -> str:
    """How many validation curves had not ended, where there are two looks to tell by."""
    last = [values for model in view.models if (values := view.networks(model).values(_last_change))]
    if not last:
        return ""
    falling = sum(values.mean < 0 for values in last)
    return f": at the last look the validation loss of {falling} of {len(last)} models was still falling"


def _last_change(result: Mapping[str, Any]) -> float | None:
    losses = [look["loss"] for look in result["validation"]]
    return losses[-1] - losses[-2] if len(losses) > 1 else None


def put_down_to_settings(view: View) -> str:
    """A warning where the wider GPT-2 is behind the other, which can only be the settings' doing."""
    if not (view.bits(WIDER) - view.bits("GPT-2")).mean > 0:
        return ""
    wide, narrow = (view.networks(model).first("rate") for model in (WIDER, "GPT-2"))
    return (
        ": the wider GPT-2 came out behind the narrower one, which more parameters do not explain but rates "
        f"may (chosen: {wide:g} and {narrow:g}); the control beside the signs above is "
        "what sets these two apart, which is no other layer"
    )


def _limits(report: Report, view: View) -> None:
    config = view.config
    times = {model: len(view.networks(model)) for model in ("MesaNet", "GPT-2")}
    report.section(
        "Limits",
        "The scale differs from the published one by orders of magnitude: there 57 to 124 million parameters, BPE "
        "tokens of OpenWebText, 600,000 steps of batch 384 and a context of 1,024 tokens; here "
        f"{_seen(config)} bytes of {config.corpus}. Losses per byte and per BPE token are not comparable: "
        "signs of differences are judged, and of MesaNet whether it is level, within 0.05 bits. A model that is ahead "
        "here may merely learn "
        f"faster{still_falling(view)}.\n\n"
        "Each model has its own published frame. GPT-2, CRATE and ToST share learned positions and LayerNorm; MesaNet "
        "has none of these but short convolutions, gates, RMSNorm and SwiGLU, so that its difference from GPT-2 is not "
        "that of the mesa layer alone (the `mesa-language` study replaces the layer and nothing else). Equal "
        "parameters at equal depth make CRATE twice as wide as GPT-2; deeper models of equal width were not tried. "
        "Beyond the scale of the tables initialisation is the package's for each model. Settings were chosen by short "
        f"trials, which favour what learns fast, with one seed and from few candidates{put_down_to_settings(view)}. "
        f"MesaNet was trained {times['MesaNet']} times, the others {times['GPT-2']}; standard deviations over so few "
        "say little.",
    )
