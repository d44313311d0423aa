"""What people and monkeys find alike: records of brains and of judgements, as arrays that a person puts there."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled.arrays import read_npz
from unrolled.errors import CorruptFile, MissingData

Array = NDArray[Any]


HOW = "docs/howto/brain.md says where the public records are and what to put there"


def _require(path: Path) -> None:
    if not path.is_file():
        raise MissingData(f"data_dir: {path.parent.name} was not found (there is no {path}; {HOW}); give data_dir=")


def _check_shapes(file: str, arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise CorruptFile(f"{file}: {key} is {list(arrays[key].shape)} and must be {list(shape)}; {HOW}")


def check_records(data_dir: Path) -> None:
    """Refuse a folder without any of the records, before a model is opened for them.

    Raises:
        MissingData: it has neither of their folders.
    """
    folders = [data_dir / "brain-92images", data_dir / "human-similarity"]
    if not any(folder.is_dir() for folder in folders):
        raise MissingData(f"data_dir: there is neither {folders[0]} nor {folders[1]}; {HOW}; give data_dir=")


def read_arrays(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """The arrays called `keys` of an `.npz` file.

    Raises:
        MissingData: there is no such file.
        CorruptFile: it cannot be read or lacks an array.
    """
    _require(path)
    arrays = read_npz(path, keys)
    if lacking := [key for key in keys if key not in arrays]:
        raise CorruptFile(f"{path} lacks the array {lacking[0]}; {HOW}")
    if scalars := [key for key, array in arrays.items() if not array.ndim]:
        raise CorruptFile(f"{path}: {scalars[0]} is one value and must be an array; {HOW}")
    return arrays


@dataclass(frozen=True)
class Brains:
    """92 photographs of objects and dissimilarities of the responses to them (Kriegeskorte et al. 2008).

    Attributes:
        stimuli: [92, 175, 175, 3] uint8.
        human: [4, 92, 92], fMRI of inferior temporal cortex, mean of two sessions of each person.
        monkey: [92, 92], cells of the same region in two monkeys.
        models: name -> [92, 92], models supplied with the records.
    """

    stimuli: Array
    human: Array
    monkey: Array
    models: dict[str, Array]


def brains(data_dir: Path) -> Brains:
    """Read `brain-92images` of `data_dir`.

    Raises:
        MissingData: there are none.
        CorruptFile: the file cannot be read, or its arrays do not fit together.
    """
    keys = ("stimuli", "human_it", "human_it_names", "monkey_it", "models", "model_names")
    arrays = read_arrays(data_dir / "brain-92images" / "brain_92images.npz", keys)
    n, names = len(arrays["stimuli"]), [str(name).split("|") for name in arrays["human_it_names"].ravel()]
    photos = arrays["stimuli"]
    if photos.ndim != 4 or photos.shape[-1] != 3 or photos.dtype != np.uint8:
        raise CorruptFile(f"brain_92images.npz: stimuli must be uint8 [photos, height, width, 3]; {HOW}")
    shapes = {"human_it": (len(names), n, n), "monkey_it": (n, n), "models": (arrays["model_names"].size, n, n)}
    _check_shapes("brain_92images.npz", arrays, shapes)
    if not names or any(len(name) < 2 for name in names):
        raise CorruptFile(f"brain_92images.npz: human_it_names must be like `hIT | WHO | Session: 1`; {HOW}")
    people = [name[1].strip() for name in names]
    order = list(dict.fromkeys(people))
    human = np.stack(
        [np.mean([rdm for rdm, who in zip(arrays["human_it"], people, strict=True) if who == one], 0) for one in order]
    )
    models = {str(name): rdm for name, rdm in zip(arrays["model_names"], arrays["models"], strict=True)}
    return Brains(arrays["stimuli"], human, arrays["monkey_it"], models)


@dataclass(frozen=True)
class Colours:
    """93 colours and how unlike people find them (Kawakita et al. 2023).

    Attributes:
        lab: [93, 3] CIELAB.
        names: the nearest of the 949 colours of the xkcd survey, by CIELAB distance; two colours may share one.
        groups: [5, 93, 93] mean dissimilarity in five groups of people, 0 same to 7 most different; 3.5 where a group
            did not rate a pair, as in the source.
        missing: [5, 93, 93], those.
    """

    lab: Array
    names: list[str]
    groups: Array
    missing: Array

    @property
    def together(self) -> Array:
        """[93, 93] mean over the groups that rated a pair; 3.5 where none did."""
        rated = ~self.missing
        counts = rated.sum(0)
        mean: Array = np.where(counts > 0, (self.groups * rated).sum(0) / np.maximum(counts, 1), 3.5)
        return mean


def colours(data_dir: Path) -> Colours:
    """Read `human-similarity/colour93_human.npz` and `xkcd_colours.tsv` of `data_dir`.

    Raises:
        MissingData, CorruptFile: as `brains`.
    """
    folder = data_dir / "human-similarity"
    arrays = read_arrays(folder / "colour93_human.npz", ("lab", "group_dissimilarity", "missing"))
    table = named_colours(folder / "xkcd_colours.tsv")
    n, groups = len(arrays["lab"]), len(arrays["group_dissimilarity"])
    shapes = {"lab": (n, 3), "group_dissimilarity": (groups, n, n), "missing": (groups, n, n)}
    _check_shapes("colour93_human.npz", arrays, shapes)
    lab = arrays["lab"].astype(np.float64)
    known = np.array([value for _, value in table])
    nearest = ((lab[:, None] - known[None]) ** 2).sum(-1).argmin(1)
    names = [table[i][0] for i in nearest]
    return Colours(lab, names, arrays["group_dissimilarity"].astype(np.float64), arrays["missing"].astype(bool))


def colour_patches(data_dir: Path, side: int) -> Array:
    """The 93 colours as pictures of one colour each, [93, side, side, 3] uint8."""
    stored = read_arrays(data_dir / "human-similarity" / "colour93_human.npz", ("rgb",))
    _check_shapes("colour93_human.npz", stored, {"rgb": (len(stored["rgb"]), 3)})
    rgb = stored["rgb"].astype(np.uint8)
    return np.broadcast_to(rgb[:, None, None], (len(rgb), side, side, 3)).copy()


def named_colours(path: Path) -> list[tuple[str, tuple[float, float, float]]]:
    """Names and CIELAB of a table of colours (columns name, L, a, b_lab, separated by tabs).

    Raises:
        MissingData: there is no such file.
        CorruptFile: a column is missing or not a number.
    """
    _require(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            return [(row["name"], (float(row["L"]), float(row["a"]), float(row["b_lab"]))) for row in rows]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise CorruptFile(f"{path} is not a table of colours: {error}") from error


def things(data_dir: Path, count: int, seed: int) -> tuple[list[str], Array]:
    """Names of some of the 1,854 things and their dissimilarities [4, n, n] in four groups of people.

    Args:
        data_dir: holds `human-similarity/things1854_human.npz`.
        count: things, drawn at random.
        seed: of the draw.

    Raises:
        MissingData, CorruptFile: as `brains`.
    """
    stored = read_arrays(data_dir / "human-similarity" / "things1854_human.npz", ("concepts", "group_embeddings"))
    total, embeddings = len(stored["concepts"]), stored["group_embeddings"]
    shape = (*embeddings.shape[:1], total, *embeddings.shape[-1:])
    _check_shapes("things1854_human.npz", stored, {"group_embeddings": shape})
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    vectors = np.clip(stored["group_embeddings"][:, chosen].astype(np.float64), 0, None)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return [str(stored["concepts"][i]).replace("_", " ") for i in chosen], 1 - vectors @ vectors.transpose(0, 2, 1)
