"""What a run on text is made of: its corpus, its model, how it is measured, and the folder the model ends in."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.checksums import write_sums
from unrolled.data.tokens import IGNORED, Tokenizer, mask_each, masked_windows, open_tokenizer, token_windows
from unrolled.modes import evaluating
from unrolled.train.config import TextConfig
from unrolled.train.evaluation import logits_of

DEFAULT_MODELS = {"lm": "crate_gpt_nano", "mlm": "crate_bert_nano"}
_MASK_SEED = 0  # held-out text is masked the same way in every run


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The tokens of the three parts of a text, by name, and what they were made with."""

    tokenizer: Tokenizer
    tokens: dict[str, Tensor]
    bytes: dict[str, int]
    fingerprint: str
    description: str = ""
    """What was read and what was passed over, in one line."""

    def tokens_per_byte(self, split: str) -> float:
        """How many tokens a byte of a part is."""
        return len(self.tokens[split]) / self.bytes[split]

    def excerpts(self, split: str, length: int) -> int:
        """How many excerpts of `length` predicted tokens a part holds."""
        return (len(self.tokens[split]) - 1) // length

    def predicted_bytes(self, split: str) -> int:
        """UTF-8 bytes of all tokens of a part but the first, which nothing predicts."""
        return self.bytes[split] - self.tokenizer.bytes_of(int(self.tokens[split][0]))


def open_corpus(config: TextConfig, tokenizer: Tokenizer | None = None) -> Corpus:
    """The parts of the text `config.data` names, as tokens; a tokenizer that is learned sees the training part alone.

    Args:
        config: of the run.
        tokenizer: that of an earlier run, instead of the one `config` names.
    """
    from unrolled.data.text import Split, open_text

    splits: tuple[Split, ...] = ("train", "val", "test")
    options: dict[str, Any] = {"data_dir": config.data_dir, "held_out": config.held_out}
    parts = {split: open_text(config.data, split, **options) for split in splits}
    if tokenizer is None:
        tokenizer = open_tokenizer(config.tokenizer, parts["train"].text, mask=config.task == "mlm")
    tokens: dict[str, Tensor] = {}
    for split, part in parts.items():
        try:
            tokens[split] = tokenizer.encode(part.text)
        except ValueError as error:
            raise ValueError(f"{part.description}: {error}") from error
        if len(tokens[split]) < config.length + 1:
            raise ValueError(
                f"length={config.length}: {part.description}, is {len(tokens[split])} tokens, fewer than one sequence; "
                "lower length, or give a longer text"
            )
    digest = hashlib.sha256()
    for part_tokens in tokens.values():
        digest.update(part_tokens.numpy().tobytes())
    return Corpus(
        tokenizer=tokenizer,
        tokens=tokens,
        bytes={str(split): part.bytes for split, part in parts.items()},
        fingerprint=digest.hexdigest()[:16],
        description=f"data: {config.data}: "
        + ", ".join(f"{split} {len(part.text):,} characters" for split, part in parts.items())
        + (f" (passed over: {parts['train'].passed_over})" if parts["train"].passed_over else ""),
    )


def build_language_model_of(config: TextConfig, tokenizer: Tokenizer) -> nn.Module:
    """The model `config` names, with the tokenizer's vocabulary and positions for `config.length` tokens.

    Raises:
        ValueError: no such model, or one that is not for this task.
    """
    from unrolled.models.encoder import build_language_model
    from unrolled.models.resolve import resolve_model
    from unrolled.models.sequence_config import EncoderConfig, language_config

    if ":" in config.model:
        return resolve_model(config.model, **config.model_args)
    arguments = {"max_length": config.length, **config.model_args, "vocab_size": tokenizer.vocab_size}
    described = language_config(config.model, **arguments)
    if isinstance(described, EncoderConfig) != (config.task == "mlm"):
        fit = DEFAULT_MODELS[config.task]
        raise ValueError(f"model={config.model!r} is not for task={config.task!r}; choose one such as {fit}")
    return build_language_model(described)


