"""NumPy's files, whoever made them: an array is made only when the file really holds as much as its header says."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from unrolled.errors import CorruptFile, MissingData, UnsafeFile
from unrolled.memory import check_fits

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name.

    Args:
        path: the file.
        keys: only these, of which some may be missing; default: all.

    Raises:
        MissingData: there is no such file.
        UnsafeFile: it holds pickled objects.
        CorruptFile: it is truncated or damaged, or a header claims more than the file holds.
        ValueError: the arrays do not fit into memory.
    """
    if not path.is_file():
        raise MissingData(f"{path} does not exist")
    if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle
        raise CorruptFile(f"{path} is not an .npz file, or was cut off: it is no archive of arrays")
    with _reading(path, "an .npz file"), np.load(path, allow_pickle=False) as archive:
        names = archive.files if keys is None else [key for key in keys if key in archive.files]
        needed = sum(_claimed(archive.zip, name, path) for name in names)
    check_fits(needed, f"{path}: reading it")
    with _reading(path, "an .npz file"), np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in names}


def read_npy(path: Path, *, mapped_from: int | None = None) -> np.ndarray:
    """The array of an `.npy` file; of `mapped_from` bytes or more it is mapped into memory, not read.

    Raises:
        MissingData, UnsafeFile, CorruptFile, ValueError: as `read_npz`.
    """
    if not path.is_file():
        raise MissingData(f"{path}: there is no such file")
    with path.open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:  # NumPy would take it for a pickle
            raise CorruptFile(f"{path} is not an .npy file, whatever its name: it lacks the first bytes of one")
    with _reading(path, "an .npy file"), np.errstate(over="ignore"):  # sizes that overflow are refused
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)  # refuses what the file does not hold
    if mapped_from is not None and path.stat().st_size >= mapped_from:
        return mapped
    check_fits(mapped.nbytes, f"{path}: reading it")
    return np.array(mapped)


def _claimed(archive: zipfile.ZipFile, name: str, path: Path) -> int:
    """Bytes that the header of a member says its array has, if the member is as long."""
    member = name if name in archive.namelist() else f"{name}.npy"
    with archive.open(member) as stream:
        size = _header_bytes(stream)
    if size is not None and size > archive.getinfo(member).file_size:
        raise CorruptFile(f"{path} is damaged: {name} claims {size:,} bytes, which the file does not hold")
    return size or archive.getinfo(member).file_size


def _header_bytes(stream: IO[bytes]) -> int | None:
    """What the header of an array claims; None if these are not the bytes of an array."""
    try:
        version = np.lib.format.read_magic(stream)
    except ValueError:
        return None
    shape, _, kind = _HEADERS[version](stream)
    if kind.hasobject:
        raise ValueError("Python objects, which are pickled")
    return int(prod(shape)) * kind.itemsize


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except CorruptFile:
        raise
    except Exception as error:  # NumPy and zipfile let through whatever damaged bytes make them do
        message = str(error)
        if "pickle" in message.lower() or "Python objects" in message:
            raise UnsafeFile(f"{path} holds pickled objects and was not read; save plain arrays") from error
        first = message.splitlines()[0] if message else type(error).__name__
        raise CorruptFile(f"{path} is truncated or damaged, or not {what}: {first}") from error
