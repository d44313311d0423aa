"""The page of `platonic-vision-language`: every pair, last layers, layer by layer, the language model's states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unrolled.studies.platonic.photos import TOP1, label
from unrolled.studies.platonic.vision_language.cells import Compared, VisionLanguageConfig
from unrolled.studies.platonic.vision_language.claims import View
from unrolled.studies.results import NOT_RUN, Results

if TYPE_CHECKING:
    from unrolled.report import Report

_METRICS = ("mutual_knn", "unbiased_cka", "cknna")


def report(report: Report, config: VisionLanguageConfig, results: Results[Any]) -> None:
    """Headline, tables, figures, limits."""
    view = View(results, config)
    for part in (_headline, _pairs, _last_layers, _layers, _language):
        part(report, view, config)
    report.section("What this does not show").text(
        f"Scores depend on n: the paper's are of 1,024 Wikipedia pairs, these of {view.n:,} everyday photos, "
        "so only orders and distances from chance compare. All four image networks learnt the same labels of the same "
        "photos, and two orders of four values agree by accident once in 24. The captions were written for these "
        "photos, which favours what people mention. Noise added to a model's weights is not the same as a smaller or "
        "less trained model; bits per byte on Wikipedia are far from what a model of toddlers' stories has seen. "
        "Held-out scores are of half as many photos, where chance is twice as high. The interval is over the choice of "
        "photos, at this n, not over models."
    )


def _top(view: View) -> Any:
    """The row of the image network that agrees most with the first text model; None where there is none."""
    return max(view.anchored, key=lambda row: float(row.result["best"]["score"]), default=None)


def _headline(report: Report, view: View, config: VisionLanguageConfig) -> None:
    from unrolled.report import Fact

    top = _top(view)
    if top is None:
        report.headline(f"No image network was compared with {label(config.texts[0])}.")
        return
    best, held_out = top.result["best"], top.result["best"]["held_out"]
    low, high = best["interval"]
    image, text = top.cell.labels
    report.headline(
        f"Of {len(view.anchored)} image networks, {image} agrees most with {text}: "
        f"its best layer shares {100 * best['score']:.1f} % of the {config.k} nearest neighbours of {best['n']:,} "
        f"photos, where chance gives {100 * best['chance']:.2f} %.",
        [
            Fact(
                label=f"Largest mutual {config.k}-NN",
                value=f"{best['score']:.3f}",
                detail=f"95 % interval {low:.3f} to {high:.3f}",
            ),
            Fact(
                label="By chance, best of all layers",
                value=f"{best['chance']:.4f}",
                detail=f"p = {best['p_value']:.2g}",
            ),
            Fact(
                label="Layers chosen on the other half",
                value=f"{held_out['score']:.3f}",
                detail=f"{held_out['n']:,} photos, chance {held_out['chance']:.4f}",
            ),
        ],
    )


def _pairs(report: Report, view: View, config: VisionLanguageConfig) -> None:
    adjusted = view.adjusted
    rows: list[list[str]] = []
    for cell, result, _ in view.pairs:
        best = result["best"]
        low, high = best["interval"]
        rows.append([
            *cell.labels, f"{best['score']:.4f}", f"{low:.4f} to {high:.4f}", f"{best['chance']:.4f}",
            f"{best['p_value']:.3f}", f"{adjusted[cell][0]:.3f}", " x ".join(best["best"]),
            f"{best['held_out']['score']:.4f} (chance {best['held_out']['chance']:.4f})",
        ])  # fmt: skip
    rows += [[*cell.labels, *[NOT_RUN] * 7] for cell in view.results.missing if isinstance(cell, Compared)]
    if not config.more_texts and not config.more_images:
        rows.append(["models of the hub (more_images, more_texts)", *[NOT_RUN] * 8])
    report.section(
        "Every pair, best layers",
        f"Score: mutual {config.k}-NN of the best pair of layers. Image features are means over places, captions means "
        "over tokens, and of a photo's five captions the mean of unit vectors is taken. Rows that say untrained or "
        "damaged are controls.",
    ).table(
        [
            *("image network", "text model", "score", "95 % interval", "chance", "p", "adjusted p", "layers"),
            "held out",
        ],
        rows,
        caption=f"n = {view.n:,} photos. Chance and p: the best pair of layers under {config.draws} "
        "relabellings of the photos, so that the search over layers is corrected for; the smallest p is "
        f"{1 / (config.draws + 1):.3f}. Adjusted p: Benjamini-Hochberg over this table. Held out: layers chosen on one "
        "half of the photos, scored on the other, where chance is twice as high.",
    )


def _last_layers(report: Report, view: View, config: VisionLanguageConfig) -> None:
    def score(last: Any) -> str:
        z = "" if last["z"] is None else f", z {last['z']:.0f}"
        return f"{last['score']:.4f} (chance {last['chance']:.4f}{z})"

    rows = []
    for cell, result, _ in view.anchored:
        accuracy = TOP1.get(cell.photos.image.removeprefix("given:"))
        last = result["last"]
        rows.append([
            cell.photos.label, "not given" if accuracy is None else f"{accuracy:.1f}",
            *(score(last[metric]) for metric in _METRICS), f"{last['prepared']:.4f}",
        ])  # fmt: skip
    report.section(f"Last layers, against {label(config.texts[0])}").table(
        ["image network", "top-1, %", f"mutual {config.k}-NN", "unbiased CKA", "CKNNA", "outliers clamped"],
        rows,
        caption="z: distance from the exact mean under relabelling in exact standard deviations, where a closed form "
        "is known. Outliers clamped: mutual k-NN after the paper's preparation (95th percentile, unit length). Top-1 "
        "on one photo for each of ImageNet's classes, as the notes of the weights give it.",
    )


def _layers(report: Report, view: View, config: VisionLanguageConfig) -> None:
    import numpy as np

    from unrolled.report import HeatMap, LineChart, Series

    top = _top(view)
    if top is None:
        return
    series = []
    for color, (cell, result, _) in enumerate([*view.anchored, *view.drawn]):
        values = result["last"]["first"]
        depth = [(i + 1) / len(values) for i in range(len(values))]
        series.append(
            Series(label=cell.photos.label, x=depth, y=values, color=color, dashed=cell.photos.image_drawn is not None)
        )
    chance = config.k / (view.n - 1)
    series.append(Series(label="chance", x=[0.0, 1.0], y=[chance, chance], dashed=True))
    best, rows, columns = (top.result[name] for name in ("best", "layers_image", "layers_text"))
    report.section("Layer by layer").figure(
        [
            LineChart(title=f"mutual {config.k}-NN", x_label="share of the layers passed", series=series),
            HeatMap(
                title=" and ".join(top.cell.labels),
                values=np.array(best["scores"]),
                rows=rows,
                columns=columns,
                row_label="image",
                column_label="text",
                mark=(rows.index(best["best"][0]), columns.index(best["best"][1])),
            ),
        ],
        name="layers",
        caption=f"Left: every layer of the image networks against the last of {label(config.texts[0])}. Right: all "
        "pairs of layers; framed: the best.",
    )


def _language(report: Report, view: View, config: VisionLanguageConfig) -> None:
    from unrolled.report import Scatter

    points = view.states
    section = report.section(
        "Quality of the language model",
        f"{label(config.language_model)} as trained, with noise added to its matrices (in standard deviations of each) "
        f"and with weights drawn anew, against {label(config.images[0])}. Bits per byte on {config.corpus_bytes:,} "
        "characters of WikiText-2; lower is better, 8 is no model at all.",
    )
    if not points:
        section.text(NOT_RUN)
        return
    section.table(
        ["language model", "bits per byte", f"mutual {config.k}-NN, best layers", "chance"],
        [[p.words, f"{p.bits_per_byte:.3f}", f"{p.score:.4f}", f"{p.chance:.4f}"] for p in points],
    )
    section.figure(
        Scatter(
            title=f"mutual {config.k}-NN",
            x_label="1 - bits per byte",
            x=[1 - p.bits_per_byte for p in points],
            y=[p.score for p in points],
            names=[p.words for p in points],
        ),
        name="language",
        caption="To the right: better language models. The paper's axis, on another corpus.",
    )
