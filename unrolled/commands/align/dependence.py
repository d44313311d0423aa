"""`--groups` and `--blocks` of comparisons: which samples depend on each other, and what is noted of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrolled.errors import CorruptFile, MissingData
from unrolled.terminal import as_typed, say

if TYPE_CHECKING:
    from unrolled.alignment.dependence import Blocks, Groups
    from unrolled.data.pairs import PairSource
    from unrolled.instruments.features.files import Rows


@dataclass(frozen=True)
class Dependence:
    """Which samples depend on each other: `groups` and `blocks` of `compare`, at most one of them."""

    groups: Groups | None = None
    blocks: Blocks | None = None


def dependence(
    groups: str | None, blocks: str | None, rows: Rows, pairs: PairSource | None, *, quiet: bool
) -> Dependence:
    """From flags, or from what the pairs say of themselves.

    Args:
        groups: a file with one label a line (or a .npy file [n]), for these samples or for all rows of the data they
            are drawn from; or the name of a column of the pairs.
        blocks: rows of a block, or "shift".
        rows: of the features.
        pairs: where models have just run on paired data.
        quiet: print no note.

    Raises:
        ValueError: both flags, or a label for another number of samples.
        MissingData: neither a file nor a column of that name.
    """
    from unrolled.alignment.dependence import Units

    if groups is not None and blocks is not None:
        raise ValueError("--groups and --blocks: give one of them")
    try:
        if blocks is not None:
            size: Any = int(blocks) if blocks.isdecimal() else blocks
            Units.of(rows.samples, blocks=size)
            return Dependence(blocks=size)
        if groups is not None:
            labels = _labels(groups, rows, pairs)
            Units.of(rows.samples, labels)
            return Dependence(groups=labels)
    except ValueError as error:
        raise ValueError(f"--{error}" if str(error).startswith(("groups", "blocks")) else str(error)) from error
    dependent = None if pairs is None else pairs.dependent()
    if dependent is None:
        return Dependence()
    try:
        units = Units.of(rows.samples, dependent)
    except ValueError as error:
        say(f"note: pairs share photos or texts, but {error}; p-values take them for independent", quiet=quiet)
        return Dependence()
    say(f"note: pairs that share a photo or a text are relabelled together: {units.description}", quiet=quiet)
    return Dependence(groups=dependent)


@contextmanager
def noted(notes: list[str], sides: Mapping[str, str] | None = None, *, quiet: bool) -> Iterator[None]:
    """Print what the library warns of as notes, once each, and add it to `notes`.

    Args:
        notes: as they are printed.
        sides: what those who typed the command call an argument of the library, in notes and in errors.
        quiet: print none.

    Raises:
        ValueError: one that was raised within, in these words.
    """
    names = sides or {}

    def worded(message: str) -> str:
        # arguments, not files that are called like them
        pattern = rf"(?<![\w./-])(?:{'|'.join(names)})(?![\w/-]|\.\w)"
        return re.sub(pattern, lambda match: names[match[0]], message) if names else message

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        except ValueError as error:
            if (message := worded(str(error))) == str(error):
                raise
            raise ValueError(message) from error
    for each in caught:
        if each.category is not UserWarning:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        elif (note := as_typed(worded(str(each.message)))) not in notes:
            notes.append(note)
            say(f"note: {note}", quiet=quiet)


def _labels(groups: str, rows: Rows, pairs: PairSource | None) -> Sequence[Any]:
    path = Path(groups).expanduser()
    if path.is_file():
        labels = _read(path)
        if rows.indices is not None and len(labels) != rows.samples and len(labels) > int(rows.indices.max()):
            return [labels[int(i)] for i in rows.indices]
        if len(labels) != rows.samples:
            raise ValueError(f"groups {groups}: holds {len(labels):,} labels for {rows.samples:,} samples")
        return labels
    if pairs is not None and (labels_of_pairs := pairs.labels(groups)) is not None:
        return labels_of_pairs
    raise MissingData(
        f"--groups {groups}: there is no such file, and the data have no such column; give a file with one label a line"
    )


def _read(path: Path) -> list[Any]:
    if path.suffix == ".npy":
        from unrolled.arrays import read_npy

        array = read_npy(path)
        if array.ndim != 1:
            raise ValueError(f"groups {path}: must be one label a sample [n], not {array.shape}")
        return list(array.tolist())
    try:
        labels = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptFile(f"--groups: {path} is not UTF-8 text: {error}") from error
    if (blank := next((line for line, label in enumerate(labels, 1) if not label.strip()), None)) is not None:
        raise ValueError(f"groups {path}: line {blank} is blank; give every sample a label, one a line")
    return labels
