"""Whether a classifier's probabilities mean what they say: calibration error, likelihood, Brier score, temperature.

Legend: logits [n, c], labels int64 [n]; the confidence of a sample is its largest probability. All sums in float64.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unrolled.instruments.readouts.probes import widen
from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 15


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Samples whose confidence lies in (low, high]: how many, their mean confidence, and the share that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Reliability(Tabular):
    """Calibration of a classifier on labelled samples.

    Attributes:
        ece: expected calibration error (Guo et al., arXiv 1706.04599): mean over samples of the distance between
            accuracy and mean confidence of their bin, bins of equal width. In 0..1; 0 is calibrated, and also what
            always naming the class frequencies gets.
        adaptive_ece: the same with bins of equal numbers of samples, as far as ties allow.
        nll: mean negative log-likelihood of the labels, nats.
        brier: mean squared distance between probabilities and one-hot labels, summed over classes; 0..2.
        accuracy: share of samples whose most probable class is the label.
        confidence: mean confidence.
        samples: n.
        bins: the occupied bins of equal width, in order.
    """

    ece: float
    adaptive_ece: float
    nll: float
    brier: float
    accuracy: float
    confidence: float
    samples: int
    bins: tuple[Bin, ...]

    def records(self) -> list[dict[str, Any]]:
        """A row for each occupied bin."""
        return [asdict(each) for each in self.bins]

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {getattr(self, name):.4g}" for name in ("ece", "adaptive_ece", "nll", "brier"))
        return f"Reliability({scores}; accuracy {self.accuracy:.4g} of {self.samples:,} samples)"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of right answers against their mean confidence, bin by bin; see `figures.Panel.plot`."""
        from unrolled.figures import LineChart, Series

        right = [each.accuracy for each in self.bins]
        error = [(each.accuracy * (1 - each.accuracy) / each.count) ** 0.5 for each in self.bins]
        series = [
            Series(label="as it is", x=[each.confidence for each in self.bins], y=right, error=error),
            Series(label="calibrated", x=[0.0, 1.0], y=[0.0, 1.0], dashed=True),
        ]
        return LineChart(title="Accuracy", x_label="Confidence", series=series, y_range=(0, 1)).plot(ax)


def reliability(logits: Tensor, labels: Tensor, *, bins: int = BINS, temperature: float = 1.0) -> Reliability:
    """Calibration of softmax(logits / temperature).

    Args:
        logits: [n, c], n >= 1.
        labels: integers [n] in 0..c-1.
        bins: of confidence.
        temperature: positive; see `fit_temperature`.

    Raises:
        ValueError: shapes, labels or values that do not fit.
    """
    z = _check(logits, labels)
    if bins < 1 or not 0 < temperature < math.inf:
        raise ValueError(f"bins={bins}, temperature={temperature}: both must be positive")
    labels = labels.to(z.device)
    log_p = (z / temperature).log_softmax(1)
    p = log_p.exp()
    confidence, guess = p.max(1)
    right = (guess == labels).double()
    named = p.gather(1, labels[:, None])[:, 0]
    widths = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=z.device)
    table = _bins(confidence, right, widths)
    return Reliability(
        ece=_error(table, len(z)),
        adaptive_ece=_error(_bins(confidence, right, _quantiles(confidence, bins)), len(z)),
        nll=float(-log_p.gather(1, labels[:, None]).mean()),
        brier=float((p.square().sum(1) - 2 * named + 1).mean()),
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        samples=len(z),
        bins=tuple(table),
    )


def fit_temperature(logits: Tensor, labels: Tensor, *, low: float = 0.01, high: float = 100.0) -> float:
    """The temperature of least negative log-likelihood, one number that leaves every decision as it is.

    The likelihood is concave in its inverse, so the minimum found is the minimum. Fit it on samples that are not those
    it is judged on.

    Args:
        logits: [n, c].
        labels: integers [n].
        low, high: bounds; one of them is returned where all samples are right, or worse than chance.
    """
    from scipy.optimize import minimize_scalar

    z = _check(logits, labels)
    if not 0 < low < high < math.inf:
        raise ValueError(f"low={low}, high={high}: must be positive, the first smaller")
    index = labels.to(z.device)[:, None]

    def loss(log_temperature: float) -> float:
        return float(-(z / math.exp(log_temperature)).log_softmax(1).gather(1, index).mean())

    # unimodal in the logarithm too, which spreads the range evenly
    result = minimize_scalar(loss, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-6})
    return math.exp(result.x)


def _quantiles(confidence: Tensor, bins: int) -> Tensor:
    """Edges of bins of equal numbers. Equal confidences share a bin: else a bin could be filled by correctness."""
    ordered = confidence.sort().values
    places = torch.arange(1, bins, device=ordered.device) * len(ordered) // bins
    inner = ordered[(places - 1).clamp_min(0)]
    ends = torch.tensor([0.0, 1.0], dtype=ordered.dtype, device=ordered.device)
    return torch.cat([ends, inner]).unique()


def _bins(confidence: Tensor, right: Tensor, edges: Tensor) -> list[Bin]:
    """Occupied bins (edges[i], edges[i + 1]]."""
    count = len(edges) - 1
    place = torch.bucketize(confidence, edges[1:-1].contiguous())
    size = torch.bincount(place, minlength=count).double()
    sure = torch.bincount(place, weights=confidence, minlength=count) / size
    hits = torch.bincount(place, weights=right, minlength=count) / size
    return [
        Bin(low=float(edges[i]), high=float(edges[i + 1]), count=int(size[i]), confidence=min(1.0, float(sure[i])),
            accuracy=float(hits[i]))
        for i in range(count)
        if size[i] > 0
    ]  # fmt: skip


def _error(bins: list[Bin], samples: int) -> float:
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / samples


def _check(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 1:
        raise ValueError(f"logits must be [n, c] with n >= 1, not {tuple(logits.shape)}")
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels must be {len(logits)} integers, not {labels.dtype} {tuple(labels.shape)}")
    low, high = torch.aminmax(labels)
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"labels lie in {int(low)}..{int(high)}, outside the {logits.shape[1]} classes of the logits")
    if not torch.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinite values; evaluate in float32")
    return widen(logits)
