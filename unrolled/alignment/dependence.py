"""Which samples may trade places by chance: single rows, whole groups of dependent rows, or blocks of ordered rows.

Captions of one photo, crops of one image, frames of a video or sentences of a document resemble each other on both
sides whether the sides agree or not, so a null that relabels single rows is false: independent sides look aligned. What
may trade places are the units that were sampled independently. Groups trade places with groups of their own size,
keeping the order inside; a group whose size no other has stays where it is, which costs power and not validity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Groups = Sequence[Any] | np.ndarray | Tensor
Blocks = int | Literal["shift"]

_FEWEST = 20  # relabellings below which no p-value can reach 0.05


@dataclass(frozen=True)
class Units:
    """The units of `n` rows that are independent of each other.

    Attributes:
        n: rows.
        members: rows of each unit in order; None where every row is one.
        shift: the rows are a series, relabelled by circular shifts; `members` are then blocks of about sqrt(n) rows,
            which are resampled and left out whole.
        description: what they are, in words; "" for single rows.
    """

    n: int
    members: tuple[Tensor, ...] | None = None
    shift: bool = False
    description: str = ""

    @classmethod
    def of(cls, n: int, groups: Groups | None = None, blocks: Blocks | None = None) -> Units:
        """From one label a row (equal labels belong together), or from rows in order.

        Args:
            n: rows.
            groups: [n] labels: numbers or strings.
            blocks: rows of a block that moves whole, long against how far rows depend on each other; or "shift", which
                shifts the whole series circularly. Few blocks are liberal: neighbours across a border come apart
                (60 rows of an AR(0.6) series in six blocks: 8.5 to 9.5 % at 5 %); shifts hold.

        Raises:
            ValueError: both are given, labels of another number of rows, or so few equal groups or blocks that no
                p-value could reach 0.05.
        """
        if groups is not None and blocks is not None:
            raise ValueError("give groups or blocks, not both: groups of rows in order are blocks already")
        if groups is not None:
            members = _members(groups, n)
            if len(members) == n:
                return cls(n)
            sizes = sorted(len(rows) for rows in members)
            of = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
            units = cls(n, members, description=f"{len(members):,} groups of {of} rows")
        elif blocks == "shift":
            units = cls(
                n, _blocks(n, max(2, round(math.sqrt(n)))), shift=True, description="circular shifts of a series"
            )
        elif blocks is not None:
            if not isinstance(blocks, int) or isinstance(blocks, bool) or not 1 <= blocks < n:
                raise ValueError(f"blocks must be a number of rows from 1 to {n - 1} or 'shift', got {blocks!r}")
            if blocks == 1:
                return cls(n)
            units = cls(n, _blocks(n, blocks), description=f"blocks of {blocks} rows")
        else:
            return cls(n)
        if units.orders < _FEWEST:
            name = "groups" if groups is not None else "blocks"
            raise ValueError(
                f"{name}: {units.description} can trade places in {units.orders:.0f} ways only, as only units of one "
                f"size do: no p-value could reach 0.05; give more of them, or of equal size"
            )
        return units

    @property
    def count(self) -> int:
        """How many units there are."""
        return self.n if self.members is None else len(self.members)

    @property
    def orders(self) -> float:
        """How many relabellings there are."""
        if self.shift:
            return float(self.n)
        log = sum(math.lgamma(count + 1) for count in self._sizes().values())
        return math.exp(log) if log < 700 else math.inf

    def relabellings(self, draws: int, seed: int = 0, *, apart: Tensor | None = None) -> Iterator[Tensor]:
        """`draws` uniform permutations [n] of the units; a seed gives the same ones on every device.

        Args:
            draws: how many.
            seed: of the draws.
            apart: [n] bool; rows of True and of False do not trade places. Units must not be divided by it.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.shift:
            rows = torch.arange(self.n)
            for _ in range(draws):
                yield (rows + int(torch.randint(self.n, (1,), generator=generator))) % self.n
            return
        if self.members is None and apart is None:
            for _ in range(draws):
                yield torch.randperm(self.n, generator=generator)
            return
        strata = self._strata(apart)
        for _ in range(draws):
            order = torch.arange(self.n)
            for units in strata:
                order[units.flatten()] = units[torch.randperm(len(units), generator=generator)].flatten()
            yield order

    def parts(self, count: int, seed: int) -> list[Tensor]:
        """Rows in `count` random parts of whole units."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        return [self._rows(part) for part in order.tensor_split(count)]

    @property
    def subsample(self) -> int:
        """Units of a subsample: three quarters of them."""
        return min(self.count - 1, round(0.75 * self.count))

    def subsamples(self, draws: int, seed: int = 0) -> Iterator[Tensor]:
        """Rows of random subsamples of the units, without replacement."""
        generator = torch.Generator().manual_seed(seed)
        return (self._rows(torch.randperm(self.count, generator=generator)[: self.subsample]) for _ in range(draws))

    def of_rows(self, rows: Tensor) -> Units:
        """The units among some of the rows, which become rows 0, 1, ...; units must not be divided."""
        if self.members is None:
            return Units(len(rows))
        place = torch.full((self.n,), -1)
        place[rows] = torch.arange(len(rows))
        members = tuple(place[unit] for unit in self.members if int(place[unit[0]]) >= 0)
        return Units(len(rows), members, description=self.description)

    def _rows(self, units: Tensor) -> Tensor:
        return units if self.members is None else torch.cat([self.members[i] for i in units.tolist()])

    def _strata(self, apart: Tensor | None) -> list[Tensor]:
        """[units, rows] of each set of units that trade places."""
        members = self.members or tuple(torch.arange(self.n)[:, None])
        by_kind: dict[tuple[int, bool], list[Tensor]] = {}
        for unit in members:
            by_kind.setdefault((len(unit), apart is not None and bool(apart[unit[0]])), []).append(unit)
        return [torch.stack(units) for units in by_kind.values()]

    def _sizes(self) -> dict[int, int]:
        sizes: dict[int, int] = {}
        for unit in self.members or ():
            sizes[len(unit)] = sizes.get(len(unit), 0) + 1
        return sizes if self.members is not None else {1: self.n}


def relabellings(
    n: int, draws: int, seed: int = 0, *, groups: Groups | None = None, blocks: Blocks | None = None
) -> Iterator[Tensor]:
    """`draws` uniform permutations [n]; whole groups or blocks move where these are given (see `Units.of`)."""
    return Units.of(n, groups, blocks).relabellings(draws, seed)


def _members(groups: Groups, n: int) -> tuple[Tensor, ...]:
    values = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if values.dtype == object:
        if lacking := sum(label is None or label != label for label in values.ravel()):
            raise ValueError(f"groups has {lacking} missing labels (None or NaN): give each such row one of its own")
        values = values.astype(str)
    if values.shape != (n,):
        raise ValueError(f"groups must be one label for each of the {n} rows, got shape {tuple(values.shape)}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("groups has labels that are not numbers (NaN or infinite)")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    rows = torch.from_numpy(np.argsort(inverse.reshape(-1), kind="stable"))
    return tuple(rows.split(counts.tolist()))


def _blocks(n: int, length: int) -> tuple[Tensor, ...]:
    return tuple(torch.arange(n).split(length))
