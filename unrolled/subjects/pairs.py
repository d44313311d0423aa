"""Paired data that models are shown: images with their texts, or texts with texts, the same pairs for every model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled.data.pairs import PairSource, open_pairs
from unrolled.data.sources import evenly
from unrolled.data.text import read_lines
from unrolled.errors import CorruptFile, MissingData
from unrolled.subjects.options import Side
from unrolled.subjects.samples import ImageSamples, TextSamples

_PAIRED = ("coco", "flickr8k", "text", "wit")


@dataclass(frozen=True)
class Paired:
    """Pairs to compute features of, and what is said of them, which is the same for all models."""

    pairs: PairSource
    data: str
    rows: NDArray[np.int64]
    """Which pairs of the data they are."""

    @classmethod
    def drawn(cls, everything: PairSource, most: int) -> Paired:
        """At most `most` pairs, drawn evenly."""
        rows = evenly(most, len(everything))
        pairs = everything.take(rows)
        digest = hashlib.sha256(json.dumps([pairs.ids, pairs.captions, pairs.others]).encode()).hexdigest()
        description = f"{everything.description}: {len(rows):,} of {len(everything):,} pairs (sha256 {digest[:16]})"
        return cls(pairs, description, rows)

    def samples(self, side: Side, captions: int | None) -> ImageSamples | TextSamples:
        """One side of the pairs; of captions the first so many make the text, by default all."""
        if side == "image":
            return ImageSamples(self.pairs.images(), self.rows, self.data)
        return TextSamples(self.pairs.column(side, use=None if self.pairs.others else captions), self.rows, self.data)


def is_paired(data: str | None, side: Side | None, texts: Path | None) -> bool:
    """Whether the flags speak of paired data: their names, a side, or a file of texts."""
    return side is not None or texts is not None or data in _PAIRED


def read_pairs(data: str | None, split: str, data_dir: Path | None) -> PairSource:
    """All pairs of data of a name; of those that have no splits whichever is asked for."""
    part: Any = split if data == "flickr8k" or str(data).startswith("hf:") else "all"
    return open_pairs(str(data), part, data_dir=data_dir)


def read_texts(path: Path) -> PairSource:
    """A text file, one text a line, or a .tsv of two columns.

    Raises:
        MissingData: no such file.
        ValueError: an empty line; the first are named by number.
    """
    path = path.expanduser()
    if not path.is_file():
        raise MissingData(f"texts: there is no file {path}")
    if path.suffix == ".tsv":
        return open_pairs("text", data_dir=path)
    try:
        lines = read_lines(path)
    except CorruptFile as error:
        raise CorruptFile(f"texts: {error}") from error
    numbers = [f"line {number}" for number in range(1, len(lines) + 1)]
    return PairSource(
        ids=numbers, captions=[[line] for line in lines], description=f"{path.name}, {len(lines):,} texts"
    )
