"""What `unrolled probe` writes: accuracy by layer beside the untrained control and chance, and what it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unrolled.reading import Json
    from unrolled.report import LineChart, Report

_POOLED = {"cls": "class token", "mean": "mean of the patches", "as it is": "as it is"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one classifier does on the features of one layer: test accuracy with its interval, and how it was chosen.

    Attributes:
        method: the classifier, with its number of neighbours.
        accuracy, low, high: on the test images, a fraction, with its 95 % bootstrap interval.
        held_out: accuracy on the held-out training images.
        setting: what they chose; empty where there was nothing to choose.
        tried: setting -> held-out accuracy.
        converged: whether the fit ended by its tolerance.
    """

    method: str
    accuracy: float
    low: float
    high: float
    held_out: float
    setting: str
    tried: Mapping[str, float]
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One score, and what it is of: `who` is "model" or "untrained"."""

    who: str
    layer: str
    pooling: str
    score: Score

    def record(self) -> Json:
        """For `report.json`."""
        return {"who": self.who, "layer": self.layer, "pooling": self.pooling, **asdict(self.score)}


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What came of a run of `unrolled probe`.

    Attributes:
        model, data, seed: what was asked for.
        train, test, classes: numbers of images and of classes.
        held_out: share of the training images that chose.
        chance: accuracy of always naming the commonest class.
        skipped: images that could not be read.
        probes: all of them.
        reused: whether the features were there already.
        partial: whether only some of the images were used.
    """

    model: str
    data: str
    train: int
    test: int
    classes: int
    held_out: float
    seed: int
    chance: float
    skipped: Sequence[str]
    probes: Sequence[Probe]
    reused: bool
    partial: bool

    @property
    def of_model(self) -> list[Probe]:
        """Those that are not of the untrained control."""
        return [probe for probe in self.probes if probe.who == "model"]

    @property
    def best(self) -> dict[str, Probe]:
        """For each method the layer and pooling of the highest held-out accuracy."""
        methods = dict.fromkeys(probe.score.method for probe in self.of_model)
        return {
            method: max((p for p in self.of_model if p.score.method == method), key=lambda p: p.score.held_out)
            for method in methods
        }

    def untrained(self, probe: Probe) -> Score | None:
        """The same of the untrained control, if it was measured."""
        same = (probe.layer, probe.pooling, probe.score.method)
        return next(
            (p.score for p in self.probes if p.who == "untrained" and (p.layer, p.pooling, p.score.method) == same),
            None,
        )

    def record(self) -> Json:
        """For `report.json`."""
        return {
            "model": self.model, "data": self.data, "train": self.train, "test": self.test, "classes": self.classes,
            "held_out": self.held_out, "seed": self.seed, "chance": self.chance, "skipped": list(self.skipped),
            "probes": [probe.record() for probe in self.probes],
            "best": {method: probe.record() for method, probe in self.best.items()}, "reused_features": self.reused,
        }  # fmt: skip


def probe_report(result: Probed) -> Report:
    """The page of a run of `unrolled probe`."""
    from unrolled.report import Fact, Report

    report = Report(
        f"{result.model}: probes on {result.data}",
        question="How well does a simple classifier read the classes off each layer of the frozen model?",
    )
    facts = []
    sentences = []
    for method, best in result.best.items():
        score, fresh = best.score, result.untrained(best)
        accuracy = f"{100 * score.accuracy:.1f} %"
        place = f"{best.layer}, {_POOLED[best.pooling]}"
        facts.append(
            Fact(
                label=_named(method),
                value=accuracy,
                detail=f"{place}; 95 % interval {100 * score.low:.1f} to {100 * score.high:.1f}",
            )
        )
        against = "" if fresh is None else f", against {100 * fresh.accuracy:.1f} % with fresh weights"
        sentences.append(f"{_named(method)}: {accuracy} of the test images are right from {place}{against}.")
    facts.append(Fact(label="Chance", value=f"{100 * result.chance:.1f} %", detail="always the commonest class"))
    report.headline(" ".join(sentences), facts)
    _curves(report, result)
    _numbers(report, result)
    _limits(report, result)
    return report


def _named(method: str) -> str:
    return method.replace("knn", "k-NN") if method.startswith("knn") else method.capitalize()


def _curves(report: Report, result: Probed) -> None:
    panels = [
        panel for method in result.best for panel in [_panel(result, method)] if max(len(s.x) for s in panel.series) > 1
    ]
    if panels:
        report.section("Layer by layer").figure(
            panels,
            caption="Test accuracy of a classifier on the features of one layer, with its 95 % bootstrap interval over "
            "test images. Dotted: the same architecture with fresh weights, and always naming the commonest class.",
        )


def _panel(result: Probed, method: str) -> LineChart:
    from unrolled.report import LineChart, Series

    names = list(dict.fromkeys(probe.layer for probe in result.probes))
    series = []
    for color, pooling in enumerate(dict.fromkeys(probe.pooling for probe in result.probes)):
        for who in ("model", "untrained"):
            probes = [p for p in result.probes if (p.who, p.pooling, p.score.method) == (who, pooling, method)]
            if probes:
                series.append(
                    Series(
                        label={"cls": "class token", "mean": "mean"}.get(pooling, pooling)
                        + ("" if who == "model" else ", fresh"),
                        x=[names.index(p.layer) for p in probes],
                        y=[100 * p.score.accuracy for p in probes],
                        error=[50 * (p.score.high - p.score.low) for p in probes],
                        color=color,
                        dashed=who != "model",
                    )
                )
    places = [0.0, float(max(1, len(names) - 1))]
    series.append(Series(label="chance", x=places, y=[100 * result.chance] * 2, color=5, dashed=True))
    return LineChart(title=f"{_named(method)}: test accuracy, %", x_label="Layer", series=series)


def _numbers(report: Report, result: Probed) -> None:
    def cell(score: Score | None) -> str:
        if score is None:
            return "not run"
        return f"{100 * score.accuracy:.2f} ({100 * score.low:.2f} to {100 * score.high:.2f})"

    rows: list[list[str | int]] = [
        [
            probe.layer,
            _POOLED[probe.pooling],
            probe.score.method,
            cell(probe.score),
            cell(result.untrained(probe)),
            f"{100 * probe.score.held_out:.2f}",
            (probe.score.setting or "none") + ("" if probe.score.converged else ", not converged"),
        ]
        for probe in result.of_model
    ]
    report.section("Numbers").table(
        ["layer", "pooling", "classifier", "accuracy %", "untrained %", "held-out %", "chosen"],
        rows,
        caption=f"Test accuracy with its 95 % bootstrap interval, on {result.test:,} images; fitted on "
        f"{result.train:,}. Held-out: on a fifth of the training images, which chose the setting.",
    )


def _limits(report: Report, result: Probed) -> None:
    lines = [
        "The interval is over test images: it does not cover another training of the model, another held-out part or "
        "other fresh weights, of which there is one draw.",
        "The layer and pooling in the summary are those of the highest held-out accuracy; the test split chose none.",
        "A probe says what a simple classifier can read, not what the model uses.",
    ]
    if result.partial:
        lines.insert(0, "Only a part of the images was used; numbers on all of them are higher as a rule.")
    if any(not probe.score.converged for probe in result.probes):
        lines.append("Where it says not converged, logistic regression stopped at its limit of steps.")
    if result.skipped:
        lines.append(f"{len(result.skipped)} images could not be read and are left out.")
    report.section("What this does not say", "\n\n".join(lines))
