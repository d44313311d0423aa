"""What every training run has: blocks of settings, each with its heading, and the record they make up.

Flags, YAML files and the saved run folder are all made from these records; what a kind of run has no use for, its
record does not have.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

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
    """Optimiser steps of the whole run, over which the schedule spans too, in place of a number of epochs."""
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
    """The same in steps, in place of epochs."""
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
    """`auto` continues the run in the run folder if there is one; or the path of a checkpoint."""
    force: bool = False
    """Resume although the configuration changed; where nothing is resumed, replace an earlier run in the folder."""
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
            if get_origin(hint) is Literal and value not in get_args(hint):
                choices = " or ".join(map(repr, get_args(hint)))
                raise ValueError(f"{name}={value!r} must be {choices} with task={self.task!r}")
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
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={tuple(self.betas)} must be at least 0 and below 1, e.g. 0.9 and 0.999")
        self._require("must be positive; none turns clipping off", "clip_grad", holds=lambda value: value > 0)
        if self.eval_every is not None and not self.eval_every > 0:
            raise ValueError(f"eval_every={self.eval_every} must be positive")
        share = self.devices * self.num_nodes * self.accumulate
        if self.batch_size % (self.devices * self.num_nodes) or self.batch_size < share:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of devices x num_nodes = "
                f"{self.devices * self.num_nodes} and at least devices x num_nodes x accumulate = {share}"
            )

    def _require(self, rule: str, *names: str, holds: Callable[[Any], bool]) -> None:
        """Refuse the first of these settings that has a value of which `holds` is false."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"{name}={value} {rule}")

    def eval_steps(self, per_epoch: int) -> int:
        """Optimiser steps between validations, with so many to an epoch."""
        return max(1, round(self.eval_every * per_epoch))


def kinds() -> tuple[type[RunConfig], ...]:
    """One configuration for every kind of run: those that say which tasks are theirs."""
    return tuple(kind for kind in _below(RunConfig) if "tasks" in vars(kind))


def _below(kind: type[RunConfig]) -> Iterator[type[RunConfig]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def heading_of(config: type[Any], name: str) -> str | None:
    """Under which heading `--help` lists a setting: that of the block it comes from, if it has one."""
    block: Any = next(cls for cls in reversed(config.__mro__) if name in inspect.get_annotations(cls))
    return getattr(block, "heading", None)
