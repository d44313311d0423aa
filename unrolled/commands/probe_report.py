"""What `unrolled probe` writes: accuracy by layer beside the untrained control and chance, and what it does not say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unrolled.report import LineChart, Report

_POOLED = {"cls": "class token", "mean": "mean of the patches", "as it is": "as it is"}


def probe_report(settings: dict[str, Any], result: dict[str, Any]) -> Report:
    """The page of a run of `unrolled probe`."""
    from unrolled.report import Fact, Report

    report = Report(
        f"{result['model']}: probes on {result['data']}",
        question="How well does a simple classifier read the classes off each layer of the frozen model?",
    )
    facts = []
    sentences = []
    for method, best in result["best"].items():
        accuracy = f"{100 * best['accuracy']:.1f} %"
        place = f"{best['layer']}, {_POOLED[best['pooling']]}"
        fresh = _beside(result, best)
        facts.append(
            Fact(
                label=_named(method),
                value=accuracy,
                detail=f"{place}; 95 % interval {100 * best['low']:.1f} to {100 * best['high']:.1f}",
            )
        )
        against = "" if fresh is None else f", against {100 * fresh['accuracy']:.1f} % with fresh weights"
        sentences.append(f"{_named(method)}: {accuracy} of the test images are right from {place}{against}.")
    facts.append(Fact(label="Chance", value=f"{100 * result['chance']:.1f} %", detail="always the commonest class"))
    report.headline(" ".join(sentences), facts)
    _curves(report, result)
    _numbers(report, result)
    _limits(report, result, settings)
    return report


def _beside(result: dict[str, Any], record: dict[str, Any]) -> dict[str, Any] | None:
    """The same probe of the untrained control."""
    same = ("layer", "pooling", "method")
    return next(
        (r for r in result["probes"] if r["who"] == "untrained" and all(r[key] == record[key] for key in same)), None
    )


def _named(method: str) -> str:
    return method.replace("knn", "k-NN") if method.startswith("knn") else method.capitalize()


def _curves(report: Report, result: dict[str, Any]) -> None:
    panels = [
        panel
        for method in result["best"]
        for panel in [_panel(result, method)]
        if max(len(s.x) for s in panel.series) > 1
    ]
    if panels:
        report.section("Layer by layer").figure(
            panels,
            caption="Test accuracy of a classifier on the features of one layer, with its 95 % bootstrap interval over "
            "test images. Dashed: the same architecture with fresh weights, and always naming the commonest class.",
        )


def _panel(result: dict[str, Any], method: str) -> LineChart:
    from unrolled.report import LineChart, Series

    names = list(dict.fromkeys(r["layer"] for r in result["probes"]))
    series = []
    for color, pooling in enumerate(dict.fromkeys(r["pooling"] for r in result["probes"])):
        for who in ("model", "untrained"):
            rows = [r for r in result["probes"] if (r["who"], r["pooling"], r["method"]) == (who, pooling, method)]
            if rows:
                series.append(
                    Series(
                        label={"cls": "class token", "mean": "mean"}.get(pooling, pooling)
                        + ("" if who == "model" else ", fresh"),
                        x=[names.index(r["layer"]) for r in rows],
                        y=[100 * r["accuracy"] for r in rows],
                        error=[50 * (r["high"] - r["low"]) for r in rows],
                        color=color,
                        dashed=who != "model",
                    )
                )
    places = [0.0, float(max(1, len(names) - 1))]
    series.append(Series(label="chance", x=places, y=[100 * result["chance"]] * 2, color=5, dashed=True))
    return LineChart(title=f"{_named(method)}: test accuracy, %", x_label="Layer", series=series)


def _numbers(report: Report, result: dict[str, Any]) -> None:
    def cell(record: dict[str, Any] | None) -> str:
        if record is None:
            return "not run"
        return f"{100 * record['accuracy']:.2f} ({100 * record['low']:.2f} to {100 * record['high']:.2f})"

    rows: list[list[str | int]] = [
        [
            r["layer"],
            _POOLED[r["pooling"]],
            r["method"],
            cell(r),
            cell(_beside(result, r)),
            f"{100 * r['held_out']:.2f}",
            (r["setting"] or "none") + ("" if r["converged"] else ", not converged"),
        ]
        for r in result["probes"]
        if r["who"] == "model"
    ]
    report.section("Numbers").table(
        ["layer", "pooling", "classifier", "accuracy %", "untrained %", "held-out %", "chosen"],
        rows,
        caption=f"Test accuracy with its 95 % bootstrap interval, on {result['test']:,} images; fitted on "
        f"{result['train']:,}. Held-out: on a fifth of the training images, which chose the setting.",
    )


def _limits(report: Report, result: dict[str, Any], settings: dict[str, Any]) -> None:
    lines = [
        "The interval is over test images: it does not cover another training of the model, another held-out part or "
        "other fresh weights, of which there is one draw.",
        "The layer and pooling in the summary are those of the highest held-out accuracy; the test split chose none.",
        "A probe says what a simple classifier can read, not what the model uses.",
    ]
    if settings["samples"] is not None or settings["test_samples"] is not None:
        lines.insert(0, "Only a part of the images was used; numbers on all of them are higher as a rule.")
    if any(not r["converged"] for r in result["probes"]):
        lines.append("Where it says not converged, logistic regression stopped at its limit of steps.")
    if result["skipped"]:
        lines.append(f"{len(result['skipped'])} images could not be read and are left out.")
    report.section("What this does not say", "\n\n".join(lines))
