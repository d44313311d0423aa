"""Results as tables: a short line in a terminal, a table in a notebook, a pandas frame where one is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from unrolled.errors import require

_ITEMS = 8  # of a list that is printed
_ROWS, _COLUMNS = 40, 12  # of a notebook's table; `frame()` has all


class Tabular:
    """What a result made of rows can do; `records` says what they are."""

    def records(self) -> list[dict[str, Any]]:
        """The rows as plain values, each with the same names."""
        raise NotImplementedError

    def frame(self) -> Any:
        """`records` as a pandas table; columns of nested records are joined by dots.

        Raises:
            MissingExtra: pandas is not installed.
        """
        pandas = require("pandas", extra="hf", feature="frame()")
        return pandas.json_normalize(self.records())

    def _repr_html_(self) -> str:
        from unrolled.figures.escaping import escape  # its package draws, and needs NumPy

        records = self.records()
        names = list(dict.fromkeys(name for record in records[:_ROWS] for name in record))
        shown = names[:_COLUMNS]
        head = "".join(f"<th>{escape(name)}</th>" for name in shown)
        rows = [
            "<tr>" + "".join(f"<td>{escape(_cell(record.get(name)))}</td>" for name in shown) + "</tr>"
            for record in records[:_ROWS]
        ]
        left_out = [
            f"{count - limit} more {what}"
            for count, limit, what in ((len(records), _ROWS, "rows"), (len(names), _COLUMNS, "columns"))
            if count > limit
        ]
        more = f"<p>{' and '.join(left_out)}: frame()</p>" if left_out else ""
        summary = escape(repr(self).splitlines()[0])
        return f"<p>{summary}</p><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.records())} rows)"


class Brief:
    """A dataclass, made with `repr=False`, that prints the shapes of its arrays and the sizes of long lists."""

    def __repr__(self) -> str:
        shown = (f"{item.name}={_brief(getattr(self, item.name))}" for item in fields(self) if item.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(shown)})"


def _brief(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and len(shape):
        return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
    if isinstance(value, Mapping) and len(value) <= _ITEMS:
        return "{" + ", ".join(f"{key!r}: {_brief(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple) and len(value) <= _ITEMS:
        return f"[{', '.join(map(_brief, value))}]"
    if isinstance(value, Mapping | list | tuple):
        return f"<{len(value)} of {type(next(iter(value))).__name__}>"
    return repr(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(each) for each in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_cell(each)}" for key, each in value.items())
    return str(value)
