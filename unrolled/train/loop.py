"""Training on images: what is built before the loop of `steps.py`, and what its steps do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unrolled.data.classes import one_class_note, said_of
from unrolled.models import load_weights
from unrolled.models.transfer import weights_classes
from unrolled.train import engine
from unrolled.train.checkpoint import checkpoints, whole
from unrolled.train.config import FinetuneConfig, TrainConfig, check_config
from unrolled.train.log import MetricsLog
from unrolled.train.objectives import Classify, Objective
from unrolled.train.optim import MovingAverage, build_optimizer
from unrolled.train.run import Loaders, Splits, build_loaders, drawn_evenly, model_of, open_splits, save_model
from unrolled.train.state import RunState, Window
from unrolled.train.steps import Callback, Schedule, Work, run_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.data import ImageSource


@dataclass(kw_only=True)
class TrainResult:
    """What a finished run returns. `metrics` is all of `metrics.jsonl`; accuracies are fractions."""

    model: nn.Module
    run_dir: Path
    metrics: list[dict[str, Any]]
    test: dict[str, Any] | None
    images_per_second: float
    steps: int
    chosen_step: int
    """The step whose weights `model` has: the best on the validation split, or the last."""
    load_report: Any = None
    skipped: list[str] = field(default_factory=list)
    """Images that could not be read in training, by name (only with `on_error="skip"`)."""

    def plot(self, ax: Axes | None = None, *, quantity: str = "loss") -> Axes:
        """Draw a quantity of `metrics`, in training and validation, against epochs; see `figures.plot_metrics`."""
        from unrolled.figures.training import plot_metrics

        return plot_metrics(self.metrics, ax, quantity=quantity)


def finetune(config: FinetuneConfig, **options: Any) -> TrainResult:
    """`fit` from given weights: the head is new, positions are resized, and what was not loaded is named.

    Raises:
        ValueError: no `weights`, or no validation split to choose by.
    """
    if config.task != "classify":
        raise ValueError(f"task={config.task!r}: only classifiers of images are fine-tuned; leave it at 'classify'")
    if config.weights is None:
        raise ValueError("weights: fine-tuning starts from weights; give a folder, a run or a checkpoint file")
    if config.val_fraction == 0:
        raise ValueError("val_fraction=0 leaves nothing to choose the weights by; hold out a share, e.g. 0.1")
    if config.model == "auto" and options.get("model") is None:
        config = replace(config, **model_of(config))
    return fit(config, **options)


def fit(
    config: TrainConfig,
    *,
    splits: Splits | None = None,
    model: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train as `config` says; everything it writes is in the run folder `config.out`.

    Args:
        config: the run.
        splits: images to use instead of those `config.data` names.
        model: a model to train, in place, instead of the one `config.model` names.
        callbacks: called with every metrics record and the model, on the first process.

    Raises:
        ValueError: a setting, label or checkpoint this run cannot use.
        TrainingStopped: a non-finite loss, an undecodable image, a full disk; it names the last good checkpoint.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after saving; the message says how to resume.
    """
    check_config(config)
    if config.task != "classify":
        raise ValueError(f"task={config.task!r}: `fit` classifies images; call `fit_text`, or `pretrain`")
    return run_objective(Classify(config), splits=splits, model=model, callbacks=callbacks)


