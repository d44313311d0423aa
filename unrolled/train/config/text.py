"""Configuration of runs on text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from unrolled.train.config.run import Data, RunConfig


@dataclass(kw_only=True)
class TextData(Data):
    """How a text is divided and cut into tokens."""

    heading: ClassVar[str] = "Text"
    held_out: float | None = None
    """Share of the text that is for validation, and as much again for the test, where the corpus has no such parts of
    its own; default: 0.05."""
    tokenizer: str = "bytes"
    """`bytes`, `characters`, `bpe:SIZE` learned from the training part, or the path of a `tokenizer.json`."""
    length: int = 256
    """Tokens of context. An epoch is as many excerpts, at random places, as hold the tokens of the training part."""
    mask_share: float = 0.15
    """Of `mlm`: share of the tokens that are masked and to be predicted."""
    label_smoothing: float = 0.0
    """Mass moved from the token to all tokens, in the training loss."""


@dataclass(kw_only=True)
class TextConfig(RunConfig, TextData):
    """Training of a language model, causal (`lm`) or masked (`mlm`). Sizes are in excerpts of `length` tokens."""

    tasks: ClassVar[tuple[str, ...]] = ("lm", "mlm")
    task: Literal["classify", "lm", "mlm"] = "lm"
    """Predict the next token (`lm`) or masked tokens (`mlm`) of a text. Images: `classify`."""
    model: str = "auto"
    """A name such as `mesanet_nano` (see `unrolled list`), or `package.module:factory`; default: `crate_gpt_nano`, of
    `mlm` `crate_bert_nano`."""
    data: str = "tinyshakespeare"
    """`tinyshakespeare`, `wikitext2`, `brown`, `bronte`, `darwin`, `folder` (of .txt files) or `hf:ORG/NAME`."""
    epochs: float = 30.0
    """Passes over the training part: as many tokens as there are, in excerpts drawn at random."""
    batch_size: int = 128
    """Excerpts of text per optimiser step, over all processes and accumulation."""
    eval_every: int | None = None  # type: ignore[assignment]
    """Steps between validations; default: one epoch."""
    strategy: Literal["auto", "ddp"] = "auto"
    eval_samples: int | None = None
    """Validate on so many excerpts of the validation part, drawn evenly; default: all. The test part is always looked
    at as a whole."""

    def check(self) -> None:
        """As `RunConfig.check`."""
        super().check()
        self._require("must be at least 1", "length", holds=lambda value: value >= 1)
        self._require("must lie between 0 and 1, e.g. 0.15", "mask_share", holds=lambda value: 0 < value < 1)
        self._require("must be at least 0 and below 1", "label_smoothing", holds=lambda value: 0 <= value < 1)
        self._require("must lie between 0 and 0.5, e.g. 0.05", "held_out", holds=lambda value: 0 < value < 0.5)

    def eval_steps(self, per_epoch: int) -> int:
        """As they are given; else those of an epoch."""
        return self.eval_every or per_epoch
