"""The training loop for text, top to bottom: `loop.py`'s sibling, over the same engine, state, checkpoints and log.

As there, every random draw is a function of (seed, step), so that a run that is killed and resumed ends like one that
was not, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.data.tokens import IGNORED, Tokenizer, mask_tokens, token_batches
from unrolled.errors import TrainingStopped
from unrolled.train import engine
from unrolled.train.checkpoint import disk_error
from unrolled.train.config import TrainConfig, check_config
from unrolled.train.evaluation import logits_of
from unrolled.train.log import MetricsLog, Progress, write_status
from unrolled.train.loop import Callback
from unrolled.train.optim import MovingAverage, build_optimizer, learning_rate, seed_step
from unrolled.train.signals import Interrupted, StopRequest
from unrolled.train.state import RunState, Window, prepare
from unrolled.train.text_run import (
    Corpus,
    build_language_model_of,
    check_excerpts,
    evaluate_text,
    open_corpus,
    save_language_model,
    text_defaults,
    token_loss,
)


@dataclass(kw_only=True)
class LanguageResult:
    """What a finished run on text returns. `metrics` is all of `metrics.jsonl`."""

    config: TrainConfig
    model: nn.Module
    tokenizer: Tokenizer
    run_dir: Path
    metrics: list[dict[str, Any]]
    test: dict[str, Any]
    tokens_per_second: float
    steps: int
    chosen_step: int
    """The step whose weights `model` has: of the lowest validation loss."""


def fit_text(
    config: TrainConfig,
    *,
    corpus: Corpus | None = None,
    model: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
) -> LanguageResult:
    """Train on text as `config` says (`task` "lm" or "mlm"); everything it writes is in the folder `config.out`.

    Args:
        config: the run. Settings of images are not looked at.
        corpus: text and tokenizer to use instead of those `config` names.
        model: a model to train, in place, instead of the one `config.model` names: ids [b, n] to logits.
        callbacks: called with every metrics record and the model, on the first process.

    Raises:
        ValueError: a setting, text or checkpoint this run cannot use.
        TrainingStopped: a non-finite loss or a full disk; it names the last good checkpoint.
        Interrupted: Ctrl-C or SIGTERM, after saving; the message says how to resume.
    """
    config = text_defaults(config)
    check_config(config)
    if config.strategy == "fsdp":
        raise ValueError("strategy='fsdp' is not supported for text; use 'ddp' or 'auto'")
    fabric = engine.launch(config)
    try:
        return _fit(config, fabric, corpus, model, callbacks)
    except BaseException as error:
        if fabric.world_size > 1:
            traceback.clear_frames(error.__traceback__)  # they hold the DDP wrapper; see engine.shutdown
        raise
    finally:
        engine.shutdown(fabric)


def _fit(
    config: TrainConfig, fabric: Any, corpus: Corpus | None, model: nn.Module | None, callbacks: Sequence[Callback]
) -> LanguageResult:
    main, rank, world = fabric.is_global_zero, fabric.global_rank, fabric.world_size
    out, masked = config.out, config.task == "mlm"

    # --- text and model
    corpus = corpus or engine.main_first(fabric, lambda: open_corpus(config))
    tokenizer, tokens = corpus.tokenizer, corpus.tokens["train"]
    check_excerpts(corpus, "val", config.length, config.eval_samples, f"eval_samples={config.eval_samples}")
    torch.manual_seed(config.seed)
    model = model or build_language_model_of(config, tokenizer)

    # --- the schedule, in optimiser steps
    step_tokens = config.batch_size * config.length
    per_epoch = max(1, len(tokens) // step_tokens)
    total = max(1, round(config.epochs * per_epoch))
    last = min(total, config.max_steps or total)
    warmup = round(config.warmup_epochs * per_epoch)
    eval_every = max(1, round(config.eval_every * per_epoch))

    # --- processes, precision, optimiser
    wrapped = fabric.setup_module(torch.compile(model) if config.compile else model)
    strategy = engine.active_strategy(fabric, wrapped, config)
    optimizer = fabric.setup_optimizers(build_optimizer(model, config))
    average = MovingAverage(model, config.ema) if config.ema else None

    # --- the run folder: new, or continued exactly where its newest good checkpoint was written
    log = MetricsLog(config, write=main)
    state = RunState(
        config=config,
        fabric=fabric,
        model=model,
        optimizer=optimizer,
        average=average,
        fingerprint=corpus.fingerprint,
        log_position=log.position,
        what="text",
        goodness=lambda scores: -scores["loss"],
    )
    position = prepare(state, {"strategy": strategy, "processes": world, "device": str(fabric.device)})
    log.open(position, state.step)
    start = state.step
    if main:
        tokenizer.save(out / "tokenizer.json")
        write_status(out, "running", start, last)
    progress = Progress(total=last, start=start, batch_size=step_tokens, show=main and not config.quiet, unit="tokens")
    stop = StopRequest()
    if config.eval_samples is not None:
        there = corpus.excerpts("val", config.length)
        progress.note(f"validating on {config.eval_samples:,} of {there:,} excerpts of {config.length} tokens")

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

    def measure(split: str) -> dict[str, Any]:
        samples = config.eval_samples if split == "val" else None
        scores = evaluate_text(wrapped, corpus, split, config, fabric.device, samples=samples, on_batch=check_stop)
        record({"split": split, **scores})
        return scores

    def validate() -> None:
        with average.applied(model) if average else contextlib.nullcontext():
            scores = measure("val")
        bits = "" if masked else f", {scores['bits_per_byte']:.3f} bits per byte"
        progress.note(f"epoch {state.step / per_epoch:.1f}: validation loss {scores['loss']:.4f} nats{bits}")
        state.keep_if_best(scores)

    def due(step: int) -> bool:
        return step % eval_every == 0 or step == last

    seen, seconds, window_seconds = 0, 0.0, 0.0
    try:
        with stop:
            # a step's checkpoint is written before its validation, so a run killed in between validates now
            if position is not None and due(state.step):
                validate()
            wrapped.train()
            while state.step < last:
                began = time.perf_counter()
                inputs, targets = _batch(config, tokens, tokenizer, state.step, rank, world)
                seed_step(config.seed, state.step, rank, fabric.device)
                rate = learning_rate(state.step, peak=config.lr, warmup=warmup, total=total, minimum=config.min_lr)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_scale", 1.0)
                inputs, targets = inputs.to(fabric.device), targets.to(fabric.device)

                # --- forward and backward, in `accumulate` parts, each weighted by the tokens it predicts
                loss = torch.zeros((), device=fabric.device)
                whole = (targets != IGNORED).sum().clamp(min=1)
                parts = list(zip(inputs.chunk(config.accumulate), targets.chunk(config.accumulate), strict=True))
                for number, (part, target) in enumerate(parts, start=1):
                    with engine.no_sync(fabric, wrapped, skip=number < len(parts)):
                        part_loss = token_loss(logits_of(wrapped(part)), target, config.label_smoothing) / whole
                        fabric.backward(part_loss)
                    loss += part_loss.detach()
                norm = engine.clip(fabric, wrapped, optimizer, config.clip_grad)

                # --- look at the numbers once, the same on all processes, before they reach the weights
                numbers = [loss, loss if norm is None else norm, loss.new_tensor(float(stop.wanted))]
                loss_value, norm_value, stopping = engine.mean_over_processes(fabric, torch.stack(numbers))
                finite = math.isfinite(norm_value) or config.precision == "fp16"  # fp16's scaler skips such a step
                if not (math.isfinite(loss_value) and finite):
                    raise TrainingStopped(
                        f"non-finite loss ({loss_value}) or gradient norm ({norm_value}) at step {state.step}; lower "
                        "lr, lengthen warmup_epochs or tighten clip_grad"
                    )
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                state.step += 1
                if average is not None:
                    average.update(model, state.step)
                elapsed = time.perf_counter() - began
                window_seconds += elapsed
                if state.step > start + 1 or last == start + 1:  # the first step also compiles
                    seen, seconds = seen + step_tokens, seconds + elapsed

                # --- log, save, validate
                state.window.add(loss_value, None if norm is None else norm_value, [])
                progress.step(state.step, loss_value)
                if state.step % config.log_every == 0 or state.step == last:
                    record(_train_entry(state, corpus, rate, state.window.steps * step_tokens / window_seconds))
                    state.window, window_seconds = Window(), 0.0
                check_stop(stopping)
                if state.step % config.checkpoint_every == 0 or due(state.step):
                    state.save()
                if due(state.step):
                    validate()

            # --- the end: the chosen weights, one look at the test split, model and tokenizer on the disk
            chosen = state.use_chosen()
            test = measure("test")
            engine.on_main(fabric, lambda: save_language_model(model, tokenizer, out / "model", config))
        if main:
            write_status(out, "finished", state.step, last)
    except (Interrupted, TrainingStopped, OSError) as error:
        raise _explained(error, state, last, main) from error
    finally:
        progress.close()
        with contextlib.suppress(OSError):  # on a full disk `metrics.csv`, a copy, is not what to complain about
            log.close()
    return LanguageResult(
        config=config,
        model=model.eval(),
        tokenizer=tokenizer,
        run_dir=out,
        metrics=log.records(),
        test=test,
        tokens_per_second=seen / seconds if seconds else 0.0,
        steps=state.step,
        chosen_step=chosen,
    )


def _batch(
    config: TrainConfig, tokens: Tensor, tokenizer: Tokenizer, step: int, rank: int, world: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of this process, its share of the batch that (seed, step) names."""
    batch = token_batches(tokens, batch_size=config.batch_size, length=config.length, seed=config.seed, step=step)
    if config.task == "lm":
        inputs, targets = batch[:, :-1], batch[:, 1:]
    else:
        assert tokenizer.mask_id is not None
        inputs, targets = mask_tokens(
            batch[:, :-1],
            vocab_size=tokenizer.vocab_size,
            mask_id=tokenizer.mask_id,
            seed=config.seed,
            step=step,
            share=config.mask_share,
        )
    return inputs.chunk(world)[rank], targets.chunk(world)[rank]


def _train_entry(state: RunState, corpus: Corpus, rate: float, tokens_per_second: float) -> dict[str, Any]:
    """The record of the window that ends now."""
    window = state.window
    entry: dict[str, Any] = {"split": "train", "loss": window.loss / window.steps, "lr": rate}
    if state.config.task == "lm":
        entry["bits_per_byte"] = entry["loss"] / math.log(2) * corpus.tokens_per_byte("train")
    if state.config.clip_grad is not None:
        entry["grad_norm"] = window.norm / window.steps
    return {**entry, "tokens_per_second": tokens_per_second}


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
