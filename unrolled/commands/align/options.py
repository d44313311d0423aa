"""What `unrolled align` and `unrolled align-grid` have in common: their flags, and the metrics by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from unrolled.commands.align.sides import TwoSides
from unrolled.commands.options import REPEATED, check_counts
from unrolled.harness import OutputFlags
from unrolled.subjects.options import FeatureFlags, ModelFlags, Precision, SampleFlags

if TYPE_CHECKING:
    from unrolled.alignment import Metric


@dataclass(frozen=True, kw_only=True)
class CompareFlags(ModelFlags, SampleFlags, FeatureFlags, OutputFlags):
    """How representations are compared."""

    metric: Annotated[tuple[str, ...], REPEATED] = ("mutual_knn",)
    """May be repeated: mutual_knn, cycle_knn, lcs_knn, edit_knn, cknna, cka, unbiased_cka, svcca, pwcca, procrustes (a
    distance), soft_matching, rsa, ridge_predictivity, pls_predictivity, stitching."""
    k: int = 10
    """Neighbours, for the metrics that have them."""
    draws: int = 200
    """Relabellings; the smallest p-value is 1 / (draws + 1)."""
    groups: str | None = None
    """Which samples depend on each other (captions of a photo, frames of a video, sentences of a document): a file
    with one label a line (.npy too), or a column of paired data of a hub. They are relabelled, left out and resampled
    together. Pairs that share a photo or a text are grouped without being told."""
    blocks: str | None = None
    """For samples in order, such as a film: how many in a row move as one, or `shift` to shift the whole series. Few
    blocks are liberal (six of an autocorrelated series: 9 % at 5 %); shifts hold."""
    data: str | None = None
    """Data set all models see; default: the one of the first that is a run folder, else digits."""
    image_size: int | None = None
    """Side in pixels; default: each model's own input size."""
    layers: tuple[str, ...] = ("block*",)
    """Patterns of layer names of the models; `*` stays within one part of a name. Features in files are all
    compared."""
    precision: Precision = "fp32"
    """Of the forward passes."""
    seed: int = 0
    """Of relabellings, subsamples and weights that are not loaded."""
    out: Path | None = None

    def __post_init__(self) -> None:
        check_counts(2, images=self.images)
        check_counts(k=self.k)
        if self.draws < 1:
            raise ValueError(f"--draws {self.draws}: give at least 1; the smallest p-value is 1 / (draws + 1)")


Flags = TypeVar("Flags", bound=CompareFlags)


@dataclass(frozen=True, kw_only=True)
class AlignOptions(CompareFlags, TwoSides):
    """Flags of `unrolled align`."""

    null: Literal["permutation", "moments"] = "permutation"
    """`permutation` relabels samples; `moments` takes the tail of three exact moments where that is safe and relabels
    until p is resolved elsewhere; the result says which."""
    resamples: int = 100
    """Subsamples for the interval, which is of the score at this many samples, not of a population; 0: none."""
    held_out: bool = False
    """Also choose the layers on one half of the samples and judge them on the other."""
    control: bool = True
    """Also compare an untrained twin of each side that is a trained model (the same architecture, fresh weights): once
    more the time of its features, and a score each."""
    out: Path | None = None
    """Where config.yaml, report.html, report.json and features go; default: runs/align-A-B."""


def metrics_of(options: Flags) -> tuple[Flags, list[Metric]]:
    """The flags with the names of the metrics as these are spelled, and the metrics, with `k` if they have it.

    Raises:
        ValueError: there is none of a name.
    """
    from unrolled.alignment.models import metric_of
    from unrolled.alignment.registry import metric_name

    for name in options.metric:
        if "," in name:
            each = " ".join(f"--metric {part.strip()}" for part in name.split(","))
            raise ValueError(f"--metric {name}: is one metric at a time; give {each}")
    options = replace(options, metric=tuple(dict.fromkeys(metric_name(name) for name in options.metric)))
    return options, [metric_of(name, {"k": options.k}) for name in options.metric]
