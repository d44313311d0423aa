"""The reference of the command line: a page for each verb, from its docstring and the records that hold its flags."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from unrolled import cli
from unrolled.commands.verbs import Verb

_SKIP = ("*",)
_TYPES = {str: "text", int: "whole number", float: "number", bool: "", Path: "path"}
_OWN = "Parameters"  # what the parser calls the flags of no group


def pages() -> dict[str, str]:
    """Place -> text."""
    found = {"reference/commands/index.md": _front()}
    for name, verb in cli.VERBS.items():
        found[f"reference/commands/{name}.md"] = _page(name, verb)
    return found


def _front() -> str:
    rows = [f"| [`unrolled {name}`]({name}.md) | {verb.help} |" for name, verb in cli.VERBS.items()]
    codes = (cli.__doc__ or "").partition("Exit codes")[2]
    return "\n".join(
        [
            "# Command line\n",
            "| verb | what |",
            "|---|---|",
            *rows,
            "",
            f"{cli._EPILOGUE}\n",
            f"Exit codes{codes}",
        ]
    )


def _page(name: str, verb: Verb) -> str:
    parts = [f"# unrolled {name}\n"]
    for task in ("", *verb.tasks):
        words = [name, "--task", task] if task else [name]
        app = cli.build(words)[name]
        if task:
            parts.append(f"## With `--task {task}`\n")
        parts.append(_help(app.help))
        parts.append(_flags(app, level=3 if task else 2))
    return "\n".join(parts)


def _help(text: str) -> str:
    """A verb's docstring; its indented examples as a block of commands."""
    first, _, rest = inspect.cleandoc(text).partition("\n")
    out, block = [first], []
    for line in [*textwrap.dedent(rest).splitlines(), ""]:
        if line.startswith("    ") and line.strip():
            block.append(line[4:])
            continue
        if block:
            out += ["```bash", *block, "```"]
            block = []
        out.append(line)
    return "\n".join(out)


def _flags(app: Any, level: int) -> str:
    """Every flag by group: how it is written, what it takes, its default, and its help."""
    groups: dict[str, list[str]] = {}
    for argument in app.assemble_argument_collection(parse_docstring=True):
        parameter = argument.parameter
        if argument.names[:1] == _SKIP or parameter.show is False or not argument.names:
            continue
        title = parameter.group[0].name if parameter.group else _OWN
        title = "Its own flags" if title == _OWN else title
        names = ", ".join(f"`{each}`" for each in dict.fromkeys((*argument.names, *argument.negatives)))
        default = argument.field_info.default
        shown = "required" if argument.required else _default(default)
        help_ = " ".join((parameter.help or "").split()).replace("|", "\\|")
        groups.setdefault(title, []).append(f"| {names} | {_kind(argument.hint)} | {shown} | {help_} |")
    parts = []
    for title, rows in groups.items():
        parts += [f"{'#' * level} {title}\n", "| flag | takes | default | |", "|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _default(value: Any) -> str:
    if value is None or value is inspect.Parameter.empty or value in ((), {}):
        return ""
    words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{words}`" if words else ""


def _kind(hint: Any) -> str:
    """A type as a person says it."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _kind(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in parts if part is not NoneType))
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (tuple, list, Sequence):
        fixed = origin is tuple and parts[-1] is not Ellipsis
        return f"{len(parts)} times: {_kind(parts[0])}" if fixed else f"{_kind(parts[0])}, several"
    if origin is dict:
        return "name and value"
    return _TYPES.get(hint, getattr(hint, "__name__", str(hint)))
