"""This package's models as a table that came with it: nothing is built, and neither torch nor timm is imported."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from functools import cache
from math import prod
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("catalogue.json")
_WEIGHTS = Path(__file__).with_name("weights")
_ENGLISH = ("brown", "bronte", "darwin", "tinyshakespeare", "wikitext2-small")
_TABLES = ("embed.", "positions.", "segments.")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation, no parameters
_LEARNT = {"crate_gpt_nano.bytes": _ENGLISH, "mesanet_nano.bytes": _ENGLISH}


class ModelInfo(NamedTuple):
    """One row of `list_models`; `without_embeddings` are the parameters of a language model without its tables of
    tokens, positions and segments, whose size follows from the tokenizer and the context; None for others."""

    name: str
    parameters: int
    source: str
    weights: str
    without_embeddings: int | None = None


@cache
def catalogue() -> dict[str, ModelInfo]:
    """The models of images and then those of text, by name. `python -m tests.catalogue` writes the table anew."""
    return {row["name"]: ModelInfo(**row) for row in json.loads(TABLE.read_text(encoding="utf-8"))}


def shipped_text(name: str) -> Path | None:
    """The folder of a trained language model that comes with the package, such as `crate_gpt_nano.bytes`; None for any
    other name, and where there is a folder of that name, which goes first."""
    is_one = name in _texts() and not Path(name).is_dir()
    return _WEIGHTS / name if is_one else None


def learnt_from(folder: Path) -> tuple[str, ...]:
    """The corpora whose training parts a language model that comes with the package learnt from, as its card says;
    empty for any other folder."""
    place = folder.expanduser().resolve()
    return _LEARNT.get(place.name, ()) if place.parent == _WEIGHTS.resolve() else ()


def shipped_tags(name: str) -> list[str]:
    """What the trained language models that come with the package in the frame of a size go by, behind the dot.

    They need not be as wide: their cards say how wide they are.
    """
    return [tag for size, _, tag in (text.partition(".") for text in _texts()) if size == name]


@cache
def _texts() -> list[str]:
    return sorted(file.parent.name for file in _WEIGHTS.glob("*/config.json"))


def card_of(name: str) -> Path | None:
    """The card of weights that come with the package, `NAME.TAG`: data, recipe, licence, accuracy and limits; None for
    any other name."""
    card = _WEIGHTS / name / "README.md" if name in _texts() else _WEIGHTS / f"{name}.md"
    return card if name in known_names() and card.is_file() else None


def known_names() -> list[str]:
    """What a model of this package goes by: its name, and its name with weights that ship (`NAME.TAG`)."""
    return [name for row in catalogue().values() for name in (row.name, *_trained(row))]


def _trained(row: ModelInfo) -> list[str]:
    return [f"{row.name}.{tag}" for tag in row.weights.split(", ") if tag]


def matching(pattern: str = "*") -> list[ModelInfo]:
    """The rows whose name matches `pattern` (wildcards * and ?), and those of weights that ship where only the name
    with these (`NAME.TAG`) does: with the parameters that they have, which may be of another width or stem.
    """
    rows = []
    for row in catalogue().values():
        if fnmatch(row.name, pattern):
            rows.append(row)
        else:
            rows += [_of_weights(row, name) for name in _trained(row) if fnmatch(name, pattern)]
    return rows


def _of_weights(row: ModelInfo, name: str) -> ModelInfo:
    file = _WEIGHTS / name / "model.safetensors" if name in _texts() else _WEIGHTS / f"{name}.safetensors"
    with file.open("rb") as stream:  # eight bytes say how long the header is, which has the shapes
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    sizes = {key: prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__"}
    sizes = {key: size for key, size in sizes.items() if not key.endswith(_STATISTICS)}
    tables = sum(size for key, size in sizes.items() if key.startswith(_TABLES))
    total = sum(sizes.values())
    inner = None if row.without_embeddings is None else total - tables
    return row._replace(name=name, parameters=total, weights=name.partition(".")[2], without_embeddings=inner)
