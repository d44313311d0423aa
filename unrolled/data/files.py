"""Image folders and packed files found by name in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from unrolled.data.packed import PackedSource
from unrolled.data.sources import FileSource, ImageSource, existing_folder
from unrolled.errors import MissingData

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_ALIASES = {"tiny-imagenet-32": ("tiny-imagenet-32", "tiny32"), "cifar10": ("cifar10",), "cifar100": ("cifar100",)}

Splits = dict[str, ImageSource]
"""What a data set comes with: "train" and "test", perhaps "val", or everything under "all"."""


def open_folder(data_dir: Path | None, *, split: str) -> Splits:
    """`DIR/train/CLASS/*` with `DIR/val/CLASS/*` and/or `DIR/test/CLASS/*`, or one folder of classes, `DIR/CLASS/*`.

    Classes are the names of the training folders, sorted, whole numbers by their value; a test folder may lack some but
    not bring new ones. Class folders are searched in depth; files that do not end like an image are passed over.
    Without `test`, `val` is the test split.

    With split "all", one folder of classes is taken whole, and where their names are numbers these are the labels, as
    in ImageNet-V2 (0 to 999), so that a class may be absent.

    Raises:
        MissingData: the folder does not exist.
        ValueError: it has no class folders, a class without images, or a class that training does not know.
    """
    root = existing_folder(data_dir, what="folder")
    if not (root / "train").is_dir():
        lonely = [part for part in ("val", "test") if (root / part).is_dir()]
        if lonely:
            raise MissingData(f"data_dir: {root} has {lonely[0]}/ but no train/")
        return {"all": _classes_in(root, _numbered(root) if split == "all" else None)}
    if split == "all":
        raise ValueError(f"split: {root} has train/ and other parts; choose train, val or test")
    tests = [part for part in ("test", "val") if (root / part).is_dir()]
    classes = _class_names(root / "train")
    if split == "train":
        return {"train": _classes_in(root / "train", classes)}
    if split == "test" and not tests:
        raise MissingData(f"data_dir: {root} has train/ but neither test/ nor val/")
    found: Splits = {"train": _classes_in(root / "train", classes)} if split == "val" else {}
    if tests:
        found["test"] = _classes_in(root / tests[0], classes)
    if len(tests) == 2 and split == "val":
        found["val"] = _classes_in(root / "val", classes)
    return found


def open_packed(name: str, data_dir: Path | None, *, split: str) -> Splits:
    """Packed files in a folder; see `find_packed`. A single file, given as `data_dir`, is split by seed."""
    place = existing_folder(data_dir, what=name)
    if place.is_file():
        return {"all": PackedSource(place)}
    part = "test" if split == "test" else "train"
    path = find_packed(name, place, part)
    if path is None:
        patterns = "*_train*.npz" if part == "train" else "*_test*.npz or *_val*.npz"
        raise MissingData(f"data_dir: {place} holds no packed {part} file of {name!r} ({patterns})")
    return {part: PackedSource(path)}


def find_packed(name: str, folder: Path, part: str) -> Path | None:
    """The packed file of a split, or None.

    `packed` takes any `*_train*.npz` (or `*_test*`, `*_val*`) in `folder`; a name takes `NAME_train*.npz` there, or any
    such file in `folder/NAME`.

    Raises:
        ValueError: several files fit.
    """
    endings = ("_train*.npz",) if part == "train" else ("_test*.npz", "_val*.npz")
    stems = ("*",) if name == "packed" else _ALIASES.get(name, (name,))
    for ending in endings:
        fits = sorted({path for stem in stems for path in folder.glob(stem + ending)})
        if not fits and name != "packed":
            fits = sorted((folder / name).glob("*" + ending))
        if len(fits) > 1:
            names = ", ".join(path.name for path in fits)
            raise ValueError(
                f"data_dir: {folder} has several packed {part} files ({names}); keep one, or name the file"
            )
        if fits:
            return fits[0]
    return None


def _class_names(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        found = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    names = sorted(found, key=int) if all(map(_is_number, found)) else sorted(found)
    if not names:
        raise ValueError(
            f"data_dir: {root} has no class folders; expected {root.name}/CLASS/IMAGE or train/CLASS/IMAGE and test/..."
        )
    return names


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def _numbered(root: Path) -> list[str] | None:
    """Every class up to the largest number among the class folders of `root`; None where they are not numbers."""
    names = _class_names(root)
    if not all(map(_is_number, names)) or int(names[-1]) >= 100_000:
        return None
    return [str(number) for number in range(int(names[-1]) + 1)]


def _classes_in(root: Path, classes: list[str] | None) -> FileSource:
    present = _class_names(root)
    if classes is None:
        classes = present
    unknown = sorted(set(present) - set(classes))
    if unknown:
        raise ValueError(f"data_dir: {root} has a class {unknown[0]!r} that the training split does not have")
    paths: list[Path] = []
    labels: list[int] = []
    for name in present:
        files = sorted(
            Path(folder) / file
            for folder, _, found in os.walk(root / name)
            for file in found
            if os.path.splitext(file)[1].lower() in _SUFFIXES
        )
        if not files:
            raise ValueError(f"data_dir: class folder {root / name} has no images; add some or remove it")
        paths += files
        labels += [classes.index(name)] * len(files)
    return FileSource(paths, np.array(labels, np.int64), classes=classes, root=root)
