"""Hugging Face data sets: `hf:ORG/NAME`, `hf:ORG/NAME@CONFIG`, or `hf:FOLDER` for one on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unrolled.data.files import Splits
from unrolled.data.sources import BadImage, ImageSource, Picture, check_labels, decode
from unrolled.errors import MissingData, require

_PREFERRED = ("label", "labels", "fine_label", "class", "target")
_TEST = ("test", "validation", "val", "valid")


class HubSource(ImageSource):
    """One split of a Hugging Face data set; images stay encoded until they are asked for.

    The image column is the one of feature type `Image`. The label column is a `ClassLabel`, or else integers or strings
    and called `label`, `labels`, `fine_label`, `class` or `target` where there are several; strings are classes in
    sorted order.
    """

    def __init__(self, dataset: Any, *, title: str, classes: list[str] | None = None) -> None:
        datasets = require("datasets", extra="hf", feature="a Hugging Face data set")
        images = [key for key, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        if not images:
            raise ValueError(f"{title} has no image column; its columns are {_columns(dataset)}")
        self._image = "image" if "image" in images else images[0]
        column, named = _label_column(dataset, datasets, title)
        values = np.asarray(dataset[column][:]) if len(dataset) else np.zeros(0, np.int64)
        if values.dtype.kind == "O" and any(value is None for value in values.tolist()):
            raise ValueError(f"{title}: row {values.tolist().index(None)} has no {column}; remove it or give it one")
        if classes is None:
            classes = named or _classes_of(values)
        if values.dtype.kind not in "iu" and len(values):
            lookup = {name: label for label, name in enumerate(classes)}
            unknown = sorted(set(values.tolist()) - set(lookup), key=str)
            if unknown:
                raise ValueError(f"{title}: class {unknown[0]!r} is not one of the training split's")
            values = np.array([lookup[value] for value in values.tolist()])
        self.classes = classes
        self.labels = check_labels(values, count=len(dataset), classes=len(classes), what=title)
        self.description = f"{title}, {len(dataset):,} images"
        self._title = title
        self._data = dataset.select_columns([self._image]).cast_column(self._image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._data)

    def load(self, index: int) -> tuple[Picture, int]:
        """Decoded image and label."""
        assert self.labels is not None
        record = self._data[index][self._image]
        if not record or (record.get("bytes") is None and record.get("path") is None):
            raise BadImage("has no image in its row")
        encoded = record["bytes"] if record["bytes"] is not None else Path(record["path"])
        return decode(encoded), int(self.labels[index])

    def name(self, index: int) -> str:
        """`TITLE[index]`."""
        return f"{self._title}[{index}]"


def open_hub(name: str, data_dir: Path | None, *, split: str) -> Splits:
    """The splits of a Hugging Face data set that `split` needs.

    Args:
        name: what follows `hf:`. A folder made by `save_to_disk`, or one `datasets.load_dataset` understands, is read
            from disk.
        data_dir: the cache folder of downloads.
        split: "train", "val" or "test". The test split is `test`, or else `validation`, `val` or `valid`; a data set
            with one split only is divided by seed.

    Raises:
        MissingExtra: `datasets` is not installed.
        MissingData: no such data set, or no network to fetch it.
    """
    datasets = require("datasets", extra="hf", feature=f"data `hf:{name}`")
    table = load_dataset(datasets, name, data_dir)
    if set(table) and "train" not in table and len(table) == 1:
        only = next(iter(table))
        return {"all": HubSource(table[only], title=f"hf:{name}/{only}")}
    if "train" not in table:
        raise MissingData(f"data: hf:{name} has no train split; it has {', '.join(table)}")
    if len(table) == 1:
        return {"all": HubSource(table["train"], title=f"hf:{name}/train")}
    train = HubSource(table["train"], title=f"hf:{name}/train")
    found: Splits = {"train": train}
    tests = [part for part in _TEST if part in table]
    wanted = {"test": tests[:1], "val": tests[1:2]}.get(split, [])
    if wanted:
        found[split] = HubSource(table[wanted[0]], title=f"hf:{name}/{wanted[0]}", classes=train.classes)
    return found


def load_dataset(datasets: Any, name: str, data_dir: Path | None) -> Any:
    """The splits of what follows `hf:`, by their published names; arguments and errors as in `open_hub`."""
    path, _, config = name.partition("@")
    folder = Path(path).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
        else:
            cache = None if data_dir is None else str(data_dir)
            loaded = datasets.load_dataset(str(folder) if folder.is_dir() else path, config or None, cache_dir=cache)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise MissingData(f"data: hf:{name} could not be read: {reason[0]}") from error
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded


def _label_column(dataset: Any, datasets: Any, title: str) -> tuple[str, list[str] | None]:
    features = dataset.features
    labelled = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [
        key
        for key, feature in features.items()
        if key in _PREFERRED
        and isinstance(feature, datasets.Value)
        and ("int" in feature.dtype or feature.dtype == "string")
    ]
    for candidates in (labelled, plain):
        if candidates:
            column = next((key for key in _PREFERRED if key in candidates), candidates[0])
            names = features[column].names if column in labelled else None
            return column, None if names is None else [str(name) for name in names]
    raise ValueError(f"{title} has no label column (ClassLabel, or `label`); its columns are {_columns(dataset)}")


def _classes_of(values: np.ndarray) -> list[str]:
    if values.dtype.kind in "iu":
        return [str(label) for label in range(int(values.max(initial=0)) + 1)]
    return sorted(set(values.tolist()))


def _columns(dataset: Any) -> str:
    return ", ".join(f"{key} ({type(feature).__name__})" for key, feature in dataset.features.items())
