"""The models that the file of `unrolled align-grid` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from unrolled.errors import suggestion
from unrolled.reading import Json
from unrolled.subjects.options import Side
from unrolled.trust import check_settings


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the file; what is None is as the flags say.

    Attributes:
        model: by one string, or a folder or file of features.
        group: it is drawn with.
        competence: any number to set the alignment against.
        layers, pool, pretrained: as the flags.
        side: of paired data that it is fed with.
    """

    model: str
    group: str | None = None
    competence: float | None = None
    layers: Sequence[str] | None = None
    pool: str | None = None
    pretrained: bool | None = None
    side: Side | None = None

    def record(self) -> Json:
        """What the file says of it."""
        return {key: value for key, value in vars(self).items() if value is not None}


_KEYS = tuple(item.name for item in fields(Entry))


def read_entries(path: Path) -> dict[str, Entry]:
    """The models a file names.

    Raises:
        MissingData: there is no such file.
        ValueError: it is not YAML of that form; what is wrong is named.
        UnsafeFile: a model names code.
    """
    from unrolled.errors import CorruptFile, MissingData
    from unrolled.reading import read_yaml

    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the YAML file that names the models")
    if not path.exists():
        raise MissingData(f"{path}: there is no such file")
    try:
        content = read_yaml(path)
    except CorruptFile as error:
        raise ValueError(str(error)) from error
    entries = content.get("models") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or len(entries) < 2:
        raise ValueError(f"{path}: needs `models:` with at least two lines `NAME: MODEL` below it")
    models = {}
    for name, entry in entries.items():
        entry = {"model": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise ValueError(f"{path}, {name}: must be a model as text, or a mapping with `model:`")
        for key in set(entry) - set(_KEYS):
            raise ValueError(f"{path}, {name}: unknown key {key!r}; {suggestion(str(key), _KEYS)}")
        if entry.get("side") not in (None, "image", "text", "text2"):
            raise ValueError(f"{path}, {name}: side must be image, text or text2, not {entry['side']!r}")
        competence = entry.get("competence")
        if competence is not None and not isinstance(competence, int | float):
            raise ValueError(f"{path}, {name}: competence must be a number, not {competence!r}")
        if isinstance(entry.get("layers"), str):
            entry["layers"] = [entry["layers"]]
        check_settings(entry, f"{path}, {name}")
        models[str(name)] = Entry(**entry)
    return models
