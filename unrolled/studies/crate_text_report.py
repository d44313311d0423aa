"""The report of the `crate-text` study: claims, models beside counts and controls, loss by position, costs, samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate_text import (
    ALPHA,
    CONTEXT,
    CRATE,
    MASKED,
    MASKED_MODELS,
    MESA,
    MODELS,
    OPERATIONS,
    TOST,
    WIDER,
)
from unrolled.studies.crate_text_cells import ORDERS, bits

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.studies.crate_text import Config

Cells = list[dict[str, Any]]


def build_report(config: Config, results: dict[str, Any], began: float) -> Report:
    """Judge and lay out the results of `unrolled.studies.crate_text.run`."""
    from unrolled.report import Fact, Provenance, Report, mean_std

    cells: dict[str, Cells] = {model: [] for model in (*MODELS, *MASKED_MODELS)}
    for cell in results["cells"]:
        cells[cell["model"]].append(cell)
    report = Report(
        "White-box language models and GPT-2 at equal parameters",
        question="How well do CRATE, CRATE-alpha, ToST and MesaNet layers predict text beside GPT-2's, at one size?",
    )
    report.claims = _claims(cells)
    losses = {model: mean_std(_bits(cells[model]), digits=3) for model in MODELS}
    ngrams = results["baselines"]["ngrams"]
    order, best = _best_ngram(ngrams)
    ahead = [model for model in MODELS if fmean(_bits(cells[model])) < best]
    seen = cells["GPT-2"][0]["bytes"]
    ranked = sorted(MODELS, key=lambda model: fmean(_bits(cells[model])))
    verdict = f"ahead of it are {', '.join(ahead)}." if ahead else "no model is ahead of it."
    report.headline(
        f"On {config.corpus}, after {seen / 1e6:.2f} million bytes and with about "
        f"{cells['GPT-2'][0]['parameters']['without_embeddings']:,} parameters without embeddings, the models spend "
        + ", ".join(f"{losses[model]} ({model})" for model in ranked if model != WIDER)
        + f" bits on a byte they never saw; a GPT-2 of CRATE's operations {losses[WIDER]}. "
        f"Counting {order} bytes in a row in all of the training part spends {best:.3f}: {verdict}",
        [Fact(label=model, value=losses[model], detail="bits per byte, test part") for model in MODELS],
    )
    _models(report, config, cells, results)
    _positions(report, config, cells, ngrams)
    _masked(report, config, cells, results)
    _costs(report, config, results["costs"])
    _choices(report, config, results)
    _samples(report, cells)
    _limits(report, config, cells)
    report.results = results
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _bits(found: Cells) -> list[float]:
    return [bits(cell["test"]["loss"]) for cell in found]


def _best_ngram(ngrams: dict[str, Any]) -> tuple[int, float]:
    order = min(ORDERS, key=lambda n: ngrams[str(n)]["loss"])
    return order, bits(ngrams[str(order)]["loss"])


def _difference(one: Cells, other: Cells) -> list[float]:
    """Test loss of `one` less that of `other`, seed by seed, in nats."""
    theirs = {cell["seed"]: cell["test"]["loss"] for cell in other}
    return [cell["test"]["loss"] - theirs[cell["seed"]] for cell in one if cell["seed"] in theirs]


def _claims(cells: dict[str, Cells]) -> list[Any]:
    from unrolled.report import mean_std

    claims = []
    for expectation, one, other in (
        (CRATE, "CRATE-GPT", "GPT-2"),
        (OPERATIONS, "CRATE-GPT", WIDER),
        (ALPHA, "CRATE-alpha", "CRATE-GPT"),
        (TOST, "ToST", "GPT-2"),
        (MESA, "MesaNet", "GPT-2"),
    ):
        found = [bits(value) for value in _difference(cells[one], cells[other])]
        claims.append(expectation.judge(fmean(found), f"{mean_std(found, digits=3)} ({len(found)} seeds)"))
    changes = {model: [bits(cell["test"]["change"]) for cell in cells[model]] for model in MODELS}
    words = "; ".join(f"{mean_std(found, digits=3)} ({model})" for model, found in changes.items())
    claims.append(CONTEXT.judge(max(fmean(found) for found in changes.values()), words))
    found = _difference(cells["CRATE-BERT"], cells["BERT"])
    claims.append(MASKED.judge(fmean(found), f"{mean_std(found, digits=3)} ({len(found)} seeds)"))
    return claims


def _models(report: Report, config: Config, cells: dict[str, Cells], results: dict[str, Any]) -> None:
    from unrolled.report import mean_std

    shuffled = {cell["model"]: cell for cell in results["shuffled"]}
    rows: list[list[Any]] = []
    for model in MODELS:
        found = cells[model]
        counts = found[0]["parameters"]
        rows.append(
            [
                *(model, found[0]["width"], f"{counts['without_embeddings']:,}", f"{counts['all']:,}", len(found)),
                mean_std(_bits(found), digits=3),
                mean_std([bits(cell["test"]["change"]) for cell in found], digits=3),
                mean_std([bits(cell["untrained"]["loss"]) for cell in found], digits=2),
                mean_std([bits(cell["order_destroyed"]) for cell in found], digits=2),
                f"{bits(shuffled[model]['test']['loss']):.3f}",
            ]
        )
    for order in ORDERS:
        found = results["baselines"]["ngrams"][str(order)]
        name = {1: "unigram", 2: "bigram"}.get(order, f"{order}-gram")
        measured = [f"{bits(found['loss']):.3f}", f"{bits(found['change']):.3f}"]
        rows.append([f"{name} counts", *[""] * 4, *measured, *[""] * 3])
    sizes, steps = results["baselines"]["sizes"], config.steps
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
        f"heads, {steps:,} steps of {config.batch_size} excerpts of {config.length} bytes for all. Embeddings are the "
        "tables of bytes and positions; output matrices are tied. ± one standard deviation over seeds; trained on "
        "shuffled has one seed.",
    )


def _positions(report: Report, config: Config, cells: dict[str, Cells], ngrams: dict[str, Any]) -> None:
    from unrolled.report import LineChart, Series

    edges = [0]
    while edges[-1] < config.length:
        edges.append(min(config.length, max(edges[-1] + 1, round(1.6 * edges[-1]))))
    spans = list(pairwise(edges))
    where = [(start + end - 1) / 2 for start, end in spans]

    def binned(curves: Sequence[Sequence[float]]) -> list[float]:
        mean = [bits(fmean(values)) for values in zip(*curves, strict=True)]
        return [fmean(mean[start:end]) for start, end in spans]

    def series(label: str, curves: Sequence[Sequence[float]], color: int, dashed: bool = False) -> Series:
        return Series(label=label, x=where, y=binned(curves), color=color, dashed=dashed)

    lines = [series(m, [cell["test"]["curve"] for cell in cells[m]], place) for place, m in enumerate(MODELS)]
    order = _best_ngram(ngrams)[0]
    counts = [series(f"{n}-gram", [ngrams[str(n)]["curve"]], 5 + i, True) for i, n in enumerate(sorted({2, order}))]
    steps = [point["step"] for point in cells["GPT-2"][0]["validation"]]
    curves = [
        Series(
            label=model,
            x=steps,
            y=[fmean(bits(cell["validation"][i]["loss"]) for cell in cells[model]) for i in range(len(steps))],
            color=place,
        )
        for place, model in enumerate(MODELS)
    ]
    report.section(
        "By position and by step",
        "A model without memory would be flat after its first bytes, as the bigram is.",
    ).figure(
        [
            LineChart(title="test loss (bits per byte)", x_label="position in the context", series=[*lines, *counts]),
            LineChart(title="validation loss (bits per byte)", x_label="training step", series=curves),
        ],
        name="positions",
        caption="Means over seeds. Left: over neighbouring positions too, wider spans further on; dashed lines count "
        "bytes. The last validation losses come after the learning rate has fallen to a tenth.",
    )


def _masked(report: Report, config: Config, cells: dict[str, Cells], results: dict[str, Any]) -> None:
    from unrolled.report import mean_std

    rows: list[list[Any]] = []
    for model in MASKED_MODELS:
        found, counts = cells[model], cells[model][0]["parameters"]
        rows.append(
            [
                *(model, found[0]["width"], f"{counts['without_embeddings']:,}", f"{counts['all']:,}", len(found)),
                mean_std([cell["test"]["loss"] for cell in found], digits=3),
                mean_std([cell["test"]["accuracy"] for cell in found], scale=100),
                mean_std([cell["untrained"]["loss"] for cell in found], digits=2),
            ]
        )
    unigram = results["baselines"]["masked"]
    rows.append(["unigram counts", *[""] * 4, f"{unigram['loss']:.3f}", f"{100 * unigram['accuracy']:.1f}", ""])
    gain = {m: unigram["loss"] - fmean(c["test"]["loss"] for c in cells[m]) for m in MASKED_MODELS}
    least = min(gain.values())
    report.section(
        "Masked bytes",
        "15 % of the bytes are chosen; of these 80 % are masked, 10 % replaced, 10 % left, and all are predicted from "
        "both sides. "
        + (
            f"The models gain {gain['BERT']:.3f} (BERT) and {gain['CRATE-BERT']:.3f} nats (CRATE-BERT) on the unigram."
            + (" A gain below 0.05 nats means that a model has hardly begun to read." if least < 0.05 else "")
        ),
    ).table(
        [
            *("model", "width", "parameters without embeddings", "parameters", "seeds"),
            *("loss (nats per masked byte)", "accuracy (%)", "untrained loss"),
        ],
        rows,
        caption=f"Test part, the same masks for all. {config.masked_steps:,} steps of {config.batch_size} excerpts of "
        f"{config.length} bytes; settings chosen on validation text.",
    )


def _costs(report: Report, config: Config, costs: dict[str, Any]) -> None:
    rows = [
        [
            model,
            f"{found['operations'] / 1e3:,.0f}",
            f"{found['bytes_per_second']:,.0f}",
            f"{found['cached_ms']:.2f}",
            f"{found['recomputed_ms']:.2f}",
            f"{found['state']:,}",
        ]
        for model, found in costs.items()
    ]
    report.section(
        "What they cost",
        "Equal parameters are not equal costs: CRATE's layers are wider, so that its attention and its memory are too, "
        "and MesaNet solves a linear system for every byte by conjugate gradients. The wider GPT-2 is as wide as gives "
        "it CRATE-GPT's operations, as near as its heads allow, and so has more parameters. The memory of CRATE holds "
        "one tensor where that of GPT-2 holds two; that of ToST and MesaNet does not grow with the context.",
    ).table(
        [
            "model",
            "kFLOPs per byte",
            "bytes/s in training",
            "decoding, ms per byte",
            "the same, recomputed",
            "numbers remembered",
        ],
        rows,
        caption=f"kFLOPs: matrix products and attention of predicting {config.length} bytes, two operations a "
        f"multiply-add. Timed on one thread: forward and backward pass of {config.batch_size} excerpts of "
        f"{config.length} bytes, "
        f"minimum of 7; decoding of {config.length - 1} bytes one at a time from one byte, minimum of 3, models "
        f"interleaved. Numbers remembered after {config.length} bytes, in all layers.",
    )


def _choices(report: Report, config: Config, results: dict[str, Any]) -> None:
    pairs = [(rate, std) for rate in config.rates for std in config.table_stds]
    rows = []
    for model in (*MODELS, *MASKED_MODELS):
        found = {
            (trial["rate"], trial["table_std"]): trial["validation"][-1]["loss"]
            for trial in results["trials"]
            if trial["model"] == model
        }
        scale, best = 1.0 if model in MASKED_MODELS else bits(1.0), results["chosen"][model]
        chosen = f"{best['rate']:g}, {best['table_std']:g}"
        rows.append([model, *(f"{scale * found[pair]:.3f}" for pair in pairs), chosen])
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


def _samples(report: Report, cells: dict[str, Cells]) -> None:
    def shown(text: str) -> str:
        return text.replace("\n", " / ")

    rows = [[model, shown(cells[model][0]["sample"]["text"])] for model in MODELS]
    report.section(
        "What they write",
        "Drawn at temperature 0.8 with one seed for all, after the first bytes of the test part: "
        f"“{shown(cells['GPT-2'][0]['sample']['prompt'])}”. Not picked by hand.",
    ).table(["model", "continuation"], rows, caption="First seed of each; / is a line end.")


def _falling(cells: dict[str, Cells]) -> str:
    """How many curves had not ended, where there are two looks to tell by."""
    curves = {m: [[point["loss"] for point in cell["validation"]] for cell in cells[m]] for m in MODELS}
    if any(len(curve) < 2 for found in curves.values() for curve in found):
        return ""
    falling = sum(fmean(curve[-1] - curve[-2] for curve in found) < 0 for found in curves.values())
    return f": at the last look the validation loss of {falling} of {len(curves)} models was still falling"


def _by_trials(cells: dict[str, Cells]) -> str:
    """A warning where the wider GPT-2 is behind the other, which can only be the settings' doing."""
    wide, narrow = cells[WIDER], cells["GPT-2"]
    if fmean(_bits(wide)) <= fmean(_bits(narrow)):
        return ""
    return (
        ": the wider GPT-2 came out behind the narrower one, which more parameters do not explain but rates "
        f"may (chosen: {wide[0]['rate']:g} and {narrow[0]['rate']:g})"
    )


