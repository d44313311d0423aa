"""What a run is about, behind the calls that `fit` and its loop make: data, model, loss, measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from unrolled.train.config import RunConfig
from unrolled.train.state import RunState

Numbers = dict[str, Tensor]


class Task:
    """One kind of run. `fit` calls `open`, `build` and `begin`, the loop (`steps.py`) what follows, down to `save`.

    Whatever is random in it must follow from (seed, step, sample), and whatever it learns besides the model must be in
    `tensors`; then a run that is killed and resumed ends like one that was not.

    Attributes:
        config: of the run, with the model that "auto" stands for.
        data: what it trains on, `Splits` of images or a `Corpus` of text.
        given: the caller's own model to train, or None.
        fabric: from `open` on, the processes: Lightning's `Fabric`, or `engine.Alone`.
        model: from `begin` on, the model that is trained, which one process may hold a shard of.
        result: from `begin` on, the whole model the run ends with; the same unless that is sharded.
        load_report: what was loaded of `config.weights`, if anything was.
    """

    unit: ClassVar[str]
    """What throughput counts."""
    material: ClassVar[str]
    """What it trains on, in messages."""
    selects: ClassVar[bool] = True
    """Whether the best validation chooses the weights the run ends with; otherwise they are the last."""
    validates: bool = True
    """Whether there is a validation part."""
    tests: bool = True
    """Whether there is a test part, to be looked at once, at the end."""
    workers: int = 0
    """Processes that load samples."""
    classes: list[str] | None = None
    """What the outputs of a classifier stand for."""
    step_units: int
    """How many units a step takes, all processes together."""
    steps_per_epoch: int
    load_report: Any = None
    beside: nn.Module | None = None
    """From `build` on, what is trained besides the model and thrown away with the run, and from `begin` on as processes
    share it; `tensors` has its state."""
    teacher_digest: str | None = None
    """Of the frozen weights that are learned from; a run is resumed with the same."""
    confusion: Any = None
    """Of a classifier, once it was measured: a `Confusion` of the images it was last measured on."""
    fabric: Any
    model: nn.Module
    result: nn.Module

    def __init__(self, config: RunConfig, data: Any = None, model: nn.Module | None = None) -> None:
        self.config, self.data, self.given = config, data, model

    def open(self, fabric: Any) -> None:
        """Open the data `config` names, unless they were given; the first process of each node does it first."""
        raise NotImplementedError

    def build(self, *, resumed: bool) -> nn.Module:
        """The model to train: the one that was given, or the one `config` names, randomly initialised or with its
        weights loaded (not if the run is `resumed`: then the checkpoint has them)."""
        raise NotImplementedError

    def begin(self, model: nn.Module, result: nn.Module, total: int) -> None:
        """Called once, with the model on its device, before a checkpoint is restored; `total` is in steps."""
        self.model, self.result, self.total = model, result, total

    def fingerprint(self) -> str:
        """A short hash of the data; a run is resumed on the same."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """State besides the model's, live, for checkpoints."""
        return {}

    def opened(self, out: Path) -> None:
        """Called on the first process when the run folder is there."""

    def notes(self) -> Sequence[str]:
        """What to say before the first step."""
        return ()

    def start(self, step: int, steps: int) -> None:
        """Called before the first of `steps` steps; `step` were done by an earlier process."""

    def fetch(self, step: int) -> Any:
        """This process's share of the batch of a step, before the step's seed is set."""
        raise NotImplementedError

    def inputs(self, fetched: Any, step: int) -> tuple[Tensor, ...]:
        """What the loss is made of, on the device, sample by sample along the first dimension."""
        raise NotImplementedError

    def loss(self, wrapped: nn.Module, part: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, Numbers]:
        """What `part` of `inputs` adds to the step's loss, and to further numbers to log."""
        raise NotImplementedError

    def non_finite(self, loss: float, norm: float, fetched: Any, step: int) -> str:
        """What to say of a loss, or a norm of gradients, that is no number (a collective call)."""
        raise NotImplementedError

    def skipped(self, fetched: Any) -> list[str]:
        """Names of samples of this batch that could not be read."""
        return []

    def after_step(self, step: int) -> None:
        """Called when the weights have changed for the `step`-th time."""

    def entry(self, state: RunState) -> dict[str, Any]:
        """More of what to log of the steps of `state.window` (a collective call)."""
        return {}

    def measure(self, wrapped: nn.Module, split: str, on_batch: Callable[[], None]) -> dict[str, Any]:
        """Scores on `val` or `test`, `loss` among them (a collective call); `on_batch` is called after each batch."""
        raise NotImplementedError

    def goodness(self, scores: dict[str, Any]) -> Any:
        """Of validation scores: the best are those of the largest value."""
        return -scores["loss"]

    def words(self, scores: dict[str, Any]) -> str:
        """Validation scores in words."""
        raise NotImplementedError

    def finish(self) -> None:
        """Called when the model holds the weights that were chosen, before the test."""

    def save(self, out: Path) -> None:
        """Write the model (a collective call)."""
        raise NotImplementedError