def run_objective(
    objective: Objective,
    *,
    splits: Splits | None = None,
    model: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train by an objective, as its configuration says; arguments and errors as in `fit`."""
    with engine.launched(objective.config) as fabric:
        return _fit(objective, fabric, splits, model, callbacks)


def _fit(
    objective: Objective, fabric: Any, splits: Splits | None, model: nn.Module | None, callbacks: Sequence[Callback]
) -> TrainResult:
    config: TrainConfig = objective.config
    main, rank, world = fabric.is_global_zero, fabric.global_rank, fabric.world_size

    # --- data and model
    splits = splits or engine.main_first(fabric, lambda: open_splits(config))
    held_out = splits.val
    if config.eval_samples is not None:
        if splits.val is None:
            raise ValueError(f"eval_samples={config.eval_samples}: nothing is held out; give val_fraction, e.g. 0.1")
        held_out = drawn_evenly(splits.val, config.eval_samples, f"eval_samples={config.eval_samples}")
    torch.manual_seed(config.seed)
    model = model or objective.build(splits)
    tuning = isinstance(config, FinetuneConfig)
    started = bool(config.resume and checkpoints(config.out / "checkpoints"))  # then the checkpoint has the weights
    load_report = None
    if config.weights and not started:
        same = weights_classes(config.weights) in (None, list(splits.train.classes))
        load_report = load_weights(model, config.weights, head=same and not tuning)
    model = objective.adapt(model, splits)
    loading = config if objective.augments else replace(config, augment=False)
    loaders = build_loaders(loading, splits, model, rank=rank, world_size=world)
    schedule = Schedule.of(config, loaders.steps_per_epoch)

    # --- processes, precision, optimiser
    result_model = copy.deepcopy(model) if config.strategy == "fsdp" else model  # sharding is not undone in place
    wrapped = fabric.setup_module(torch.compile(model) if config.compile else model)
    strategy = engine.active_strategy(fabric, wrapped, config)
    optimizer = fabric.setup_optimizers(build_optimizer(model, config))
    average = MovingAverage(model, config.ema) if config.ema else None
    objective.begin(model, splits, total=schedule.total, rank=rank, device=fabric.device)

    # --- the run
    log = MetricsLog(config, write=main)
    state = RunState(
        config=config,
        fabric=fabric,
        model=model,
        optimizer=optimizer,
        average=average,
        fingerprint=splits.fingerprint(),
        log_position=log.position,
        further=objective.tensors(),
        goodness=objective.goodness,
        classes=list(splits.train.classes) if objective.classifies else None,
    )
    work = _Images(objective, state, loaders, splits, held_out, result_model, load_report)
    done = run_steps(work, state, wrapped, schedule, log, strategy=strategy, callbacks=callbacks)
    return TrainResult(
        model=result_model.eval(),
        run_dir=config.out,
        metrics=done.metrics,
        test=done.test,
        images_per_second=done.units_per_second,
        steps=done.steps,
        chosen_step=done.chosen_step,
        load_report=load_report,
        skipped=state.skipped,
    )


class _Images(Work):
    """Steps on batches of images, by an objective."""

    unit = "images"

    def __init__(
        self,
        objective: Objective,
        state: RunState,
        loaders: Loaders,
        splits: Splits,
        held_out: ImageSource | None,
        result: nn.Module,
        load_report: Any,
    ) -> None:
        self.objective, self.state, self.loaders, self.splits = objective, state, loaders, splits
        self.parts = {"val": held_out, "test": splits.test}
        self.result, self.load_report = result, load_report
        self.config: TrainConfig = objective.config
        self.step_units = self.config.batch_size
        self.validates, self.tests = held_out is not None, splits.test is not None
        self.selects = objective.selects

    def notes(self) -> list[str]:
        """Of what was read, of weights that were loaded, of images seen much smaller than they are, of those that an
        epoch leaves out, of a validation by part of them."""
        splits = self.splits
        said = [f"data: {said_of(train=splits.train, val=splits.val, test=splits.test)}"]
        for part in (splits.train, splits.test) if self.objective.classifies else ():
            if part is not None and (alone := one_class_note(part)) is not None:
                said.append(f"note: {alone}")
        if self.load_report is not None:
            said.append(f"weights from {self.config.weights}: {self.load_report}")
        if seen := _seen_small(self.splits.train.native_size, self.loaders.size, self.config):
            said.append(seen)
        count, batch_size = len(splits.train), self.config.batch_size
        if left := count % batch_size:
            said.append(
                f"{left:,} of {count:,} images do not fill a batch of {batch_size}; each epoch leaves out others"
            )
        if self.config.eval_samples is not None and self.splits.val is not None:
            said.append(f"validating on {self.config.eval_samples:,} of {len(self.splits.val):,} images")
        return said

    def start(self, step: int, steps: int) -> None:
        """Loaders go on where the earlier process stopped."""
        self.batches = self.loaders.train_at(start_step=step, steps=steps)

    def fetch(self, step: int) -> Any:
        """The next of the loader, which counts steps itself."""
        return next(self.batches)

    def inputs(self, fetched: Any, step: int) -> tuple[Tensor, ...]:
        """As the objective makes them."""
        return self.objective.batch(fetched, step)

    def loss(
        self, wrapped: nn.Module, part: tuple[Tensor, ...], inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's mean over the part, weighted by its images."""
        share = len(part[0]) / len(inputs[0])
        loss, numbers = self.objective.loss(wrapped, *part)
        return loss * share, {name: value.float() * share for name, value in numbers.items()}

    def non_finite(self, loss: float, norm: float, fetched: Any, step: int) -> str:
        """Names the images, and those whose pixels are to blame."""
        fabric = self.state.fabric
        what, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
        bad = ~torch.isfinite(fetched.images).flatten(1).all(1)
        indices = engine.gather_lists(fabric, fetched.indices.tolist())
        images = engine.gather_lists(fabric, fetched.indices[bad].tolist())
        shown = ", ".join(map(str, indices[:16])) + (", ..." if len(indices) > 16 else "")
        if images:
            named = ", ".join(self.splits.train.name(index) for index in images[:4])
            cause = f"{len(images)} of them have non-finite pixels: {named}{', ...' if len(images) > 4 else ''}"
        else:
            cause = "their pixels are all finite, so lower lr, lengthen warmup_epochs or tighten clip_grad"
        return f"non-finite {what} ({value}) at step {step}, images {shown} ({len(indices)} in all); {cause}"

    def skipped(self, fetched: Any) -> list[str]:
        """Images that were left out (only with `on_error="skip"`)."""
        return fetched.skipped  # type: ignore[no-any-return]

    def after_step(self, step: int) -> None:
        """The objective may follow the weights."""
        self.objective.after_step(step)

    def entry(self, window: Window) -> dict[str, Any]:
        """Images that could not be read, of all processes."""
        names = engine.gather_lists(self.state.fabric, window.skipped)
        skipped = self.state.skipped
        skipped += [name for name in dict.fromkeys(names) if name not in skipped]
        return {"skipped": len(names), "skipped_names": sorted(set(names))} if names else {}

    def measure(self, wrapped: nn.Module, split: str, on_batch: Callable[[], None]) -> dict[str, Any]:
        """By the objective, on all images of a split; validation may look at part of them."""
        fabric, source = self.state.fabric, self.parts[split]
        assert source is not None
        return self.objective.measure(
            wrapped,
            self.loaders.evaluate(source),
            reduce=lambda sums: engine.sum_over_processes(fabric, sums),
            on_batch=on_batch,
            collective=fabric.world_size > 1,
        )

    def words(self, scores: dict[str, Any]) -> str:
        """The objective's."""
        return self.objective.words(scores)

    def finish(self) -> None:
        """The objective's end."""
        self.objective.finish()

    def save(self, out: Path) -> None:
        """In timm's format; a sharded model is gathered first."""
        if self.result is not self.state.model:
            self.result.load_state_dict({name: whole(tensor) for name, tensor in self.state.model.state_dict().items()})
        engine.on_main(
            self.state.fabric, lambda: save_model(self.result, out / "model", self.config, classes=self.state.classes)
        )


def _seen_small(native: tuple[int, int, int] | None, size: tuple[int, int], config: TrainConfig) -> str | None:
    """A note that images lose most of their pixels, with a model that sees more of them where there is one."""
    if native is None or min(native[1:]) < 2 * min(size):
        return None
    said = f"images of {native[1]} x {native[2]} pixels are seen at {size[0]} x {size[1]}"
    if config.image_size is not None:
        return f"{said}, as image_size={config.image_size} says"
    if "_patch2_8" not in config.model:
        return f"{said}; another --model may see more of them"
    sees = "all of them" if max(native[1:]) <= 32 else "32 x 32"
    return f"{said}; --model {config.model.replace('_patch2_8', '_patch4_32')} sees {sees}"