def _limits(report: Report, config: Config, cells: dict[str, Cells]) -> None:
    seen = cells["GPT-2"][0]["bytes"]
    report.section(
        "Limits",
        "The scale differs from the published one by orders of magnitude: there 57 to 124 million parameters, BPE "
        "tokens of OpenWebText, 600,000 steps of batch 384 and a context of 1,024 tokens; here "
        f"{seen / 1e6:.2f} million bytes of {config.corpus}. Losses per byte and per BPE token are not comparable; "
        "only signs of differences are judged. A model that is ahead here may merely learn "
        f"faster{_falling(cells)}.\n\n"
        "Each model has its own published frame. GPT-2, CRATE and ToST share learned positions and LayerNorm; MesaNet "
        "has none of these but short convolutions, gates, RMSNorm and SwiGLU, so that its difference from GPT-2 is not "
        "that of the mesa layer alone (the `mesa-language` study replaces the layer and nothing else). Equal "
        "parameters at equal depth make CRATE twice as wide as GPT-2; deeper models of equal width were not tried. "
        "Beyond the scale of the tables initialisation is the package's for each model. Settings were chosen by short "
        f"trials, which favour what learns fast, with one seed and from few candidates{_by_trials(cells)}. MesaNet was "
        f"trained {len(cells['MesaNet'])} times, the others {len(cells['GPT-2'])}; standard deviations over so few say "
        "little.",
    )
