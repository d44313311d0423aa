"""The report of the `mesa-language` study: claims, every cell beside its controls, curves by position and step."""

from __future__ import annotations

import time
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.studies.mesa_language import Config

Cells = list[dict[str, Any]]
_COLORS = {"softmax": 0, "linear": 1, "delta": 2, "mesa": 3}
_BIN = 8


def build_report(config: Config, cells: Cells, controls: Cells, began: float) -> Report:
    """Judge and lay out the results of `unrolled.studies.mesa_language.run`."""
    from unrolled.report import Fact, Provenance, Report, mean_std

    report = Report(
        "Mesa layers as language models",
        question="Do mesa layers predict text better than linear ones, and gain more from a longer context?",
    )
    report.claims = _claims(cells)
    corpus, depth = config.corpora[0], config.depths[0]
    main = _at(cells, corpus, depth)
    losses = {model: mean_std([c["loss"] for c in found], digits=3) for model, found in main.items()}
    best = min(main, key=lambda model: fmean(c["loss"] for c in main[model]))
    shown = list(dict.fromkeys(["hybrid-mesa", "hybrid-linear", "softmax", best]))
    shown = [model for model in shown if model in main]
    helped = [c for c in cells if c["score"] < -2 * c["score_error"]]
    tokens = cells[0]["tokens"]
    report.headline(
        f"On {corpus} with {depth} layers the held-out loss is "
        + ", ".join(f"{losses[model]} ({model})" for model in shown)
        + f" nats per byte after {tokens / 1e6:.2f} million bytes; a bigram table has "
        f"{controls[0]['bigram']['loss']:.3f}. "
        + (
            f"{len(helped)} of {len(cells)} trainings lose less late in the context than early (two errors)."
            if helped
            else "No model loses less late in the context than early, so that scores compare noise."
        ),
        [
            *(Fact(label=f"Loss, {model}", value=losses[model], detail="nats per byte") for model in shown),
            Fact(
                label="In-context score, hybrid-mesa",
                value=mean_std([c["score"] for c in main["hybrid-mesa"]], digits=3)
                if "hybrid-mesa" in main
                else "not run",
                detail=f"nats, positions {config.late}.. against {config.early}..",
            ),
        ],
    )
    _tables(report, config, cells, controls)
    _figures(report, config, cells, controls)
    report.section(
        "Limits",
        f"The paper trains wider models (756, context 1024 tokens) on the Pile. Here the width is {config.dim}, the "
        f"context {config.length} bytes, and a model sees {tokens / 1e6:.2f} million bytes: every cell is far below "
        f"the paper's steps. All models share one learning rate ({config.rate:g}), which was not tuned for any. The "
        "paper does not say between which positions its score is taken: here it is the mean loss at positions "
        f"{config.late} to {config.late + config.window - 1} less that at {config.early} to "
        f"{config.early + config.window - 1}, counted from 0. Of the paper's sizes the one-layer model with shifted "
        f"keys is left out, and models have MLPs from {config.mlp_from} layers on (the paper's from 4). Keys and "
        "queries are l2-normalised, without the feature map the paper gives its linear layers. The delta rule is not "
        "part of the paper's comparison. `wikitext2-small` trains on WikiText-2's validation part, so its numbers are "
        "not comparable with published ones.",
    )
    report.results = {"cells": cells, "controls": controls}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _at(cells: Cells, corpus: str, depth: int) -> dict[str, Cells]:
    found: dict[str, Cells] = {}
    for cell in cells:
        if (cell["corpus"], cell["depth"]) == (corpus, depth):
            found.setdefault(cell["model"], []).append(cell)
    return found


def _sizes(cells: Cells) -> list[tuple[str, int]]:
    return list(dict.fromkeys((cell["corpus"], cell["depth"]) for cell in cells))


def _difference(cells: Cells, one: str, other: str, key: str, depth: int | None = None) -> list[tuple[str, float, str]]:
    """Where both models are, `one` less `other`, seed by seed: place, mean, and in words."""
    from unrolled.report import mean_std

    found = []
    for corpus, layers in _sizes(cells):
        here = _at(cells, corpus, layers)
        if one not in here or other not in here or depth not in (None, layers):
            continue
        theirs = {cell["seed"]: cell[key] for cell in here[other]}
        values = [cell[key] - theirs[cell["seed"]] for cell in here[one] if cell["seed"] in theirs]
        found.append((f"{corpus}, {layers} layers", fmean(values), mean_std(values, digits=3)))
    return found


