"""Curves of training, from the records of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from unrolled.figures.lines import LineChart, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]


def plot_metrics(metrics: Sequence[Record], ax: Axes | None = None, *, quantity: str = "loss") -> Axes:
    """Draw one quantity of a run against epochs, a line for each split that has it; see `Panel.plot`.

    Args:
        metrics: what a result of training has as `metrics`, or `train.log.read_metrics` reads.
        ax: axes to draw on; by default those of a new figure.
        quantity: a key of the records, such as `"loss"` or `"accuracy"`.

    Raises:
        ValueError: no record has it.
    """
    series = []
    for split, label in (("train", "training"), ("val", "validation")):
        curve = _mean_curve([metrics], split, quantity, 1.0)
        if curve:
            series.append(Series(label=label, x=curve[0], y=curve[1], dashed=split == "val"))
    if not series:
        known = sorted({key for record in metrics for key, value in record.items() if isinstance(value, float)})
        raise ValueError(f"quantity={quantity!r}: no record has it; there are {', '.join(known) or 'none'}")
    return LineChart(title=quantity, x_label="epoch", series=series).plot(ax)


def learning_curves(runs: Mapping[str, Sequence[Sequence[Record]]]) -> list[LineChart]:
    """Charts of accuracy and of the losses against epochs; of several runs only the accuracy on validation images.

    Args:
        runs: label -> the metrics of one run, or of several seeds; seeds become a mean with one standard deviation.

    Returns:
        The charts for which there are points.
    """
    accuracy: tuple[str, tuple[tuple[str, str, float, str], ...], bool]
    accuracy = ("Validation accuracy (%)", (("val", "accuracy", 100.0, ""),), False)
    if list(runs) == [""] and any(r.get("split") == "train" and "accuracy" in r for seed in runs[""] for r in seed):
        both = (("train", "accuracy", 100.0, "training"), ("val", "accuracy", 100.0, "validation"))
        accuracy = ("Accuracy (%)", both, False)
    wanted = [
        accuracy,
        ("Loss (nats)", (("train", "loss", 1.0, "training"), ("val", "loss", 1.0, "validation")), True),
    ]
    charts = []
    for title, parts, log_y in wanted:
        series: list[Series] = []
        for color, (label, seeds) in enumerate(runs.items()):
            for split, key, scale, suffix in parts:
                name = " ".join(word for word in (label, suffix) if word) or "validation"
                colour = color if label else len(series)
                curve = _mean_curve(seeds, split, key, scale)
                if curve:
                    x, y, error = curve
                    dashed = split == "val" and len(parts) > 1
                    series.append(Series(label=name, x=x, y=y, error=error, color=colour, dashed=dashed))
        if series:
            charts.append(LineChart(title=title, x_label="epoch", series=series, log_y=log_y))
    return charts


def _mean_curve(
    seeds: Sequence[Sequence[Record]], split: str, key: str, scale: float
) -> tuple[list[float], list[float], list[float] | None] | None:
    curves = [
        {
            float(r["epoch"]): scale * float(r[key])
            for r in metrics
            if r.get("split") == split and r.get(key) is not None
        }
        for metrics in seeds
    ]
    x = sorted(set(curves[0]).intersection(*curves[1:])) if curves else []
    if not x:
        return None
    y = [fmean(curve[epoch] for curve in curves) for epoch in x]
    return x, y, [stdev([curve[epoch] for curve in curves]) for epoch in x] if len(curves) > 1 else None
