"""Results of studies that do not yet compute by cells: kept by name in the study's own folder."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from unrolled.reading import read_json
from unrolled.studies.training import Checkpoint


def checkpoint(path: Path | None, settings: Mapping[str, Any]) -> Checkpoint | None:
    """Where a training is kept; a file counts only for equal settings and unchanged code. None if `path` is."""
    return None if path is None else Checkpoint(path, _key(settings))


def remembered(
    folder: Path, name: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The result of one cell of a study, kept in `folder` so that an interrupted study goes on where it stopped.

    A kept result counts only for equal settings and unchanged code of what computes results.

    Args:
        folder: made if need be.
        name: of the cell; its file is `name`.json.
        settings: all that the result depends on, plain values.
        compute: the result, plain values.
    """
    key = _key(settings)
    path = folder / f"{name}.json"
    if path.is_file():
        try:
            kept = read_json(path)
        except ValueError:  # cut short while it was written
            kept = {}
        if kept.get("key") == key:
            result: dict[str, Any] = kept["result"]
            return result
    began = time.perf_counter()
    result = compute()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    seconds = time.perf_counter() - began
    part.write_text(json.dumps({"key": key, "seconds": seconds, "result": result}), encoding="utf-8")
    part.replace(path)
    return result


class _NotKept(Exception):
    pass


def is_kept(folder: Path, name: str, settings: Mapping[str, Any]) -> bool:
    """Whether `remembered`, asked for the same cell, would compute nothing."""

    def refuse() -> dict[str, Any]:
        raise _NotKept

    try:
        remembered(folder, name, settings, refuse)
    except _NotKept:
        return False
    return True


def seconds_spent(folder: Path) -> float:
    """How long the kept cells of `folder` took to compute, in all."""
    total = 0.0
    for path in folder.glob("*.json"):
        try:
            kept = read_json(path)
            total += kept.get("seconds", 0.0)
        except (ValueError, AttributeError):  # cut short while it was written, or not a cell
            continue
    return total


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps({**settings, "sources": _sources()}, default=str, sort_keys=True)


@cache
def _sources() -> str:
    """A fingerprint of the package's code, without what only shows results."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in ("commands", "report", "cli.py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()
