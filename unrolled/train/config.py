"""What a training run is: one flat, typed record for each kind of run, put together from blocks of settings.

Flags, YAML files and the saved run folder are all made from these records; what a kind of run has no use for, its
record does not have. This module imports nothing heavy, so that `unrolled train --help` is instant.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from unrolled.errors import check_finite
from unrolled.trust import check_model_args

Precision = Literal["fp32", "bf16", "fp16"]
HEADINGS = (
    "Model",
    "Data",
    "Text",
    "Masked autoencoding",
    "Self-distillation",
    "Duration",
    "Optimiser and schedule",
    "Augmentation and loss",
    "Machine",
    "Output",
)
"""In the order in which `--help` and `config.yaml` list them; every block of settings says which is its."""


# --- blocks that every run has


@dataclass(kw_only=True)
class Model:
    """What is trained."""

    heading: ClassVar[str] = "Model"
    task: str
    model: str = "auto"
    model_args: dict[str, Any] = field(default_factory=dict)
    """Extra keyword arguments of the model, e.g. `--model-args.depth 4`."""


@dataclass(kw_only=True)
class Data:
    """On what."""

    heading: ClassVar[str] = "Data"
    data: str
    data_dir: Path | None = None
    """Where the data are (or are downloaded to)."""


@dataclass(kw_only=True)
class Duration:
    """For how long."""

    heading: ClassVar[str] = "Duration"
    epochs: float = 30.0
    """Passes over the training data."""
    steps: int | None = None
    """Optimiser steps of the whole run, over which the schedule spans too, in place of `epochs`."""
    max_steps: int | None = None
    """Stop after this many optimiser steps (the schedule still spans the whole run)."""
    batch_size: int = 128
    """Images, or excerpts of text, per optimiser step, over all processes and accumulation."""
    accumulate: int = 1
    """Split every batch into this many forward/backward passes."""
    seed: int = 0
    """Every random draw of the run is a function of this number, the step and the sample."""


@dataclass(kw_only=True)
class Optimisation:
    """How the weights change."""

    heading: ClassVar[str] = "Optimiser and schedule"
    optimizer: str = "adamw"
    """A timm optimiser name: `adamw`, `lion`, ..., or `muon`: ours, for the matrices of the layers; the rest by AdamW,
    at the same rate."""
    lr: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Not applied to norms, biases, positions, class token and learned scalars."""
    betas: tuple[float, float] | None = None
    """Momentum coefficients; default: the optimiser's own."""
    warmup_epochs: float = 2.0
    """Linear warm-up, per step."""
    warmup_steps: int | None = None
    """The same in steps, in place of `warmup_epochs`."""
    min_lr: float = 0.0
    """Where the cosine ends: one step after the last, whose own rate is still a little higher."""
    clip_grad: float | None = 1.0
    """Largest gradient norm, after unscaling; none: no clipping."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and saved as the model
    (ramped up over the first steps, so that short runs are not dominated by the initial weights)."""


@dataclass(kw_only=True)
class Machine:
    """Where."""

    heading: ClassVar[str] = "Machine"
    precision: Precision = "fp32"
    """`fp32`, `bf16` or `fp16` (with loss scaling); master weights stay float32."""
    compile: bool = False
    """`torch.compile` the model."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """What to run on."""
    devices: int = 1
    """Processes (GPUs, or CPU processes) on each node."""
    num_nodes: int = 1
    """Machines; start the same command on each under torchrun or Slurm."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How the model is spread over processes."""


@dataclass(kw_only=True)
class Output:
    """What is kept."""

    heading: ClassVar[str] = "Output"
    out: Path = Path("runs/train")
    """The run folder."""
    resume: str | None = None
    """`auto` continues the run in `out` if there is one; or the path of a checkpoint."""
    force: bool = False
    """Resume although the configuration changed; without `resume`, replace an earlier run in `out`."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is also written before every validation, on Ctrl-C and at the end."""
    keep: int = 2
    """Checkpoints kept."""
    eval_every: float = 1.0
    """Epochs between validations."""
    eval_samples: int | None = None
    """Validate on so many of the held-out images, or excerpts of text, drawn evenly; default: all. The test split is
    always looked at as a whole."""
    log_every: int = 50
    """Steps between log records."""
    loggers: tuple[Literal["csv", "tensorboard", "wandb", "trackio"], ...] = ("csv",)
    """Where metrics go besides `metrics.jsonl`."""
    quiet: bool = False
    """No progress on stderr."""


