"""What the command line says: progress and notes on stderr, answers on stdout; names in them move no cursor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from unrolled.reading import printable

T = TypeVar("T")

_spelling: Callable[[str], str] = str


@contextmanager
def typed_as(spelling: Callable[[str], str]) -> Iterator[None]:
    """Within the block a command line runs: `spelling` says of its flags what the library says of its arguments."""
    global _spelling
    before, _spelling = _spelling, spelling
    try:
        yield
    finally:
        _spelling = before


def as_typed(note: str) -> str:
    """A note with the arguments that it names spelled as whoever reads it gives them: in Python, or as flags."""
    return _spelling(note)


def progress(items: Iterable[T], *, total: int | None, what: str, quiet: bool, unit: str = "batch") -> Iterator[T]:
    """`items` with a bar on stderr that says how many of them, called `unit`, are done, and the time left."""
    from tqdm import tqdm

    # None: no bar where stderr is not a terminal
    yield from tqdm(items, total=total, desc=what, unit=unit, disable=quiet or None, file=sys.stderr, leave=False)


def say(text: str, *, quiet: bool = False) -> None:
    """A line on stderr."""
    if not quiet:
        print(printable(text, keep="\n\t"), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Lines on stdout."""
    print(printable(text, keep="\n\t"), flush=True)


def table(columns: list[str], rows: list[list[str]], *, left: int = 1) -> str:
    """Rows under their columns, aligned to the right except for the first `left`."""
    columns, *rows = ([printable(cell) for cell in row] for row in [columns, *rows])
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = []
    for row in [columns, *rows]:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
