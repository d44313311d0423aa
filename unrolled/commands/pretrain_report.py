"""What the reports of pretraining say: losses beside trivial guesses, curves, and completions of held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from unrolled.commands.eval.options import of_all
from unrolled.commands.train_report import size_and_speed, summary
from unrolled.data import ImageSource
from unrolled.harness import Answer
from unrolled.report import Fact, LineChart, Provenance, Report, Series
from unrolled.train import TrainResult
from unrolled.train.config import MaskedConfig, PretrainConfig

_PICTURES = 6
# per task: split, key, label, dashed; each list is one chart
_CURVES: dict[str, list[tuple[str, bool, list[tuple[str, str, str, bool]]]]] = {
    "mae": [
        (
            "Reconstruction loss",
            False,
            [
                ("train", "loss", "training", False),
                ("val", "loss", "validation", False),
                ("val", "visible_mean_loss", "visible colour", True),
                ("val", "one_colour_loss", "one colour", True),
            ],
        )
    ],
    "simdino": [
        (
            "Squared distance of student and teacher, halved",
            True,
            [("train", "distance", "training", False), ("val", "distance", "validation", False)],
        ),
        (
            "Coding rate of the features (nats)",
            False,
            [
                ("val", "rate", "validation", False),
                ("val", "collapsed_rate", "all features equal", True),
                ("val", "largest_rate", "features in all directions alike", True),
            ],
        ),
    ],
}

_MEANING = {
    "mae": ", guesses that see no shape, in the units of the loss: the mean colour of an image's own visible patches, "
    "and the one colour that is best for all held-out images",
    "simdino": "",
}


def words(task: str, scores: Mapping[str, Any]) -> str:
    """Scores on a split in words."""
    if task == "mae":
        return (
            f"loss {scores['loss']:.4f} (the mean colour of the visible patches {scores['visible_mean_loss']:.4f}, the "
            f"best single colour {scores['one_colour_loss']:.4f})"
        )
    return (
        f"distance {scores['distance']:.4f}, coding rate {scores['rate']:.2f} nats (collapsed "
        f"{scores['collapsed_rate']:.2f}, at most {scores['largest_rate']:.2f})"
    )


def run_report(result: TrainResult, seconds: float) -> Report:
    """The report of a run of pretraining."""
    config = result.config
    masked = isinstance(config, MaskedConfig)
    question = (
        "How well does it complete images it never saw?"
        if masked
        else "Do views of an image agree, and is there more than one feature?"
    )
    report = Report(f"{config.model} pretrained on {config.data}", question=question)
    scores = result.test or next((entry for entry in reversed(result.validation)), None)
    held_out = "test" if result.test else "validation"
    shown = [] if scores is None else _facts(config.task, scores, held_out)
    shown += size_and_speed(result)
    headline = "Nothing was held out to measure."
    if scores is not None:
        headline = f"On {held_out} images: {words(config.task, scores)}.{_verdict(config.task, scores)}"
    report.headline(headline, shown)
    charts = _charts(config.task, result.metrics)
    if charts:
        chosen = (
            f" The weights of step {result.chosen_step} were kept, the best on the validation images."
            if masked and result.validation
            else ""
        )
        few = "" if config.eval_samples is None else f" Validation is on {config.eval_samples:,} images, drawn evenly."
        report.section("Learning curves").figure(
            charts,
            name="curves",
            caption="One run. Training values are averaged since the point before, over augmented images; dotted: what "
            f"the values are to be compared with{_MEANING[config.task]}.{few}{chosen}",
        )
    source = result.data.test or result.data.val
    if isinstance(config, MaskedConfig) and source is not None:
        _pictures(report, config, result.model, source, held_out)
    report.results = {**summary(result), "metrics": result.metrics}
    report.provenance = Provenance.collect(config=config, seeds=[config.seed], duration=seconds)
    return report


def evaluation_report(
    config: PretrainConfig,
    model: nn.Module,
    source: ImageSource,
    result: Answer,
) -> Report:
    """The report of `unrolled eval` of such a run."""
    report = Report(f"{result['model']} on {config.data}", question=f"How good is it on the {result['split']} split?")
    only = f" {result['images']:,} images{of_all(result)}." if "samples" in result else ""
    report.headline(f"{words(config.task, result)}.{only}".capitalize(), _facts(config.task, result, result["split"]))
    if isinstance(config, MaskedConfig):
        _pictures(report, config, model, source, result["split"])
    return report


def _verdict(task: str, scores: Mapping[str, Any]) -> str:
    """A sentence where the numbers say that little was learned."""
    if task == "mae" and scores["loss"] >= scores["visible_mean_loss"]:
        return " It does not do better than that colour, which sees no shape."
    if task == "simdino" and scores["rate"] < 1.2 * scores["collapsed_rate"]:
        return " The features have all but collapsed into one."
    return ""


def _facts(task: str, scores: Mapping[str, Any], what: str) -> list[Fact]:
    if task == "mae":
        return [
            Fact(
                label="Reconstruction loss",
                value=f"{scores['loss']:.4f}",
                detail=f"mean squared error on removed patches, {scores['images']:,} {what} images",
            ),
            Fact(
                label="Mean colour of the visible patches",
                value=f"{scores['visible_mean_loss']:.4f}",
                detail="loss of this guess",
            ),
            Fact(
                label="One colour for all images",
                value=f"{scores['one_colour_loss']:.4f}",
                detail="loss of the best such guess",
            ),
        ]
    return [
        Fact(
            label="Distance",
            value=f"{scores['distance']:.4f}",
            detail=f"half the squared distance of student and teacher, {scores['images']:,} {what} images",
        ),
        Fact(
            label="Coding rate",
            value=f"{scores['rate']:.2f} nats",
            detail=f"{scores['collapsed_rate']:.2f} if collapsed, at most {scores['largest_rate']:.2f}",
        ),
    ]


def _charts(task: str, metrics: Sequence[Mapping[str, Any]]) -> list[LineChart]:
    charts = []
    for title, logarithmic, lines in _CURVES[task]:
        series = []
        for split, key, label, dashed in lines:
            points = [(r["epoch"], r[key]) for r in metrics if r["split"] == split and r.get(key) is not None]
            if points:
                x, y = zip(*points, strict=True)
                series.append(Series(label=label, x=x, y=y, dashed=dashed))
        if series:
            charts.append(LineChart(title=title, x_label="epoch", series=series, log_y=logarithmic))
    return charts


def _pictures(report: Report, config: MaskedConfig, model: Any, source: ImageSource, what: str) -> None:
    """Input, mask and completion of a few images."""
    from unrolled.commands.complete import completion_of
    from unrolled.data.sources import Subset
    from unrolled.report import ImageGrid, ImageRow
    from unrolled.subjects.images import batches
    from unrolled.subjects.pictures import prepare

    shown = Subset.evenly(source, _PICTURES)
    loader = batches(model, shown, image_size=config.image_size, batch_size=1, on_error=config.on_error)
    back = prepare(model, image_size=config.image_size).pixels
    model.eval()
    columns = [
        completion_of(model, batch.images, config.mask_ratio, int(batch.indices[0]), back)[0]
        for batch in loader
        if len(batch.images)
    ]
    if not columns:
        return
    names = ("input", "what was left", "completion")
    rows = [ImageRow(images=[column[i] for column in columns], label=name.capitalize()) for i, name in enumerate(names)]
    caption = f"{len(columns)} {what} images; grey patches were removed ({config.mask_ratio:.0%})."
    if config.norm_pix_loss:
        caption += (
            " The model predicts patches normalised one by one; they are shown with the mean and variance of the true "
            "patches, which it does not know, so the pictures flatter it. The loss does not."
        )
    report.section("Completions").figure(
        [ImageGrid(title="Held-out images", rows=rows, alt=f"{len(columns)} images: input, mask, completion.")],
        name="completions",
        caption=caption,
    )
