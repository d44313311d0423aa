"""The page of `platonic-language`: language models, image networks, pairs, layers, stand-ins, context, limits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.studies.platonic.language.cells import CIFAR, Agreement, LanguageConfig
from unrolled.studies.platonic.language.prompts import STATES, Prompt
from unrolled.studies.platonic.language.readers import Named
from unrolled.studies.platonic.language.tasks import InContext, Start
from unrolled.studies.platonic.language.view import View, last_layer, name_of
from unrolled.studies.results import NOT_RUN, Results

if TYPE_CHECKING:
    from unrolled.report import Report


def report(report: Report, config: LanguageConfig, results: Results[Any]) -> None:
    """Headline, tables, figures, limits."""
    view = View(results, config)
    for part in (_headline, _languages, _visions, _pairs, _coco, _layers, _context, _prompts):
        part(report, view, config)
    report.section("What this does not show").text(
        "Language models of four sizes by four makers, and small ones of bytes trained here for seconds: size, data, "
        "tokens and quality change together, and a bootstrap over so few models is a rough guide. The models of bytes "
        "have read the Brown corpus, which the general text is a held-out part of; SmolLM2 and Qwen are tuned to "
        "follow instructions, Qwen to write code, and all three large ones are quantised to four bits. Means over "
        "tokens are the paper's choice; the first token of a text, which many models use as a sink, is in them. The "
        "captions were written for these photos. Most image networks learnt labels of ImageNet or CIFAR-10; those of "
        "CIFAR-10 see 32 pixels, and their probe is of what they were trained on; open_nsfw learnt to tell "
        "pornography and NudeNet to find parts of bodies. The two stand-ins are easier than what they stand for, and "
        "have few items. Intervals are over photos for pairs and over models for trends; ranks take no account of the "
        "error of each number, so that neighbours in an order may have changed places. A prompt is tuned for "
        f"{config.steps} steps of four sequences, one rate, which a few of the smallest model's losses in tuning "
        "suggested; more of both may do more."
    )


def _number(value: float, digits: int = 3, missing: str = NOT_RUN) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else missing


def _size(value: float, missing: str = NOT_RUN) -> str:
    if not math.isfinite(value):
        return missing
    return f"{value / 1e6:.3g} M" if value >= 1e5 else f"{value / 1e3:.3g} k"


def _headline(report: Report, view: View, config: LanguageConfig) -> None:
    from unrolled.report import Fact

    models, every = view.trained, view.languages(config.readers)
    if not models:
        report.headline("No language model was compared with an image network.")
        return
    best = max(every, key=lambda model: model.gain)
    twin = next((model for model in every if model.label == config.twin.label), None)
    beside = "" if twin is None else f"; {twin.label}, has {100 * twin.gain:.1f} %"
    quality = min(models, key=lambda model: model.general)
    report.headline(
        f"Of {len(every)} text models beside {len(view.visions)} image networks on {view.n:,} photos, {best.label} "
        f"agrees most with vision: {100 * best.gain:.1f} % of the way from chance to identity, mean over networks. The "
        f"best language model by bits per byte, {quality.label}, has {100 * quality.gain:.1f} %{beside}.",
        [
            Fact(label=f"{model.label}: above chance", value=f"{model.gain:.3f}",
                 detail=f"{model.general:.2f} bits per byte on general text")
            for model in sorted(models, key=lambda model: -model.gain)[:3]
        ],
    )  # fmt: skip


def _languages(report: Report, view: View, config: LanguageConfig) -> None:
    from unrolled.report import Scatter

    every = view.languages(config.readers)
    causal = {reader.label for reader in config.causal}
    rows = []
    for model in every:
        missing = NOT_RUN if model.label in causal else "-"
        rows.append([
            model.label, _size(model.size, missing), _number(model.captions, 2, missing),
            _number(model.general, 2, missing), _number(model.gain), _number(model.held_out), _number(model.cka),
            _number(model.shuffled), _number(model.continuation, 2, missing), _number(model.sums, 2, missing),
            _number(model.colours, 2, missing),
        ])  # fmt: skip
    absent = [reader.label for reader in config.readers if reader.label not in {model.label for model in every}]
    rows += [[name, *[NOT_RUN] * 10] for name in absent]
    section = report.section(
        "Text models",
        "Bits per byte: of captions of other photos and of sentences of the Brown corpus (general), each read alone; "
        "lower is better, 8 is no model at all. Agreement: the score of the best pair of layers above chance, as a "
        "share of what is possible, mean over image networks; held out: layers chosen on half of the photos and scored "
        "on the other; shuffled: with captions of other photos, one image network. Embeddings predict nothing and have "
        "no bits.",
    )
    section.table(
        [
            *("text model", "parameters", "captions", "general", "agreement", "held out", "unbiased CKA", "shuffled"),
            *("ending of four", "sum of four", "colours, r^2"),
        ],
        rows,
        caption=f"n = {view.n:,} photos, first caption of each. Parameters without tables of tokens. Ending: which of "
        "four endings a caption has (in place of Hellaswag); sum: which of four numbers is the sum of two (in place of "
        f"GSM8K); both by likelihood, {config.items} items, 0.25 by chance, one standard error about 0.06. Colours: "
        "share of variance of 20 colours in CIELAB, about 0.11 by chance.",
    )
    section.table(
        ["language model", "read after", "bits per byte after each mark"],
        [
            [
                cell.reader.label,
                result["mark"],
                ", ".join(f"{mark}: {bits:.2f}" for mark, bits in result["bits"].items()),
            ]
            for cell, result, _ in view.results.of(Start)
        ],
        caption="A text is read after one of the marks that the tokenizer names: the one with the fewest bits on 24 "
        "sentences of the Brown corpus' training part, which are scored nowhere, unless the customary one, which "
        "stands first, has at most 0.01 more. That margin was added after a first look, in which TinyStories LLaMA "
        "was read after a mark that it had not met in training, for 0.002 bits; it changes no other model.",
    )
    models = view.trained
    if not models:
        return
    section.figure(
        [
            Scatter(
                title="agreement above chance", x_label=f"1 - bits per byte, {words}",
                x=[1 - getattr(model, domain) for model in models], y=[model.gain for model in models],
                names=[model.label for model in models],
                groups=["trained here" if model not in view.given else "trained by others" for model in models],
            )
            for domain, words in (("general", "general text"), ("captions", "captions"))
        ],
        name="quality",
        caption="To the right: better language models. The paper's axis, on other text.",
    )  # fmt: skip


def _visions(report: Report, view: View, config: LanguageConfig) -> None:
    from unrolled.report import Scatter

    visions = view.visions
    rows = [
        [
            vision.label, _size(vision.size), _number(vision.accuracy, 2),
            "learnt its labels" if vision.image in CIFAR else "learnt its images" if "cifar10" in vision.image else "",
            _number(vision.gain),
        ]
        for vision in visions
    ]  # fmt: skip
    names = {vision.label for vision in visions}
    rows += [[name_of(image), *[NOT_RUN] * 4] for image in config.images if name_of(image) not in names]
    section = report.section("Image networks").table(
        ["image network", "parameters", "probe of CIFAR-10", "of CIFAR-10", "agreement"],
        rows,
        caption=f"Probe: accuracy of a ridge classifier on the last layer, {config.probe:,} images of the test part, "
        "two thirds to fit it, enlarged to 96 pixels for those that expect more than 64 (open_nsfw: 224, its only "
        "size); one standard error about 0.02. A probe of what a network was trained on says nothing of "
        "others, so the trend leaves those out. Agreement: mean over text models other than the untrained twin.",
    )
    if visions and any(math.isfinite(vision.accuracy) for vision in visions):
        section.figure(
            Scatter(
                title="agreement above chance",
                x_label="accuracy of the probe",
                x=[vision.accuracy for vision in visions],
                y=[vision.gain for vision in visions],
                names=[vision.label for vision in visions],
                groups=[
                    "trained on CIFAR-10"
                    if vision.image in CIFAR or "cifar10" in vision.image
                    else "on ImageNet or other"
                    for vision in visions
                ],
            ),
            name="vision",
            caption="To the right: networks whose features tell CIFAR-10's classes better.",
        )


def _pair(cell: Agreement, result: Any) -> list[str]:
    knn, cka, held = result["knn"], result["cka"], result["knn"]["held_out"]
    low, high = knn["interval"] or (math.nan, math.nan)
    return [
        cell.labels[1], name_of(cell.seen.image), f"{knn['score']:.4f}", f"{low:.4f} to {high:.4f}",
        f"{knn['chance']:.4f}", f"{knn['p_value']:.3f}", " x ".join(knn["best"]),
        f"{held['score']:.4f} (chance {held['chance']:.4f})", f"{cka['score']:.3f} (chance {cka['chance']:.3f})",
    ]  # fmt: skip


def _pairs(report: Report, view: View, config: LanguageConfig) -> None:
    from unrolled.report import HeatMap

    rows = [_pair(cell, result) for cell, result, _ in view.pairs]
    rows += [
        [cell.labels[1], name_of(cell.seen.image), *[NOT_RUN] * 7]
        for cell in view.results.missing
        if isinstance(cell, Agreement) and not cell.exchanged and cell.seen.collection == "flickr8k"
    ]
    section = report.section(
        "Every pair",
        f"Score: mutual {config.k}-NN of the best of at most {config.layers} x {config.layers} pairs of layers, "
        "features clamped at the 95th percentile as in the paper.",
    )
    labels = [model.label for model in view.languages(config.readers)]
    images = [vision.image for vision in view.visions]
    if labels and images:
        gains = {(cell.labels[1], cell.seen.image): result["knn"]["gain"] for cell, result, _ in view.pairs}
        values = np.array([[gains.get((name, image), math.nan) for image in images] for name in labels])
        section.figure(
            HeatMap(
                title="agreement above chance", values=values, rows=labels, columns=[name_of(each) for each in images],
                row_label="text", column_label="image",
            ),
            name="pairs",
            caption="Score above chance as a share of what is possible, best pair of layers.",
        )  # fmt: skip
    section.table(
        ["text model", "image network", "score", "95 % interval", "chance", "p", "layers", "held out", "unbiased CKA"],
        rows,
        caption=f"n = {view.n:,} photos. Chance and p: the best pair of layers under {config.draws} relabellings, so "
        f"that the search is corrected for; the smallest p is {1 / (config.draws + 1):.3f}. Interval: over photos, "
        f"{config.resamples} subsamples, of the best pair as if chosen beforehand. Held out: layers chosen on one half "
        "of the photos, scored on the other, where chance is twice as high.",
    )


def _coco(report: Report, view: View, config: LanguageConfig) -> None:
    from unrolled.report import Scatter

    if not view.coco:
        return
    models = [model for model in view.languages(config.readers) if math.isfinite(model.coco)]
    section = report.section(
        "Photos of COCO",
        f"The same measure on {view.n_coco} photos of COCO with their first captions and {len(config.coco_images)} of "
        "the image networks, none of CIFAR-10; nothing was chosen on them.",
    )
    section.figure(
        Scatter(
            title="agreement above chance", x_label="Flickr8k, the same networks",
            x=[model.beside_coco for model in models], y=[model.coco for model in models],
            names=[model.label for model in models],
        ),
        name="coco",
        caption="One point a text model; upwards: COCO.",
    ).table(
        ["text model", "Flickr8k, the same networks", "COCO"],
        [[model.label, _number(model.beside_coco), _number(model.coco)] for model in models],
        caption="Score above chance as a share of what is possible, best pair of layers, mean over these networks.",
    ).table(
        ["text model", "image network", "score", "95 % interval", "chance", "p", "layers"],
        [_pair(cell, result)[:7] for cell, result, _ in view.coco],
        caption=f"n = {view.n_coco} photos; as above.",
    )  # fmt: skip


def _layers(report: Report, view: View, config: LanguageConfig) -> None:
    from unrolled.report import LineChart, Series

    image = config.images[0]
    series: list[Series] = []
    for cell, result, _ in view.pairs:
        if cell.seen.image == image and len(result["layers_text"]) > 1:
            values = [max(column) for column in zip(*result["knn"]["scores"], strict=True)]
            depth = [i / (len(values) - 1) for i in range(len(values))]
            untrained = cell.read.reader == config.twin
            series.append(
                Series(label=cell.labels[1], x=depth, y=values, color=len(series), dashed=untrained)
            )  # fmt: skip
    if series:
        chance = config.k / (view.n - 1)
        series.append(Series(label="chance of one pair", x=[0.0, 1.0], y=[chance, chance], dashed=True))
        report.section("Layer by layer").figure(
            LineChart(
                title=f"mutual {config.k}-NN with {name_of(image)}",
                x_label="share of the layers passed",
                series=series,
            ),
            name="layers",
            caption="Every compared layer of the text models with the layer of the image network that agrees most; "
            "dotted: untrained, and chance.",
        )


def _context(report: Report, view: View, config: LanguageConfig) -> None:
    from unrolled.report import LineChart, Series

    rows = view.results.of(InContext)
    section = report.section(
        "What is learnt in context",
        f"Two probes of the mesa line on {config.windows} excerpts of 96 tokens of the Brown corpus. Score: loss late "
        "in the excerpt less early, below 0 if the context helps; in disorder: the tokens of each excerpt permuted. "
        "Objective: how well a linear readout of a layer's last token maps tokens of the excerpt to their successors, "
        "as a share of the mean state's error, for its own excerpt and for another; a layer that descends the "
        "least-squares objective of its context lowers the first and not the second.",
    )
    table = [
        [
            cell.reader.label, f"{result['score']:+.3f} ± {result['error']:.3f}",
            f"{result['disordered']:+.3f} ± {result['disordered_error']:.3f}",
            f"{result['descent'][0]['context']:.3f}", f"{result['descent'][-2]['context']:.3f}",
            f"{result['descent'][-2]['foreign']:.3f}", f"{last_layer(result):+.3f}",
            f"{result['descent'][-1]['context']:.3f}",
        ]
        for cell, result, _ in rows
    ]  # fmt: skip
    table = table or [["", *[NOT_RUN] * 7]]
    section.table(
        [
            *(
                "language model",
                "score, nats",
                "in disorder",
                "objective, first layer",
                "last layer",
                "another excerpt",
            ),
            *("difference", "exact minimiser"),
        ],
        table,
        caption="± one standard error over excerpts. States: embeddings of the tokens on 16 principal axes; readouts "
        "are fitted on three quarters of the excerpts and scored on the rest.",
    )
    if rows:
        lines = []
        for color, (cell, result, _) in enumerate(rows):
            values = [record["in_context"] for record in result["descent"][:-1]]
            depth = [i / max(1, len(values) - 1) for i in range(len(values))]
            lines.append(Series(label=cell.reader.label, x=depth, y=values, color=color))
        section.figure(
            LineChart(
                title="mesa-objective of another excerpt less of its own",
                x_label="share of the layers passed",
                series=lines,
            ),
            name="descent",
            caption="Above 0: the layer knows pairs of its own context better than those of another.",
        )


def _prompts(report: Report, view: View, config: LanguageConfig) -> None:
    section = report.section(
        "A prompt tuned by gradients",
        "Sequences of 16 pairs of words, a key and its value, of 4 keys whose values are drawn at random: only the "
        f"context says them. {config.vectors} vectors before the sequence are tuned by {config.steps} steps of Adam, "
        "the model stays as it is, and sequences of words that no prompt was tuned on are judged. Random: vectors "
        "drawn anew with the lengths of the tuned ones; none: the mark that texts are read after. Early: nats of the "
        "first two values; late: of the last four; objective: how much lower the mesa-objective of the last layer is "
        "for the sequence's own pairs than for those of another, states as above.",
    )
    rows = []
    for text in config.prompted:
        for drawn in (None, config.seed):
            some = view.results.of(Prompt).where(text=text, text_drawn=drawn)
            name = Named(text=text, text_drawn=drawn).label
            for state in STATES:
                values = [some.values(f"{state}.{key}") for key in ("early", "late", "score", "descent")]
                rows.append(
                    [name, state, *(f"{value:.{digits}f}" for value, digits in zip(values, (2, 2, 2, 3), strict=True))]
                )
    section.table(
        ["language model", "prompt", "early", "late", "late less early", "objective"],
        rows,
        caption=f"Mean ± standard deviation over {len(config.seeds)} seeds, each with a prompt and 32 sequences.",
    )