@dataclass(kw_only=True)
class RunConfig(Output, Machine, Optimisation, Duration, Data, Model):
    """What every training run has. Durations are in epochs unless the name says otherwise."""

    tasks: ClassVar[tuple[str, ...]] = ()
    """What `task` may be here."""
    sharded: ClassVar[bool] = True
    """Whether `strategy="fsdp"` is supported."""

    def __post_init__(self) -> None:
        for name in ("out", "data_dir", "weights"):  # in Python a folder is as often a string
            if isinstance(value := getattr(self, name, None), str):
                setattr(self, name, Path(value))

    def check(self) -> None:
        """Refuse values no run can use, naming the field and the fix.

        Raises:
            ValueError: at the first such value.
        """
        if self.task not in self.tasks:
            here = " or ".join(map(repr, self.tasks))
            other = next((cls for cls in kinds() if self.task in cls.tasks), None)
            hint = "" if other is None else f"; such a run has a configuration of its own, {other.__name__}"
            raise ValueError(f"task={self.task!r}: {type(self).__name__} is for {here}{hint}")
        check_model_args(self.model_args)
        for item in dataclasses.fields(self):
            check_finite(getattr(self, item.name), item.name)
        for name, hint in get_type_hints(type(self)).items():
            value, allowed = getattr(self, name), get_args(hint) if isinstance(hint, UnionType) else (hint,)
            for kind, abstract, words in ((int, Integral, "a whole number"), (float, Real, "a number")):
                fits = isinstance(value, abstract) and not isinstance(value, bool)
                if kind in allowed and not fits and not (value is None and type(None) in allowed):
                    raise ValueError(f"{name}={value!r} must be {words}")
        counts = ("batch_size", "accumulate", "devices", "num_nodes", "checkpoint_every", "keep", "log_every")
        self._require("must be at least 1", *counts, holds=lambda value: value >= 1)
        self._require("must be positive", "epochs", "lr", holds=lambda value: value > 0)
        not_negative = ("weight_decay", "warmup_epochs", "warmup_steps", "min_lr", "seed")
        self._require("must not be negative", *not_negative, holds=lambda value: value >= 0)
        meaning = {
            "steps": "to train for `epochs`",
            "max_steps": "for the whole schedule",
            "eval_samples": "to validate on all there are",
        }
        for name, everything in meaning.items():
            self._require(f"must be at least 1, or none {everything}", name, holds=lambda value: value >= 1)
        average = "must lie between 0 and 1, e.g. 0.999; none turns it off"
        self._require(average, "ema", holds=lambda value: 0 < value < 1)
        self._require("must be positive; none turns clipping off", "clip_grad", holds=lambda value: value > 0)
        if self.eval_every is not None and not self.eval_every > 0:
            raise ValueError(f"eval_every={self.eval_every} must be positive")
        share = self.devices * self.num_nodes * self.accumulate
        if self.batch_size % (self.devices * self.num_nodes) or self.batch_size < share:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of devices x num_nodes = "
                f"{self.devices * self.num_nodes} and at least devices x num_nodes x accumulate = {share}"
            )
        if self.strategy == "fsdp" and not self.sharded:
            raise ValueError(f"strategy='fsdp' is not supported with task={self.task!r}; use 'ddp' or 'auto'")

    def _require(self, rule: str, *names: str, holds: Callable[[Any], bool]) -> None:
        """Refuse the first of these settings that has a value of which `holds` is false."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"{name}={value} {rule}")

    def eval_steps(self, per_epoch: int) -> int:
        """Optimiser steps between validations, with so many to an epoch."""
        return max(1, round(self.eval_every * per_epoch))


# --- runs on images


@dataclass(kw_only=True)
class ImageModel(Model):
    """A model of images."""

    heading: ClassVar[str] = "Model"
    weights: Path | None = None
    """Start from these weights: a folder made by `unrolled convert`, a run folder, a published checkpoint, or the name
    of weights that ship with the package, e.g. `crate_nano_patch4_32.cifar10`."""


@dataclass(kw_only=True)
class ImageData(Data):
    """Images, and how they are divided and read."""

    heading: ClassVar[str] = "Data"
    image_size: int | None = None
    """Side in pixels; default: the model's own input size."""
    val_fraction: float = 0.0
    """Share of the training split held out, stratified, for validation, which then chooses the weights that are kept;
    0 keeps the last ones. Either way the test split is looked at once, at the end."""
    split_seed: int = 0
    """Which images are held out, and which are the test split where the data set does not say. Runs that are compared,
    seeds of one recipe above all, must share it."""
    workers: int = 0
    """Loader processes; 0 loads in the training process."""
    on_error: Literal["raise", "skip"] = "raise"
    """An undecodable image stops the run, or is named, counted and left out."""
    unknown_classes: Literal["raise", "skip"] = "raise"
    """A validation or test split with classes that the training split lacks is refused, or their images left out."""


