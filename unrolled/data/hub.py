"""Hugging Face data sets: `hf:ORG/NAME`, `hf:ORG/NAME@CONFIG`, or `hf:FOLDER` for one on disk.

What its columns and splits are called may be said behind a comma: `hf:ORG/NAME,label=species,test=validation`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unrolled.data.classes import listed, numbers_of
from unrolled.data.files import Splits, Unknown
from unrolled.data.listing import PARTS
from unrolled.data.sources import BadImage, ImageSource, Picture, check_labels, decode
from unrolled.errors import CorruptFile, MissingData, UnsafeFile, require
from unrolled.network import hub
from unrolled.reading import parse_yaml, read_json, read_text, read_yaml

_LABELS = ("label", "labels", "fine_label", "class", "target")
_WORDS = ("string", "large_string", "bool")
_COLUMNS = ("image", "label", "text")
_SPLITS = ("train", "val", "test")


class HubSource(ImageSource):
    """One split of a Hugging Face data set; images stay encoded until they are asked for.

    The image column is the one of feature type `Image`. The label column is a `ClassLabel`, or else integers, booleans
    or strings and called `label`, `labels`, `fine_label`, `class` or `target` where there are several; strings are
    classes in sorted order.

    Args:
        dataset: the split.
        title: what to call it.
        classes: those of the training split, by whose names the labels are numbered; default: its own.
        unknown: what to do with images of classes that are none of these.
        columns: "image" and "label" -> the column, where it is not to be found by the rules above.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        title: str,
        classes: Sequence[str] | None = None,
        unknown: Unknown = "raise",
        columns: dict[str, str] | None = None,
    ) -> None:
        datasets = require("datasets", extra="hf", feature="a Hugging Face data set")
        columns = columns or {}
        image = _image_column(dataset, datasets, title, columns.get("image"))
        column, named = _label_column(dataset, datasets, title, columns.get("label"))
        values = np.asarray(dataset[column][:]) if len(dataset) else np.zeros(0, np.int64)
        if values.dtype.kind == "O" and any(value is None for value in values.tolist()):
            raise ValueError(f"{title}: row {values.tolist().index(None)} has no {column}; remove it or give it one")
        if values.dtype.kind not in "iu" and len(values):  # words, numbered in their order
            present, values = np.unique(values.astype(str), return_inverse=True)
            named = [str(name) for name in present]
        rows = np.arange(len(values))
        if classes is None:
            classes = named or [str(label) for label in range(int(values.max(initial=0)) + 1)]
        elif named is not None and list(named) != list(classes):
            named = list(named)
            values = check_labels(values, count=len(dataset), classes=len(named), what=title)
            numbers = numbers_of(named, classes)
            lost = [named[label] for label in np.unique(values) if numbers[label] < 0]
            if lost and unknown == "raise":
                raise ValueError(
                    f"{title}: class {lost[0]!r} is not one of the training split's ({listed(classes)}); give both the "
                    "same names, or leave out the images of such classes (unknown_classes='skip')"
                )
            values = numbers[values]
            rows = np.flatnonzero(values >= 0)
            if lost:
                self.passed_over = f"{len(values) - len(rows):,} images of classes that training lacks ({listed(lost)})"
        self.classes = list(classes)
        self.labels = check_labels(values[rows], count=len(rows), classes=len(self.classes), what=title)
        self.description = f"{title}, {len(rows):,} images"
        self._title, self._image, self._rows = title, image, rows
        self._data = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, index: int) -> tuple[Picture, int]:
        """Decoded image and label."""
        assert self.labels is not None
        record = self._data[int(self._rows[index])][self._image]
        if not record or (record.get("bytes") is None and record.get("path") is None):
            raise BadImage("has no image in its row")
        encoded = record["bytes"] if record["bytes"] is not None else Path(record["path"])
        return decode(encoded), int(self.labels[index])

    def name(self, index: int) -> str:
        """`TITLE[index]`."""
        return f"{self._title}[{self._rows[index]}]"


