"""Cells for the tests of the mechanism, in a module that worker processes can import."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from unrolled.errors import MissingData
from unrolled.studies.cells import Cell, Context


def count(context: Context, what: str) -> None:
    """Leave a mark in the store for every computation."""
    context.store.mkdir(parents=True, exist_ok=True)
    with (context.store / "computed.txt").open("a", encoding="utf-8") as file:
        file.write(f"{what} {os.getpid()}\n")


@dataclass(frozen=True, kw_only=True)
class Square(Cell):
    """A number times itself; as slow as asked for."""

    number: int
    seed: int = 0
    wait: float = 0.0

    def compute(self, context: Context) -> dict[str, Any]:
        time.sleep(self.wait)
        count(context, f"square{self.number}")
        return {"value": self.number**2, "deep": {"list": [1, 2]}}


@dataclass(frozen=True, kw_only=True)
class Sum(Cell):
    """Of squares, which it needs."""

    squares: tuple[Square, ...]
    seed: int = 0

    def compute(self, context: Context) -> dict[str, Any]:
        count(context, "sum")
        return {"value": sum(context.result(square)["value"] for square in self.squares)}


@dataclass(frozen=True, kw_only=True)
class OfSum(Cell):
    """Needs a sum: a need of a need."""

    sum: Sum
    shift: int = 0

    def compute(self, context: Context) -> dict[str, Any]:
        count(context, "of-sum")
        return {"value": self.shift}


@dataclass(frozen=True, kw_only=True)
class NeedsData(Cell):
    """Cannot be computed without a file."""

    seed: int = 0

    def require(self, context: Context) -> None:
        if not (context.data_dir / "numbers").is_file():
            raise MissingData(f"data_dir: there is no numbers in {context.data_dir}; give data_dir=")

    def compute(self, context: Context) -> dict[str, Any]:
        return {"value": 1}


@dataclass(frozen=True, kw_only=True)
class OnData(Cell):
    """Needs what needs data."""

    data: NeedsData = NeedsData()

    def compute(self, context: Context) -> dict[str, Any]:
        return {"value": 2}


@dataclass(frozen=True, kw_only=True)
class Fails(Cell):
    """Breaks."""

    seed: int = 0

    def compute(self, context: Context) -> dict[str, Any]:
        raise ValueError("this cell is bad")
