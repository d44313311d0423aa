"""Language models: the next token of a text, or those that are masked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unrolled.data.tokens import IGNORED, mask_tokens, token_batches
from unrolled.train import engine
from unrolled.train.config import TextConfig
from unrolled.train.evaluation import logits_of
from unrolled.train.state import RunState
from unrolled.train.task import Numbers, Task
from unrolled.train.text import (
    DEFAULT_MODELS,
    Corpus,
    build_language_model_of,
    check_excerpts,
    evaluate_text,
    open_corpus,
    save_language_model,
    token_loss,
)


class Language(Task):
    """Cross-entropy of the tokens of a text: the next one of each, or those that are masked."""

    unit = "tokens"
    material = "text"
    config: TextConfig
    data: Corpus

    def __init__(self, config: TextConfig, data: Any = None, model: nn.Module | None = None) -> None:
        if config.model == "auto":
            config = replace(config, model=DEFAULT_MODELS[config.task])
        super().__init__(config, data, model)

    def open(self, fabric: Any) -> None:
        """As `Task.open`."""
        self.fabric = fabric
        config = self.config
        self.data = self.data or open_corpus(config)
        check_excerpts(self.data, "val", config.length, config.eval_samples, f"eval_samples={config.eval_samples}")
        self.step_units = config.batch_size * config.length
        self.steps_per_epoch = max(1, len(self.data.tokens["train"]) // self.step_units)

    def build(self, *, resumed: bool) -> nn.Module:
        """As `Task.build`; a run on text starts from random weights, or from a model that is given."""
        return self.given or build_language_model_of(self.config, self.data.tokenizer)

    def fingerprint(self) -> str:
        """As `Task.fingerprint`."""
        return self.data.fingerprint

    def opened(self, out: Path) -> None:
        """The tokenizer is needed to read any checkpoint."""
        self.data.tokenizer.save(out / "tokenizer.json")

    def notes(self) -> list[str]:
        """Of what was read, and of a validation by part of the excerpts."""
        config = self.config
        notes = [self.data.description] if self.data.description else []
        if config.eval_samples is not None:
            available = self.data.excerpts("val", config.length)
            notes.append(f"validating on {config.eval_samples:,} of {available:,} excerpts of {config.length} tokens")
        return notes

    def fetch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs and targets of this process, its share of the batch that (seed, step) names; of each excerpt also how
        many tokens the step predicts on a process, which is the same on all: masks fall unevenly, and the mean over
        processes must not depend on how many there are."""
        config, tokenizer = self.config, self.data.tokenizer
        tokens = self.data.tokens["train"]
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

    def loss(self, wrapped: nn.Module, part: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, Numbers]:
        """Cross-entropy summed over the part's tokens, over the number of tokens that the whole step predicts."""
        tokens, targets, predicted = part
        return token_loss(logits_of(wrapped(tokens)), targets, self.config.label_smoothing) / predicted[0], {}

    def non_finite(self, loss: float, norm: float, fetched: Any, step: int) -> str:
        """Text is always finite, so what helps is in the settings."""
        return (
            f"non-finite loss ({loss}) or gradient norm ({norm}) at step {step}; lower lr, lengthen the warm-up or "
            "tighten clip_grad"
        )

    def entry(self, state: RunState) -> dict[str, Any]:
        """Bits per byte, if every token is predicted and the loss is not smoothed."""
        if self.config.task != "lm" or self.config.label_smoothing:
            return {}
        nats = state.window.loss / state.window.steps
        return {"bits_per_byte": nats / math.log(2) * self.data.tokens_per_byte("train")}

    def measure(self, wrapped: nn.Module, split: str, on_batch: Callable[[], None]) -> dict[str, Any]:
        """On all of a part; validation may look at some of its excerpts."""
        samples = self.config.eval_samples if split == "val" else None
        return evaluate_text(
            wrapped, self.data, split, self.config, self.fabric.device, samples=samples, on_batch=on_batch
        )

    def words(self, scores: dict[str, Any]) -> str:
        """Nats per predicted token, and bits per byte of a language model."""
        bits = "" if self.config.task == "mlm" else f", {scores['bits_per_byte']:.3f} bits per byte"
        return f"loss {scores['loss']:.4f} nats{bits}"

    def save(self, out: Path) -> None:
        """Model and tokenizer."""
        engine.on_main(
            self.fabric, lambda: save_language_model(self.result, self.data.tokenizer, out / "model", self.config)
        )
