"""What `unrolled eval` writes: accuracy, whether the probabilities mean what they say, and errors under corruption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unrolled.commands.eval.options import of_all
from unrolled.harness import Answer
from unrolled.reading import Json

if TYPE_CHECKING:
    from unrolled.report import Report

_FAMILIES = {
    "Noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "Blur": ("defocus_blur", "motion_blur"),
    "Light": ("brightness", "contrast"),
    "Compression": ("jpeg", "pixelate"),
}
_SCORES = {
    "ece": "Expected calibration error, %, 15 bins of equal width",
    "adaptive_ece": "the same, 15 bins of equal numbers, %",
    "nll": "Negative log-likelihood, nats",
    "brier": "Brier score, 0 to 2",
}


def eval_report(result: Answer, network: Any) -> Report:
    """The page of a run of `unrolled eval` of a classifier."""
    from unrolled.report import Fact, Report

    report = Report(
        f"{result['model']} on {result['data']}", question=f"How accurate is it on the {result['split']} split?"
    )
    accuracy = f"{100 * result['accuracy']:.2f} %"
    facts = [
        Fact(label="Accuracy", value=accuracy, detail=f"{result['images']:,} images{of_all(result)}"),
        Fact(label="Top-5 accuracy", value=f"{100 * result['top5']:.2f} %"),
        Fact(label="Loss", value=f"{result['loss']:.4f}", detail="cross-entropy, nats"),
        Fact(label="Parameters", value=f"{sum(p.numel() for p in network.parameters()):,}"),
    ]
    if "real" in result:
        real = result["real"]
        facts.append(
            Fact(
                label="ReaL accuracy",
                value=f"{100 * real['accuracy']:.2f} %",
                detail=f"{real['images']:,} images with labels, {real['without']:,} without left out",
            )
        )
    if "calibration" in result:
        facts.append(
            Fact(
                label="Calibration error",
                value=f"{100 * result['calibration']['ece']:.2f} %",
                detail="top label, 15 bins of equal width",
            )
        )
    if "robustness" in result:
        robustness = result["robustness"]
        facts.append(
            Fact(
                label="Error on corrupted images",
                value=f"{100 * robustness['mean_error']:.1f} %",
                detail=f"clean {100 * robustness['clean']:.1f} %, {robustness['images']:,} images",
            )
        )
    stopped = (
        f" The run was interrupted: this is its checkpoint of step {result['step']:,}." if "step" in result else ""
    )
    report.headline(
        f"{accuracy} of {result['images']:,} images{of_all(result)} are classified correctly.{stopped}", facts
    )
    if "notes" in result:
        report.section("Notes", "\n\n".join(f"{note[0].upper()}{note[1:]}." for note in result["notes"]))
    if "calibration" in result:
        _calibration(report, result["calibration"])
    if "robustness" in result:
        _robustness(report, result["robustness"])
    return report


def at_bound(fitted: Json) -> str:
    """What it means that the temperature ended at a bound of its range."""
    if fitted["bound"] == "high":
        return (
            f"the fit of the temperature ran into its upper bound, {fitted['value']:.0f}: on the "
            f"{fitted['fitted_on']:,} held-out images this model's probabilities are no better than the same one for "
            "every class. That is all that is left at this temperature, so the calibration error after it is no merit "
            "of the model"
        )
    lower = f"the fit of the temperature ran into its lower bound, {fitted['value']:.2f}: "
    if fitted["right"] < fitted["fitted_on"]:
        return (
            f"{lower}{fitted['right']:,} of the {fitted['fitted_on']:,} held-out images are classified correctly, but "
            "this model's logits differ so little that a lower one would fit them better still"
        )
    return (
        f"{lower}the {fitted['fitted_on']:,} held-out images are all classified correctly, and any lower one would fit "
        "them better. They do not determine it; judge the calibration error as it is, or fit on more images"
    )


def _calibration(report: Report, calibration: Json) -> None:
    from unrolled.report import LineChart, Series

    section = report.section(
        "Calibration",
        "Of the images a calibrated model is 70 % sure of, 70 % are right. The calibration error is the mean distance "
        "from that. It says nothing about the probabilities of the other classes.",
    )
    series = [_curve("as it is", calibration["bins"], 0)]
    after = calibration["temperature"]
    if after is not None:
        series.append(_curve("temperature", after["after"]["bins"], 1))
    series.append(Series(label="calibrated", x=[0.0, 1.0], y=[0.0, 1.0], color=5, dashed=True))
    if after is not None and after["bound"] is not None:
        section.text(at_bound(after)[0].upper() + at_bound(after)[1:] + ".")
    caption = (
        "Share of right images against their mean confidence, in 15 bins of equal width, ± its "
        "standard error; empty bins are left out."
    )
    if after is not None:
        others = "" if after["validation"] else f" and drawn for the {after['judged_on']:,} others"
        caption += f" Temperature: fitted on {_fitted_on(after)}{others}."
    section.figure(LineChart(title="Accuracy", x_label="Confidence", series=series, y_range=(0, 1)), caption=caption,
                   name="reliability")  # fmt: skip

    def cell(scores: Json, key: str) -> str:
        return f"{100 * scores[key]:.2f}" if "ece" in key else f"{scores[key]:.4f}"

    columns = ["", f"all {calibration['samples']:,} images"]
    if after is None:
        section.table(columns, [[words, cell(calibration, key)] for key, words in _SCORES.items()],
                      caption="Lower is better. Temperature: not run, too few images to hold some out.")  # fmt: skip
        return
    parts = [calibration, after["after"]]
    caption = "Lower is better. One temperature for all logits leaves every decision as it is. It was fitted on "
    caption += _fitted_on(after)
    if not after["validation"]:
        columns.append(f"the {after['judged_on']:,}, as they are")
        parts.insert(1, after["before"])
        caption += ", as the run has no 50 validation images to fit it on; the last two columns leave them out"
    columns.append(f"the same, temperature {after['value']:.3g}")
    section.table(
        columns,
        [[words, *(cell(part, key) for part in parts)] for key, words in _SCORES.items()],
        caption=f"{caption}.",
    )


def _fitted_on(after: Json) -> str:
    """Which images a temperature was fitted on."""
    where = "validation images" if after["validation"] else "images of the evaluated split"
    return f"{after['fitted_on']:,} {where}"


def _curve(label: str, bins: list[Json], color: int) -> Any:
    from unrolled.report import Series

    return Series(
        label=label,
        x=[b["confidence"] for b in bins],
        y=[b["accuracy"] for b in bins],
        error=[(b["accuracy"] * (1 - b["accuracy"]) / b["count"]) ** 0.5 for b in bins],
        color=color,
    )


def _robustness(report: Report, errors: Json) -> None:
    from unrolled.report import LineChart, Series

    section = report.section(
        "Corrupted images",
        f"{errors['images']:,} images of the split, made worse in nine ways and five severities after resizing to the "
        "model's input. The strengths are this package's own and depend on the image side: compare models with each "
        "other, not with published corruption errors. With so many images a single error is known to about "
        f"{100 * errors['images'] ** -0.5:.1f} points.",
    )
    panels = []
    for title, names in _FAMILIES.items():
        series = [
            Series(
                label=name.replace("_", " "),
                x=list(range(6)),
                y=[100 * error for error in (errors["clean"], *errors["corruptions"][name])],
            )
            for name in names
            if name in errors["corruptions"]
        ]
        panels.append(LineChart(title=f"{title}: error, %", x_label="Severity (0: clean)", series=series))
    section.figure(panels, caption="Share of images misclassified, by severity.", name="corruptions")
    rows: list[list[str]] = [
        [
            name.replace("_", " "),
            *(f"{100 * error:.1f}" for error in errors["corruptions"][name]),
            f"{100 * row['error']:.1f}",
            f"{100 * row['increase']:+.1f}",
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
        ]
        for name, row in errors["relative"].items()
    ]
    mean, clean = errors["mean_error"], errors["clean"]
    ratio = f"{mean / clean:.2f}" if clean else "-"
    rows.append(["mean", *[""] * 5, f"{100 * mean:.1f}", f"{100 * (mean - clean):+.1f}", ratio])
    section.table(
        ["error, %", *(f"severity {n}" for n in range(1, 6)), "mean", "over clean", "ratio to clean"],
        rows,
        caption=f"Clean error {100 * clean:.1f} %.",
    )
