"""Reading files that somebody else may have made: regular files only, as text, JSON or YAML, in plain errors.

A pipe or a device where a file is expected is refused instead of waited for; nesting that exhausts the interpreter,
YAML tags and YAML whose references unfold without end are damage like any other.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import IO, Any
from unicodedata import category

from unrolled.errors import CorruptFile, MissingData

Json = dict[str, Any]
"""An object of JSON, as a file holds it or will: plain values by name."""
SETTINGS_BYTES = 2**18
"""No file of settings is larger."""
_VALUES = 100_000
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # words of Persian and pictures of families need them


def open_file(path: Path | str) -> IO[bytes]:
    """Open a regular file for reading; links to one are followed.

    Raises:
        MissingData: there is nothing.
        CorruptFile: it is a folder, a pipe, a socket or a device.
        OSError: it cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its writer
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise CorruptFile(f"{path}: is a folder, a pipe or a device; a regular file is needed")

    try:
        return open(path, "rb", opener=opener)
    except FileNotFoundError as error:
        raise MissingData(f"{path}: there is no such file") from error
    except ValueError as error:
        if isinstance(error, CorruptFile):
            raise
        raise MissingData(f"{str(path)!r}: is no name of a file") from error  # a null byte


def read_text(path: Path | str, *, limit: int | None = None) -> str:
    """The UTF-8 text of a regular file, with or without a byte order mark.

    Args:
        path: the file.
        limit: bytes it may have.

    Raises:
        MissingData, CorruptFile, OSError: as `open_file`; it is larger than `limit`, or not UTF-8.
    """
    with open_file(path) as file:
        data = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise CorruptFile(f"{path}: has more than the {limit / 2**10:g} KiB that are read of such a file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path}: is not UTF-8 text (byte {error.start})") from error


def read_json(path: Path | str) -> Any:
    """What a JSON file holds.

    Raises:
        MissingData, CorruptFile, OSError: as `read_text`; it is not valid JSON, or nested too deeply.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise CorruptFile(f"{path}: is nested too deeply to be read") from error
    except json.JSONDecodeError as error:
        raise CorruptFile(f"{path}: is truncated or not valid JSON: {error}") from error
    except ValueError as error:
        if isinstance(error, CorruptFile):
            raise
        raise CorruptFile(f"{path}: is not valid JSON: {error}") from error  # a number of too many digits


def read_object(path: Path | str) -> Json:
    """What a JSON file holds, which must be an object.

    Raises:
        MissingData, CorruptFile, OSError: as `read_json`; it is a list, a number or a text.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise CorruptFile(f"{path}: must hold an object, {{...}}, not a {type(content).__name__}")
    return content


def read_settings(path: Path | str) -> dict[str, Any]:
    """The `name: value` lines of a YAML file; an empty file is not one.

    Raises:
        MissingData, CorruptFile, OSError: as `read_text`; it is no such YAML, or unfolds without end.
    """
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        kind = "nothing" if settings is None else f"a {type(settings).__name__}"
        raise CorruptFile(f"{path}: must hold `name: value` lines, not {kind}")
    return {str(name): value for name, value in settings.items()}


def read_yaml(path: Path | str) -> Any:
    """What a YAML file of at most `SETTINGS_BYTES` holds: plain values, no tags of Python.

    Raises:
        MissingData, CorruptFile, OSError: as `read_text`; it is no such YAML, or unfolds without end.
    """
    return parse_yaml(read_text(path, limit=SETTINGS_BYTES), path)


def parse_yaml(text: str, path: Path | str) -> Any:
    """As `read_yaml`, of the text of a file.

    Raises:
        CorruptFile: it is no such YAML, or unfolds without end.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if _unfolded(node, {}, frozenset()) > _VALUES:
            raise CorruptFile(f"{path}: its references unfold into more than {_VALUES:,} values, or into themselves")
        return None if node is None else loader.construct_document(node)
    except CorruptFile:
        raise
    except RecursionError as error:
        raise CorruptFile(f"{path}: is nested too deeply to be read") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # PyYAML's constructors let Python's own errors through: `!!int x`, `!!bool maybe`
        raise CorruptFile(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error


def _unfolded(node: Any, known: dict[int, int], above: frozenset[int]) -> int:
    """How many nodes there are once every reference is followed; more than `_VALUES` of one that contains itself."""
    if not isinstance(getattr(node, "value", None), list):
        return 1
    if id(node) in above:
        return _VALUES + 1
    if id(node) not in known:
        parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_unfolded(part, known, above | {id(node)}) for part in parts)
    return known[id(node)]


def printable(text: str, *, keep: str = "") -> str:
    """`text` with the characters written out that move a terminal's cursor, turn the direction of writing, or are none.

    Args:
        text: such as the name of a file, which may hold any.
        keep: control characters that mean what they do.
    """
    return "".join(
        letter if letter in keep or category(letter) not in _UNSEEN or letter in _JOINERS else ascii(letter)[1:-1]
        for letter in text
    )


def below(folder: Path, name: Any) -> Path:
    """The file that a file in `folder` names; what lies elsewhere is not named by a file.

    Raises:
        CorruptFile: the name is absolute, leads out of the folder, or is none.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise CorruptFile(f"{folder}: names a file {name!r}, which is no name of one")
    if ".." in Path(name).parts or Path(name).anchor:
        raise CorruptFile(f"{folder}: names a file {name!r}, which does not lie in that folder")
    return folder / name


def really_below(folder: Path, path: Path) -> Path:
    """`path`, if it is a regular file inside `folder` once links are followed: it is about to be published.

    Raises:
        CorruptFile: it is a link to somewhere else, or no regular file.
    """
    real = path.resolve()
    if not real.is_relative_to(folder.resolve()):
        raise CorruptFile(f"{path}: is a link to {real}, outside of {folder}; put a copy there instead")
    if not real.is_file():
        raise CorruptFile(f"{path}: is a folder, a pipe or a device; a regular file is needed")
    return path


def id_text(value: Any) -> str:
    """An id of a JSON file as text, for programs write one id as 1, "1" and 1.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