def open_hub(name: str, data_dir: Path | None, *, split: str, unknown: Unknown = "raise") -> Splits:
    """The splits of a Hugging Face data set that `split` needs.

    Args:
        name: what follows `hf:`, see `hub_spec`. A folder made by `save_to_disk`, or one `datasets.load_dataset`
            understands, is read from disk.
        data_dir: the cache folder of downloads.
        split: "train", "val" or "test". The test split is `test`, or else `validation`, `val` or `valid`; a data set
            with one split only is divided by seed.
        unknown: what to do with images whose class, by name, the training split lacks.

    Raises:
        MissingExtra: `datasets` is not installed.
        MissingData: no such data set, or no network to fetch it.
        ValueError: no such column or split, or labels without meaning (all -1).
    """
    datasets = require("datasets", extra="hf", feature=f"data `hf:{name}`")
    place, options = hub_spec(name)
    columns = {key: value for key, value in options.items() if key in _COLUMNS}
    table = load_dataset(datasets, place, data_dir)

    def source(part: str, classes: list[str] | None = None) -> HubSource:
        title = f"hf:{place}/{part}"
        if classes is not None:
            label, _ = _label_column(table[part], datasets, title, columns.get("label"))
            if len(table[part]) and set(table[part][label][:]) == {-1}:
                other = next((name for name in table if PARTS.get(name.lower()) == "val" and name != part), "none")
                raise ValueError(
                    f"{title}: all its labels are -1, which stands for withheld ones; give "
                    f"data='hf:{place},test={other}'" + (", which tests nothing" if other == "none" else "")
                )
        return HubSource(table[part], title=title, classes=classes, unknown=unknown, columns=columns)

    if len(table) == 1 and not options.keys() & set(_SPLITS):
        return {"all": source(next(iter(table)))}
    parts = split_names(table, options, f"hf:{place}")
    train = source(parts["train"])
    splits: Splits = {"train": train}
    if "test" not in parts and "val" in parts and options.get("test") != "none":
        parts["test"] = parts.pop("val")
    if split in parts and split != "train":
        splits[split] = source(parts[split], train.classes)
    return splits


def hub_spec(name: str) -> tuple[str, dict[str, str]]:
    """What follows `hf:`, and what is said behind commas: `image`, `label`, `text` (columns), `train`, `val`, `test`.

    Raises:
        ValueError: something else is said.
    """
    if Path(name).expanduser().is_dir():
        return name, {}
    place, *rest = name.split(",")
    options = {}
    for item in rest:
        key, equals, value = item.partition("=")
        if key not in (*_COLUMNS, *_SPLITS) or not equals or not value:
            raise ValueError(
                f"data: hf:{name}: {item!r} is not understood; behind a comma say {', '.join(_COLUMNS)} (a column) or "
                f"{', '.join(_SPLITS)} (a split), as in hf:{place},label=species,test=validation"
            )
        options[key] = value
    return place, options


def split_names(table: Any, options: dict[str, str], title: str) -> dict[str, str]:
    """What "train", "val" and "test" are called in a data set: as was said (`none`: not there), or by their names.

    Raises:
        ValueError: a split that was said is not there.
        MissingData: there is no training split.
    """
    parts: dict[str, str] = {}
    for part in table:
        if PARTS.get(part.lower(), "train") not in parts and part.lower() in PARTS and part not in options.values():
            parts[PARTS[part.lower()]] = part
    for key in _SPLITS:
        if options.get(key) == "none":
            parts.pop(key, None)
        elif key in options:
            if options[key] not in table:
                raise ValueError(f"data: {title} has no split {options[key]!r}; it has {', '.join(table)}")
            parts[key] = options[key]
    if "train" not in parts:
        raise MissingData(f"data: {title} has no train split; it has {', '.join(table)} (say which: ,train=NAME)")
    return parts


