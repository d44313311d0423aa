"""What a training run is: one flat, typed record. Flags, YAML files and the saved run folder are all made from it.

This module imports nothing heavy, so that `unrolled train --help` is instant.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from unrolled.errors import CorruptFile, check_finite
from unrolled.trust import check_model_args, check_settings

Precision = Literal["fp32", "bf16", "fp16"]
Task = Literal["classify", "lm", "mlm"]


@dataclass(kw_only=True)
class TrainConfig:
    """One training run. Sizes are in images, durations in epochs unless the name says otherwise."""

    # --- what is trained
    task: Task = "classify"
    """`classify` images, predict the next token (`lm`) or masked tokens (`mlm`) of a text."""
    model: str = "crate_nano_patch2_8"
    """Any registered name (see `unrolled list`), or `timm:NAME`, `local:DIR`, `package.module:factory`. For text a
    name such as `crate_gpt_nano`, which is the default there, or `crate_bert_nano`, that of `mlm`."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Extra keyword arguments of the model, e.g. `--model-args.step-size 0.2`."""
    weights: Path | None = None
    """Start from these weights: a folder made by `unrolled convert`, a run folder, a published checkpoint, or the name
    of weights that ship with the package, e.g. `crate_nano_patch4_32.cifar10`."""

    # --- on what
    data: str = "digits"
    """`digits`, `cifar10`, another torchvision name, `folder`, `hf:ORG/NAME`, `wds:PATTERN` or `packed`; columns and
    splits of `hf:` may be named, as in `hf:ORG/NAME,label=species,test=validation`. Texts:
    `tinyshakespeare` (the default there), `wikitext2`, `brown`, `bronte`, `darwin`, `folder`, `hf:ORG/NAME`."""
    data_dir: Path | None = None
    """Where the data are (or are downloaded to)."""
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

    # --- text
    tokenizer: str = "bytes"
    """`bytes`, `characters`, `bpe:SIZE` learned from the training part, or the path of a `tokenizer.json`."""
    length: int = 256
    """Tokens of context. An epoch is as many excerpts, at random places, as hold the tokens of the training part."""
    mask_share: float = 0.15
    """Share of the tokens that are to be predicted in masked language modelling."""

    # --- for how long
    epochs: float = 30.0
    """Passes over the training split. Each leaves out what does not fill a last batch, and each leaves out others; of
    text, a pass is as many tokens as there are, in excerpts drawn at random."""
    max_steps: int | None = None
    """Stop after this many optimiser steps (the schedule still spans `epochs`)."""
    batch_size: int = 128
    """Images, or excerpts of text, per optimiser step, over all processes and accumulation."""
    accumulate: int = 1
    """Split every batch into this many forward/backward passes."""
    seed: int = 0
    """Every random draw of the run is a function of this number, the step and the image."""

    # --- optimiser and schedule
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
    min_lr: float = 0.0
    """Where the cosine ends: one step after the last, whose own rate is still a little higher."""
    clip_grad: float | None = 1.0
    """Largest gradient norm, after unscaling; none: no clipping."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and saved as the model
    (ramped up over the first steps, so that short runs are not dominated by the initial weights)."""

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
    srr_weight: float = 0.0
    """Weight of minus the sparse rate reduction of the layers' tokens (arXiv 2411.17182), added to the loss."""
    srr_layers: tuple[int, ...] | None = None
    """Layers it is taken of, negative from the end; default: all."""
    srr_eps: float = 0.5
    """Distortion of its coding rates."""
    orthogonality_weight: float = 0.0
    """Weight of how far the layers' subspaces are from orthonormal and from each other, added to the loss."""

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
class FinetuneConfig(TrainConfig):
    """Fine-tuning: new head, resized positions, a validation split, and the test split looked at once."""

    model: str = "auto"
    """Default: the model that the weights' folder or name describes; a checkpoint file does not tell."""
    val_fraction: float = 0.1
    epochs: float = 10.0
    lr: float = 5e-5
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    out: Path = Path("runs/finetune")


C = TypeVar("C", bound=TrainConfig)


