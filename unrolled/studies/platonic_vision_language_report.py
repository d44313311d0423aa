"""The report of `platonic-vision-language`: claims, tables, figures and limits from its cells."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unrolled.studies.platonic_features import TOP1, label

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.studies.platonic_vision_language import Config

Cell = dict[str, Any]


def make_report(config: Config, found: dict[str, Any], began: float) -> Report:
    """The report of what `measure` found.

    Args:
        config: what was run.
        found: cells, language models and what was not run.
        began: `time.perf_counter()` when the study began.
    """
    from unrolled.alignment import benjamini_hochberg
    from unrolled.report import Fact, Provenance, Report

    cells: list[Cell] = found["cells"]
    adjusted, significant = benjamini_hochberg([cell["best"]["p_value"] for cell in cells])
    for cell, q, passed in zip(cells, adjusted.tolist(), significant.tolist(), strict=True):
        cell["adjusted_p"], cell["significant"] = q, passed
    trained = [cell for cell in cells if not cell["image_state"] and not cell["text_state"]]
    anchored = [cell for cell in trained if cell["text"] == config.texts[0]]
    report = Report(
        "Image networks and language models on the same captioned photos",
        question="Do image networks and text models that never met arrange the same samples alike, and do better ones "
        "agree more?",
    )
    report.claims = _claims(config, found, trained, anchored)
    top = max(anchored, key=lambda cell: cell["best"]["score"])
    best = top["best"]
    report.headline(
        f"Of {len(anchored)} image networks, {label(top['image'])} agrees most with {label(top['text'])}: its best "
        f"layer shares {100 * best['score']:.1f} % of the {config.k} nearest neighbours of {found['n']:,} photos, "
        f"where chance gives {100 * best['chance']:.2f} %.",
        [
            Fact(label=f"Largest mutual {config.k}-NN", value=f"{best['score']:.3f}",
                 detail=f"95 % interval {best['interval'][0]:.3f} to {best['interval'][1]:.3f}"),
            Fact(label="By chance, best of all layers", value=f"{best['chance']:.4f}",
                 detail=f"p = {best['p_value']:.2g}"),
            Fact(label="Layers chosen on the other half", value=f"{best['held_out']['score']:.3f}",
                 detail=f"{best['held_out']['n']:,} photos, chance {best['held_out']['chance']:.4f}"),
        ],
    )  # fmt: skip
    _tables(report, config, found, cells, anchored)
    _figures(report, config, found, cells, anchored, top)
    report.section("What this does not show").text(
        "Scores depend on n: the paper's are of 1,024 Wikipedia pairs, these of "
        f"{found['n']:,} everyday photos, so only orders and distances from chance compare. All four image networks "
        "learnt the same labels of the same photos, and two orders of four values agree by accident once in 24. "
        "The captions were "
        "written for these photos, which favours what people mention. Noise added to a model's weights is not the same "
        "as a smaller or less trained model; bits per byte on Wikipedia are far from what a model of toddlers' stories "
        "has seen. Held-out scores are of half as many photos, where chance is twice as high. The interval is over the "
        "choice of photos, at this n, not over models."
    )
    report.results = {"cells": cells, "language": found["language"], "not_run": found["not_run"], "n": found["n"]}
    report.provenance = Provenance.collect(config=config, seeds=[config.seed], duration=time.perf_counter() - began)
    return report


def _claims(config: Config, found: dict[str, Any], trained: list[Cell], anchored: list[Cell]) -> list[Any]:
    from unrolled.studies import platonic_vision_language as study

    claims = []
    whole = found["n"] == 2000 and config.k == 10 and config.texts[0] == "given:minilm"
    by_image = {cell["image"]: cell for cell in anchored}
    for (spec, _), expectation in zip(study.REFERENCE.items(), study.REFERENCES, strict=True):
        cell = by_image.get(spec)
        if cell is None or not whole:
            reason = "" if cell is None else f": {cell['last']['mutual_knn']['score']:.3f} with n = {found['n']}"
            claims.append(_unjudged(expectation, f"not run{reason}"))
        else:
            score = cell["last"]["mutual_knn"]["score"]
            claims.append(expectation.judge(score, f"{score:.4f}"))
    chance = anchored[0]["last"]["mutual_knn"]["chance"]
    exact = config.k / (found["n"] - 1)
    measured = f"{chance:.4f} over {config.draws} relabellings; k / (n - 1) = {exact:.4f}"
    claims.append(study.CHANCE.judge(chance, measured) if whole else _unjudged(study.CHANCE, measured))
    given = [cell for cell in anchored if cell["image"].removeprefix("given:") in TOP1]
    if len(given) == len(TOP1):
        accuracies = [TOP1[cell["image"].removeprefix("given:")] for cell in given]
        scores = [cell["last"]["mutual_knn"]["score"] for cell in given]
        rank = rank_correlation(accuracies, scores)
        order = " > ".join(f"{score:.3f}" for score in sorted(scores, reverse=True))
        claims.append(study.VISION.judge(rank, f"{rank:.2f} ({order})"))
    else:
        claims.append(_unjudged(study.VISION, f"not run: needs the four networks, not {len(given)}"))
    points = language_points(config, found)
    if len(points) >= 4:
        rank = rank_correlation([-p["bits_per_byte"] for p in points], [p["score"] for p in points])
        claims.append(study.LANGUAGE.judge(rank, f"{rank:.2f} over {len(points)} states of one model"))
    else:
        claims.append(_unjudged(study.LANGUAGE, f"not run: {len(points)} states with bits per byte are too few"))
    share = sum(cell["significant"] for cell in trained) / len(trained)
    claims.append(study.BEYOND_CHANCE.judge(share, f"{share:.2f} of {len(trained)} pairs"))
    raw = [_above_chance(cell) for cell in found["cells"] if cell["image_state"]]
    if raw:
        ratio = max(raw) / min(_above_chance(cell) for cell in anchored)
        claims.append(study.UNTRAINED.judge(ratio, f"{ratio:.2f} ({len(raw)} untrained networks)"))
    else:
        claims.append(_unjudged(study.UNTRAINED, "not run"))
    largest = max(cell["best"]["score"] for cell in trained)
    claims.append(study.LARGEST.judge(largest, f"{largest:.3f} at n = {found['n']:,}"))
    return claims


def _above_chance(cell: Cell) -> float:
    """Ties, as of features that are all but constant, raise a score and its chance level alike."""
    return float(cell["best"]["score"] - cell["best"]["chance"])


def _unjudged(expectation: Any, measured: str) -> Any:
    from dataclasses import replace

    return replace(expectation, low=None, high=None).judge(float("nan"), measured)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's; NaN where one side is constant."""
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def language_points(config: Config, found: dict[str, Any]) -> list[dict[str, Any]]:
    """State, bits per byte and score with the first image network of every state of the language model."""
    scores = {
        cell["text_state"]: cell["best"]
        for cell in found["cells"]
        if cell["text"] == config.language_model and cell["image"] == config.images[0] and not cell["image_state"]
    }
    return [
        {**entry, "score": scores[entry["state"]]["score"], "chance": scores[entry["state"]]["chance"]}
        for entry in found["language"]
        if entry["bits_per_byte"] is not None and entry["state"] in scores
    ]