@dataclass(kw_only=True)
class Augmentation:
    """How training images are changed."""

    heading: ClassVar[str] = "Augmentation and loss"
    augment: bool = True
    """Random crop, flip and the settings below; off: evaluation preprocessing."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area range of the random resized crop."""
    pad_crop: int | None = None
    """Crop after padding by this many pixels (the CIFAR habit) instead of the resized crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation jitter."""
    auto_augment: str | None = None
    """A timm policy such as `rand-m14-n2`."""
    random_erasing: float = 0.0
    """Probability of erasing a rectangle."""

    def check_augmentation(self) -> None:
        """Refuse values out of range.

        Raises:
            ValueError: at the first such value.
        """
        if not self.color_jitter >= 0:
            raise ValueError(f"color_jitter={self.color_jitter} must not be negative")
        for name in ("hflip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability: 0 to 1")


@dataclass(kw_only=True)
class ImageConfig(RunConfig, ImageData, ImageModel):
    """What every run on images has. Sizes are in images."""

    data: str = "digits"
    """`digits`, `cifar10`, another torchvision name, `folder`, `hf:ORG/NAME`, `wds:PATTERN` or `packed`; columns and
    splits of `hf:` may be named, as in `hf:ORG/NAME,label=species,test=validation`."""
    epochs: float = 30.0
    """Passes over the training split. Each leaves out what does not fill a last batch, and each leaves out others."""
    batch_size: int = 128
    """Images per optimiser step, over all processes and accumulation."""
    eval_samples: int | None = None
    """Validate on so many of the held-out images, drawn evenly; default: all. The test split is always looked at as a
    whole."""

    def check(self) -> None:
        """As `RunConfig.check`."""
        super().check()
        self._require("must not be negative", "workers", holds=lambda value: value >= 0)
        self._require("must be at least 0 and below 1", "val_fraction", holds=lambda value: 0 <= value < 1)


@dataclass(kw_only=True)
class TrainConfig(ImageConfig, Augmentation):
    """Training of a classifier of images."""

    heading: ClassVar[str] = "Augmentation and loss"
    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    task: Literal["classify", "lm", "mlm"] = "classify"
    """`classify` images. `--task lm` predicts the next token of a text, `--task mlm` masked tokens: both have flags of
    their own, see `unrolled train --task lm --help`."""
    model: str = "crate_nano_patch2_8"
    """Any registered name (see `unrolled list`), or `timm:NAME`, `local:DIR`, `package.module:factory`."""
    mixup: float = 0.0
    """Mixup alpha."""
    cutmix: float = 0.0
    """CutMix alpha."""
    label_smoothing: float = 0.0
    """Mass moved from the label to all classes."""
    srr_weight: float = 0.0
    """Weight of minus the sparse rate reduction of the layers' tokens (arXiv 2411.17182), added to the loss."""
    srr_layers: tuple[int, ...] | None = None
    """Layers it is taken of, negative from the end; default: all."""
    srr_eps: float = 0.5
    """Distortion of its coding rates."""
    orthogonality_weight: float = 0.0
    """Weight of how far the layers' subspaces are from orthonormal and from each other, added to the loss."""

    def check(self) -> None:
        """As `RunConfig.check`."""
        super().check()
        self.check_augmentation()
        weights = ("mixup", "cutmix", "srr_weight", "orthogonality_weight")
        self._require("must not be negative", *weights, holds=lambda value: value >= 0)
        self._require("must be at least 0 and below 1", "label_smoothing", holds=lambda value: 0 <= value < 1)
        self._require("must be positive, e.g. 0.5", "srr_eps", holds=lambda value: value > 0)
        if self.srr_weight and (self.compile or self.strategy == "fsdp"):
            raise ValueError("srr_weight: needs the layers' tokens; leave compile off and strategy other than 'fsdp'")
        if self.orthogonality_weight and self.strategy == "fsdp":
            raise ValueError("orthogonality_weight: needs whole weights; choose a strategy other than 'fsdp'")