def token_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats, summed over the targets that are not -100: logits [b, n, v], targets [b, n]."""
    return F.cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )


@torch.no_grad()
def evaluate_text(
    model: nn.Module,
    corpus: Corpus,
    split: str,
    config: TextConfig,
    device: torch.device | str = "cpu",
    *,
    samples: int | None = None,
    stride: int | None = None,
    on_batch: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Loss of a model on a part of the corpus; every process of a run looks at all of it.

    Args:
        model: ids [b, n] to logits [b, n, v]; its training mode is restored afterwards.
        corpus: the text.
        split: which part.
        config: for `task`, `length`, `batch_size` and `mask_share`.
        device: where the batches go.
        samples: only so many excerpts of `length` tokens, drawn evenly; default: all of the part.
        stride: of "lm", tokens between the starts of two windows, see `token_windows`; default: windows side by side.
        on_batch: called after each batch.

    Returns:
        `loss` in nats per predicted token, `accuracy` of the likeliest token (a fraction), `tokens` predicted, and for
        "lm" `perplexity`, `bits_per_byte` and `bytes`: every token but the first is predicted once, from at most
        `length` tokens before it; where windows lie side by side, from 1 to `length`. For "mlm" the same tokens are
        masked every time, whatever `batch_size`, and none is predicted twice.

    Raises:
        ValueError: `samples` is below 1 or above `corpus.excerpts`; a `stride` of "mlm", of samples, or out of range.
    """
    if stride is not None and (config.task != "lm" or samples is not None):
        raise ValueError(f"stride={stride}: is for a language model on a whole part; leave it out")
    check_excerpts(corpus, split, config.length, samples, f"samples={samples}")
    total, hits, count, predicted = 0.0, 0, 0, 0
    tokens, tokenizer = corpus.tokens[split], corpus.tokenizer
    with evaluating(model):
        drawn = None if samples is None else _excerpts(tokens, config.length, samples)
        if config.task == "mlm":
            windows = _masked(tokens, drawn, tokenizer, config)
        elif drawn is None:
            predicted = corpus.predicted_bytes(split)
            windows = token_windows(tokens, length=config.length, batch_size=config.batch_size, stride=stride)
        else:
            predicted = sum(tokenizer.bytes_of(token) for token in drawn[:, 1:].flatten().tolist())
            windows = ((some[:, :-1], some[:, 1:]) for some in drawn.split(config.batch_size))
        for inputs, targets in windows:
            inputs, targets = inputs.to(device), targets.to(device)
            logits = logits_of(model(inputs))
            known = targets != IGNORED
            total += float(token_loss(logits, targets))
            hits += int((logits.argmax(-1) == targets)[known].sum())
            count += int(known.sum())
            if on_batch is not None:
                on_batch()
    scores: dict[str, Any] = {"loss": total / count, "accuracy": hits / count, "tokens": count}
    if config.task == "lm":
        scores["perplexity"] = math.exp(min(total / count, 700.0))
        scores |= {"bits_per_byte": total / math.log(2) / predicted, "bytes": predicted}
    return scores


def _masked(
    tokens: Tensor, drawn: Tensor | None, tokenizer: Tokenizer, config: TextConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of a masked language model: of the whole part, or of the excerpts that were drawn."""
    assert tokenizer.mask_id is not None
    options: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "mask_id": tokenizer.mask_id,
        "seed": _MASK_SEED,
        "share": config.mask_share,
    }
    if drawn is None:
        yield from masked_windows(tokens, length=config.length, batch_size=config.batch_size, **options)
        return
    for first in range(0, len(drawn), config.batch_size):
        yield mask_each(drawn[first : first + config.batch_size, :-1], first=first, **options)


def check_excerpts(corpus: Corpus, split: str, length: int, samples: int | None, setting: str) -> None:
    """Refuse to draw no excerpts of a part, or more than it has, naming the setting and the number there is.

    Raises:
        ValueError: so it is.
    """
    available = corpus.excerpts(split, length)
    if samples is not None and not 1 <= samples <= available:
        raise ValueError(
            f"{setting}: give 1 to {available}; the {split} part has {available:,} excerpts of {length} tokens"
        )


def _excerpts(tokens: Tensor, length: int, count: int) -> Tensor:
    """`count` excerpts that do not overlap in what they predict, drawn evenly: ids [count, length + 1]."""
    starts = torch.linspace(0, len(tokens) - 1 - length, count, dtype=torch.float64).long()
    return tokens[starts[:, None] + torch.arange(length + 1)]


def save_language_model(model: nn.Module, tokenizer: Tokenizer, folder: Path, config: TextConfig) -> None:
    """`model.safetensors`, `config.json`, `tokenizer.json` and a card in `folder`, for `load_language_model`."""
    from unrolled.models.sequence import LanguageModel
    from unrolled.train.run import save_model

    if not isinstance(model, LanguageModel):
        save_model(model, folder, config)  # a model of the caller's own
        tokenizer.save(folder / "tokenizer.json")
        write_sums(folder)
        return
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    card = unfinished / "README.md"  # `save_pretrained` keeps the one that is there
    card.write_text(_card(model, config), encoding="utf-8")
    save: Any = model.save_pretrained
    save(unfinished)
    tokenizer.save(unfinished / "tokenizer.json")
    write_sums(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)


def _card(model: nn.Module, config: TextConfig) -> str:
    """What the folder of a model holds, as `README.md`: what it is, its task and tokenizer, and how to load it."""
    goal = "the next token" if config.task == "lm" else "masked tokens"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"""---
library_name: unrolled
tags:
- unrolled
---

# {config.model}

A `{type(model).__name__}` of the Python package `unrolled`, {parameters:,} parameters, trained to predict {goal}
(`--task {config.task}`) of `{config.data}` in sequences of {config.length} tokens, seed {config.seed}.

`tokenizer.json` is its tokenizer (`{Path(config.tokenizer).name}`), `config.json` has its settings,
`model.safetensors` its weights. To load them, with FOLDER for where these files are:

```python
from unrolled.data.tokens import load_tokenizer
from unrolled.models.encoder import load_language_model

model, tokenizer = load_language_model("FOLDER"), load_tokenizer("FOLDER")
logits = model(tokenizer.encode("a text")[None])
```
"""
