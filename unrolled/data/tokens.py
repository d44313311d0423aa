"""From text to batches of tokens: characters, bytes, byte-level BPE; language-model and masked batches by step."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unrolled.checksums import check_file
from unrolled.errors import MissingData, require
from unrolled.reading import read_json

IGNORED = -100
_MASKS = ("[MASK]", "<mask>")


class Tokenizer(Protocol):
    """What turns text into ids and back.

    Attributes:
        vocab_size: ids run from 0 to `vocab_size - 1`.
        mask_id: id of the mask token, or None.
    """

    vocab_size: int
    mask_id: int | None

    def encode(self, text: str) -> Tensor:
        """Ids [n], int64.

        Raises:
            ValueError: the text has something the vocabulary lacks.
        """

    def decode(self, ids: Tensor) -> str:
        """The text of ids [n]."""

    def bytes_of(self, token: int) -> int:
        """Length in UTF-8 of what a token stands for."""

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, which `load_tokenizer` reads."""


class ByteTokenizer:
    """UTF-8 bytes as they are; id 256 is the mask, if there is one."""

    def __init__(self, *, mask: bool = False) -> None:
        self.mask_id = 256 if mask else None
        self.vocab_size = 256 + mask

    def encode(self, text: str) -> Tensor:
        """Ids [n], int64."""
        return torch.from_numpy(np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64))

    def decode(self, ids: Tensor) -> str:
        """The text; bytes that are no UTF-8 become the replacement character, and masks a full block."""
        pieces = ids.tolist()
        _check_ids(pieces, self.vocab_size)
        return b"".join("█".encode() if i == 256 else bytes([i]) for i in pieces).decode("utf-8", errors="replace")

    def bytes_of(self, token: int) -> int:
        """One."""
        return 1

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        _write(path, {"type": "bytes", "mask": self.mask_id is not None})


class CharacterTokenizer:
    """The characters of a text, sorted.

    Args:
        characters: one id each, in this order.
        mask: a last id for the mask.
    """

    def __init__(self, characters: str, *, mask: bool = False) -> None:
        if not characters:
            raise ValueError("characters: is empty; give a training text")
        if len(set(characters)) < len(characters):
            raise ValueError("characters: some are named twice; give sorted(set(text))")
        self.characters = characters
        self.mask_id = len(characters) if mask else None
        self.vocab_size = len(characters) + mask
        self._ids = {character: i for i, character in enumerate(characters)}

    @classmethod
    def of(cls, text: str, *, mask: bool = False) -> CharacterTokenizer:
        """The vocabulary of a training text."""
        return cls("".join(sorted(set(text))), mask=mask)

    def encode(self, text: str) -> Tensor:
        """Ids [n], int64."""
        if unknown := sorted(set(text) - set(self.characters)):
            shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:5])
            raise ValueError(
                f"text: {len(unknown)} characters are unknown to this vocabulary of {len(self.characters)}: {shown}; "
                "remove them, or use tokenizer='bytes', which knows every text"
            )
        return torch.tensor([self._ids[character] for character in text], dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """The text; masks become a full block."""
        pieces = ids.tolist()
        _check_ids(pieces, self.vocab_size)
        return "".join("█" if i == self.mask_id else self.characters[i] for i in pieces)

    def bytes_of(self, token: int) -> int:
        """Of the character, in UTF-8."""
        return len(self.decode(torch.tensor([token])).encode("utf-8"))

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        _write(path, {"type": "characters", "characters": self.characters, "mask": self.mask_id is not None})


class HubTokenizer:
    """A Hugging Face `tokenizers.Tokenizer`. No special tokens are added to a text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        masks = [tokenizer.token_to_id(name) for name in _MASKS if tokenizer.token_to_id(name) is not None]
        self.mask_id: int | None = masks[0] if masks else None

    def encode(self, text: str) -> Tensor:
        """Ids [n], int64."""
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """The text."""
        pieces = ids.tolist()
        _check_ids(pieces, self.vocab_size)
        text: str = self.tokenizer.decode(pieces, skip_special_tokens=False)
        return text

    def bytes_of(self, token: int) -> int:
        """Of the token: in byte-level vocabularies each of its characters is one byte, in others `▁` is a space."""
        piece = self.tokenizer.id_to_token(token)
        if "▁" in piece:  # which decoding leaves out at the beginning
            return len(piece.replace("▁", " ").encode("utf-8"))
        if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            return 1
        if type(self.tokenizer.decoder).__name__ == "ByteLevel" and token != self.mask_id:
            return len(piece)
        return len(self.tokenizer.decode([token]).encode("utf-8"))

    def save(self, path: Path) -> None:
        """Write `tokenizer.json` in Hugging Face's own format."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(path))


def train_bpe(text: str, vocab_size: int, *, mask: bool = False) -> HubTokenizer:
    """Byte-level BPE (as GPT-2's) learned from a training text; the same text gives the same merges.

    Args:
        text: of the training split alone.
        vocab_size: in all, at least 256 bytes and the mask; fewer if the text has fewer pairs to merge.
        mask: with a mask token.

    Raises:
        MissingExtra: `tokenizers` is not installed.
        ValueError: a vocabulary that cannot hold the bytes, or an empty text.
    """
    if vocab_size < 256 + mask:
        raise ValueError(f"vocab_size={vocab_size}: byte-level BPE needs at least {256 + mask} tokens")
    if not text.strip():
        raise ValueError("text: is empty; give a training text")
    library = require("tokenizers", extra="hf", feature="byte-level BPE")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_MASKS[0]] if mask else [],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer=trainer)
    return HubTokenizer(tokenizer)