def _named(spec: str, state: str) -> str:
    return label(spec) + (f", {state}" if state else "")


def _tables(report: Report, config: Config, found: dict[str, Any], cells: list[Cell], anchored: list[Cell]) -> None:
    rows: list[list[str]] = []
    for cell in cells:
        best = cell["best"]
        rows.append([
            _named(cell["image"], cell["image_state"]), _named(cell["text"], cell["text_state"]),
            f"{best['score']:.4f}", f"{best['interval'][0]:.4f} to {best['interval'][1]:.4f}", f"{best['chance']:.4f}",
            f"{best['p_value']:.3f}", f"{cell['adjusted_p']:.3f}", " x ".join(best["best"]),
            f"{best['held_out']['score']:.4f} (chance {best['held_out']['chance']:.4f})",
        ])  # fmt: skip
    for spec in (*config.more_images, *config.more_texts):
        if spec in found["not_run"]:
            rows.append([spec, *["not run"] * 7, found["not_run"][spec]])
    if not config.more_texts and not config.more_images:
        rows.append(["models of the hub (more_images, more_texts)", *["not run"] * 8])
    columns = [
        "image network",
        "text model",
        "score",
        "95 % interval",
        "chance",
        "p",
        "adjusted p",
        "layers",
        "held out",
    ]
    report.section(
        "Every pair, best layers",
        f"Score: mutual {config.k}-NN of the best pair of layers. Image features are means over places, captions means "
        "over tokens, and of a photo's five captions the mean of unit vectors is taken. Rows that say untrained or "
        "damaged are controls.",
    ).table(
        columns, rows,
        caption=f"n = {found['n']:,} photos. Chance and p: the best pair of layers under {config.draws} relabellings "
        "of the photos, so that the search over layers is corrected for; the smallest p is "
        f"{1 / (config.draws + 1):.3f}. Adjusted p: Benjamini-Hochberg over this table. Held out: layers chosen on one "
        "half of the photos, scored on the other, where chance is twice as high.",
    )  # fmt: skip
    last = [
        [
            label(cell["image"]), f"{TOP1[name]:.1f}" if name in TOP1 else "not given",
            *(
                f"{cell['last'][metric]['score']:.4f} (chance {cell['last'][metric]['chance']:.4f}, z "
                f"{cell['last'][metric]['z']:.0f})" if cell["last"][metric]["z"] is not None
                else f"{cell['last'][metric]['score']:.4f} (chance {cell['last'][metric]['chance']:.4f})"
                for metric in ("mutual_knn", "unbiased_cka", "cknna")
            ),
            f"{cell['last']['prepared']:.4f}",
        ]
        for cell in anchored
        for name in [cell["image"].removeprefix("given:")]
    ]  # fmt: skip
    report.section(f"Last layers, against {label(config.texts[0])}").table(
        ["image network", "top-1, %", f"mutual {config.k}-NN", "unbiased CKA", "CKNNA", "outliers clamped"],
        last,
        caption="z: distance from the exact mean under relabelling in exact standard deviations, where a closed form "
        "is known. Outliers clamped: mutual k-NN after the paper's preparation (95th percentile, unit length). Top-1 "
        "on one photo for each of ImageNet's classes, as the notes of the weights give it.",
    )


