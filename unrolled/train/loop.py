"""The training loop, top to bottom.

Every random draw is a function of (seed, step, image), never of what happened before. So the whole state of a run is
its tensors, a step number and a few scalars, and a run that is killed and resumed ends like one that was not, bit for
bit on a CPU (with the same number of threads: sums of another number of parts round differently).
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unrolled.errors import TrainingStopped
from unrolled.models import load_weights
from unrolled.train import engine
from unrolled.train.checkpoint import checkpoints, disk_error, whole
from unrolled.train.config import FinetuneConfig, TrainConfig, check_config
from unrolled.train.log import MetricsLog, Progress, write_status
from unrolled.train.objectives import Classify, Objective
from unrolled.train.optim import MovingAverage, build_optimizer, learning_rate, seed_step
from unrolled.train.run import Splits, build_loaders, drawn_evenly, model_of, open_splits, save_model
from unrolled.train.signals import Interrupted, StopRequest
from unrolled.train.state import RunState, Window, prepare

Callback = Callable[[dict[str, Any], nn.Module], None]


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


def finetune(config: FinetuneConfig, **options: Any) -> TrainResult:
    """`fit` from given weights: the head is new, positions are resized, and what was not loaded is named.

    Raises:
        ValueError: no `weights`, or no validation split to choose by.
    """
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
        Interrupted: Ctrl-C or SIGTERM, after saving; the message says how to resume.
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
    fabric = engine.launch(objective.config)
    try:
        return _fit(objective, fabric, splits, model, callbacks)
    except BaseException as error:
        if fabric.world_size > 1:
            traceback.clear_frames(error.__traceback__)  # they hold the DDP wrapper; see engine.shutdown
        raise
    finally:
        engine.shutdown(fabric)


def _fit(
    objective: Objective, fabric: Any, splits: Splits | None, model: nn.Module | None, callbacks: Sequence[Callback]
) -> TrainResult:
    config: TrainConfig = objective.config
    main, rank, world = fabric.is_global_zero, fabric.global_rank, fabric.world_size
    out = config.out

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
    started = bool(config.resume) and bool(checkpoints(out / "checkpoints"))  # then the checkpoint has the weights
    load_report = load_weights(model, config.weights, head=not tuning) if config.weights and not started else None
    model = objective.adapt(model, splits)
    loading = config if objective.augments else replace(config, augment=False)
    loaders = build_loaders(loading, splits, model, rank=rank, world_size=world)

    # --- the schedule, in optimiser steps
    per_epoch = loaders.steps_per_epoch
    total = max(1, round(config.epochs * per_epoch))
    last = min(total, config.max_steps or total)
    warmup = round(config.warmup_epochs * per_epoch)
    eval_every = max(1, round(config.eval_every * per_epoch))

    # --- processes, precision, optimiser
    result_model = copy.deepcopy(model) if config.strategy == "fsdp" else model  # sharding is not undone in place
    wrapped = fabric.setup_module(torch.compile(model) if config.compile else model)
    strategy = engine.active_strategy(fabric, wrapped, config)
    optimizer = fabric.setup_optimizers(build_optimizer(model, config))
    average = MovingAverage(model, config.ema) if config.ema else None
    objective.begin(model, splits, total=total, rank=rank, device=fabric.device)

    # --- the run folder: new, or continued exactly where its newest good checkpoint was written
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
    )
    position = prepare(state, {"strategy": strategy, "processes": world, "device": str(fabric.device)})
    log.open(position, state.step)
    start = state.step
    if main:
        write_status(out, "running", start, last)
    progress = Progress(total=last, start=start, batch_size=config.batch_size, show=main and not config.quiet)
    stop = StopRequest()
    if load_report is not None:
        progress.note(f"weights from {config.weights}: {load_report}")
    if config.eval_samples is not None and splits.val is not None:
        progress.note(f"validating on {config.eval_samples:,} of {len(splits.val):,} images")

    def record(entry: dict[str, Any]) -> None:
        entry = {"split": entry.pop("split"), "step": state.step, "epoch": state.step / per_epoch, **entry}
        log.add(entry)
        if main:
            write_status(out, "running", state.step, last)
            for callback in callbacks:
                callback(entry, model)

    def check_stop(wanted: float | None = None) -> None:
        if wanted is None:
            (wanted,) = engine.mean_over_processes(fabric, torch.tensor([float(stop.wanted)], device=fabric.device))
        if wanted > 0:
            state.save()
            raise Interrupted(
                f"stopped at step {state.step} of {last}; everything is saved in {out}: "
                "run the same command with --resume auto to go on"
            )

    def measure(split: str, source: Any) -> dict[str, Any]:
        scores = objective.measure(
            wrapped,
            loaders.evaluate(source),
            reduce=lambda sums: engine.sum_over_processes(fabric, sums),
            on_batch=check_stop,
            collective=world > 1,
        )
        record({"split": split, **scores})
        return scores

    def validate() -> None:
        with average.applied(model) if average else contextlib.nullcontext():
            scores = measure("val", held_out)
        progress.note(f"epoch {state.step / per_epoch:.1f}: validation {objective.words(scores)}")
        if objective.selects:
            state.keep_if_best(scores)

    def due(step: int) -> bool:
        return held_out is not None and (step % eval_every == 0 or step == last)

    images, seconds, window_seconds = 0, 0.0, 0.0
    try:
        with stop:
            # a step's checkpoint is written before its validation, so a run killed in between validates now
            if position is not None and due(state.step):
                validate()
            batches = loaders.train_at(start_step=start, steps=max(0, last - start))
            wrapped.train()
            while state.step < last:
                began = time.perf_counter()
                try:
                    batch = next(batches)  # before seeding: starting a loader may draw random numbers
                except RuntimeError:
                    if stop.wanted and config.workers:  # Ctrl-C reached a loader process too
                        check_stop(1.0)
                    raise
                seed_step(config.seed, state.step, rank, fabric.device)
                rate = learning_rate(state.step, peak=config.lr, warmup=warmup, total=total, minimum=config.min_lr)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_scale", 1.0)
                inputs = objective.batch(batch, state.step)

                # --- forward and backward, in `accumulate` parts
                loss, further = torch.zeros((), device=fabric.device), dict[str, torch.Tensor]()
                parts = list(zip(*(tensor.chunk(config.accumulate) for tensor in inputs), strict=True))
                for number, part in enumerate(parts, start=1):
                    share = len(part[0]) / len(inputs[0])
                    with engine.no_sync(fabric, wrapped, skip=number < len(parts)):
                        part_loss, part_numbers = objective.loss(wrapped, *part)
                        part_loss = part_loss * share
                        fabric.backward(part_loss)
                    loss += part_loss.detach()
                    for name, value in part_numbers.items():
                        further[name] = further.get(name, 0) + value.to(loss) * share
                norm = engine.clip(fabric, wrapped, optimizer, config.clip_grad)

                # --- look at the numbers once, the same on all processes, before they reach the weights
                numbers = [loss, loss if norm is None else norm, loss.new_tensor(float(stop.wanted)), *further.values()]
                means = engine.mean_over_processes(fabric, torch.stack(numbers))
                loss_value, norm_value, stopping = means[:3]
                if not math.isfinite(loss_value):
                    raise _non_finite("loss", loss_value, state.step, batch, splits, fabric)
                if not math.isfinite(norm_value) and config.precision != "fp16":  # fp16's scaler skips such a step
                    raise _non_finite("gradient norm", norm_value, state.step, batch, splits, fabric)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                state.step += 1
                if average is not None:
                    average.update(model, state.step)
                objective.after_step(state.step)
                elapsed = time.perf_counter() - began
                window_seconds += elapsed
                if state.step > start + 1 or last == start + 1:  # the first step also starts loaders and compiles
                    images, seconds = images + config.batch_size, seconds + elapsed

                # --- log, save, validate
                state.window.add(loss_value, None if norm is None else norm_value, batch.skipped)
                state.window.add_further(dict(zip(further, means[3:], strict=True)))
                progress.step(state.step, loss_value)
                if state.step % config.log_every == 0 or state.step == last:
                    record(_train_entry(state, rate, state.window.steps * config.batch_size / window_seconds))
                    state.window, window_seconds = Window(), 0.0
                check_stop(stopping)
                if state.step % config.checkpoint_every == 0 or state.step == last or due(state.step):
                    state.save()
                if due(state.step):
                    validate()

            # --- the end: the chosen weights, one look at the test split, the model on the disk
            chosen = state.use_chosen()
            objective.finish()
            test = measure("test", splits.test) if splits.test is not None else None
            if result_model is not model:
                result_model.load_state_dict({name: whole(tensor) for name, tensor in model.state_dict().items()})
            engine.on_main(fabric, lambda: save_model(result_model, out / "model", config))
        if main:
            write_status(out, "finished", state.step, last)
    except (Interrupted, TrainingStopped, OSError) as error:
        raise _explained(error, state, last, main) from error
    finally:
        progress.close()
        with contextlib.suppress(OSError):  # on a full disk `metrics.csv`, a copy, is not what to complain about
            log.close()
    return TrainResult(
        model=result_model.eval(),
        run_dir=out,
        metrics=log.records(),
        test=test,
        images_per_second=images / seconds if seconds else 0.0,
        steps=state.step,
        chosen_step=chosen,
        load_report=load_report,
        skipped=state.skipped,
    )


def _train_entry(state: RunState, rate: float, images_per_second: float) -> dict[str, Any]:
    """The record of the window that ends now."""
    window = state.window
    names = engine.gather_lists(state.fabric, window.skipped)
    state.skipped += [name for name in dict.fromkeys(names) if name not in state.skipped]
    entry: dict[str, Any] = {"split": "train", "loss": window.loss / window.steps, "lr": rate}
    if state.config.clip_grad is not None:
        entry["grad_norm"] = window.norm / window.steps
    entry |= {name: value / window.steps for name, value in window.further.items()}
    entry["images_per_second"] = images_per_second
    if names:
        entry |= {"skipped": len(names), "skipped_names": sorted(set(names))}
    return entry


def _non_finite(what: str, value: float, step: int, batch: Any, splits: Splits, fabric: Any) -> TrainingStopped:
    bad = ~torch.isfinite(batch.images).flatten(1).all(1)
    indices = engine.gather_lists(fabric, batch.indices.tolist())
    images = engine.gather_lists(fabric, batch.indices[bad].tolist())
    shown = ", ".join(map(str, indices[:16])) + (", ..." if len(indices) > 16 else "")
    if images:
        named = ", ".join(splits.train.name(index) for index in images[:4])
        cause = f"{len(images)} of them have non-finite pixels: {named}{', ...' if len(images) > 4 else ''}"
    else:
        cause = "their pixels are all finite, so lower lr, lengthen warmup_epochs or tighten clip_grad"
    return TrainingStopped(
        f"non-finite {what} ({value}) at step {step}, images {shown} ({len(indices)} in all); {cause}"
    )


def _explained(error: BaseException, state: RunState, last: int, main: bool) -> BaseException:
    """The error that leaves the loop, also written to `status.json`."""
    kind, result = "interrupted", error
    if not isinstance(error, Interrupted):
        text = disk_error(error) if isinstance(error, OSError) else str(error)
        kind, result = "stopped", TrainingStopped(f"{text}; {state.last_good()}")
    if main:
        with contextlib.suppress(OSError):  # the disk may be full; the checkpoints say enough
            write_status(state.config.out, kind, state.step, last, str(result))
    return result
