"""The page of `crate-aligned`: accuracy by way of learning and by layer, what it cost, the trials, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.aligned.cells import (
    ALIGNED_STEP,
    ASKED,
    BATCH,
    SHIPPED,
    STEP,
    AlignedConfig,
    Instructor,
    Lesson,
    Scored,
    lessons,
)
from unrolled.studies.crate.aligned.claims import ALONE, LOGITS, LONGER, UNTRAINED, accuracy, aligned, best, tried
from unrolled.studies.networks import NAMES
from unrolled.studies.results import NOT_RUN, Results, line

if TYPE_CHECKING:
    from unrolled.report import Report


def report(report: Report, config: AlignedConfig, results: Results[Any]) -> None:
    """Headline, ways, layers, trials, limits."""
    _headline(report, config, results)
    _ways(report, config, results)
    _layers(report, config, results)
    _trials(report, config, results)
    report.section(
        "What this does not show",
        f"One student of {results.of(Scored).first('parameters', 0):,} parameters, {config.images:,} labelled images, "
        f"{config.epochs} passes, one teacher of the same family, one projector (two layers), one loss (cosine, patch "
        "by patch, with the teacher's last layer). The teacher has learned from all training images and their labels, "
        "held-out ones among them: what it adds is also what it knows of other images, and held-out accuracy prefers "
        "what imitates it. Its own training is not counted. Views are never drawn anew here, since only then is it "
        "enough to ask the teacher once; with crops and flips it is asked at every step, which costs "
        f"{100 * ASKED / STEP:.0f} % of a step without it. Seconds are images times the pace of one processor, "
        "measured once; on another one teacher and student stand in another ratio.",
    )


def seconds(way: str, config: AlignedConfig, epochs: int) -> float:
    """Core-seconds of a training: its steps, and the teacher asked once about every image."""
    if way in (ALONE, LONGER):
        return config.images * epochs * STEP
    return config.images * (epochs * (STEP if way == LOGITS else ALIGNED_STEP) + ASKED)


def _headline(report: Report, config: AlignedConfig, results: Results[Any]) -> None:
    from unrolled.report import Fact

    ours, alone, longer = aligned(results, config), accuracy(results, ALONE), accuracy(results, LONGER)
    logits, untrained = accuracy(results, LOGITS), accuracy(results, UNTRAINED)
    if not ours or not alone:
        report.headline(f"No aligned network and none of labels alone are kept: accuracies are {NOT_RUN}.")
        return
    report.headline(
        f"On {config.images:,} images of {NAMES[config.data]}, the layer chosen to be aligned gives {ours:.1f} %, "
        f"labels alone {alone:.1f} % and {longer:.1f} % in as much time, the teacher's logits {logits:.1f} %.",
        [
            Fact(label="aligned", value=f"{ours:.1f} %", detail=f"{ours.count}, layer chosen on held-out images"),
            Fact(label="labels alone, as long", value=f"{longer:.1f} %", detail=longer.count),
            Fact(label="logits", value=f"{logits:.1f} %", detail=logits.count),
            Fact(label="aligned with random weights", value=f"{untrained:.1f} %", detail=untrained.count),
        ],
    )


def _ways(report: Report, config: AlignedConfig, results: Results[Any]) -> None:
    alone = accuracy(results, ALONE)
    table = []
    for way in (ALONE, LONGER, LOGITS, *(f"layer {layer}" for layer in config.layers), UNTRAINED):
        rows = results.of(Scored, way=way)
        if not rows:
            table.append([_words(way), *[NOT_RUN] * 5])
            continue
        spent, values = seconds(way, config, rows[0].cell.epochs), accuracy(results, way)
        difference = f"{values - alone:+.1f}" if way != ALONE else ""
        chosen = Lesson(**rows.first("chosen"))
        table.append([_words(way), _settings(chosen), rows[0].cell.epochs, f"{spent:.0f}", f"{values:.1f}", difference])
    teachers = results.of(Instructor)
    known = {row.cell.trained: f"{100 * row.result['accuracy']:.1f} %" for row in teachers}
    report.section(
        "What every way to learn reaches",
        f"Per cent of all test images, mean and standard deviation over seeds, batches of {BATCH}. The teacher "
        f"({SHIPPED if config.data == 'cifar10' else 'a CRATE trained on all digits'}) has {known.get(True, NOT_RUN)} "
        f"of them, the one of random weights {known.get(False, NOT_RUN)}.",
    ).table(
        [
            "learns from",
            "settings chosen",
            "passes",
            "core-seconds",
            "accuracy",
            "less labels alone",
        ],
        table,
        caption=f"Core-seconds: {1e3 * STEP:.2f} ms an image and step, {1e3 * ALIGNED_STEP:.2f} with a projector, and "
        f"{1e3 * ASKED:.2f} to ask the teacher about an image, once. Longer: as many passes as an aligned network's "
        "time is enough for.",
    )


def _layers(report: Report, config: AlignedConfig, results: Results[Any]) -> None:
    scores = [accuracy(results, f"layer {layer}") for layer in config.layers]
    if not any(scores):
        return
    from unrolled.report import LineChart

    lines = [line("aligned", config.layers, scores)]
    for way in (ALONE, LONGER, LOGITS, UNTRAINED):
        if values := accuracy(results, way):
            lines.append(line(_words(way), config.layers, [values] * len(config.layers)))
    report.section("By layer").figure(
        [LineChart(title="test accuracy, %", x_label="aligned layer", series=lines)],
        name="layers",
        caption="The weight of every layer was chosen on held-out images. Bars are one standard deviation over seeds; "
        "what has no layer is a level line.",
    )


def _trials(report: Report, config: AlignedConfig, results: Results[Any]) -> None:
    ways = lessons(config)
    table = []
    for way, among in ways.items():
        chosen = best(results, among)
        for lesson in among:
            score = tried(results, lesson)
            table.append(
                [
                    way,
                    _settings(lesson),
                    NOT_RUN if score is None else f"{100 * score:.1f}",
                    "best" * (lesson == chosen),
                ]
            )
    report.section(
        "How settings were chosen",
        f"Per cent of {config.held_out:,} other images of the training split after {config.trial_epochs} passes, "
        f"seed 0: {len(ways['aligned'])} trials for every way to learn. The control has the aligned network's.",
    ).table(["learns from", "settings", "held out", ""], table)


def _words(way: str) -> str:
    if way.startswith("layer"):
        return f"labels and teacher's last layer, {way} aligned"
    return {LOGITS: "labels and teacher's logits", UNTRAINED: "labels, aligned with random weights"}.get(way, way)


def _settings(lesson: Lesson) -> str:
    if lesson.align_weight:
        return f"layer {lesson.layer}, weight {lesson.align_weight:g}"
    if lesson.distil_weight:
        return f"weight {lesson.distil_weight:g}, temperature {lesson.temperature:g}"
    return f"rate {lesson.rate:g}, smoothing {lesson.smoothing:g}"
