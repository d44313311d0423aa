"""`fit`: one function for every kind of run, one record of what came out."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unrolled.data.sources import existing_folder
from unrolled.instruments.readouts.confusion import Confusion
from unrolled.reading import Json
from unrolled.tables import Tabular
from unrolled.train import engine
from unrolled.train.checkpoint import checkpoints
from unrolled.train.config import ImageConfig, PretrainConfig, RunConfig
from unrolled.train.log import MetricsLog
from unrolled.train.optim import MovingAverage, build_optimizer
from unrolled.train.run import Splits, build_loaders, open_splits
from unrolled.train.state import RunState
from unrolled.train.steps import Callback, Schedule, run_steps
from unrolled.train.task import Task
from unrolled.train.tasks import task_of
from unrolled.train.tasks.images import ImageTask

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.data import ImageSource


@dataclass(kw_only=True, repr=False)
class TrainResult(Tabular):
    """What a finished run returns. `metrics` is all of `metrics.jsonl`; accuracies are fractions, losses in nats."""

    config: RunConfig
    """With the model that "auto" stood for."""
    model: nn.Module
    """In eval mode; of self-distillation it is the teacher."""
    data: Any
    """What it was trained on: `Splits` of images, or a `Corpus` of text, which has its `tokenizer`."""
    run_dir: Path
    metrics: list[Json]
    test: Json | None
    """Scores on the test part; None where there is none."""
    unit: str
    """What speed counts: images or tokens."""
    units_per_second: float
    """Of the steps this process took, without the first; 0 if it took none."""
    steps: int
    chosen_step: int
    """The step whose weights `model` has: the best on the validation part, or the last."""
    load_report: Any = None
    """What was loaded of the weights it started from, if it did."""
    confusion: Confusion | None = None
    """Of a classifier: its decisions on the test part, class by class, and its worst errors."""
    skipped: list[str] = field(default_factory=list)
    """Images that could not be read in training, by name (only with `on_error="skip"`)."""

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def validation(self) -> list[Json]:
        """The entries of `metrics` on the validation part."""
        return [entry for entry in self.metrics if entry["split"] == "val"]

    def records(self) -> list[Json]:
        """`metrics`."""
        return self.metrics

    def __repr__(self) -> str:
        scores = {k: v for k, v in (self.test or {}).items() if isinstance(v, int | float)}
        test = "".join(f", test {key} {value:.4g}" for key, value in scores.items())
        return f"TrainResult({type(self.model).__name__}, {self.steps} steps{test}, in {self.run_dir})"

    def plot(self, ax: Axes | None = None, *, quantity: str = "loss") -> Axes:
        """Draw a quantity of `metrics`, in training and validation, against epochs; see `figures.plot_metrics`."""
        from unrolled.figures import plot_metrics

        return plot_metrics(self.metrics, ax, quantity=quantity)


def fit(
    config: RunConfig,
    *,
    data: Any = None,
    model: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train as `config` says; everything it writes is in the run folder `config.out`.

    Args:
        config: the run: `TrainConfig` or `FinetuneConfig` (classifiers of images), `MaskedConfig` or `DistillConfig`
            (pretraining on images) or `TextConfig` (language models).
        data: `Splits` of images, or a `Corpus` of text, to use instead of what `config.data` names.
        model: a model to train, in place, instead of the one `config.model` names.
        callbacks: called with every metrics record and the model, on the first process.

    Raises:
        ValueError: a setting, label, text or checkpoint this run cannot use.
        TrainingStopped: a non-finite loss, an undecodable image, a full disk; it names the last good checkpoint.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after saving; the message says how to resume.
    """
    config.check()
    if data is None and config.data in ("folder", "packed"):
        existing_folder(config.data_dir, what=config.data)  # before processes wait for each other
    elif data is None and isinstance(config, ImageConfig) and config.devices > 1 and "LOCAL_RANK" not in os.environ:
        open_splits(config)  # this process starts the others: what is missing is said, or fetched, once
    task = task_of(config, data, model)
    with engine.launched(task.config) as fabric:
        return _fit(task, fabric, callbacks)


def _fit(task: Task, fabric: Any, callbacks: Sequence[Callback]) -> TrainResult:
    config, main = task.config, fabric.is_global_zero

    # data and model
    engine.main_first(fabric, lambda: task.open(fabric))
    torch.manual_seed(config.seed)
    model = task.build(resumed=bool(config.resume and checkpoints(config.out / "checkpoints")))
    schedule = Schedule.of(config, task.steps_per_epoch)

    # processes, precision, optimiser
    result = copy.deepcopy(model) if config.strategy == "fsdp" else model  # sharding is not undone in place
    wrapped = fabric.setup_module(torch.compile(model) if config.compile else model)
    strategy = engine.active_strategy(fabric, wrapped, config)
    beside = task.beside
    if beside is not None:
        task.beside = fabric.setup_module(beside)
    optimizer = fabric.setup_optimizers(build_optimizer(model, config, beside))
    average = MovingAverage(model, config.ema) if config.ema else None
    task.begin(model, result, schedule.total)

    # the run
    log = MetricsLog(config, write=main)
    state = RunState(
        config=config,
        fabric=fabric,
        model=model,
        optimizer=optimizer,
        average=average,
        fingerprint=task.fingerprint(),
        log_position=log.position,
        further=task.tensors(),
        beside=beside,
        teacher=task.teacher_digest,
        goodness=task.goodness,
        classes=task.classes,
        material=task.material,
    )
    done = run_steps(task, state, wrapped, schedule, log, strategy=strategy, callbacks=callbacks)
    return TrainResult(
        config=config,
        model=result.eval(),
        data=task.data,
        run_dir=config.out,
        metrics=done.metrics,
        test=done.test,
        unit=task.unit,
        units_per_second=done.units_per_second,
        steps=done.steps,
        chosen_step=done.chosen_step,
        load_report=task.load_report,
        confusion=task.confusion if done.test else None,
        skipped=state.skipped,
    )


def measure_run(
    config: PretrainConfig, model: nn.Module, source: ImageSource, device: torch.device, *, batch_size: int
) -> dict[str, Any]:
    """The scores of the model that a run of pretraining ended with on other images, in this process.

    Args:
        config: the run's, for its task and how images are loaded; the loss of self-distillation depends on the batch
            size it was trained with.
        model: on `device`.
        source: the images.
        device: where the batches go.
        batch_size: images in one forward pass, which changes no score.
    """
    task = task_of(replace(config, eval_samples=None), Splits(train=source))
    assert isinstance(task, ImageTask)
    task.open(engine.Alone(device))
    model = task.adapt(model)
    task.begin(model, model, total=1)
    loading = replace(config, batch_size=min(batch_size, len(source)))
    loader = build_loaders(loading, task.data, model, rank=0, world_size=1).evaluate(source)
    return task.scores(model, loader, lambda: None)