def open_tokenizer(name: str, text: str, *, mask: bool = False) -> Tokenizer:
    """A tokenizer by name.

    Args:
        name: "bytes", "characters", "bpe:2048" (learned from `text`), or the path of a `tokenizer.json` (ours or
            Hugging Face's), or of a folder that has one.
        text: the training split.
        mask: for masked language modelling.

    Raises:
        ValueError: no such tokenizer, or one without the mask token that was asked for.
        MissingData: no such file.
    """
    if name == "bytes":
        return ByteTokenizer(mask=mask)
    if name == "characters":
        return CharacterTokenizer.of(text, mask=mask)
    kind, _, size = name.partition(":")
    if kind == "bpe":
        if not size.isdigit():
            raise ValueError(f"tokenizer={name!r}: name the size of the vocabulary, e.g. 'bpe:2048'")
        return train_bpe(text, int(size), mask=mask)
    if not name.endswith(".json") and not Path(name).is_dir():
        raise ValueError(f"tokenizer={name!r}: choose bytes, characters, bpe:SIZE, or a path to a tokenizer.json")
    tokenizer = load_tokenizer(Path(name))
    if mask and tokenizer.mask_id is None:
        raise ValueError(f"tokenizer={name!r}: has no mask token ({' or '.join(_MASKS)}); add one, or choose bpe:SIZE")
    return tokenizer


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`, ours or Hugging Face's, or that of a folder (a run's `model` folder too).

    Raises:
        MissingData: there is none.
        ValueError: the file is no tokenizer.
    """
    path = Path(path)
    tried = [path / "tokenizer.json", path / "model" / "tokenizer.json"] if path.is_dir() else [path]
    files = [file for file in tried if file.is_file()]
    if not files:
        raise MissingData(f"tokenizer: {tried[0]} does not exist")
    check_file(files[0])
    content = read_json(files[0])
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "bytes":
        return ByteTokenizer(mask=bool(content.get("mask")))
    if kind == "characters":
        if not isinstance(content.get("characters"), str):
            raise ValueError(f"{files[0]} is no tokenizer: it has no `characters`; write it with `save`")
        return CharacterTokenizer(content["characters"], mask=bool(content.get("mask")))
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"{files[0]} is no tokenizer: it has neither `type` nor `model`")
    library = require("tokenizers", extra="hf", feature="a Hugging Face tokenizer")
    return HubTokenizer(library.Tokenizer.from_file(str(files[0])))


def token_batches(tokens: Tensor, *, batch_size: int, length: int, seed: int, step: int) -> Tensor:
    """A batch of random excerpts, a function of `(seed, step)` alone, so that a resumed run sees the same ones.

    Args:
        tokens: ids [n] of the training split.
        batch_size: b.
        length: t, of an excerpt.
        seed: of the run.
        step: number of steps done.

    Returns:
        ids [b, t + 1]: `[:, :-1]` are the inputs and `[:, 1:]` the targets of a language model.

    Raises:
        ValueError: fewer than t + 1 tokens, or sizes below 1.
    """
    _check_length(tokens, length)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    starts = _generator(seed, step, 0).integers(0, len(tokens) - length, size=batch_size)
    return tokens[torch.from_numpy(starts)[:, None] + torch.arange(length + 1)]


def token_windows(
    tokens: Tensor, *, length: int, batch_size: int, stride: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """All of a held-out text, in order, each token predicted exactly once (but the first, which nothing precedes).

    Args:
        tokens: ids [n].
        length: t, of a window.
        batch_size: windows at a time; the last batch may have fewer.
        stride: tokens between the starts of two windows, at most t; t if None: windows side by side, whose tokens are
            predicted from 1 to t tokens, t / 2 on average. A smaller one gives every prediction after the first window
            at least t - stride tokens of context, at t / stride times the cost.

    Yields:
        ids [b, t], and targets [b, t] that are -100 where another window, or none, predicts them.
    """
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise ValueError(f"stride={stride}: must lie between 1 and length={length}")
    _check_length(tokens, length)
    inputs, targets = [], []
    starts, predicted = _starts(len(tokens) - 1, length, stride), 0
    for number, start in enumerate(starts):
        after = tokens[start + 1 : start + length + 1].clone()
        after[: predicted - start] = IGNORED  # tokens up to `predicted` have had their turn
        predicted = start + length
        inputs.append(tokens[start : start + length])
        targets.append(after)
        if len(inputs) == batch_size or number == len(starts) - 1:
            yield torch.stack(inputs), torch.stack(targets)
            inputs, targets = [], []


def masked_windows(
    tokens: Tensor, *, length: int, batch_size: int, vocab_size: int, mask_id: int, seed: int, share: float = 0.15
) -> Iterator[tuple[Tensor, Tensor]]:
    """All of a held-out text, in order, masked as in `mask_tokens`; none is predicted twice.

    What is masked of a window follows from the seed and its number alone, so it is the same for every batch size.

    Args:
        tokens: ids [n].
        length: t, of a window. The last one ends with the text; what an earlier one holds too is not predicted in it.
        batch_size: windows at a time; the last batch may have fewer.
        vocab_size, mask_id, seed, share: as in `mask_tokens`.

    Yields:
        inputs [b, t], and targets [b, t] that are -100 where nothing was chosen.
    """
    _check_length(tokens, length)
    starts, seen = _starts(len(tokens), length, length), 0
    for first in range(0, len(starts), batch_size):
        group = starts[first : first + batch_size]
        inputs, targets = mask_each(
            torch.stack([tokens[start : start + length] for start in group]),
            vocab_size=vocab_size,
            mask_id=mask_id,
            seed=seed,
            first=first,
            share=share,
        )
        for row, start in zip(targets, group, strict=True):
            row[: max(0, seen - start)] = IGNORED
            seen = start + length
        yield inputs, targets


def mask_each(
    excerpts: Tensor, *, vocab_size: int, mask_id: int, seed: int, first: int, share: float = 0.15
) -> tuple[Tensor, Tensor]:
    """`mask_tokens` of excerpts [b, t] one by one: what is masked follows from the seed and an excerpt's number.

    Args:
        excerpts: ids [b, t].
        first: number of the first of them.
        vocab_size, mask_id, seed, share: as in `mask_tokens`.
    """
    options: dict[str, Any] = {"vocab_size": vocab_size, "mask_id": mask_id, "seed": seed, "share": share}
    masked = [mask_tokens(row[None], step=number, **options) for number, row in enumerate(excerpts, first)]
    inputs, targets = (torch.cat(parts) for parts in zip(*masked, strict=True))
    return inputs, targets


def mask_tokens(
    tokens: Tensor, *, vocab_size: int, mask_id: int, seed: int, step: int, share: float = 0.15
) -> tuple[Tensor, Tensor]:
    """Masked language modelling: of the chosen tokens 80 % become the mask, 10 % a random token, 10 % stay.

    Args:
        tokens: ids [b, t].
        vocab_size: random tokens are drawn from all ids but the mask's.
        mask_id: id of the mask token.
        seed: of the run.
        step: number of steps done; the result is a function of both and the tokens.
        share: of the tokens that are chosen, each by itself; at least one is.

    Returns:
        inputs [b, t], and targets [b, t] that are -100 where nothing was chosen.

    Raises:
        ValueError: a share outside (0, 1), or a mask outside the vocabulary.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}: must lie between 0 and 1, e.g. 0.15")
    if not 0 <= mask_id < vocab_size or vocab_size < 2:
        raise ValueError(f"mask_id={mask_id}: must be one of the {vocab_size} ids; open the tokenizer with mask=True")
    rng = _generator(seed, step, 1)
    draws = rng.random((3, *tokens.shape))
    chosen = draws[0] < share
    if not chosen.any():
        chosen.flat[draws[0].argmin()] = True
    fate = draws[1]
    other = (draws[2] * (vocab_size - 1)).astype(np.int64)
    other += other >= mask_id
    chosen_, masked, replaced = (
        torch.from_numpy(x) for x in (chosen, chosen & (fate < 0.8), chosen & (fate >= 0.8) & (fate < 0.9))
    )
    inputs = tokens.masked_fill(masked, mask_id)
    inputs = torch.where(replaced, torch.from_numpy(other), inputs)
    return inputs, tokens.masked_fill(~chosen_, IGNORED)


def _starts(count: int, length: int, stride: int) -> list[int]:
    """Where windows of `length` begin, so that every one of `count` tokens lies in one; the last ends with them."""
    return [*range(0, count - length, stride), count - length]


def _generator(seed: int, step: int, what: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence((seed, step, what)))


def _check_length(tokens: Tensor, length: int) -> None:
    if tokens.ndim != 1 or tokens.is_floating_point():
        raise ValueError(f"tokens: must be integers [n], not {tokens.dtype} {tuple(tokens.shape)}")
    if length < 1:
        raise ValueError(f"length={length}: must be at least 1")
    if len(tokens) < length + 1:
        raise ValueError(
            f"tokens: {len(tokens)} are fewer than one sequence of length={length} and the token after it; "
            "give a longer text, or a smaller length"
        )


def _check_ids(ids: list[int], vocab_size: int) -> None:
    if bad := [i for i in ids if not 0 <= i < vocab_size]:
        raise ValueError(f"ids: unknown token {bad[0]}; ids of this tokenizer run from 0 to {vocab_size - 1}")


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
