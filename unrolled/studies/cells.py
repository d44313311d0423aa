"""A cell: one computation of a study, a trained network included. Its result is kept in one store for all studies.

The store is a folder (`runs/kept`), one file a result, named by what the result follows from: the cell's class, its
fields, its `version`, the code that computes it (`fingerprint`), and the same of the cells it needs. Studies that ask
for the same cell share it without knowing of each other, and a study that was stopped goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from unrolled.errors import MissingData
from unrolled.reading import Json, read_json
from unrolled.studies.fingerprint import fingerprint

if TYPE_CHECKING:
    from unrolled.studies.training import Checkpoint

Result = Json
"""What a cell computes, as the store holds it."""
Columns = dict[str, Any]
"""Fields of cells by name: what rows are selected by, and what cells are made of that have them in common."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a computation needs and its result does not follow from: where things are, and where to compute."""

    store: Path = Path("runs/kept")
    """The store of results and trained networks, shared by all studies."""
    data_dir: Path = Path("data")
    """Folder with the data sets; a data set is what its name says, wherever it lies."""
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    """Folders of single data sets that are not in `data_dir`, by name."""
    device: str = "cpu"
    """Where to compute; a result differs by rounding between devices and stands for all."""

    def result(self, cell: Cell) -> Result:
        """What was computed of a cell, such as one that the asking cell `needs`.

        Raises:
            ValueError: it is not in the store.
        """
        row = stored_row(cell, self)
        if row is None:
            raise ValueError(f"{cell.name} is not computed yet; name it in `needs`")
        return row.result

    def folder(self, data: str) -> Path:
        """The folder to look for a data set in."""
        return self.elsewhere.get(data, self.data_dir)


@dataclass(frozen=True, kw_only=True)
class Cell(ABC):
    """One computation. The fields are its settings, its name, and the columns of its row in `Results`.

    A subclass is a frozen dataclass of plain values and of other frozen dataclasses; what its result follows from is a
    field, what it does not follow from is in the `Context`. A field that says how many points are drawn, not what is
    drawn, is still a field.
    """

    version: ClassVar[int] = 1
    """Raise it when equal fields shall give another result although the code below looks the same."""

    alone: ClassVar[bool] = False
    """Whether it measures time, and so is computed in the study's own process while no other cell is."""

    @abstractmethod
    def compute(self, context: Context) -> Result:
        """The result: plain values by name, which follow from the fields alone."""

    @property
    def needs(self) -> Sequence[Cell]:
        """Cells that are computed first, such as the training of a network that is looked at: those in the fields.

        A cell that has another only for its settings says so, by returning none.
        """
        values = [getattr(self, each.name) for each in fields(self)]
        parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
        return tuple(part for part in parts if isinstance(part, Cell) and part.awaited)

    @property
    def awaited(self) -> bool:
        """Whether a cell that has this one in a field needs its result; not of a network that is never trained."""
        return True

    def require(self, context: Context) -> None:  # noqa: B027 (most cells need nothing)
        """Raise `MissingData`, naming folder and flag, where the cell cannot be computed; the study goes on without."""

    @cached_property
    def columns(self) -> Columns:
        """The fields by name; those of a nested record stand beside the others.

        Raises:
            ValueError: two nested records have a field of one name and differ in it.
        """
        flat: Columns = {}
        for each in fields(self):
            value = getattr(self, each.name)
            part = _fields_of(value) if is_dataclass(value) else {each.name: value}
            for name in flat.keys() & part.keys():
                if flat[name] != part[name]:
                    raise ValueError(f"{type(self).__name__}: {name} is {flat[name]} and {part[name]}; they must agree")
            flat |= part
        return flat

    @cached_property
    def digest(self) -> str:
        """Of all that the result follows from: 16 hexadecimal digits."""
        return sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def key(self) -> Json:
        """What `digest` is of, plain values."""
        return {
            "cell": _plain(self),
            "version": type(self).version,
            "code": fingerprint(type(self)),
            "needs": [need.digest for need in self.needs],
        }

    @property
    def name(self) -> str:
        """What progress calls it: the class, cells among its fields, texts, and numbers by name: `Layer seed 0`."""
        values = [getattr(self, each.name) for each in fields(self)]
        parts = [part for value in values for part in (value if _is_pair(value) else (value,))]
        inner = [part for part in parts if isinstance(part, Cell)]
        of_inner = {column for cell in inner for column in cell.columns}
        plain = {column: value for column, value in self.columns.items() if column not in of_inner and _is_short(value)}
        texts = [value for value in plain.values() if isinstance(value, str)]
        numbers = [f"{column} {value:g}" for column, value in plain.items() if not isinstance(value, str)]
        return " ".join(
            [type(self).__name__, *(f"({cell.name})" for cell in inner), *texts, ", ".join(numbers)]
        ).strip()

    def file(self, context: Context, suffix: str) -> Path:
        """A file of this cell in the store, such as its weights: made by `compute`, read by cells that need it."""
        return self.folder(context) / f"{self.digest}{suffix}"

    def folder(self, context: Context) -> Path:
        """Where the store keeps all cells of this class."""
        return context.store / type(self).__name__

    def checkpoint(self, context: Context, part: str = "") -> Checkpoint:
        """Where a training in `compute` saves itself as it goes; `part` tells several of one cell apart."""
        from unrolled.studies.training import Checkpoint

        return Checkpoint(self.file(context, f"{part and '-'}{part}.pt"), f"{self.digest}{part}")


