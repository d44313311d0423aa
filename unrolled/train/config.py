"""What a training run is: one flat, typed record. Flags, YAML files and the saved run folder are all made from it.

This module imports nothing heavy, so that `unrolled train --help` is instant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(kw_only=True)
class TrainConfig:
    """One training run. Sizes are in images, durations in epochs unless the name says otherwise."""

    # --- what is trained
    model: str = "crate_nano_patch2_8"
    """Any registered name (see `unrolled list`), or `timm:NAME`, `local:DIR`, `package.module:factory`."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Extra keyword arguments of the model, e.g. `--model-args.step-size 0.2`."""
    weights: Path | None = None
    """Start from these weights: a folder made by `unrolled convert`, a run folder, or a published checkpoint."""

    # --- on what
    data: str = "digits"
    """`digits`, `cifar10`, another torchvision name, `folder`, `hf:ORG/NAME`, `wds:PATTERN` or `packed`."""
    data_dir: Path | None = None
    """Where the data are (or are downloaded to)."""
    image_size: int | None = None
    """Side in pixels; default: the model's own input size."""
    val_fraction: float = 0.0
    """Share of the training split held out, stratified, for validation; the test split is looked at once, at the end"""
    workers: int = 0
    """Loader processes; 0 loads in the training process."""
    on_error: Literal["raise", "skip"] = "raise"
    """An undecodable image stops the run, or is named, counted and left out."""

    # --- for how long
    epochs: float = 30.0
    """Passes over the training split."""
    max_steps: int | None = None
    """Stop after this many optimiser steps (the schedule still spans `epochs`)."""
    batch_size: int = 128
    """Images per optimiser step, over all processes and accumulation."""
    accumulate: int = 1
    """Split every batch into this many forward/backward passes."""
    seed: int = 0
    """Every random draw of the run is a function of this number, the step and the image."""

    # --- optimiser and schedule
    optimizer: str = "adamw"
    """A timm optimiser name: `adamw`, `lion`, ..."""
    lr: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Not applied to norms, biases, positions, class token and learned scalars."""
    betas: tuple[float, float] | None = None
    """Momentum coefficients; default: the optimiser's own."""
    warmup_epochs: float = 2.0
    """Linear warm-up, per step."""
    min_lr: float = 0.0
    """Where the cosine ends."""
    clip_grad: float | None = 1.0
    """Largest gradient norm, after unscaling; none: no clipping."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and saved as the model."""

    # --- augmentation and loss
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
    mixup: float = 0.0
    """Mixup alpha."""
    cutmix: float = 0.0
    """CutMix alpha."""
    label_smoothing: float = 0.0
    """Mass moved from the label to all classes."""

    # --- machine
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

    # --- what is kept
    out: Path = Path("runs/train")
    """The run folder."""
    resume: str | None = None
    """`auto` continues the run in `out` if there is one; or the path of a checkpoint."""
    force: bool = False
    """Resume although the configuration changed."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is also written after every epoch's evaluation, on Ctrl-C and at the end."""
    keep: int = 2
    """Checkpoints kept."""
    eval_every: float = 1.0
    """Epochs between validations."""
    log_every: int = 50
    """Steps between log records."""
    loggers: tuple[Literal["csv", "tensorboard", "wandb", "trackio"], ...] = ("csv",)
    """Where metrics go besides `metrics.jsonl`."""
    quiet: bool = False
    """No progress on stderr."""


@dataclass(kw_only=True)
class FinetuneConfig(TrainConfig):
    """Fine-tuning: new head, resized positions, a validation split, and the test split looked at once."""

    val_fraction: float = 0.1
    epochs: float = 10.0
    lr: float = 5e-5
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    out: Path = Path("runs/finetune")
