"""Training on text: what is built before the loop of `steps.py`, and what its steps do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unrolled.data.tokens import IGNORED, Tokenizer, mask_tokens, token_batches
from unrolled.train import engine
from unrolled.train.config import TrainConfig, check_config
from unrolled.train.evaluation import logits_of
from unrolled.train.log import MetricsLog
from unrolled.train.optim import MovingAverage, build_optimizer
from unrolled.train.state import RunState, Window
from unrolled.train.steps import Callback, Schedule, Work, run_steps
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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

    def plot(self, ax: Axes | None = None, *, quantity: str = "loss") -> Axes:
        """Draw a quantity of `metrics`, in training and validation, against epochs; see `figures.plot_metrics`."""
        from unrolled.figures.training import plot_metrics

        return plot_metrics(self.metrics, ax, quantity=quantity)


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
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after saving; the message says how to resume.
    """
    asked, config = config, text_defaults(config)
    check_config(config)
    if config.strategy == "fsdp":
        raise ValueError("strategy='fsdp' is not supported for text; use 'ddp' or 'auto'")
    with engine.launched(config) as fabric:
        return _fit(config, asked, fabric, corpus, model, callbacks)


def _fit(
    config: TrainConfig,
    asked: TrainConfig,
    fabric: Any,
    corpus: Corpus | None,
    model: nn.Module | None,
    callbacks: Sequence[Callback],
) -> LanguageResult:
    given = {"model": model is not None, "data": corpus is not None}
    taken = [name for name in given if not given[name] and getattr(config, name) != getattr(asked, name)]
    note = "taken as text's defaults: " + ", ".join(f"--{name} {getattr(config, name)}" for name in taken)
    note += f" ({' and '.join(getattr(asked, name) for name in taken)}: for images)"

    # --- text and model
    corpus = corpus or engine.main_first(fabric, lambda: open_corpus(config))
    check_excerpts(corpus, "val", config.length, config.eval_samples, f"eval_samples={config.eval_samples}")
    torch.manual_seed(config.seed)
    model = model or build_language_model_of(config, corpus.tokenizer)
    schedule = Schedule.of(config, max(1, len(corpus.tokens["train"]) // (config.batch_size * config.length)))

    # --- processes, precision, optimiser
    wrapped = fabric.setup_module(torch.compile(model) if config.compile else model)
    strategy = engine.active_strategy(fabric, wrapped, config)
    optimizer = fabric.setup_optimizers(build_optimizer(model, config))
    average = MovingAverage(model, config.ema) if config.ema else None

    # --- the run
    log = MetricsLog(config, write=fabric.is_global_zero)
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
    work = _Text(config, fabric, model, corpus, [note] if taken else [])
    done = run_steps(work, state, wrapped, schedule, log, strategy=strategy, callbacks=callbacks)
    assert done.test is not None
    return LanguageResult(
        config=config,
        model=model.eval(),
        tokenizer=corpus.tokenizer,
        run_dir=config.out,
        metrics=done.metrics,
        test=done.test,
        tokens_per_second=done.units_per_second,
        steps=done.steps,
        chosen_step=done.chosen_step,
    )


class _Text(Work):
    """Steps on excerpts of text: the next token of each, or those that are masked."""

    unit = "tokens"

    def __init__(self, config: TrainConfig, fabric: Any, model: nn.Module, corpus: Corpus, defaults: list[str]) -> None:
        self.config, self.fabric, self.model, self.corpus, self.defaults = config, fabric, model, corpus, defaults
        self.step_units = config.batch_size * config.length

    def opened(self, out: Path) -> None:
        """The tokenizer is needed to read any checkpoint."""
        self.corpus.tokenizer.save(out / "tokenizer.json")

    def notes(self) -> list[str]:
        """Of what was read, of text's own defaults, and of a validation by part of the excerpts."""
        said = [*([self.corpus.said] if self.corpus.said else []), *self.defaults]
        if self.config.eval_samples is None:
            return said
        there = self.corpus.excerpts("val", self.config.length)
        return [
            *said,
            f"validating on {self.config.eval_samples:,} of {there:,} excerpts of {self.config.length} tokens",
        ]

    def fetch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs and targets of this process, its share of the batch that (seed, step) names; of each excerpt also how
        many tokens the step predicts on a process, which is the same on all: masks fall unevenly, and the mean over
        processes must not depend on how many there are."""
        config, tokenizer = self.config, self.corpus.tokenizer
        tokens = self.corpus.tokens["train"]
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
        world, rank = self.fabric.world_size, self.fabric.global_rank
        predicted = (targets != IGNORED).sum().clamp(min=1) / world
        share = inputs.chunk(world)[rank]
        return share, targets.chunk(world)[rank], predicted.expand(len(share))

    def inputs(self, fetched: tuple[Tensor, ...], step: int) -> tuple[Tensor, ...]:
        """The same, on the device."""
        return tuple(tensor.to(self.fabric.device) for tensor in fetched)

    def loss(
        self, wrapped: nn.Module, part: tuple[Tensor, ...], inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy summed over the part's tokens, over the number of tokens that the whole step predicts."""
        tokens, targets, predicted = part
        return token_loss(logits_of(wrapped(tokens)), targets, self.config.label_smoothing) / predicted[0], {}

    def non_finite(self, loss: float, norm: float, fetched: Any, step: int) -> str:
        """Text is always finite, so what helps is in the settings."""
        return (
            f"non-finite loss ({loss}) or gradient norm ({norm}) at step {step}; lower lr, lengthen warmup_epochs or "
            "tighten clip_grad"
        )

    def entry(self, window: Window) -> dict[str, Any]:
        """Bits per byte, if every token is predicted."""
        if self.config.task != "lm":
            return {}
        nats = window.loss / window.steps
        return {"bits_per_byte": nats / math.log(2) * self.corpus.tokens_per_byte("train")}

    def measure(self, wrapped: nn.Module, split: str, on_batch: Callable[[], None]) -> dict[str, Any]:
        """On all of a part; validation may look at some of its excerpts."""
        samples = self.config.eval_samples if split == "val" else None
        return evaluate_text(
            wrapped, self.corpus, split, self.config, self.fabric.device, samples=samples, on_batch=on_batch
        )

    def words(self, scores: dict[str, Any]) -> str:
        """Nats per predicted token, and bits per byte of a language model."""
        bits = "" if self.config.task == "mlm" else f", {scores['bits_per_byte']:.3f} bits per byte"
        return f"loss {scores['loss']:.4f} nats{bits}"

    def save(self, out: Path) -> None:
        """Model and tokenizer."""
        engine.on_main(
            self.fabric, lambda: save_language_model(self.model, self.corpus.tokenizer, out / "model", self.config)
        )
