"""What is in a folder: its real entries, and in words what was passed over.

Every reader of folders lists them here, so that all follow the same rules. Passed over are hidden names (`.git`,
`.ipynb_checkpoints`, `._photo.jpg`) and what operating systems and file servers leave behind (`__MACOSX`, `@eaDir`,
`Thumbs.db`). Links are followed, and no folder is entered twice. Names that are no UTF-8 are read like any other and
shown with their odd bytes escaped.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PARTS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What folders and files of the parts of a data set are called, in any case -> the part."""

_LITTER = frozenset({
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information", "thumbs.db",
    "ehthumbs.db", "desktop.ini", "icon\r",
})  # fmt: skip
_SHOWN = 3  # names, or endings, of one kind


@dataclass
class PassedOver:
    """What a listing left out, by the reason."""

    names: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one entry; `reason` is in the plural, and of `name` only a few are shown."""
        self.names.setdefault(reason, Counter())[name] += 1

    def summary(self) -> str:
        """`3 hidden or system entries (.git, __MACOSX), 12 files of other kinds (.txt, .csv)`; empty without any."""
        parts = []
        for reason, names in self.names.items():
            shown = [name for name, _ in names.most_common(_SHOWN)]
            parts.append(f"{names.total():,} {reason} ({', '.join(shown)}{', ...' if len(names) > _SHOWN else ''})")
        return ", ".join(parts)


def printable(name: str | os.PathLike[str]) -> str:
    """A path as one line of text that can be printed and stored: bytes of it that are no UTF-8 become `\\xNN`, and line
    ends and other control characters are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def class_name(folder: str) -> str:
    """What a folder names: its printable name, with accents in one form (file systems differ in how they keep them)."""
    return unicodedata.normalize("NFC", printable(folder))


def is_real(name: str) -> bool:
    """Whether an entry of this name is content, neither hidden nor left behind by a system."""
    return not name.startswith(".") and name.lower() not in _LITTER


def entries(folder: Path, passed: PassedOver | None = None) -> list[os.DirEntry[str]]:
    """The real entries of one folder, sorted by name.

    Raises:
        OSError: it cannot be read.
    """
    with os.scandir(folder) as scan:
        listed = sorted(scan, key=lambda entry: entry.name)
    if passed is not None:
        for entry in listed:
            if not is_real(entry.name):
                passed.add("hidden or system entries", printable(entry.name))
    return [entry for entry in listed if is_real(entry.name)]


def folders_in(folder: Path, passed: PassedOver | None = None) -> list[str]:
    """Names of the real sub-folders, links to folders included."""
    return [entry.name for entry in entries(folder, passed) if entry.is_dir()]


def files_in(folder: Path, wanted: Callable[[str], bool] | Collection[str]) -> list[Path]:
    """The real files directly in a folder, sorted: those whose name `wanted` accepts, or ends in one of `wanted`."""
    accepts = _accepts(wanted)
    return [Path(entry.path) for entry in entries(folder) if accepts(entry.name) and not entry.is_dir()]


def files_below(
    folder: Path, wanted: Callable[[str], bool] | Collection[str], passed: PassedOver | None = None
) -> list[Path]:
    """The real files in a folder and the folders below it, sorted; arguments as in `files_in`.

    Args:
        folder: where to begin.
        wanted: endings in lower case, or a test of the name.
        passed: what is left out is counted there.
    """
    passed = PassedOver() if passed is None else passed
    seen = {_identity(folder)}
    return sorted(_walk(folder, _accepts(wanted), passed, seen))


def parts_in(root: Path, passed: PassedOver | None = None) -> dict[str, Path]:
    """The folders of `root` that are parts of a data set: "train", "val", "test" -> folder.

    `train` with pictures in it, between `bus` and `car`, is a class; so parts are looked for only where one of them
    holds folders, or where there is nothing else.

    Raises:
        ValueError: two folders are the same part.
    """
    parts: dict[str, list[str]] = {}
    others = []
    for name in folders_in(root):
        if name.lower() in PARTS:
            parts.setdefault(PARTS[name.lower()], []).append(name)
        else:
            others.append(name)
    if others and not any(folders_in(root / name) for names in parts.values() for name in names):
        return {}
    for part, names in parts.items():
        if len(names) > 1:
            raise ValueError(
                f"data_dir: {printable(root)} has {' and '.join(names)}, which are one part ({part}); keep one of them"
            )
    if parts and passed is not None:
        entries(root, passed)
        for name in others:
            passed.add("folders beside the parts", printable(name))
    return {part: root / names[0] for part, names in parts.items()}


def _accepts(wanted: Callable[[str], bool] | Collection[str]) -> Callable[[str], bool]:
    if callable(wanted):
        return wanted
    return lambda name: os.path.splitext(name)[1].lower() in wanted


def _walk(
    folder: Path, accepts: Callable[[str], bool], passed: PassedOver, seen: set[tuple[int, int]]
) -> Iterator[Path]:
    for entry in entries(folder, passed):
        if entry.is_dir():
            if (identity := _identity(entry.path)) in seen:
                passed.add("links to folders that were read already", printable(entry.name))
                continue
            seen.add(identity)
            yield from _walk(Path(entry.path), accepts, passed, seen)
        elif not accepts(entry.name):
            passed.add("files of other kinds", os.path.splitext(printable(entry.name))[1].lower() or "without ending")
        elif entry.is_file() or not os.path.exists(entry.path):  # a broken link is named when it is opened
            yield Path(entry.path)
        else:
            passed.add("pipes, sockets or devices", printable(entry.name))


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
