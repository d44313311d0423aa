"""Templates of pages: everything that is put into one is escaped, but for what this package marked as finished."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from unrolled.figures.escaping import escape, typeset
from unrolled.figures.style import DARK_VARIABLES, FIGURE_CSS, LIGHT_VARIABLES
from unrolled.report.parts import Cell, column_texts, config_lines
from unrolled.report.provenance import Provenance

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_VARIABLES = (
    f":root{{{LIGHT_VARIABLES}--wash:#f5f6f8;--accent:#0067a5}}\n"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{DARK_VARIABLES}--wash:#1d2126;--accent:#6cb8ee}}}}\n"
)
_VERDICTS = {"reproduced": "met", "not reproduced": "not met"}


def page(template: str, *, title: str, description: str, sheets: Sequence[str] = ("page.css",), **values: Any) -> str:
    """A page that needs nothing else.

    Args:
        template: file in `templates/`.
        title: in the tab.
        description: for who finds the page.
        sheets: style sheets beside this file, in order.
        **values: what the template shows.
    """
    from markupsafe import Markup

    style = _VARIABLES + "".join(files("unrolled.report").joinpath(name).read_text("utf-8") for name in sheets)
    return _environment().get_template(template).render(
        title=title, description=description, style=Markup(style + FIGURE_CSS), **values
    )  # fmt: skip


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("unrolled.report", "templates"),
        autoescape=True,
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": breakable,
        "code": code,
        "columns": _columns,
        "longest_word": lambda text: max(map(len, re.split(r"\s+", text))),
        "numeric": lambda rows, count: [_is_numeric([row[i] for row in rows]) for i in range(count)],
        "paragraphs": lambda text: [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()],
        "texts": _texts,
        "verdict": verdict_word,
    }
    return environment


def _escaped(value: Any) -> Markup:
    from markupsafe import Markup

    return value if isinstance(value, Markup) else Markup(escape(typeset(str(value))))


def code(text: str) -> Markup:
    """Text in which `backticks` mark code."""
    from markupsafe import Markup

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(typeset(text))))


def breakable(text: str) -> Markup:
    """A title, whose long names may break after the signs in them, as `crate_nano_patch4_32.cifar10` before its end."""
    from markupsafe import Markup

    def broken(word: re.Match[str]) -> str:
        parts = re.sub(r"([_./:=])(?=\w)", r"\1<wbr>", word[0])
        return f'<span class="name">{parts}</span>'

    return Markup(re.sub(r"\S{20,}", broken, escape(typeset(text))))


def verdict_word(verdict: str) -> str:
    """A verdict as pages show it."""
    return _VERDICTS.get(verdict, verdict)


def duration(seconds: float) -> str:
    """`8.2 s`, `1 min 24 s`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def made(record: Provenance) -> dict[str, Any]:
    """What the template shows of how a report came to be."""
    run = [("date", record.created), ("seeds", ", ".join(map(str, record.seeds)))]
    if record.duration is not None:
        run.append(("duration", duration(record.duration)))
    groups = [("Run", run), ("Hardware", list(record.hardware.items())), ("Versions", list(record.versions.items()))]
    known = [(title, [(name, value) for name, value in pairs if value]) for title, pairs in groups]
    return {
        "command": record.command,
        "config": "\n".join(f"{name}: {value}" for name, value in config_lines(record.config)),
        "groups": [(title, pairs) for title, pairs in known if pairs],
    }


def _columns(count: int) -> int:
    """In how many columns facts stand so that the last is not left alone in a row."""
    if count <= 4:
        return count
    return min((4, 3), key=lambda columns: (count % columns == 1, count % columns != 0))


def _texts(rows: Sequence[Sequence[Cell]]) -> list[tuple[str, ...]]:
    return list(zip(*map(column_texts, zip(*rows, strict=True)), strict=True))


def _is_numeric(cells: Sequence[Cell]) -> bool:
    def numeric(cell: Cell) -> bool:
        return cell is None or isinstance(cell, int | float) or re.match(r"(< )?[−+-]?\d", cell) is not None

    known = [cell for cell in cells if cell not in ("", "-", "–")]
    return bool(known) and all(numeric(cell) for cell in known)
