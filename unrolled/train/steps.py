"""The training loop, top to bottom: one for images and for text, which differ in their `Task`.

Every random draw is a function of (seed, step, sample), never of what happened before. So the whole state of a run is
its tensors, a step number and a few scalars, and a run that is killed and resumed ends like one that was not, bit for
bit on a CPU (with the same number of threads: sums of another number of parts round differently).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unrolled.errors import TrainingStopped
from unrolled.terminal import as_typed, say
from unrolled.train import engine
from unrolled.train.checkpoint import disk_error
from unrolled.train.config import RunConfig
from unrolled.train.log import MetricsLog, Progress, write_status
from unrolled.train.optim import seed_step
from unrolled.train.schedule import learning_rate
from unrolled.train.signals import Interrupted, StopRequest
from unrolled.train.state import RunState, Window, prepare
from unrolled.train.task import Task

Callback = Callable[[dict[str, Any], nn.Module], None]


class Schedule(NamedTuple):
    """When what happens, in optimiser steps."""

    per_epoch: int
    total: int
    """The learning rate ends here."""
    last: int
    """The run does: earlier with `max_steps`."""
    warmup: int
    eval_every: int
    in_steps: bool = False
    """The warm-up or the length was given in steps."""

    @classmethod
    def of(cls, config: RunConfig, per_epoch: int) -> Schedule:
        """As `config` says, with so many steps to an epoch."""
        total = config.steps or max(1, round(config.epochs * per_epoch))
        warmup = config.warmup_steps
        return cls(
            per_epoch=per_epoch,
            total=total,
            last=min(total, config.max_steps or total),
            warmup=round(config.warmup_epochs * per_epoch) if warmup is None else warmup,
            eval_every=config.eval_steps(per_epoch),
            in_steps=bool(config.steps) or warmup is not None,
        )

    def notes(self) -> list[str]:
        """Of a warm-up that the run never leaves."""
        if self.warmup < self.last or not self.warmup:
            return []
        shorter = "fewer warmup_steps" if self.in_steps else "a smaller warmup_epochs"
        longer = "as long as the run" if self.warmup == self.last else f"longer than the run of {self.last:,}"
        return [
            f"note: the warm-up of {self.warmup:,} steps is {longer}: the learning rate only rises, to "
            f"{self.last / self.warmup:.0%} of its peak; give {shorter}"
        ]


@dataclass(kw_only=True)
class Finished:
    """What the loop leaves besides the model. `metrics` is all of `metrics.jsonl`."""

    metrics: list[dict[str, Any]]
    test: dict[str, Any] | None
    units_per_second: float
    steps: int
    chosen_step: int


def run_steps(
    task: Task,
    state: RunState,
    wrapped: nn.Module,
    schedule: Schedule,
    log: MetricsLog,
    *,
    strategy: str,
    callbacks: Sequence[Callback] = (),
) -> Finished:
    """Train from where the run folder says to `schedule.last`, or until told to stop.

    Args:
        task: what the steps do.
        state: model, optimiser and everything else that checkpoints hold.
        wrapped: the model as its processes share it; forward passes go through it.
        schedule: when.
        log: of the run, not yet opened.
        strategy: how processes share the model, for the record.
        callbacks: called with every metrics record and the model, on the first process.

    Raises:
        ValueError: the run folder holds another run, or a checkpoint this run cannot use.
        TrainingStopped: a non-finite loss, an unreadable sample, a full disk; it names the last good checkpoint.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after saving; the message says how to resume.
    """
    config, fabric, model, optimizer, average = state.config, state.fabric, state.model, state.optimizer, state.average
    main, rank, world, out = fabric.is_global_zero, fabric.global_rank, fabric.world_size, state.config.out
    last = schedule.last

    # the run folder: new, or continued exactly where its newest good checkpoint was written
    position = prepare(state, {"strategy": strategy, "processes": world, "device": str(fabric.device)})
    log.open(position, state.step)
    start = state.step
    if main:
        task.opened(out)
        write_status(out, "running", start, last)
    show = main and not config.quiet
    progress = Progress(total=last, start=start, batch_size=task.step_units, show=show, unit=task.unit)
    stop = StopRequest()
    finished = [f"note: the run was finished at step {last:,}; nothing is left to train"] if start >= last else []
    for note in map(as_typed, [*task.notes(), *(finished or schedule.notes())]):
        if main and config.quiet and note.startswith("note: "):  # no progress, but what the numbers mean
            say(note)
        progress.note(note)

    def record(entry: dict[str, Any]) -> None:
        entry = {"split": entry.pop("split"), "step": state.step, "epoch": state.step / schedule.per_epoch, **entry}
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
                "run it again with resume='auto' to go on"
            )

    def measure(split: str) -> dict[str, Any]:
        with progress.beside("validating" if split == "val" else "testing"):
            scores = task.measure(wrapped, split, check_stop)
        record({"split": split, **scores})
        return scores

    def validate() -> None:
        with average.applied(model) if average else contextlib.nullcontext():
            scores = measure("val")
        epoch = state.step / schedule.per_epoch
        progress.note(f"step {state.step:,} (epoch {epoch:.3g}): validation {task.words(scores)}")
        if task.selects:
            state.keep_if_best(scores)

    def due(step: int) -> bool:
        return task.validates and (step % schedule.eval_every == 0 or step == last)

    units, seconds, window_units, window_seconds = 0, 0.0, 0, 0.0
    try:
        with stop:
            # a step's checkpoint is written before its validation, so a run killed in between validates now
            if position is not None and due(state.step):
                validate()
            task.start(start, max(0, last - start))
            wrapped.train()
            while state.step < last:
                began = time.perf_counter()
                try:
                    fetched = task.fetch(state.step)  # before seeding: starting a loader may draw random numbers
                except RuntimeError:
                    if stop.wanted and task.workers:  # Ctrl-C reached a loader process too
                        check_stop(1.0)
                    raise
                seed_step(config.seed, state.step, rank, fabric.device)
                rate = learning_rate(
                    state.step, peak=config.lr, warmup=schedule.warmup, total=schedule.total, minimum=config.min_lr
                )
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_scale", 1.0)
                inputs = task.inputs(fetched, state.step)

                # forward and backward, in `accumulate` parts
                loss, further = torch.zeros((), device=fabric.device), dict[str, Tensor]()
                parts = list(zip(*(tensor.chunk(config.accumulate) for tensor in inputs), strict=True))
                for number, part in enumerate(parts, start=1):
                    with engine.no_sync(fabric, wrapped, skip=number < len(parts)):
                        part_loss, part_numbers = task.loss(wrapped, part, inputs)
                        fabric.backward(part_loss)
                    loss += part_loss.detach()
                    for name, value in part_numbers.items():
                        further[name] = further.get(name, 0) + value.to(loss)
                norm = engine.clip(fabric, wrapped, optimizer, config.clip_grad)

                # look at the numbers once, the same on all processes, before they reach the weights
                numbers = [loss, loss if norm is None else norm, loss.new_tensor(float(stop.wanted)), *further.values()]
                means = engine.mean_over_processes(fabric, torch.stack(numbers))
                loss_value, norm_value, stopping = means[:3]
                finite = math.isfinite(norm_value) or config.precision == "fp16"  # fp16's scaler skips such a step
                if not (math.isfinite(loss_value) and finite):
                    raise TrainingStopped(task.non_finite(loss_value, norm_value, fetched, state.step))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                state.step += 1
                if average is not None:
                    average.update(model, state.step)
                task.after_step(state.step)
                elapsed = time.perf_counter() - began
                window_units, window_seconds = window_units + task.step_units, window_seconds + elapsed
                if state.step > start + 1 or last == start + 1:  # the first step also starts loaders and compiles
                    units, seconds = units + task.step_units, seconds + elapsed

                # log, save, validate
                state.window.add(loss_value, None if norm is None else norm_value, task.skipped(fetched))
                state.window.add_further(dict(zip(further, means[3:], strict=True)))
                progress.step(state.step, loss_value)
                if state.step % config.log_every == 0 or state.step == last:
                    speed = window_units / window_seconds  # the window may have begun before a resume
                    record({**_train_entry(state, rate), f"{task.unit}_per_second": speed, **task.entry(state)})
                    state.window, window_units, window_seconds = Window(), 0, 0.0
                check_stop(stopping)
                if state.step % config.checkpoint_every == 0 or state.step == last or due(state.step):
                    state.save()
                if due(state.step):
                    validate()

            # the end: the chosen weights, one look at the test part, the model on the disk
            chosen = state.use_chosen()
            task.finish()
            test = measure("test") if task.tests else None
            task.save(out)
        if main:
            write_status(out, "finished", state.step, last, chosen_step=chosen)
    except (Interrupted, TrainingStopped, OSError) as error:
        raise _explained(error, state, last, main) from error
    finally:
        progress.close()
        with contextlib.suppress(OSError):  # on a full disk `metrics.csv`, a copy, is not what to complain about
            log.close()
    return Finished(
        metrics=log.records(),
        test=test,
        units_per_second=units / seconds if seconds else 0.0,
        steps=state.step,
        chosen_step=chosen,
    )


def _train_entry(state: RunState, rate: float) -> dict[str, Any]:
    """The record of the window that ends now."""
    window = state.window
    entry: dict[str, Any] = {"split": "train", "loss": window.loss / window.steps, "lr": rate}
    if state.config.clip_grad is not None:
        entry["grad_norm"] = window.norm / window.steps
    return entry | {name: value / window.steps for name, value in window.further.items()}


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