@dataclass(kw_only=True)
class FinetuneConfig(TrainConfig):
    """Fine-tuning: new head, resized positions, a validation split, and the test split looked at once."""

    task: Literal["classify"] = "classify"
    """Classify images."""
    model: str = "auto"
    """Default: the model that the weights' folder or name describes; a checkpoint file does not tell."""
    val_fraction: float = 0.1
    epochs: float = 10.0
    lr: float = 5e-5
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    out: Path = Path("runs/finetune")

    def check(self) -> None:
        """As `RunConfig.check`."""
        super().check()
        if self.weights is None:
            raise ValueError("weights: fine-tuning starts from weights; give a folder, a run or a checkpoint file")
        if self.val_fraction == 0:
            raise ValueError("val_fraction=0 leaves nothing to choose the weights by; hold out a share, e.g. 0.1")


@dataclass(kw_only=True)
class PretrainConfig(ImageConfig):
    """What both ways of pretraining on images share. Labels are not looked at."""

    sharded: ClassVar[bool] = False
    strategy: Literal["auto", "ddp"] = "auto"
    data: str = "cifar10"
    val_fraction: float = 0.1
    """Share of the training split held out, on which the loss is measured."""
    epochs: float = 100.0
    lr: float = 1e-3
    betas: tuple[float, float] | None = (0.9, 0.95)
    warmup_epochs: float = 5.0
    eval_every: float = 5.0
    out: Path = Path("runs/pretrain")


@dataclass(kw_only=True)
class MaskedConfig(PretrainConfig, Augmentation):
    """Masked autoencoding: images are completed of which most patches were removed."""

    heading: ClassVar[str] = "Masked autoencoding"
    tasks: ClassVar[tuple[str, ...]] = ("mae",)
    task: Literal["mae", "simdino"] = "mae"
    """`mae` completes masked images. `--task simdino` makes views of an image agree while their coding rate stays high;
    it has flags of its own, see `unrolled pretrain --task simdino --help`."""
    model: str = "auto"
    """Default: `crate_mae_nano_patch4_32`; any masked autoencoder (`crate_mae_*`, `vit_mae_*`) will do."""
    val_fraction: float = 0.1
    """Share of the training split held out, on which the loss is measured; it then chooses the weights."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    mask_ratio: float = 0.75
    """Share of the patches that are removed; their number is the nearest to it."""
    norm_pix_loss: bool = True
    """Predict patches normalised to mean 0 and variance 1, each by itself."""

    def check(self) -> None:
        """As `RunConfig.check`."""
        super().check()
        self.check_augmentation()
        ratio = "must lie between 0 and 1, both excluded, e.g. 0.75"
        self._require(ratio, "mask_ratio", holds=lambda value: 0 < value < 1)


@dataclass(kw_only=True)
class DistillConfig(PretrainConfig):
    """Self-distillation: views of an image agree with a teacher, and a coding rate keeps features from collapsing.

    The views are all the augmentation there is.
    """

    heading: ClassVar[str] = "Self-distillation"
    tasks: ClassVar[tuple[str, ...]] = ("simdino",)
    task: Literal["mae", "simdino"] = "simdino"
    """`simdino` makes views of an image agree while their coding rate stays high; `mae` completes masked images."""
    model: str = "auto"
    """Default: `crate_nano_patch4_32`; any backbone with features will do."""
    rate_weight: float = 1.0
    """Weight of the coding rate that keeps features from collapsing, over the published balance of dimensions and
    images; 0 leaves it out."""
    rate_eps: float = 0.5
    """Distortion of that coding rate. Published is 0.71 under a projector; without one, features that start out nearly
    equal leave that state sooner with 0.5."""
    teacher_momentum: float = 0.996
    """Of the teacher, an average of the student; grows to 1 along a cosine."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Area range of the two large views."""
    local_crops: int = 4
    """Small views of an image, which only the student sees; 0 leaves them out."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Area range of the small views."""
    local_size: int | None = None
    """Side of the small views in pixels; default: half the image, in whole patches."""

    def check(self) -> None:
        """As `RunConfig.check`."""
        super().check()
        left_out = "must not be negative; 0 leaves the coding rate out"
        self._require(left_out, "rate_weight", holds=lambda value: value >= 0)
        self._require("must be positive, e.g. 0.7", "rate_eps", holds=lambda value: value > 0)
        momentum = "must be at least 0 and below 1, e.g. 0.996"
        self._require(momentum, "teacher_momentum", holds=lambda value: 0 <= value < 1)
        views = "must not be negative; 0 leaves the small views out"
        self._require(views, "local_crops", holds=lambda value: value >= 0)
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be two shares of the area, 0 < low <= high <= 1, not {low, high}")
        if self.ema:
            raise ValueError("ema: in self-distillation the teacher is the average; leave ema unset")


