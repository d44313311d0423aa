"""Checksums of the files of a model, beside them and checked when they are read: a flipped bit is said, not used.

They are in `SHA256SUMS`, which `sha256sum -c SHA256SUMS` reads too. A JSON document carries its own, see `sealed`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from unrolled.errors import CorruptFile, MissingData

SUMS = "SHA256SUMS"
_OF_A_MODEL = ("config.json", "model.safetensors", "tokenizer.json")
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\]+)")
_MOST = 2**16  # bytes; ours have a few hundred
logger = logging.getLogger(__name__)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; about half a gigabyte a second."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write `SHA256SUMS` of the files of a model in `folder`; what else is there may change as it likes."""
    lines = [f"{file_digest(folder / name)}  {name}\n" for name in _OF_A_MODEL if (folder / name).is_file()]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_file(path: Path) -> bool:
    """Whether `SHA256SUMS` beside a file vouches for it; False if that says nothing of the file.

    Raises:
        CorruptFile: it is not the file that was written, or `SHA256SUMS` is damaged.
        MissingData: it is not there.
    """
    wanted = _read(path.parent).get(path.name)
    if wanted is None:
        return False
    if not path.is_file():
        raise MissingData(f"{path} is missing, although {SUMS} beside it names it")
    if file_digest(path) != wanted:
        raise CorruptFile(
            f"{path} is damaged: it does not have the checksum that {SUMS} beside it gives; restore the file, or "
            f"remove {SUMS} if you changed it on purpose"
        )
    return True


def check_model(folder: Path) -> None:
    """Check all files that `SHA256SUMS` of a model's folder names; where there is none, say so in the log.

    Raises:
        CorruptFile, MissingData: as in `check_file`.
    """
    names = _read(folder)
    for name in names:
        check_file(folder / name)
    if not names:
        logger.warning("note: %s has no %s, so damage to its files would not be noticed", folder, SUMS)


def sealed(document: dict[str, Any], key: str = "checksum") -> bytes:
    """A JSON document with the checksum of everything else in it under `key`."""
    plain = json.loads(_canonical(document))
    return json.dumps({**plain, key: hashlib.sha256(_canonical(plain)).hexdigest()}, indent=1).encode()


def is_whole(document: dict[str, Any], key: str = "checksum") -> bool:
    """Whether a document that `sealed` wrote has the checksum it was given, which is then taken out of it."""
    return document.pop(key, None) == hashlib.sha256(_canonical(document)).hexdigest()


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _read(folder: Path) -> dict[str, str]:
    """File name -> digest, of `SHA256SUMS` in a folder; empty if there is none."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        lines = file.read(_MOST).decode("utf-8", errors="replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    if not lines or not all(matches):
        raise CorruptFile(f"{path} is damaged: it holds other lines than `CHECKSUM  NAME`")
    return {match[2]: match[1] for match in matches if match}
