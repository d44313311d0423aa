"""Configurations of runs on images: classifying, fine-tuning, and two ways of pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from unrolled.train.config.run import Data, Model, RunConfig

_FEWEST = 4
"""Images that the losses of `unrolled.alignment` take at least."""


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
    alternate_flip: bool = False
    """Instead of flips at random: every image mirrored in every other pass, half of them in the first one, so that two
    passes show both sides (of "airbench", arXiv 2404.00498)."""
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
        if self.alternate_flip and not self.augment:
            raise ValueError("alternate_flip: nothing is mirrored with augment off; choose one of the two")


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
    whiten_stem: bool = False
    """Begin the stem's first convolution, as which patches are projected too, with the directions that whiten its own
    patches of training images, instead of random ones (of "airbench", arXiv 2404.00498, which then keeps them)."""
    small_size: int | None = None
    """Side in pixels to which training images are made smaller at first, for steps that cost less; the model has to
    accept both sizes. Validation and test see the whole. Default: training does too, throughout."""
    small_share: float = 0.5
    """Share of the steps in which they are small."""
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
    teacher: str | None = None
    """A trained model, by any string that names one, that a layer is aligned with or whose logits are distilled. It
    sees the same views, normalised and resized as it expects, and is not saved."""
    align_weight: float = 0.0
    """Weight of how far a layer's tokens are from the teacher's last layer (arXiv 2410.06940), added to the loss."""
    align_layer: int | None = None
    """Which layer, negative from the end; default: the middle one."""
    align_loss: Literal["cosine", "pooled_cosine", "cka", "procrustes", "rsa", "soft_knn"] = "cosine"
    """`cosine` of each patch, or `pooled_cosine` of their means, behind a projector that is learned too and thrown
    away; or, without one, a loss of `unrolled.alignment` on the means of the images that one pass sees."""
    distil_weight: float = 0.0
    """Weight of the divergence of the logits from the teacher's, added to the loss."""
    distil_temperature: float = 4.0
    """What both sides' logits are divided by; the divergence is multiplied by its square."""

    def check(self) -> None:
        """As `RunConfig.check`."""
        super().check()
        self.check_augmentation()
        weights = ("mixup", "cutmix", "srr_weight", "orthogonality_weight", "align_weight", "distil_weight")
        self._require("must not be negative", *weights, holds=lambda value: value >= 0)
        self._require("must be at least 0 and below 1", "label_smoothing", holds=lambda value: 0 <= value < 1)
        self._require("must be positive, e.g. 0.5", "srr_eps", holds=lambda value: value > 0)
        self._require("must be positive, e.g. 4", "distil_temperature", holds=lambda value: value > 0)
        for name in ("srr_weight", "align_weight"):
            if getattr(self, name) and (self.compile or self.strategy == "fsdp"):
                raise ValueError(f"{name}: needs the layers' tokens; leave compile off and strategy other than 'fsdp'")
        self._require("must lie between 0 and 1", "small_share", holds=lambda value: 0 <= value <= 1)
        if self.small_size is not None and self.small_size < 1:
            raise ValueError(f"small_size={self.small_size}: must be a number of pixels, 1 or more")
        self._check_teacher()
        if self.whiten_stem and self.weights is not None:
            raise ValueError("whiten_stem: weights bring a stem of their own; leave one of the two away")
        if self.orthogonality_weight and self.strategy == "fsdp":
            raise ValueError("orthogonality_weight: needs whole weights; choose a strategy other than 'fsdp'")

    def _check_teacher(self) -> None:
        """Refuse a teacher without a use, a use without a teacher, and parts of a batch too small for the loss."""
        uses = [name for name in ("align_weight", "distil_weight") if getattr(self, name)]
        if uses and self.teacher is None:
            raise ValueError(f"{uses[0]}: needs a model to learn from; give teacher, such as a run's folder")
        if self.teacher is not None and not uses:
            raise ValueError(f"teacher={self.teacher!r}: teaches nothing; give align_weight or distil_weight")
        part = self.batch_size // (self.devices * self.num_nodes * self.accumulate)
        if self.align_weight and self.align_loss not in ("cosine", "pooled_cosine") and part < _FEWEST:
            raise ValueError(
                f"align_loss={self.align_loss!r} compares the images of a pass, here {part}; make batch_size at least "
                f"{_FEWEST} x devices x num_nodes x accumulate, or choose 'cosine'"
            )


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