def _claims(cells: Cells) -> list[Any]:
    from unrolled.report import Claim
    from unrolled.studies.mesa_language import BEHIND, LEVEL, LOSS, SCORE

    claims = []
    for expectation, other, key, depth in (
        (LOSS, "hybrid-linear", "loss", None),
        (SCORE, "hybrid-linear", "score", None),
        (LEVEL, "softmax", "loss", 2),
        (BEHIND, "softmax", "loss", 4),
    ):
        found = _difference(cells, "hybrid-mesa", other, key, depth)
        if not found:
            claims.append(
                Claim(
                    statement=expectation.statement,
                    source=expectation.source,
                    published=expectation.published,
                    measured="not run",
                    reproduced=None,
                )
            )
            continue
        # the least favourable place decides
        ordered = sorted(found, key=lambda entry: entry[1])
        worst = (
            ordered[0]
            if expectation is BEHIND
            else max(found, key=lambda e: abs(e[1]) if expectation is LEVEL else e[1])
        )
        claims.append(expectation.judge(worst[1], "; ".join(f"{words} ({place})" for place, _, words in found)))
    return claims


def _tables(report: Report, config: Config, cells: Cells, controls: Cells) -> None:
    from unrolled.report import mean_std

    section = report.section(
        "Every model",
        "Loss and bits per byte are on the test part, which nothing was chosen by. The in-context score is the loss "
        "late in the context less the loss early: the more negative, the more a longer context helps. A bigram table "
        "has no context, so its score is only how much harder the late bytes of these excerpts are. Untrained models "
        "are near ln 256 = 5.545 and a score of 0.",
    )
    for corpus in config.corpora:
        control = next(c for c in controls if c["corpus"] == corpus)
        rows: list[list[Any]] = []
        for depth in config.depths:
            here = _at(cells, corpus, depth)
            for model in dict.fromkeys((*config.models, *config.compared)):
                if model not in here:
                    rows.append([depth, model, *["not run"] * 7])
                    continue
                found = here[model]
                rows.append(
                    [
                        *(depth, model, f"{found[0]['parameters']:,}", len(found)),
                        mean_std([c["loss"] for c in found], digits=3),
                        mean_std([c["bits_per_byte"] for c in found], digits=3),
                        mean_std([c["score"] for c in found], digits=3),
                        f"{fmean(c['score_error'] for c in found):.3f}",
                        f"{fmean(c['untrained_loss'] for c in found):.3f}",
                    ]
                )
        for name in ("unigram", "bigram"):
            found = control[name]
            loss, bits, score, error = (f"{found[k]:.3f}" for k in ("loss", "bits_per_byte", "score", "score_error"))
            rows.append(["", f"{name} table", "", "", loss, bits, score, error, ""])
        sizes = control["sizes"]
        section.table(
            ["layers", "model", "parameters", "seeds", "loss", "bits per byte", "score", "its error", "untrained loss"],
            rows,
            caption=f"{corpus}: {sizes['train']:,} bytes for training, {sizes['val']:,} for validation, "
            f"{sizes['test']:,} for the test (at most {config.test_bytes:,} used). Every model saw "
            f"{cells[0]['tokens']:,} bytes. Loss in nats per byte, ± one standard deviation over seeds; the error of "
            "the score is its standard error over excerpts.",
        )


def _figures(report: Report, config: Config, cells: Cells, controls: Cells) -> None:
    from unrolled.report import LineChart, Series

    corpus, depth = config.corpora[0], config.depths[0]
    main = _at(cells, corpus, depth)
    where = [i + (_BIN - 1) / 2 for i in range(0, config.length - _BIN + 1, _BIN)]

    def binned(curves: list[list[float]]) -> list[float]:
        mean = [fmean(values) for values in zip(*curves, strict=True)]
        return [fmean(mean[i : i + _BIN]) for i in range(0, config.length - _BIN + 1, _BIN)]

    def panel(hybrids: bool) -> Any:
        chosen = [m for m in main if m == "softmax" or m.startswith("hybrid-") == hybrids]
        lines = [
            Series(
                label=model,
                x=where,
                y=binned([cell["curve"] for cell in main[model]]),
                color=_COLORS[model.removeprefix("hybrid-")],
            )
            for model in chosen
        ]
        control = next(c for c in controls if c["corpus"] == corpus)["bigram"]["curve"]
        lines.append(Series(label="bigram table", x=where, y=binned([control]), color=4, dashed=True))
        title = "test loss, first layer softmax" if hybrids else "test loss, layers of one kind"
        return LineChart(title=f"{title} (nats per byte)", x_label="position in the context", series=lines)

    panels = [panel(hybrids) for hybrids in (False, True)]
    report.section("By position").figure(
        panels,
        name="positions",
        caption=f"{corpus}, {depth} layers, mean over seeds and over {_BIN} neighbouring positions.",
    )
    steps = [point["step"] for point in next(iter(main.values()))[0]["validation"]][1:]
    report.section("During training").figure(
        LineChart(
            title="validation loss (nats per byte)",
            x_label="training step",
            series=[
                Series(
                    label=model,
                    x=steps,
                    y=[
                        fmean(point)
                        for point in zip(*([p["loss"] for p in c["validation"]][1:] for c in found), strict=True)
                    ],
                    color=_COLORS[model.removeprefix("hybrid-")],
                    dashed=not model.startswith("hybrid-") and model != "softmax",
                )
                for model, found in main.items()
            ],
        ),
        name="training",
        caption=f"{corpus}, {depth} layers, mean over seeds. The untrained models (5.545) are left out of the picture.",
    )
