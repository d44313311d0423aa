"""The whole state of a run, saved and restored: tensors, a step number, and a few scalars."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.errors import MissingData
from unrolled.provenance import environment
from unrolled.train import engine
from unrolled.train.checkpoint import (
    check_architecture,
    checkpoints,
    like,
    load_checkpoint,
    load_newest,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
    whole,
    write_atomic,
)
from unrolled.train.config import RunConfig
from unrolled.train.config_files import as_now, as_plain, save_config
from unrolled.train.log import METRICS
from unrolled.train.optim import MovingAverage

logger = logging.getLogger(__name__)

# a resumed run may differ in these: they change neither the weights nor what is recorded (a teacher is its weights)
FREE = {"accelerator", "checkpoint_every", "data_dir", "devices", "force", "keep", "loggers", "log_every", "max_steps"}
FREE |= {"num_nodes", "out", "quiet", "resume", "strategy", "teacher", "weights", "workers"}
IN_PLACE_OF = {"epochs": "steps", "warmup_epochs": "warmup_steps"}
"""Settings that count for nothing where another is given."""


@dataclass
class Window:
    """Means since the last log record."""

    steps: int = 0
    loss: float = 0.0
    norm: float = 0.0
    skipped: list[str] = field(default_factory=list)
    further: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, norm: float | None, skipped: list[str]) -> None:
        """Count one step."""
        self.steps += 1
        self.loss += loss
        self.norm += norm or 0.0
        self.skipped += skipped

    def add_further(self, numbers: dict[str, float]) -> None:
        """Other numbers of the step that was counted last."""
        for name, value in numbers.items():
            self.further[name] = self.further.get(name, 0.0) + value


@dataclass(kw_only=True)
class RunState:
    """What a checkpoint holds, with the live objects it is taken from and put back into."""

    config: RunConfig
    fabric: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    fingerprint: str
    log_position: Callable[[], int]
    step: int = 0
    window: Window = field(default_factory=Window)
    best: dict[str, Any] | None = None
    """Scores and step of the best validation so far; its weights are `best_weights`, whole and on the CPU."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    saved: int = -1
    further: dict[str, Tensor] = field(default_factory=dict)
    """Live tensors of the objective, such as a teacher's."""
    beside: nn.Module | None = None
    """What is trained besides the model, and thrown away with the run."""
    teacher: str | None = None
    """Digest of the frozen weights that are learned from."""
    material: str
    """What it is trained on, in messages."""
    classes: list[str] | None = None
    """What the outputs of a classifier stand for."""
    goodness: Callable[[dict[str, Any]], Any]
    """Of validation scores: the best are those of the largest value."""

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """All parameters of the optimiser by name."""
        beside = {} if self.beside is None else dict(self.beside.named_parameters())
        return {**dict(self.model.named_parameters()), **{f"beside.{name}": each for name, each in beside.items()}}

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return self.config.out / "checkpoints"

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one (a collective call).

        Raises:
            TrainingStopped: it cannot be written.
        """
        if self.saved == self.step:
            return
        self.window.skipped = engine.gather_lists(self.fabric, self.window.skipped)
        if not self.fabric.is_global_zero:
            self.window.skipped = []
        optimizer, rest = pack_optimizer(self.optimizer, self.trained)
        parts = {
            "model": {name: whole(tensor) for name, tensor in self.model.state_dict().items()},
            "optimizer": optimizer,
            "average": {name: whole(tensor) for name, tensor in self.average.tensors.items()} if self.average else {},
            "best": self.best_weights,
            "further": {name: whole(tensor) for name, tensor in self.further.items()},
        }
        scalars = {
            "config": as_plain(self.config),
            "data": self.fingerprint,
            "optimizer": rest,
            "scaler": self.fabric.strategy.precision.state_dict(),
            "best": self.best,
            "window": vars(self.window),
            "skipped": self.skipped,
            "classes": self.classes,
            "teacher": self.teacher,
        }
        tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}

        def write() -> None:
            scalars["log_position"] = self.log_position()
            save_checkpoint(self.folder, self.step, tensors, scalars, keep=self.config.keep)

        engine.on_main(self.fabric, write)
        self.saved = self.step

    def restore(self, path: Path, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> int:
        """Put a checkpoint's content back, and return the log position it remembers.

        Raises:
            ValueError: it was made with another configuration, by another architecture, or on other data.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "best": {}}
        parts["further"] = {}
        for name, tensor in tensors.items():
            part, rest = name.split("/", 1)
            parts[part][rest] = tensor
        check_architecture(self.model, parts["model"], path)
        if not self.config.force:
            check_same(self.config, scalars["config"], path)
            if scalars["data"] != self.fingerprint:
                raise ValueError(
                    f"{path} was made on other training {self.material}, or with others held out; give the same data, "
                    "or force"
                )
            if scalars.get("teacher") != self.teacher:
                raise ValueError(
                    f"{path} learned from other weights of the teacher ({scalars.get('teacher')}, now {self.teacher}); "
                    "give teacher the same, or force"
                )
        live = self.model.state_dict()
        self.model.load_state_dict({name: like(tensor, live[name]) for name, tensor in parts["model"].items()})
        unpack_optimizer(self.optimizer, self.trained, parts["optimizer"], scalars["optimizer"])
        if self.average is not None:
            source = parts["average"] or parts["model"]
            self.average.tensors = {name: like(tensor, live[name]) for name, tensor in source.items()}
        for name, tensor in self.further.items():
            tensor.copy_(parts["further"][name])
        self.fabric.strategy.precision.load_state_dict(scalars["scaler"])
        self.best, self.best_weights = scalars["best"], parts["best"]
        self.window = Window(**scalars["window"])
        if not self.fabric.is_global_zero:
            self.window.skipped = []
        self.skipped = scalars["skipped"]
        self.step = self.saved = scalars["step"]
        return int(scalars["log_position"])

    def keep_if_best(self, scores: dict[str, Any]) -> None:
        """Remember these weights if no earlier validation was as good."""
        if self.best is None or self.goodness(scores) > self.goodness(self.best):
            tensors = self.average.tensors if self.average else self.model.state_dict()
            self.best_weights = {name: whole(tensor) for name, tensor in tensors.items()}
            self.best = {**scores, "step": self.step}

    def use_chosen(self) -> int:
        """Give the model the weights the run ends with, and return the step they are from: the best on the validation
        split, else the last (averaged if there is an average)."""
        live = self.model.state_dict()
        if self.best is not None:
            chosen = {name: like(tensor, live[name]) for name, tensor in self.best_weights.items()}
            self.model.load_state_dict(chosen)
            return int(self.best["step"])
        if self.average is not None:
            self.model.load_state_dict(self.average.tensors)
        return self.step

    def last_good(self) -> str:
        """The newest checkpoint, in words."""
        good = checkpoints(self.folder)
        return f"the last good checkpoint is {good[0]}" if good else "no checkpoint had been written yet"


