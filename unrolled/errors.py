"""Errors a caller may want to tell apart. Bad arguments are plain `ValueError`s."""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any


class MissingExtra(ImportError):
    """A package that only some features need is not installed."""


class MissingData(FileNotFoundError):
    """Data or weights that were asked for are not where they should be."""


class UnsafeFile(ValueError):
    """A file that would have to run code to be read; it was refused, not executed."""


class CorruptFile(ValueError):
    """A file that is truncated or damaged."""


class TrainingStopped(RuntimeError):
    """Training could not go on (non-finite loss, undecodable image); the message says where."""


def check_finite(value: Any, name: str) -> None:
    """Refuse infinite numbers and NaN, alone or in lists and mappings: no setting has a use for them.

    Raises:
        ValueError: there is one.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number")
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    for item in parts:
        check_finite(item, name)


def nearest(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """What of `known` may be meant by `name`: the same but for case and signs, spelled nearly so, one that is a part of
    the other, or that is spelled alike."""
    plain = {each: re.sub(r"[\W_]+", "", each.lower()) for each in known}
    wanted = re.sub(r"[\W_]+", "", name.lower())
    if wanted and (same := [each for each, letters in plain.items() if letters == wanted]):
        return same[:most]
    lower = {each.lower(): each for each in plain}
    if typed := difflib.get_close_matches(name.lower(), lower, n=most, cutoff=0.9):
        return [lower[each] for each in typed]
    parts = {each: re.split(r"[\W_]+", each.lower()) for each in [name, *plain]}
    if held := [each for each in plain if each.lower() in parts[name] or name.lower() in parts[each]]:
        return held[:most]
    return [lower[each] for each in difflib.get_close_matches(name.lower(), lower, n=most)]


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean 'a'?`, or what is known where nothing is near."""
    names = list(known)
    near = nearest(name, names)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"


def require(module: str, *, extra: str, feature: str) -> ModuleType:
    """Import `module`, or say in one sentence which extra provides it.

    Args:
        module: importable name, e.g. `"datasets"`.
        extra: the extra of this package that installs it, e.g. `"hf"`.
        feature: what needs it, used in the message.

    Raises:
        MissingExtra: `module` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtra(
            f"{feature} needs `{module}`, which is not installed: pip install 'unrolled[{extra}]'"
        ) from error
