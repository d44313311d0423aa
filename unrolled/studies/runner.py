"""Computing the cells of a study: what they need first, several at a time, each once; what cannot be is said why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from unrolled.errors import MissingData, require
from unrolled.studies.cells import Cell, Context, Row, computed, stored_row
from unrolled.studies.fingerprint import vouch

Say = Callable[[str], None]
NOT_KEPT = "not computed yet, and only what is kept was asked for (only_kept)"


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What came of the cells of a study.

    Attributes:
        rows: of the cells that were asked for, in their order.
        missing: why each of the others has none.
        seconds: that all rows took, and what they need, whenever they were computed.
    """

    rows: tuple[Row[Cell], ...]
    missing: dict[Cell, str]
    seconds: float


def compute_all(
    cells: Iterable[Cell],
    context: Context,
    *,
    workers: int = 1,
    cluster: str | None = None,
    only_kept: bool = False,
    on_progress: Say | None = None,
) -> Computed:
    """The rows of `cells`, from the store where they are kept, computed where they are not.

    Cells that need others wait for them. One that lacks its data, and those that need it, are left out and the reason
    kept. A process that is killed loses the cells it was computing, of a training what came after the last save.

    Args:
        cells: of the study; the same one may come twice.
        context: where the store, the data and the device are.
        workers: cells computed at a time, each in a process of one thread; 1 stays in this process.
        cluster: address of a Dask scheduler whose workers compute instead; they must see the same folders.
        only_kept: compute nothing.
        on_progress: given a line when a cell is done.
    """
    wanted = list(dict.fromkeys(cells))
    order = _ordered(wanted)
    rows: dict[Cell, Row[Cell]] = {}
    missing: dict[Cell, str] = {}
    for cell in order:
        if (row := stored_row(cell, context)) is not None:
            rows[cell] = row
    # what only a kept cell needs is not computed for it
    asked = _asked(wanted, rows)
    left = [cell for cell in order if cell in asked and cell not in rows]
    for cell in left:
        if (reason := _reason(cell, context, missing, only_kept)) is not None:
            missing[cell] = reason
    left = [cell for cell in left if cell not in missing]
    progress = _Progress(left, rows, workers, on_progress)
    while left:
        ready = [cell for cell in left if all(need in rows or need not in asked for need in cell.needs)]
        for row in _finished(ready, context, workers, cluster):
            rows[row.cell] = row
            progress.done(row)
        left = [cell for cell in left if cell not in rows]
    present = [cell for cell in wanted if cell in rows]
    behind = dict.fromkeys(each for cell in present for each in (*_below(cell), cell) if each in rows)
    return Computed(
        rows=tuple(rows[cell] for cell in present),
        missing={cell: reason for cell, reason in missing.items() if cell in wanted},
        seconds=sum(rows[cell].seconds for cell in behind),
    )


def _ordered(cells: Sequence[Cell]) -> list[Cell]:
    """`cells` and all that they need, needs first."""
    return list(dict.fromkeys(each for cell in cells for each in (*_below(cell), cell)))


def _below(cell: Cell) -> Iterator[Cell]:
    for need in cell.needs:
        yield from _below(need)
        yield need


def _asked(cells: Iterable[Cell], rows: dict[Cell, Row[Cell]]) -> set[Cell]:
    """`cells`, and what those that are not kept need."""
    asked: set[Cell] = set()
    queue = list(cells)
    while queue:
        cell = queue.pop()
        if cell not in asked:
            asked.add(cell)
            if cell not in rows:
                queue += cell.needs
    return asked


def _reason(cell: Cell, context: Context, missing: dict[Cell, str], only_kept: bool) -> str | None:
    """Why a cell that is not kept cannot be computed; None if it can."""
    if only_kept:
        return f"{cell.name}: {NOT_KEPT}"
    for need in cell.needs:
        if need in missing:
            return missing[need]
    try:
        cell.require(context)
    except MissingData as error:
        return str(error)
    return None


def _finished(cells: Sequence[Cell], context: Context, workers: int, cluster: str | None) -> Iterator[Row[Cell]]:
    """The row of every cell as it is computed; the first error is raised, and what has not begun never begins."""
    together = [cell for cell in cells if not cell.alone]
    workers = min(workers, len(together))
    here = cells if workers < 2 and cluster is None else [cell for cell in cells if cell.alone]
    for cell in here:
        yield computed(cell, context)
    if len(here) == len(cells):
        return
    import joblib

    codes = {type(each): each.key["code"] for cell in together for each in (cell, *_below(cell))}
    with _backend(workers, cluster):
        pool = joblib.Parallel(return_as="generator_unordered")
        yield from pool(joblib.delayed(_in_worker)(cell, context, codes, os.getpid()) for cell in together)


@contextmanager
def _backend(workers: int, cluster: str | None) -> Iterator[None]:
    import joblib

    client: AbstractContextManager[Any] = nullcontext()
    if cluster is not None:
        client = require("distributed", extra="many", feature="cluster").Client(cluster)
    with client:
        how = {"backend": "dask"} if cluster else {"backend": "loky", "n_jobs": workers, "inner_max_num_threads": 1}
        with joblib.parallel_config(**how):
            yield


def _in_worker(cell: Cell, context: Context, codes: dict[type, str], parent: int) -> Row[Cell]:
    """`computed` in another process, which trusts its caller for the code and ends when the caller is gone."""
    import torch

    vouch(codes)
    if os.getppid() == parent:  # not on a cluster
        torch.set_num_threads(1)
        _end_with(parent)
    return computed(cell, context)


_watching = False


def _end_with(parent: int) -> None:
    global _watching
    import threading
    import time

    if _watching:
        return
    _watching = True

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Progress:
    """Lines such as `3 of 12, about 4 min left: Layer 0 2 10`."""

    def __init__(self, left: Sequence[Cell], rows: dict[Cell, Row[Cell]], workers: int, say: Say | None) -> None:
        self.left, self.workers, self.say = list(left), max(1, workers), say
        self.count, self.total = 0, len(left)
        self.known: dict[type, list[float]] = {}
        for row in rows.values():
            self.known.setdefault(type(row.cell), []).append(row.seconds)
        if say is not None and rows:
            say(f"{len(rows)} kept, {self.total} to compute{self._time()}")

    def done(self, row: Row[Cell]) -> None:
        self.left.remove(row.cell)
        self.count += 1
        self.known.setdefault(type(row.cell), []).append(row.seconds)
        if self.say is not None:
            self.say(f"{self.count} of {self.total}{self._time()}: {row.cell.name}, {row.seconds:.0f} s")

    def _time(self) -> str:
        """How long the rest will take, from cells of the same kind; nothing where none is known."""
        if not self.left or any(type(cell) not in self.known for cell in self.left):
            return ""
        seconds = sum(fmean(self.known[type(cell)]) for cell in self.left) / min(self.workers, len(self.left))
        return f", about {f'{seconds:.0f} s' if seconds < 100 else f'{seconds / 60:.0f} min'} left"
