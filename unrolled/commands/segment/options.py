"""The flags of `unrolled segment` and `unrolled segment-eval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from unrolled.commands.options import REPEATED, check_counts
from unrolled.harness import OutputFlags
from unrolled.subjects.options import OnError, PictureFlags

Method = Literal["attention", "pca", "maskcut", "cluster"]
Measure = Literal["attention", "maskcut", "clusters"]
METHODS: tuple[Method, ...] = ("attention", "pca", "maskcut", "cluster")
MOST = 12
"""Regions that colours can tell apart."""


@dataclass(frozen=True, kw_only=True)
class RegionFlags(PictureFlags, OutputFlags):
    """Which regions a model is made to tell apart, and how."""

    layers: tuple[int, ...] = ()
    """Blocks to look at, from 0; negative ones count from the end. Default: the last but one, as the papers do."""
    facet: Literal["key", "query", "value", "token"] = "key"
    """Features for pca, maskcut and cluster. In white-box attention key, query and value are one."""
    mass: float = 0.6
    """Share of the attention that the outlined area holds."""
    tau: float = 0.2
    """Cosine similarity above which maskcut joins two patches; the CRATE papers use 0.15."""
    objects: int = 3
    """How many objects maskcut looks for."""
    clusters: int = 5
    """How many clusters."""
    image_size: int | None = None
    """What the shorter side becomes, in pixels; default: the model's own. Larger means a finer grid of patches."""
    stride: int | None = None
    """A patch every so many pixels, so that they overlap: a finer grid of the same picture; default: side by side."""
    batch_size: int = 4
    """Pictures of one size that go through the model together."""
    seed: int = 0
    """Of random weights and of k-means."""
    on_error: OnError = "raise"
    """A picture that cannot be read stops the run, or is named and left out."""

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size)
        if not 0 < self.mass <= 1:
            raise ValueError(f"--mass {self.mass:g}: must be above 0 and at most 1")
        for flag, value in {"--objects": self.objects, "--clusters": self.clusters}.items():
            if not 1 <= value <= MOST:
                raise ValueError(f"{flag} {value}: give 1 to {MOST}")


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(RegionFlags):
    """Flags of `unrolled segment`."""

    images: tuple[Path, ...] = field(default=(), kw_only=False)
    """Pictures, animations (GIF, WebP, PNG), or folders of them; numbered frames keep their order."""
    method: Annotated[tuple[Method, ...], REPEATED] = METHODS
    """`attention` of the class token, `pca` colours, `maskcut` objects or `cluster`s; may be repeated; default: all."""
    refine: bool = False
    """Fit the objects of maskcut to the edges of the picture with a guided filter."""
    frames: int = 100
    """Of an animation at most so many frames, drawn evenly; 1: the first alone."""
    out: Path | None = None
    """Where overlays, config.yaml, report.html and report.json go; default: runs/segment-MODEL-PICTURE, with a number
    behind it where that holds the result of another model or picture of the same name."""

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError(
                "images: give at least one picture or a folder of them; unrolled segment-eval scores annotated ones"
            )
        super().__post_init__()
        check_counts(frames=self.frames)
        if not self.method:
            raise ValueError(f"--method: give at least one of {', '.join(METHODS)}")

    @property
    def methods(self) -> tuple[Method, ...]:
        """Each once."""
        return tuple(dict.fromkeys(self.method))


@dataclass(frozen=True, kw_only=True)
class SegmentEvalOptions(RegionFlags):
    """Flags of `unrolled segment-eval`."""

    data: Literal["ade20k", "bsds", "coco", "masks", "voc"] = field(kw_only=False)
    """Score against this set of annotated images."""
    data_dir: Path | None = None
    """Where the annotated images are."""
    measure: tuple[Measure, ...] = ()
    """What is scored: `attention` against things, objects of `maskcut` (average precision), `clusters` against whole
    segmentations (covering, mIoU, boundaries). Default: the first two, on bsds the last."""
    confidence: Literal["order", "area", "constant"] = "order"
    """How objects are ranked for average precision: those found first, the largest, or all alike."""
    limit: int = 200
    """How many of the images, drawn evenly."""
    layers: tuple[int, ...] = ()
    """Blocks to look at, from 0; negative ones count from the end. Default: the last but one, as the papers do;
    attention is scored in every block."""
    facet: Literal["key", "query", "value", "token"] = "key"
    """Features for maskcut and clusters. In white-box attention key, query and value are one."""
    mass: float = 0.6
    """Share of the attention that a mask holds."""
    out: Path | None = None
    """Where config.yaml, report.html and report.json go; default: runs/segment-eval-MODEL-DATA, with a number behind
    it where that holds the result of another model or folder of the same name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(limit=self.limit)
        if self.data_dir is None:
            raise ValueError(f"{self.data}: give --data-dir, the folder where the annotated images are")

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Each once; by default what the data are for."""
        usual: tuple[Measure, ...] = ("clusters",) if self.data == "bsds" else ("attention", "maskcut")
        return tuple(dict.fromkeys(self.measure)) or usual

    @property
    def detailed(self) -> tuple[int, ...]:
        """Layers of maskcut and clusters; `layers` are those of attention, where none means every layer."""
        return self.layers or (-2,)