CellT = TypeVar("CellT", bound=Cell, covariant=True)


class Row(NamedTuple, Generic[CellT]):
    """A cell, its result, and the seconds it took when it was computed, without what it needs."""

    cell: CellT
    result: Result
    seconds: float


def stored_row(cell: Cell, context: Context) -> Row[Cell] | None:
    """The row of a cell that is in the store; None of any other, or where the file is damaged."""
    try:
        if not cell.folder(context).is_dir():  # nothing of its kind: no need to read the code that its digest is of
            return None
        record = read_json(cell.file(context, ".json"))
        return Row(cell, record["result"], float(record["seconds"])) if record["key"] == cell.key else None
    except (OSError, ValueError, KeyError, TypeError):  # not there, or cut short
        return None


def computed(cell: Cell, context: Context) -> Row[Cell]:
    """The row of a cell, from the store or computed and put there, whole or not at all; what it needs must be there."""
    row = stored_row(cell, context)
    if row is not None:
        return row
    began = time.perf_counter()
    # as it will read from the store, so that the first report and the second are the same
    result = json.loads(json.dumps(dict(cell.compute(context))))
    seconds = time.perf_counter() - began
    path = cell.file(context, ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"key": cell.key, "seconds": seconds, "result": result}), encoding="utf-8")
    part.replace(path)
    return Row(cell, result, seconds)


def data_missing(data: str, error: MissingData, *, argument: str = "data_dir") -> MissingData:
    """One sentence that a study's `data` are not there, why, and the argument that says where they are."""
    first = error.__cause__ if isinstance(error.__cause__, MissingData) else error
    return MissingData(f"data_dir: {data} was not found ({str(first).removeprefix('data_dir: ')}); give {argument}=")


def _is_pair(value: Any) -> bool:
    """Whether it is two cells, which have a name each; longer lists would make no name."""
    return isinstance(value, tuple) and len(value) == 2


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _fields_of(record: Any) -> Columns:
    if isinstance(record, Cell):
        return record.columns
    return {each.name: getattr(record, each.name) for each in fields(record)}


def _plain(value: Any) -> Any:
    """`value` as JSON holds it; a record says its class, so that equal fields of two classes differ.

    Raises:
        TypeError: a value that a key cannot be made of.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__qualname__, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    raise TypeError(f"a field of a cell holds a {type(value).__name__}; give plain values or frozen dataclasses")