def recipes() -> dict[str, Path]:
    """The recipes that ship with the package: name -> YAML file."""
    folder = Path(__file__).resolve().parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        ValueError: no such recipe; the nearest name is suggested.
    """
    known = recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"recipe {name!r} is not known; " + (f"did you mean {near[0]!r}?" if near else ", ".join(known))
        )
    return known[name]


def load_config(path: Path | str | None, cls: type[C], **overrides: Any) -> C:
    """Read a flat YAML file of `cls` fields; `overrides` win over the file, the file over the defaults.

    Args:
        path: a YAML file, e.g. `recipe("digits")` or a run folder's `config.yaml`; None: defaults and overrides.
        cls: `TrainConfig` or `FinetuneConfig`.
        overrides: field values.

    Raises:
        ValueError: an unknown key (the nearest one is suggested), or a value of the wrong type.
        UnsafeFile: the file names code, and nobody said to trust it; see `unrolled.trust`.
        CorruptFile: no file of settings.
        MissingData: no such file.
    """
    from unrolled.reading import read_settings

    values = {} if path is None else read_settings(path)
    check_settings({name: value for name, value in values.items() if name not in overrides}, str(path))
    hints = typing.get_type_hints(cls)
    result: dict[str, Any] = {}
    for where, given in ((str(path), values), ("overrides", overrides)):
        for name, value in given.items():
            if name not in hints:
                near = difflib.get_close_matches(str(name), hints, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; {cls.__name__} has {', '.join(hints)}"
                raise ValueError(f"{where}: unknown key {name!r}{hint}")
            try:
                result[name] = _coerce(value, hints[name])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where}: {name}: {error}") from error
    return cls(**result)


def run_values(settings: dict[str, Any], where: Path) -> dict[str, Any]:
    """The settings of a run that other commands use, checked: they are as in `TrainConfig` or of another verb.

    Raises:
        CorruptFile: one is of another type.
    """
    hints = typing.get_type_hints(TrainConfig)
    for name in ("model", "data", "data_dir", "image_size", "val_fraction", "split_seed"):
        if settings.get(name) is not None:
            try:
                _coerce(settings[name], hints[name])
            except (TypeError, ValueError) as error:
                raise CorruptFile(f"{where}: {name}: {error}") from error
    check_model_args(settings.get("model_args") or {}, f"{where}: model_args")
    if not isinstance(settings.get("task", ""), str):
        raise CorruptFile(f"{where}: task: expected str, got {settings['task']!r}")
    return settings


def save_config(config: TrainConfig, path: Path | str) -> None:
    """Write `config` as YAML that `load_config` reads back to an equal record."""
    import yaml

    Path(path).write_text(yaml.safe_dump(as_plain(config), sort_keys=False), encoding="utf-8")


def as_plain(config: TrainConfig) -> dict[str, Any]:
    """`config` as JSON-able values: paths become strings, tuples lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _coerce(value: Any, hint: Any) -> Any:
    """`value` as what `hint` asks for. YAML reads `2e-4` as a string, so numbers are also accepted as text."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(value, next(arg for arg in args if arg is not type(None)))
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{value!r} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"expected a list, got {value!r}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ValueError(f"expected {len(inner)} values, got {value!r}")
        return tuple(_coerce(item, kind) for item, kind in zip(value, inner, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"expected `key: value` pairs, got {value!r}")
        return dict(value)
    if hint is Path:
        if not isinstance(value, (str, Path)):
            raise ValueError(f"expected a path, got {value!r}")
        return Path(value).expanduser()
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ValueError(f"expected {getattr(hint, '__name__', hint)}, got {value!r}")


def check_config(config: TrainConfig) -> None:
    """Refuse values no run can use, naming the field and the fix.

    Raises:
        ValueError: at the first such value.
    """
    check_model_args(config.model_args)
    for item in dataclasses.fields(config):
        check_finite(getattr(config, item.name), item.name)
    counts = ("batch_size", "accumulate", "devices", "num_nodes", "checkpoint_every", "keep", "log_every", "length")
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")
    for name in ("epochs", "lr", "eval_every"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}={getattr(config, name)} must be positive")
    for name in (
        "weight_decay",
        "warmup_epochs",
        "min_lr",
        "mixup",
        "cutmix",
        "workers",
        "color_jitter",
        "srr_weight",
        "orthogonality_weight",
    ):
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}={getattr(config, name)} must not be negative")
    for name in ("val_fraction", "label_smoothing"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 0 and below 1")
    for name in ("hflip", "random_erasing"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}={getattr(config, name)} is a probability: 0 to 1")
    if not 0 < config.mask_share < 1:
        raise ValueError(f"mask_share={config.mask_share} must lie between 0 and 1, e.g. 0.15")
    if not config.srr_eps > 0:
        raise ValueError(f"srr_eps={config.srr_eps} must be positive, e.g. 0.5")
    if config.srr_weight and (config.compile or config.strategy == "fsdp"):
        raise ValueError("srr_weight: needs the layers' tokens; leave compile off and strategy other than 'fsdp'")
    if config.orthogonality_weight and config.strategy == "fsdp":
        raise ValueError("orthogonality_weight: needs whole weights; choose a strategy other than 'fsdp'")
    if config.seed < 0:
        raise ValueError(f"seed={config.seed} must not be negative")
    for name, everything in (("max_steps", "for the whole schedule"), ("eval_samples", "to validate on all there are")):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1, or none {everything}")
    if config.ema is not None and not 0 < config.ema < 1:
        raise ValueError(f"ema={config.ema} must lie between 0 and 1, e.g. 0.999; none turns it off")
    if config.clip_grad is not None and not config.clip_grad > 0:
        raise ValueError(f"clip_grad={config.clip_grad} must be positive; none turns clipping off")
    share = config.devices * config.num_nodes * config.accumulate
    if config.batch_size % (config.devices * config.num_nodes) or config.batch_size < share:
        raise ValueError(
            f"batch_size={config.batch_size} must be a multiple of devices x num_nodes = "
            f"{config.devices * config.num_nodes} and at least devices x num_nodes x accumulate = {share}"
        )
