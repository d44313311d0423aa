"""A prompt tuned by gradients: vectors before a sequence of which a language model learns from its context alone.

The sequences pair words at random, `key value key value ...`: only what came before says which value a key has. The
vectors are tuned on sequences of some words and judged on sequences of others; the model stays as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.instruments import mesa_descent
from unrolled.instruments.sequences.context import score_of, token_losses
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.language import opened as corpus
from unrolled.studies.platonic.language.readers import Named, Opened
from unrolled.studies.platonic.language.tasks import BROWN, OfReader, Start, axes
from unrolled.studies.training import train_resumable

_WORDS, _SEEN = 96, 2**20  # words that sequences are made of, half for each purpose; bytes in which they are counted
_KEYS, _PAIRS = 4, 16  # of a sequence
_BATCH, _TEST = 4, 32  # sequences of a step, and those that are judged
_LATE, _WINDOW = 12, 4  # the pairs late in a sequence
_AT, _ASKED = 16, 8  # mesa_descent: position of a key, and so many keys before it
_APART = 10_000  # between the seeds of the sequences of two trainings
STATES = ("none", "random", "tuned")


@dataclass(frozen=True, kw_only=True)
class Prompt(OfReader):
    """What a language model makes of sequences without a prompt, with a random one, and with a tuned one.

    Attributes:
        vectors: of a prompt.
        steps: of tuning.
        rate: of Adam, as a share of the deviation of the table of tokens.
        seed: of the prompts and sequences.
    """

    vectors: int
    steps: int
    rate: float
    seed: int

    def require(self, context: Context) -> None:
        """The text that words are from, and the model."""
        super().require(context)
        corpus(BROWN, context.data_dir)

    @property
    def needs(self) -> Sequence[Cell]:
        """The mark that the trained model reads texts after."""
        return (*super().needs, self._start)

    @property
    def _start(self) -> Start:
        return Start(reader=replace(self.reader, text_drawn=None) if isinstance(self.reader, Named) else self.reader)

    def compute(self, context: Context) -> Result:
        """Of each of `STATES` what `judged` says; `train`, losses of tuning, means of the first and last ten steps.

        Without a prompt a sequence follows the mark alone; a random prompt has vectors of the lengths of the tuned
        one's.
        """
        reader = self.reader.open(context)
        table = _table(reader)
        practice, test = (part for part in _words(reader, context).chunk(2))
        generator = torch.Generator().manual_seed(self.seed)
        prompt = _Vectors(torch.randn(self.vectors, table.weight.shape[1], generator=generator) * table.weight.std())
        losses: list[float] = []

        def loss_at(step: int) -> Tensor:
            loss = _loss(reader, prompt.vectors, *sequences(practice, _BATCH, _APART * self.seed + step))
            losses.append(loss.item())
            return loss

        optimizer = torch.optim.Adam(prompt.parameters(), lr=self.rate * float(table.weight.std()))
        train_resumable(prompt, optimizer, loss_at, steps=self.steps)
        tuned = prompt.vectors.detach()
        random = torch.randn(tuned.shape, generator=generator)
        random *= tuned.norm(dim=1, keepdim=True) / random.norm(dim=1, keepdim=True)
        mark = table.weight[[reader.starts[context.result(self._start)["mark"]]]].detach()
        ids, _ = sequences(test, _TEST, self.seed)
        by_state = dict(zip(STATES, (mark, random, tuned), strict=True))
        return {
            **{name: judged(reader, vectors, ids) for name, vectors in by_state.items()},
            "train": [fmean(losses[:10]), fmean(losses[-10:])],
        }


def judged(reader: Opened, prompt: Tensor, ids: Tensor) -> dict[str, float]:
    """Sequences [b, 32] after a prompt [p, d].

    `early` and `late`, the nats of the values of the first 2 and of the last 4 pairs; `score`, late less early, and its
    `error`; `descent`, how much lower the mesa-objective of the last layer is for the sequence's own pairs than for
    those of another.
    """
    assert reader.model is not None
    with after(reader.body, prompt):
        losses = token_losses(reader.model, ids, batch_size=_BATCH)[:, ::2]
        score = score_of(losses, early=0, late=_LATE, window=_WINDOW)
        states = axes(_table(reader), ids)
        records = mesa_descent(reader.body, ids, states=states, position=_AT, pairs=_ASKED, batch_size=_TEST)
    return {
        "early": float(losses[:, :2].mean()), "late": score["late"], "score": score["score"],
        "error": score["standard_error"], "descent": records[-2]["in_context"],
    }  # fmt: skip


def sequences(words: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids [count, 32], 16 times a key and its value, of 4 keys a sequence; and which keys came before [count, 16].

    Args:
        words: ids, no two alike, from which keys and values are drawn anew for each sequence.
        count: how many.
        seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([words[torch.randperm(len(words), generator=generator)[: 2 * _KEYS]] for _ in range(count)])
    which = torch.randint(_KEYS, (count, _PAIRS), generator=generator)
    ids = torch.stack([drawn.gather(1, which), drawn.gather(1, which + _KEYS)], 2).flatten(1)
    same = which[:, :, None] == which[:, None, :]
    return ids, same.tril(-1).any(2)


@contextmanager
def after(body: nn.Module, prompt: Tensor) -> Iterator[None]:
    """Within the block a model of transformers reads all sequences after a prompt [p, d], whose own outputs are none.

    Keys and values of the prompt are computed once; layers return only what follows it.
    """
    from transformers import DynamicCache

    inner: Any = body.base_model
    with torch.no_grad():
        read: Any = inner(inputs_embeds=prompt[None], use_cache=True).past_key_values

    def put_before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        count = len(args[0] if args else kwargs["input_ids"])
        past: Any = DynamicCache()
        for place, layer in enumerate(read.layers):
            past.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), place)
        return args, {**kwargs, "past_key_values": past}

    handle = inner.register_forward_pre_hook(put_before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Vectors(nn.Module):
    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)


def _loss(reader: Opened, prompt: Tensor, ids: Tensor, repeated: Tensor) -> Tensor:
    """Mean nats of the values of keys that came before."""
    before = prompt.expand(len(ids), -1, -1)
    body: Any = reader.body.base_model
    states = body(inputs_embeds=torch.cat([before, _table(reader)(ids)], 1), use_cache=False).last_hidden_state
    model: Any = reader.model
    logits = model.get_output_embeddings()(states[:, len(prompt) :: 2][repeated])
    return nn.functional.cross_entropy(logits, ids[:, 1::2][repeated])


def _table(reader: Opened) -> nn.Embedding:
    body: Any = reader.body
    table: nn.Embedding = body.get_input_embeddings()
    return table


def _words(reader: Opened, context: Context) -> Tensor:
    """Ids of the most frequent words of text that are one token each, in an order that mixes them."""
    text = bytes(corpus(BROWN, context.data_dir)["train"][:_SEEN].tolist()).decode("utf-8", "ignore")
    before = reader.encode("the")
    ids: dict[int, None] = {}
    for word, _ in Counter(re.findall(r"\b[a-z]{3,}\b", text)).most_common():
        rest = reader.encode(f"the {word}")
        if rest[:-1] == before:
            ids[rest[-1]] = None
        if len(ids) == _WORDS:
            break
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    return torch.tensor(list(ids))[order]
