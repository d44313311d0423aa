"""Language models that can be asked two things: what their layers hold of a text, and how likely a text is to them.

Three kinds: those that others trained and `unrolled.models.given` or a GGUF file holds, one of these with weights drawn
anew, and models of bytes that the study trains itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from unrolled.data.tokens import ByteTokenizer
from unrolled.errors import MissingData, MissingExtra
from unrolled.models.gguf import Gguf
from unrolled.models.sequence_config import LanguageConfig
from unrolled.studies.cells import Context
from unrolled.studies.language import ByteModel
from unrolled.studies.platonic.fetched import GRAPHS, folder_of
from unrolled.studies.platonic.given import open_model
from unrolled.studies.platonic.photos import label, opened

if TYPE_CHECKING:
    from unrolled.models.encoders import Encoder

_BATCH = 16  # texts whose likelihood is asked for at a time
_LONGEST = 256  # tokens, or bytes, of a text


class Entry(NamedTuple):
    """A language model in a GGUF file, in a folder of its own."""

    label: str
    file: str


GGUF = {
    "smollm2-135m": Entry("SmolLM2 135M", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "gemma3-270m": Entry("Gemma 3 270M", "gemma-3-270m-q4_k_m.gguf"),
    "qwen2.5-coder-0.5b": Entry("Qwen2.5-Coder 0.5B", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
}
"""By the name of the folder that holds the file."""


class Opened(NamedTuple):
    """A language model and what it is fed with.

    Attributes:
        model: from ids [b, n] to logits, or to an object with `logits`; None of a model that predicts nothing.
        body: whose layers are read.
        layers: patterns of `instruments.trace`.
        collate: from texts to the body's keyword arguments.
        encode: from a text to ids, without special tokens.
        starts: ids by their tokens that may stand before a text, so that its first token is predicted too; the
            customary one first.
        parameters: how many the body has, tables of tokens and positions left out.
    """

    model: nn.Module | None
    body: nn.Module
    layers: tuple[str, ...]
    collate: Callable[[Sequence[str]], dict[str, Tensor]]
    encode: Callable[[str], list[int]]
    starts: Mapping[str, int]
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Named:
    """A model that others trained.

    Attributes:
        text: `given:NAME`, or a key of `GGUF` or `GRAPHS`.
        text_drawn: the seed that its weights are drawn anew from; None as it is.
    """

    text: str
    text_drawn: int | None = None

    @property
    def label(self) -> str:
        """What a report calls it."""
        words = GGUF[self.text].label if self.text in GGUF else label(self.text)
        return words if self.text_drawn is None else f"{words}, untrained"

    @property
    def causal(self) -> bool:
        """Whether it predicts the next token."""
        return self.text in GGUF or self.text == "given:stories260k"

    def require(self, context: Context) -> None:
        """Its file, and what reads it.

        Raises:
            MissingData: one of them is not there.
        """
        if self.text in GGUF:
            path = _file(self.text, context)
            try:
                Gguf(str(path.parent), path.name).require(self.text)
            except MissingExtra as error:
                raise MissingData(str(error)) from error
        elif self.text in GRAPHS:
            opened(self.text, "text", context)
        else:
            open_model(self.text.removeprefix("given:"), context)

    def open(self, context: Context) -> Opened:
        """The model."""
        if self.text in GGUF:
            return _gguf(_file(self.text, context), self.text_drawn)
        if self.text in GRAPHS:
            return _graph(opened(self.text, "text", context))
        from unrolled.models.given import find_weights

        name = self.text.removeprefix("given:")
        return _given(name, find_weights(folder_of(self.text, context)), self.text_drawn)


@dataclass(frozen=True, kw_only=True)
class Bytes(ByteModel):
    """A transformer of bytes that the study trains; `label` says its size and its steps."""

    @property
    def frame(self) -> LanguageConfig:
        """Softmax attention and a GELU MLP in every layer."""
        return LanguageConfig(
            vocab_size=256, layers=("softmax",) * self.depth, dim=self.dim, heads=self.heads, max_length=self.length
        )

    @property
    def label(self) -> str:
        """What a report calls it."""
        return f"bytes, {self.depth} x {self.dim}, " + (f"{self.steps} steps" if self.steps else "untrained")

    @property
    def causal(self) -> bool:
        """It predicts the next byte."""
        return True

    def open(self, context: Context) -> Opened:
        """The trained model."""
        model = self.load(context).eval()
        limit = self.length - 1

        def encode(text: str) -> list[int]:
            return [int(byte) for byte in ByteTokenizer().encode(text)[:limit]]

        def collate(texts: Sequence[str]) -> dict[str, Tensor]:
            from unrolled.models.given.text import padded

            return padded([encode(text) for text in texts], ord("\n"))

        return Opened(
            model, _Unmasked(model), ("embed", "block*"), collate, encode, {"line break": ord("\n")}, _size(model)
        )


class _Unmasked(nn.Module):
    """A causal model that needs no mask, given one: what follows a text cannot change it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.model(input_ids)
        return out


