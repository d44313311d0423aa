"""Scores of a sweep, kept as they are found: one that was stopped goes on, and comes out the same to the bit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unrolled.errors import CorruptFile
from unrolled.reading import open_file, printable

FILE = "scores.jsonl"
_FORMAT = "unrolled.sweep/1"


class ScoreStore:
    """Scores of samples by batch and place; in memory, and with a file also there.

    The file is a line of settings, then a line for each batch, with a digest of what the model was shown, and for each
    place in it, in the order in which they were found.

    Args:
        path: the file, which a sweep of the same settings goes on with; None: nothing is written.
        settings: all that the scores follow from, plain values by name.

    Raises:
        ValueError: the file is of other settings, which are named, or is no such file.
    """

    def __init__(self, path: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self._scores: dict[tuple[int, str, bool], np.ndarray] = {}
        self._seen: dict[int, str] = {}
        self._path = path
        self._settings = json.loads(json.dumps({"format": _FORMAT, **(settings or {})}))
        if path is not None and os.path.lexists(path):
            self._read(path, self._settings)

    def __len__(self) -> int:
        return len(self._scores)

    def check(self, batch: int, shown: Callable[[], str]) -> None:
        """Whether a batch is the one that scores are kept of; `shown` is its digest, which is not asked without a file.

        Raises:
            ValueError: the model or the data are others.
        """
        if self._path is None:
            return
        digest = shown()
        if self._seen.setdefault(batch, digest) != digest:
            raise ValueError(
                f"model, data: {self._path} has scores of an unfinished sweep of another model or of other data, of "
                "the same names; remove the file to begin again, or choose another out="
            )

    def has(self, batch: int, name: str, random: bool = False) -> bool:
        """Whether the scores of a batch at a place are known."""
        return (batch, name, random) in self._scores

    def get(self, batch: int, name: str, random: bool = False) -> np.ndarray:
        """They are, float64 [b]."""
        return self._scores[batch, name, random]

    def add(self, batch: int, name: str, random: bool, values: np.ndarray) -> None:
        """Keep scores; those of a place that is known already are the same."""
        if self.has(batch, name, random):
            return
        first = not any(key[0] == batch for key in self._scores)
        self._scores[batch, name, random] = values
        if self._path is not None:
            lines: list[Any] = [[batch, name, random, values.tolist()]]  # a float64's text is read back to the bit
            self._write(self._path, [[batch, self._seen[batch]], *lines] if first else lines)

    def _write(self, path: Path, lines: list[Any]) -> None:
        if not path.exists():  # a sweep that failed before its first score, such as of a name misspelt, leaves nothing
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.part")
            part.write_text(json.dumps(self._settings) + "\n", encoding="utf-8")
            os.replace(part, path)
        with path.open("ab") as file:
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def remove(self) -> None:
        """The sweep is done: remove the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, path: Path, wanted: Mapping[str, Any]) -> None:
        with open_file(path) as file:
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # the last line of a process that was killed may be cut
        lines = whole.splitlines()
        try:
            known = json.loads(lines[0]) if lines else {}
            for line in lines[1:]:
                batch, name, *rest = json.loads(line)
                if rest:
                    random, values = rest
                    self._scores[int(batch), str(name), bool(random)] = np.array(values, np.float64).reshape(-1)
                else:
                    self._seen[int(batch)] = str(name)
            sizes: dict[int, int] = {}
            if any(sizes.setdefault(key[0], len(values)) != len(values) for key, values in self._scores.items()):
                raise ValueError("a batch of several sizes")
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptFile(f"{path}: is damaged; remove it to begin again") from error
        if not isinstance(known, dict) or known.get("format") != _FORMAT:
            raise CorruptFile(f"{path}: is not the scores of a sweep; remove it, or choose another out=")
        for key in [*wanted, *(key for key in known if key not in wanted)]:
            if known.get(key) != wanted.get(key):
                raise ValueError(
                    f"{key.replace('_', '-')}: {path} has scores of an unfinished sweep with "
                    f"{_quoted(known.get(key))}, not {_quoted(wanted.get(key))}; give what it began with, "
                    "remove the file, or choose another out="
                )
        if len(whole) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))


def _quoted(value: Any) -> str:
    text = printable(json.dumps(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