def check_same(config: RunConfig, then: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume with settings that would make another run than `then`, those that a checkpoint was made with.

    Raises:
        ValueError: listing every difference.
    """
    # a checkpoint may be older than a setting, and was then made with what is its default now
    now = as_plain(config)
    unused = {epochs for epochs, steps in IN_PLACE_OF.items() if now[steps] is not None}
    then = {**{item.name: item.default for item in dataclasses.fields(config)}, **as_now(then, now)}
    changed = [
        f"{key}: {then.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if key not in FREE | unused and now.get(key) != then.get(key)
    ]
    if changed:
        raise ValueError(
            f"{path} was made with another configuration ({'; '.join(changed)}); "
            "restore these values, choose another out=, or give force=True to go on with the new ones"
        )


def prepare(state: RunState, extra: dict[str, Any]) -> int | None:
    """Make the run folder ready: a new run, or the one in it continued (a collective call).

    Args:
        state: restored in place when resuming.
        extra: added to `env.json`.

    Returns:
        The log position of the checkpoint that was resumed, or None for a new run.

    Raises:
        ValueError: `out` holds a run and neither `resume` nor `force` is set, or the checkpoint does not fit.
        CorruptFile: the checkpoint asked for, or every checkpoint, is damaged.
        MissingData: the checkpoint asked for is not there.
    """
    config = state.config
    checkpoint = engine.on_main(state.fabric, lambda: _find(config, state.folder))
    position = None
    if checkpoint is not None:
        position = state.restore(checkpoint, *load_checkpoint(checkpoint))

    def write() -> None:
        if checkpoint is None or not _inside(checkpoint, state.folder):
            _clear(config.out)
        else:
            for newer in checkpoints(state.folder):
                if newer.name > checkpoint.name:  # damaged, or of a continuation that is being replaced
                    shutil.rmtree(newer.with_name(newer.name + ".set-aside"), ignore_errors=True)
                    os.replace(newer, newer.with_name(newer.name + ".set-aside"))
        config.out.mkdir(parents=True, exist_ok=True)
        save_config(config, config.out / "config.yaml")
        write_atomic(config.out / "env.json", json.dumps({**environment(), **extra}, indent=1).encode())

    engine.on_main(state.fabric, write)
    return position


def _find(config: RunConfig, folder: Path) -> Path | None:
    if config.resume == "auto":
        newest = load_newest(folder)
        return newest[0] if newest else None
    if config.resume is not None:
        path = Path(config.resume)
        if (path / "checkpoints").is_dir():
            newest = load_newest(path / "checkpoints")
            if newest is None:
                raise MissingData(f"resume={config.resume!r}: no checkpoint in that run")
            path = newest[0]
        else:
            load_checkpoint(path)
        if (earlier := checkpoints(folder)) and not _inside(path, folder) and not config.force:
            raise ValueError(
                f"out={str(config.out)!r} already holds a run (up to {earlier[0].name}), and resume={config.resume!r} "
                "is of another one; give another out=, or force=True to replace what is there"
            )
        return path
    if (earlier := checkpoints(folder)) and not config.force:
        raise ValueError(
            f"out={str(config.out)!r} already holds a run (up to {earlier[0].name}); give resume='auto' to continue "
            "it, another out=, or force=True to replace it"
        )
    return None


def _inside(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is one of the run's own, however its path is written."""
    return checkpoint.resolve().parent == folder.resolve()


def _clear(out: Path) -> None:
    """Remove what an earlier run wrote; other files in the folder are left alone."""
    for name in ("checkpoints", "model", "tensorboard"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (METRICS, "metrics.csv", "status.json"):
        (out / name).unlink(missing_ok=True)