# --- runs on text


@dataclass(kw_only=True)
class TextData(Data):
    """How a text is divided and cut into tokens."""

    heading: ClassVar[str] = "Text"
    held_out: float | None = None
    """Share of the text that is for validation, and as much again for the test, where the corpus has no such parts of
    its own; default: 0.05."""
    tokenizer: str = "bytes"
    """`bytes`, `characters`, `bpe:SIZE` learned from the training part, or the path of a `tokenizer.json`."""
    length: int = 256
    """Tokens of context. An epoch is as many excerpts, at random places, as hold the tokens of the training part."""
    mask_share: float = 0.15
    """Of `mlm`: share of the tokens that are masked and to be predicted."""
    label_smoothing: float = 0.0
    """Mass moved from the token to all tokens, in the training loss."""


@dataclass(kw_only=True)
class TextConfig(RunConfig, TextData):
    """Training of a language model, causal (`lm`) or masked (`mlm`). Sizes are in excerpts of `length` tokens."""

    tasks: ClassVar[tuple[str, ...]] = ("lm", "mlm")
    sharded: ClassVar[bool] = False
    task: Literal["classify", "lm", "mlm"] = "lm"
    """Predict the next token (`lm`) or masked tokens (`mlm`) of a text. Images: `classify`."""
    model: str = "auto"
    """A name such as `mesanet_nano` (see `unrolled list`), or `package.module:factory`; default: `crate_gpt_nano`, of
    `mlm` `crate_bert_nano`."""
    data: str = "tinyshakespeare"
    """`tinyshakespeare`, `wikitext2`, `brown`, `bronte`, `darwin`, `folder` (of .txt files) or `hf:ORG/NAME`."""
    epochs: float = 30.0
    """Passes over the training part: as many tokens as there are, in excerpts drawn at random."""
    batch_size: int = 128
    """Excerpts of text per optimiser step, over all processes and accumulation."""
    eval_every: int | None = None  # type: ignore[assignment]
    """Steps between validations; default: one epoch."""
    strategy: Literal["auto", "ddp"] = "auto"
    eval_samples: int | None = None
    """Validate on so many excerpts of the validation part, drawn evenly; default: all. The test part is always looked
    at as a whole."""

    def check(self) -> None:
        """As `RunConfig.check`."""
        super().check()
        self._require("must be at least 1", "length", holds=lambda value: value >= 1)
        self._require("must lie between 0 and 1, e.g. 0.15", "mask_share", holds=lambda value: 0 < value < 1)
        self._require("must be at least 0 and below 1", "label_smoothing", holds=lambda value: 0 <= value < 1)
        self._require("must lie between 0 and 0.5, e.g. 0.05", "held_out", holds=lambda value: 0 < value < 0.5)

    def eval_steps(self, per_epoch: int) -> int:
        """As they are given; else those of an epoch."""
        return self.eval_every or per_epoch


def kinds() -> tuple[type[RunConfig], ...]:
    """One configuration for every kind of run."""
    return (TrainConfig, TextConfig, MaskedConfig, DistillConfig)


def heading_of(config: type[Any], name: str) -> str | None:
    """Under which heading `--help` lists a setting: that of the block it comes from, if it has one."""
    block: Any = next(cls for cls in reversed(config.__mro__) if name in inspect.get_annotations(cls))
    return getattr(block, "heading", None)
