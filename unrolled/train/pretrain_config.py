"""What a run of self-supervised pretraining is made of: `TrainConfig` and the settings of its two objectives.

This module imports nothing heavy, so that `unrolled pretrain --help` is instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unrolled.train.config import TrainConfig, check_config

PretrainTask = Literal["mae", "simdino"]
DEFAULT_MODELS = {"mae": "crate_mae_nano_patch4_32", "simdino": "crate_nano_patch4_32"}


@dataclass(kw_only=True)
class PretrainConfig(TrainConfig):
    """Self-supervised pretraining on images. Labels are not looked at, nor are mixup, cutmix and label_smoothing."""

    task: PretrainTask = "mae"  # type: ignore[assignment]
    """`mae` completes masked images; `simdino` makes views of an image agree while their coding rate stays high."""
    model: str = "auto"
    """Default: `crate_mae_nano_patch4_32` to complete, `crate_nano_patch4_32` to distil. Any masked autoencoder
    (`crate_mae_*`, `vit_mae_*`) will do for `mae`, any backbone with features for `simdino`."""
    data: str = "cifar10"
    val_fraction: float = 0.1
    """Share of the training split held out, on which the loss is measured. For `mae` it then chooses the weights."""
    epochs: float = 100.0
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] | None = (0.9, 0.95)
    warmup_epochs: float = 5.0
    crop_scale: tuple[float, float] = (0.2, 1.0)
    eval_every: float = 5.0
    out: Path = Path("runs/pretrain")

    # --- masked autoencoding
    mask_ratio: float = 0.75
    """Share of the patches that are removed; their number is the nearest to it."""
    norm_pix_loss: bool = True
    """Predict patches normalised to mean 0 and variance 1, each by itself."""

    # --- self-distillation
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


def check_pretrain(config: PretrainConfig) -> None:
    """Refuse values no run of pretraining can use, naming the field and the fix.

    Raises:
        ValueError: at the first such value.
    """
    check_config(config)
    if config.task not in DEFAULT_MODELS:
        raise ValueError(f"task={config.task!r}: choose 'mae' or 'simdino'")
    if config.strategy == "fsdp":
        raise ValueError("strategy='fsdp' is not supported for pretraining; use 'ddp' or 'auto'")
    if not 0 < config.mask_ratio < 1:
        raise ValueError(f"mask_ratio={config.mask_ratio} must lie between 0 and 1, both excluded, e.g. 0.75")
    if not config.rate_weight >= 0:
        raise ValueError(f"rate_weight={config.rate_weight} must not be negative; 0 leaves the coding rate out")
    if not config.rate_eps > 0:
        raise ValueError(f"rate_eps={config.rate_eps} must be positive, e.g. 0.7")
    if not 0 <= config.teacher_momentum < 1:
        raise ValueError(f"teacher_momentum={config.teacher_momentum} must be at least 0 and below 1, e.g. 0.996")
    if config.local_crops < 0:
        raise ValueError(f"local_crops={config.local_crops} must not be negative; 0 leaves the small views out")
    for name in ("global_scale", "local_scale"):
        low, high = getattr(config, name)
        if not 0 < low <= high <= 1:
            raise ValueError(f"{name} must be two shares of the area, 0 < low <= high <= 1, not {low, high}")
    if config.task == "simdino" and config.ema:
        raise ValueError("ema: in self-distillation the teacher is the average; leave ema unset")
    for name in ("srr_weight", "orthogonality_weight"):
        if getattr(config, name):
            raise ValueError(f"{name}: only classification has this term; leave it at 0")
