"""Paired data: images with their texts, or texts with texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from unrolled.data.sources import BadImage, ImageSource, Picture, evenly


@dataclass(frozen=True, kw_only=True, eq=False)
class PairSource:
    """Pairs in a fixed order: image i and its texts, or, for pairs of texts, a text and its counterpart.

    Attributes:
        ids: one a pair, no two alike; for messages and for checking that features are paired.
        captions: the texts of every pair, at least one, none empty.
        description: what this is, in words for a report.
        others: the first texts of pairs of texts; empty where images are paired with texts.
        load: from an index to the picture; None for pairs of texts.
        groups: what each pair belongs to, where several are of one photo; empty where each has its own.
        columns: labels of all pairs by the name of a further column; None where there are none, or not this.
    """

    ids: list[str]
    captions: list[list[str]] = field(repr=False)
    description: str
    others: list[str] = field(default_factory=list, repr=False)
    load: Callable[[int], Picture] | None = field(default=None, repr=False)
    groups: list[str] = field(default_factory=list, repr=False)
    columns: Callable[[str], list[str] | None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.captions) or (self.others and len(self.others) != len(self.ids)):
            raise ValueError(f"{self.description}: {len(self.ids)} ids for {len(self.captions)} rows of texts")
        if not self.ids:
            raise ValueError(f"{self.description}: there is not one pair")
        refuse("given twice", repeated(self.ids), self.description)
        refuse("without a text", [i for i, texts in zip(self.ids, self.captions, strict=True) if not texts],
                 self.description)  # fmt: skip
        rows = self.captions if not self.others else [[*a, b] for a, b in zip(self.captions, self.others, strict=True)]
        empty = [i for i, texts in zip(self.ids, rows, strict=True) if any(not text.strip() for text in texts)]
        refuse("with an empty text", empty, self.description)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Picture:
        """The image of pair `index`.

        Raises:
            ValueError: these are pairs of texts.
            BadImage: it cannot be decoded.
        """
        if self.load is None:
            raise ValueError(f"{self.description}: pairs of texts have no images; use the side 'text' or 'text2'")
        return self.load(index)

    def texts(self, index: int) -> list[str]:
        """The texts of pair `index`: its captions, or its second text."""
        return list(self.captions[index])

    def images(self) -> ImageSource:
        """The images as a source that loaders take; the labels are all 0.

        Raises:
            ValueError: these are pairs of texts.
        """
        if self.load is None:
            raise ValueError(f"{self.description}: pairs of texts have no images; use the side 'text' or 'text2'")
        return _Images(self)

    def column(self, side: Literal["text", "text2"] = "text", *, use: int | None = None) -> list[str]:
        """One text a pair.

        Args:
            side: "text" is the captions, or the first of two texts; "text2" is the second of two texts.
            use: how many captions are joined by a space; default all.

        Raises:
            ValueError: `text2` of images, or a pair has fewer captions than `use`.
        """
        if side == "text2" and not self.others:
            raise ValueError(f"{self.description}: side='text2' is for pairs of texts; images have the side 'text'")
        if side == "text" and self.others:
            return list(self.others)
        count = self.fewest if use is None else use
        if not 1 <= count <= self.fewest:
            raise ValueError(
                f"use={use}: {self.description} has {self.fewest} texts or more a pair; give 1 to that many"
            )
        return [" ".join(texts if use is None else texts[:count]) for texts in self.captions]

    def dependent(self) -> list[int] | None:
        """One number a pair, equal for those that share a photo or a text of their own; None if no two do.

        A caption that two photos happen to share does not make them one.
        """
        shared = [[("group", name)] for name in self.groups] or [[] for _ in self.ids]
        if self.others:
            for keys, first, (second, *_) in zip(shared, self.others, self.captions, strict=True):
                keys += [("first", first), ("second", second)]
        owner: dict[tuple[str, str], int] = {}
        parent = list(range(len(self)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = i = parent[parent[i]]
            return i

        for i, keys in enumerate(shared):
            for key in keys:
                parent[root(i)] = root(owner.setdefault(key, i))
        roots = [root(i) for i in range(len(self))]
        return roots if len(set(roots)) < len(roots) else None

    def labels(self, column: str) -> list[str] | None:
        """One label a pair from a column of the data; None if there is no such column."""
        return None if self.columns is None else self.columns(column)

    @property
    def fewest(self) -> int:
        """The smallest number of texts that a pair has."""
        return min(len(texts) for texts in self.captions)

    def take(self, indices: Sequence[int] | np.ndarray) -> PairSource:
        """Some of the pairs, in the order given."""
        rows = [int(i) for i in indices]
        load, columns = self.load, self.columns

        def some(name: str) -> list[str] | None:
            values = None if columns is None else columns(name)
            return None if values is None else [values[i] for i in rows]

        return PairSource(
            ids=[self.ids[i] for i in rows], captions=[self.captions[i] for i in rows],
            others=[self.others[i] for i in rows] if self.others else [],
            description=f"{len(rows):,} of {self.description}",
            load=None if load is None else lambda index: load(rows[index]),
            groups=[self.groups[i] for i in rows] if self.groups else [], columns=None if columns is None else some,
        )  # fmt: skip


class _Images(ImageSource):
    classes = ["any"]  # noqa: RUF012

    def __init__(self, pairs: PairSource) -> None:
        self._pairs = pairs
        self.labels = np.zeros(len(pairs), np.int64)
        self.description = f"images of {pairs.description}"
        sizes = {self._size(i) for i in evenly(4, len(pairs))}
        self.native_size = sizes.pop() if len(sizes) == 1 else None

    def __len__(self) -> int:
        return len(self._pairs)

    def load(self, index: int) -> tuple[Picture, int]:
        return self._pairs.image(index), 0

    def name(self, index: int) -> str:
        return f"{self._pairs.description}: {self._pairs.ids[index]}"

    def _size(self, index: int) -> tuple[int, int, int] | None:
        try:
            picture = self._pairs.image(int(index))
        except BadImage:  # named when it is asked for
            return None
        if isinstance(picture, np.ndarray):
            return (picture.shape[-1], *picture.shape[:2]) if picture.ndim == 3 else None
        return (1 if picture.mode == "L" else 3, picture.height, picture.width)


def repeated(ids: Sequence[str]) -> list[str]:
    """Ids that were there before, in order."""
    seen: set[str] = set()
    return [i for i in ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]


def refuse(what: str, offenders: Sequence[str], where: str) -> None:
    """Raise ValueError naming the first ids that are wrong in this way."""
    if offenders:
        more = f" and {len(offenders) - 5:,} more" if len(offenders) > 5 else ""
        raise ValueError(f"{where}: {what}: {', '.join(map(repr, offenders[:5]))}{more}; correct or remove them")