def load_dataset(datasets: Any, name: str, data_dir: Path | None, *, revision: bool = False) -> Any:
    """The splits of what follows `hf:`, by their published names; arguments and errors as in `open_hub`.

    Behind an `@` is the configuration, or with `revision` the revision.
    """
    path, _, config = name.partition("@")
    folder = Path(path).expanduser()
    if folder.is_dir():
        _check_card(folder)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = _from_disk(datasets, folder)
        else:
            cache = None if data_dir is None else str(data_dir)
            chosen: dict[str, Any] = {"revision" if revision else "name": config or None}
            with hub(str(folder)), _quiet(datasets):
                loaded = datasets.load_dataset(str(folder) if folder.is_dir() else path, cache_dir=cache, **chosen)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        at = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = str(at or error).strip().splitlines() or [type(error).__name__]
        raise MissingData(f"data: hf:{name} could not be read: {reason[0]:.200}") from error
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # what datasets and pyarrow let through of files that are not what they say
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CorruptFile(f"data: hf:{name} cannot be read: {reason[0]:.200}") from error
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Within the block datasets does not log of errors that it raises as well."""
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)


def _check_card(folder: Path) -> None:
    """Refuse a folder whose card has files of elsewhere read: datasets would fetch addresses, and leave the folder.

    Raises:
        UnsafeFile: naming the file.
    """
    card, settings = folder / "README.md", folder / ".huggingface.yaml"
    front = read_text(card).split("---") if os.path.lexists(card) else []
    documents = [parse_yaml(front[1], card)] if len(front) > 2 and not front[0].strip() else []
    documents += [read_yaml(settings)] if os.path.lexists(settings) else []
    pending = [each.get("configs") for each in documents if isinstance(each, dict)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and ("://" in value or ".." in Path(value).parts or Path(value).is_absolute()):
            raise UnsafeFile(f"{folder}: its card has {value!r:.100} read, which is not in that folder")


def _from_disk(datasets: Any, folder: Path) -> Any:
    """What `save_to_disk` wrote; `load_from_disk` cannot read back a split without rows, so here it is made anew."""
    try:
        return datasets.load_from_disk(str(folder))
    except IndexError:
        if (listing := folder / "dataset_dict.json").is_file():
            return {part: _from_disk(datasets, folder / part) for part in read_json(listing)["splits"]}
        features = datasets.DatasetInfo.from_directory(str(folder)).features
        return datasets.Dataset.from_dict({column: [] for column in features}, features=features)


def column_called(dataset: Any, title: str, key: str, name: str) -> str:
    """The column that was said to be `key`.

    Raises:
        ValueError: it is not there.
    """
    if name not in dataset.features:
        raise ValueError(f"{title}: there is no column {name!r} ({key}); its columns are {columns_of(dataset)}")
    return name


def columns_of(dataset: Any) -> str:
    """Names and types of the columns."""
    return ", ".join(f"{key} ({_type(feature)})" for key, feature in dataset.features.items())


def _type(feature: Any) -> str:
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind


def _image_column(dataset: Any, datasets: Any, title: str, wanted: str | None) -> str:
    images = [key for key, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if wanted is not None and column_called(dataset, title, "image", wanted) not in images:
        raise ValueError(f"{title}: column {wanted} holds no images; its columns are {columns_of(dataset)}")
    if not images:
        raise ValueError(f"{title} has no image column; its columns are {columns_of(dataset)}")
    return wanted or ("image" if "image" in images else images[0])


def _label_column(dataset: Any, datasets: Any, title: str, wanted: str | None) -> tuple[str, list[str] | None]:
    """The column of labels, and the names of its classes where it has some."""
    features = dataset.features
    labelled = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [
        key
        for key, feature in features.items()
        if isinstance(feature, datasets.Value) and ("int" in feature.dtype or feature.dtype in _WORDS)
    ]
    if wanted is not None and column_called(dataset, title, "label", wanted) not in labelled + plain:
        raise ValueError(f"{title}: column {wanted} is no class of an image; its columns are {columns_of(dataset)}")
    for candidates in ([wanted] if wanted else [], labelled, [key for key in plain if key in _LABELS]):
        if candidates:
            column = next((key for key in _LABELS if key in candidates), candidates[0])
            names = features[column].names if column in labelled else None
            return column, None if names is None else [str(name) for name in names]
    fits = f", as in data='{title.rsplit('/', 1)[0]},label={plain[0]}'" if plain else ""
    raise ValueError(
        f"{title} has no label column (ClassLabel, or `label`); its columns are {columns_of(dataset)}; say which it is "
        f"(,label=COLUMN{fits})"
    )