Reader = Named | Bytes


def nats(reader: Opened, texts: Sequence[str], start: int, prefixes: Sequence[str] | None = None) -> Tensor:
    """How many nats a model spends on each text [n] float64, of which `prefixes` are read and not predicted.

    Args:
        reader: a causal model.
        texts: none empty; what is beyond 256 tokens is left out.
        start: id put before each.
        prefixes: of every text its beginning; none if None.
    """
    from unrolled.instruments.sequences.losses import IGNORED, token_nats

    assert reader.model is not None
    rows: list[tuple[list[int], int]] = []
    for place, text in enumerate(texts):
        ids = reader.encode(text)[:_LONGEST]
        skip = 0
        if prefixes is not None:
            before = reader.encode(prefixes[place])
            skip = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), len(before))
        rows.append((ids, skip))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    totals = torch.zeros(len(rows), dtype=torch.float64)
    for first in range(0, len(order), _BATCH):
        some = order[first : first + _BATCH]
        width = max(len(rows[i][0]) for i in some)
        inputs = torch.full((len(some), width), start)
        targets = torch.full((len(some), width), IGNORED)
        for row, i in enumerate(some):
            ids, skip = rows[i]
            inputs[row, 1 : len(ids)] = torch.tensor(ids[:-1], dtype=torch.int64)
            targets[row, skip : len(ids)] = torch.tensor(ids[skip:], dtype=torch.int64)
        with torch.no_grad():
            out: Any = reader.model(inputs)
        totals[torch.tensor(some)] = token_nats(getattr(out, "logits", out), targets).double().sum(1)
    return totals


@lru_cache(maxsize=1)
def _given(name: str, weights: Path, drawn: int | None) -> Opened:
    from unrolled.instruments.control import drawn_anew
    from unrolled.models.given import open_given

    given = open_given(name, weights)
    module = given.module if drawn is None else drawn_anew(given.module, drawn)
    tokenizer: Any = given.tokenizer
    causal = name == "stories260k"
    return Opened(
        module if causal else None,
        module,
        given.layers,
        tokenizer,
        (lambda text: tokenizer.encode(text, bos=False)) if causal else lambda text: [],
        {"<s>": tokenizer.bos_id, "</s>": tokenizer.eos_id} if causal else {},
        _size(module),
    )


def _graph(encoder: Encoder) -> Opened:
    """A graph that makes vectors of texts and predicts none."""
    assert encoder.collate is not None
    return Opened(
        None, encoder.module, encoder.layers, encoder.collate, lambda text: [], {}, GRAPHS[encoder.name].parameters
    )


def _file(name: str, context: Context) -> Path:
    path = context.folder("models").expanduser() / name / GGUF[name].file
    if not path.is_file():
        raise MissingData(f"models_dir: {name} was not found (there is no {path}); give models_dir=")
    return path


@lru_cache(maxsize=1)
def _gguf(path: Path, drawn: int | None) -> Opened:
    """A model in a GGUF file in float32, or one of its config whose weights are drawn from a seed."""
    from unrolled.models.encoders import hub_tokenizer
    from unrolled.models.resolve import build_transformers

    tokenizer = hub_tokenizer(path.name, str(path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn or 0)
        model: Any = build_transformers(str(path), drawn is None, {}, causal=True)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    pad = tokenizer.pad_token
    if pad is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"

    def collate(texts: Sequence[str]) -> dict[str, Tensor]:
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt")
        return {key: inputs[key] for key in ("input_ids", "attention_mask")}

    marks = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, pad)
    return Opened(
        model,
        model.base_model,
        ("embed", "block*", "norm"),
        collate,
        lambda text: list(tokenizer.encode(text, add_special_tokens=False)),
        {mark: int(tokenizer.convert_tokens_to_ids(mark)) for mark in marks if mark is not None},
        _size(model),
    )


def _size(model: nn.Module) -> int:
    """Parameters but for tables: a head that is tied to one counts with it, one that is not is left out too."""
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    left_out = {id(part.weight) for part in tables}
    head: Any = getattr(model, "lm_head", None)
    if head is not None:
        left_out.add(id(head.weight))
    return sum(value.numel() for value in model.parameters() if id(value) not in left_out)
