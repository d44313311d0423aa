"""The flags that say what is looked at: fields whose docstrings are the help of every verb that has them.

A verb inherits the classes it needs; where a flag means something narrower to it, it says so in a field of its own.
`heading` is what `--help` lists the fields of a class under.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

Device = Literal["auto", "cpu", "cuda", "mps"]
Side = Literal["image", "text", "text2"]
Pool = Literal["cls", "mean", "max", "grid", "last"]
Precision = Literal["fp32", "bf16", "fp16"]
OnError = Literal["raise", "skip"]


@dataclass(frozen=True, kw_only=True)
class MachineFlags:
    """Where to compute."""

    heading: ClassVar[str] = "Machine"

    device: Device = "auto"
    """What to run on."""


@dataclass(frozen=True, kw_only=True)
class ModelFlags(MachineFlags):
    """How models are opened."""

    heading: ClassVar[str] = "Model"

    pretrained: bool = False
    """Load the weights that timm has for the name (downloaded if need be); folders and hf: come with theirs."""
    image_size: int | None = None
    """Side in pixels; default: the model's own input size."""
    seed: int = 0
    """Of weights that are not loaded."""


@dataclass(frozen=True, kw_only=True)
class OneModelFlags(ModelFlags):
    """How one model is opened."""

    heading: ClassVar[str] = "Model"

    model: str
    """A run folder, or any model by one string (`unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR, ...)."""
    weights: Path | None = None
    """Load these: a folder of `unrolled convert`, a run folder or a published checkpoint."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """The model's own arguments, e.g. `--model-args.step-size 0.2`."""


SHIPPED = "crate_nano_patch4_32.cifar10_hour"
"""The CRATE that verbs on pictures take where no model is named; that of four hours is more accurate, but its evidence
and MaskCut did less on the photos of docs/photos.md."""


@dataclass(frozen=True, kw_only=True)
class PictureFlags(OneModelFlags):
    """How a model that looks at pictures is opened."""

    heading: ClassVar[str] = "Model"

    model: str = SHIPPED
    """A run folder, or any model by one string (`unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR, ...). The default
    is small and comes trained."""
    image_size: int | None = None
    """What the shorter side becomes, in pixels; default: the model's own."""


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Which data."""

    heading: ClassVar[str] = "Data"

    data: str | None = None
    """Data set; default: the one of the run folder, else digits."""
    data_dir: Path | None = None
    """Where the data are; default: that of the run folder."""


@dataclass(frozen=True, kw_only=True)
class SubjectFlags(OneModelFlags, DataFlags):
    """One model on data."""


@dataclass(frozen=True, kw_only=True)
class SampleFlags(DataFlags):
    """Which samples of the data."""

    heading: ClassVar[str] = "Data"

    split: Literal["train", "test", "all"] = "test"
    """Which part of the data; `all` is for paired data."""
    images: int = 1024
    """How many images or pairs, drawn evenly from the whole split."""


@dataclass(frozen=True, kw_only=True)
class LoaderFlags:
    """How images are loaded."""

    heading: ClassVar[str] = "Machine"

    workers: int = 0
    """Loader processes; 0 loads in this process."""
    on_error: OnError = "raise"
    """An undecodable image stops the extraction, or is named and left out."""


@dataclass(frozen=True, kw_only=True)
class PairFlags:
    """What of paired data, or of a file of texts, is taken."""

    heading: ClassVar[str] = "Data"

    texts: Path | None = None
    """A file with one text a line instead of data, or a .tsv of two columns."""
    captions: int | None = None
    """How many of an image's captions make the text; default: all."""


@dataclass(frozen=True, kw_only=True)
class LayerFlags:
    """Which layers, and how they are computed."""

    heading: ClassVar[str] = "Features"

    layers: tuple[str, ...] = ("block*",)
    """Patterns of layer names; `*` stays within one part of a name."""
    batch_size: int = 64
    """Images in one forward pass."""
    precision: Precision = "fp32"
    """Of the forward pass; features are stored as float32."""


@dataclass(frozen=True, kw_only=True)
class FeatureFlags(LayerFlags):
    """Which features."""

    heading: ClassVar[str] = "Features"

    pool: Pool = "mean"
    """How the tokens of a layer become one vector."""


@dataclass(frozen=True, kw_only=True)
class Reading(OneModelFlags, LayerFlags, LoaderFlags):
    """All that the features of one model follow from besides the samples: flags of these names, where a verb has them.

    Attributes:
        pool: several poolings side by side are joined by `+`.
        captions: of an image, so many make the text.
        data_dir: where given models are.
    """

    pool: str = "mean"
    captions: int | None = None
    data_dir: Path | None = None

    @classmethod
    def of(cls, options: Any, **changes: Any) -> Self:
        """What `options`, the flags of a verb, say of it, with `changes`."""
        known = {item.name for item in dataclasses.fields(options)}
        shared = {item.name: getattr(options, item.name) for item in dataclasses.fields(cls) if item.name in known}
        return cls(**{**shared, **changes})
