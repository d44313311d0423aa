"""Who may name code: a person may, a file that somebody else made may not.

Some settings name code that is then imported and called (`--model package.module:factory`), or an address that is
connected to. On the command line or in Python they mean what they say. Where they were read from a file (the
config.yaml of a run, the config.json of a model, a file of models to compare), they are refused in one sentence, unless
the same was typed as well or the command has `--trust`. Whatever reads settings from a file passes them through
`check`, and what imports code does it with `import_factory`, which on a command line knows only what was typed there.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from unrolled.errors import UnsafeFile, check_finite

KINDS_OF_MODELS = frozenset({"given", "hf", "local", "st", "timm", "tv"})
"""What stands before the colon of a model that is built without importing code that the string chooses."""
MODEL_FILES = (".gguf", ".onnx")
"""Endings of files that are a model by themselves: what ends so is a path, of which nothing is run."""
_ADDRESS = re.compile(r"(?i)pipe:|(?!hf://)[a-z][a-z0-9+.-]*://")

LOADING = frozenset(
    {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args",
     "trust_remote_code"}
)  # fmt: skip
"""Arguments of timm and transformers that say which weights or code to load from where."""

_typed: frozenset[str] | None = None
"""What a person wrote on the command line that is running; None: there is none, every string is the program's own."""
_trusted = False


@contextlib.contextmanager
def command_line(tokens: Sequence[str], *, trusted: bool = False) -> Iterator[None]:
    """Inside, only what is among `tokens` or in an `UNROLLED_*` variable counts as typed; of files, all with
    `trusted`."""
    global _typed, _trusted
    before = _typed, _trusted
    words = [*tokens, *(token.partition("=")[2] for token in tokens if token.startswith("--"))]
    words += [value for name, value in os.environ.items() if name.startswith("UNROLLED_")]
    _typed, _trusted = frozenset(filter(None, words)), trusted
    try:
        yield
    finally:
        _typed, _trusted = before


@contextlib.contextmanager
def trusting() -> Iterator[None]:
    """Inside, files may name code, as with `--trust`."""
    global _trusted
    before, _trusted = _trusted, True
    try:
        yield
    finally:
        _trusted = before


def _allowing() -> str:
    """What to do so that files may name code."""
    return "open it within `unrolled.trust.trusting()`" if _typed is None else "add --trust"


def consequence(name: str, value: Any) -> str | None:
    """What using a setting would do that a file may not ask for, as in "import os and call system"; None if nothing.

    Args:
        name: of the setting: `model`, `data`, ...
        value: anything a file may hold there.
    """
    if isinstance(value, list | tuple):
        return next((result for each in value if (result := consequence(name, each))), None)
    if not isinstance(value, str):
        return None
    kind, colon, rest = value.partition(":")
    if name in ("model", "models", "teacher", "a", "b", "architecture") and colon and kind not in KINDS_OF_MODELS:
        return f"import {kind} and call {rest}"
    if name == "data" and kind == "wds":
        return next((f"open {part}" for part in rest.split(";") if _ADDRESS.match(part)), None)
    if name in ("scheduler", "cluster"):
        return f"connect to the Dask scheduler {value}, which can run code here"
    return None


def check(name: str, value: Any, where: Path | str) -> None:
    """Refuse the value of a setting that was read from a file, if it names code.

    Args:
        name: of the setting.
        value: what the file says.
        where: the file, as the message names it.

    Raises:
        UnsafeFile: saying what would happen, and how to allow it.
    """
    for each in value if isinstance(value, list | tuple) else (value,):
        done = consequence(name, each)
        if done is not None and not (_trusted or (_typed is not None and each in _typed)):
            if name == "architecture":
                weights = "its weights" if _typed is None else "its --weights"
                way = f"give {each} as the model and this folder as {weights}"
            else:
                way = f"give {name}= yourself" if _typed is None else "type it"
            way += "" if _typed is None else " on the command line"
            raise UnsafeFile(
                f"{where}: its {name} {each!r} would {done}, which no file may do by itself; {way}, or {_allowing()} "
                "if you trust whoever made the file"
            )


def check_settings(settings: Mapping[str, Any], where: Path | str) -> None:
    """`check` of every setting."""
    for name, value in settings.items():
        check(name, value, where)


def require_typed(name: str, value: Any) -> None:
    """Where a setting is acted on: refuse what names code and was not typed on the command line that is running.

    Raises:
        UnsafeFile: as `check`; outside a command line, never.
    """
    if _typed is not None:
        check(name, value, "a file")


def check_model_args(arguments: Any, where: Path | str = "model_args") -> dict[str, Any]:
    """The arguments of a model, as a mapping without those that say what to load and from where.

    Raises:
        ValueError: they are no mapping, one of them is of `LOADING`, or infinite or NaN.
    """
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f"{where}: must be `name: value` pairs, not {arguments!r:.60}")
    if loading := sorted(LOADING.intersection(arguments)):
        raise ValueError(f"{where}: {loading[0]} is no argument of a model but of loading one; leave it out")
    for name, value in arguments.items():
        check_finite(value, f"{where}: {name}")
    return dict(arguments)


def check_nothing_leads_out(folder: Path, named: str) -> None:
    """Refuse to write where somebody else's links lead: `config.yaml` may be one to a file that a shell runs.

    Args:
        folder: the folder that is about to be written to.
        named: what it was called, for the message.

    Raises:
        UnsafeFile: something in the folder, at any depth, is a link to what lies outside of it, or a pipe or a device,
            which would be waited for.
    """
    if _trusted:
        return
    inside = os.path.realpath(folder)
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # .venv, .git: nothing is written there
        for path in (os.path.join(at, name) for name in (*folders, *files)):
            if os.path.islink(path) and not Path(target := os.path.realpath(path)).is_relative_to(inside):
                raise UnsafeFile(
                    f"out={named!r}: {path} is a link to {target}, which would be written over; remove the link, "
                    f"choose another out=, or {_allowing()} if you made it"
                )
            usual = os.path.isfile(path) or os.path.isdir(path) or os.path.islink(path)
            if not usual and not os.path.basename(path).startswith("."):  # `.lock` is judged by who takes it
                raise UnsafeFile(f"out={named!r}: {path} is a pipe or a device; remove it, or choose another out=")


def import_factory(spec: str) -> ModuleType:
    """Import the module of `package.module:factory`; on a command line modules of the working folder are found too.

    Raises:
        UnsafeFile: a command line is running, and nobody typed this on it.
        ModuleNotFoundError: as `import`.
    """
    require_typed("model", spec)
    if _typed is not None and os.getcwd() not in sys.path:  # not earlier: one may look into a folder of somebody else
        sys.path.append(os.getcwd())
    return importlib.import_module(spec.partition(":")[0])
