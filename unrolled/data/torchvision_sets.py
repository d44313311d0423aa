"""torchvision's data sets by name. A download is tried only when the files are not there."""

from __future__ import annotations

import contextlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unrolled.data.files import Splits, Unknown, open_folder
from unrolled.data.idx import IDX_NAMES, find_idx, open_idx
from unrolled.data.sources import ArraySource, FileSource, ImageSource
from unrolled.errors import MissingData, UnsafeFile


@dataclass(frozen=True)
class _Entry:
    """A class of torchvision.datasets and what its splits are called; several names for one split are joined."""

    cls: str
    splits: dict[str, tuple[Any, ...]]
    argument: str | None = "split"


_TRAIN_TEST: dict[str, tuple[Any, ...]] = {"train": ("train",), "test": ("test",)}
_THREE: dict[str, tuple[Any, ...]] = {"train": ("train",), "val": ("val",), "test": ("test",)}
_JOINED: dict[str, tuple[Any, ...]] = {"train": ("train", "val"), "test": ("test",)}
_FLAG: dict[str, tuple[Any, ...]] = {"train": (True,), "test": (False,)}

_SETS = {
    "cifar10": _Entry("CIFAR10", _FLAG, "train"),
    "cifar100": _Entry("CIFAR100", _FLAG, "train"),
    "dtd": _Entry("DTD", _THREE),
    "eurosat": _Entry("EuroSAT", {"all": ()}, None),
    "fashion_mnist": _Entry("FashionMNIST", _FLAG, "train"),
    "fgvc_aircraft": _Entry("FGVCAircraft", _THREE),
    "flowers102": _Entry("Flowers102", _THREE),
    "flowers102_trainval": _Entry("Flowers102", _JOINED),
    "food101": _Entry("Food101", _TRAIN_TEST),
    "gtsrb": _Entry("GTSRB", _TRAIN_TEST),
    "kmnist": _Entry("KMNIST", _FLAG, "train"),
    "mnist": _Entry("MNIST", _FLAG, "train"),
    "oxford_iiit_pet": _Entry("OxfordIIITPet", {"train": ("trainval",), "test": ("test",)}),
    "stl10": _Entry("STL10", _TRAIN_TEST),
    "svhn": _Entry("SVHN", _TRAIN_TEST),
}

TORCHVISION_NAMES = (*_SETS, "imagenet")


def open_torchvision(name: str, data_dir: Path | None, *, split: str, unknown: Unknown = "raise") -> Splits:
    """A torchvision data set.

    Some of them need a word. `fashion_mnist`, `mnist` and `kmnist` are also read from their four original files
    (`train-images-idx3-ubyte.gz`, ...) in DIR or DIR/NAME. The training split of `flowers102` is its 1,020 images (10 a
    class), and `flowers102_trainval` adds the official validation split, 2,040 in all, as many papers do without
    saying. `imagenet` is not downloaded: it is read from `DIR/train/WNID/*` and `DIR/val/WNID/*`. `eurosat` has no
    official split and is divided by seed.

    Args:
        name: one of `TORCHVISION_NAMES`.
        data_dir: where the files are or go; default `$UNROLLED_DATA` or `~/.cache/unrolled/data`.
        split: "train", "val" or "test"; only what it needs is opened.
        unknown: see `files.Unknown`; of `imagenet`.

    Raises:
        MissingData: the files are absent and cannot be downloaded.
    """
    if name == "imagenet":
        if data_dir is None:
            raise ValueError("data_dir: `imagenet` needs the folder with train/WNID and val/WNID")
        return open_folder(data_dir, split=split, unknown=unknown)
    entry = _SETS[name]
    root = Path(data_dir or os.environ.get("UNROLLED_DATA") or "~/.cache/unrolled/data").expanduser()
    if "all" in entry.splits:
        return {"all": _source(name, _open(entry, root, name, None), "all", root)}
    if name in IDX_NAMES:
        wanted = "test" if split == "test" else "train"
        files = find_idx(name, root, wanted)
        if files is not None:
            return {wanted: open_idx(name, wanted, *files)}
    opened: Splits = {}
    for part, official in entry.splits.items():
        # a hold-out is cut from the training split, so "val" needs that too
        if part == split or (split == "val" and part == "train"):
            sources = [_source(name, _open(entry, root, name, value), part, root) for value in official]
            opened[part] = sources[0] if len(sources) == 1 else _joined(sources, root)
    return opened


def _open(entry: _Entry, root: Path, name: str, value: Any) -> Any:
    import torchvision

    arguments = {} if entry.argument is None else {entry.argument: value}
    make = getattr(torchvision.datasets, entry.cls)
    try:
        return make(root, download=False, **arguments)
    except pickle.UnpicklingError as error:  # its own message recommends to run what is in there
        raise UnsafeFile(
            f"data: {name}: a file in {root} would have to run code to be read, which was refused"
        ) from error
    except (RuntimeError, OSError):
        pass  # not there, or not whole: torchvision says both with RuntimeError
    before = {root, *root.glob("*")} if root.exists() else set()
    try:
        root.mkdir(parents=True, exist_ok=True)
        return make(root, download=True, **arguments)
    except (RuntimeError, OSError) as error:
        for folder in {*root.glob("*"), root} - before:
            _remove_empty(folder)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise MissingData(
            f"data: {name} is not in {root} and could not be downloaded ({reason[0]}); "
            f"put the files that torchvision.datasets.{entry.cls} reads there, or give their folder as data_dir"
        ) from error


def _remove_empty(folder: Path) -> None:
    """Take away a folder and those in it that hold no file, as a download that failed leaves them."""
    for inner in sorted((folder, *folder.rglob("*")), reverse=True):  # what is within before what it is in
        if inner.is_dir():
            with contextlib.suppress(OSError):  # it holds something, or another process was first
                inner.rmdir()


def _source(name: str, dataset: Any, part: str, root: Path) -> ImageSource:
    """Wrap what torchvision read, pixels or paths, with labels. Decoding stays ours, so that errors are alike."""
    title = f"{name}/{part}"
    labels = next((getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None)
    samples = next((getattr(dataset, key) for key in ("samples", "_samples") if hasattr(dataset, key)), None)
    if samples is not None:
        labels = [label for _, label in samples]
    values = np.asarray(labels)
    classes = [str(label) for label in getattr(dataset, "classes", range(int(values.max()) + 1))]
    if hasattr(dataset, "data"):
        pixels = np.asarray(dataset.data)
        if pixels.ndim == 4 and pixels.shape[1] == 3:  # SVHN and STL-10 put channels first
            pixels = pixels.transpose(0, 2, 3, 1)
        return ArraySource(pixels, values, classes=classes, title=title)
    if samples is not None:
        paths = [path for path, _ in samples]
    else:
        paths = next(getattr(dataset, key) for key in ("_image_files", "_images") if hasattr(dataset, key))
    return FileSource(
        [Path(path) for path in paths],
        values,
        classes=classes,
        root=root,
        description=f"{title}, {len(paths):,} images",
    )


def _joined(sources: list[ImageSource], root: Path) -> FileSource:
    paths = [Path(path) for source in sources if isinstance(source, FileSource) for path in source.paths]
    labels = np.concatenate([source.labels for source in sources if source.labels is not None])
    return FileSource(paths, labels, classes=sources[0].classes, root=root)