def _figures(
    report: Report, config: Config, found: dict[str, Any], cells: list[Cell], anchored: list[Cell], top: Cell
) -> None:
    import numpy as np

    from unrolled.report import HeatMap, LineChart, Scatter, Series

    series = []
    for color, cell in enumerate([*anchored, *(cell for cell in cells if cell["image_state"])]):
        values = cell["last"]["first"]
        depth = [(i + 1) / len(values) for i in range(len(values))]
        name = _named(cell["image"], cell["image_state"])
        series.append(Series(label=name, x=depth, y=values, color=color, dashed=bool(cell["image_state"])))
    chance = config.k / (found["n"] - 1)
    series.append(Series(label="chance", x=[0.0, 1.0], y=[chance, chance], dashed=True))
    report.section("Layer by layer").figure(
        [
            LineChart(title=f"mutual {config.k}-NN", x_label="share of the layers passed", series=series),
            HeatMap(
                title=f"{label(top['image'])} and {label(top['text'])}", values=np.array(top["best"]["scores"]),
                rows=top["layers_image"], columns=top["layers_text"], row_label="image", column_label="text",
                mark=(top["layers_image"].index(top["best"]["best"][0]),
                      top["layers_text"].index(top["best"]["best"][1])),
            ),
        ],
        name="layers",
        caption=f"Left: every layer of the image networks against the last of {label(config.texts[0])}. Right: all "
        "pairs of layers; framed: the best.",
    )  # fmt: skip
    points = language_points(config, found)
    section = report.section(
        "Quality of the language model",
        f"{label(config.language_model)} as trained, with noise added to its matrices (in standard deviations of each) "
        f"and with weights drawn anew, against {label(config.images[0])}. Bits per byte on {config.corpus_bytes:,} "
        "characters of WikiText-2; lower is better, 8 is no model at all.",
    )
    if not points:
        section.text("not run: data_dir has no text/wikitext2_test.txt")
        return
    section.table(
        ["language model", "bits per byte", f"mutual {config.k}-NN, best layers", "chance"],
        [
            [p["state"] or "as trained", f"{p['bits_per_byte']:.3f}", f"{p['score']:.4f}", f"{p['chance']:.4f}"]
            for p in points
        ],
    )
    section.figure(
        Scatter(
            title=f"mutual {config.k}-NN", x_label="1 - bits per byte", x=[1 - p["bits_per_byte"] for p in points],
            y=[p["score"] for p in points], names=[p["state"] or "as trained" for p in points],
        ),
        name="language",
        caption="To the right: better language models. The paper's axis, on another corpus.",
    )  # fmt: skip
