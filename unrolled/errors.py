"""Errors a caller may want to tell apart. Bad arguments are plain `ValueError`s."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
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
