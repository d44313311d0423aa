"""Image folders and packed files found by name in a folder."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np

from unrolled.data.classes import Relabelled, listed, numbers_of
from unrolled.data.listing import PassedOver, class_name, entries, files_below, files_in, parts_in, printable
from unrolled.data.packed import PackedSource, packed_classes
from unrolled.data.sources import FileSource, ImageSource, existing_folder
from unrolled.errors import MissingData

IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_ALIASES = {"tiny-imagenet-32": ("tiny-imagenet-32", "tiny32"), "cifar10": ("cifar10",), "cifar100": ("cifar100",)}

Splits = dict[str, ImageSource]
"""What a data set comes with: "train" and "test", perhaps "val", or everything under "all"."""
Unknown = Literal["raise", "skip"]
"""What to do with images of a held-out part whose class the training part lacks: refuse, or leave them out."""


def open_folder(data_dir: Path | None, *, split: str, unknown: Unknown = "raise") -> Splits:
    """`DIR/train/CLASS/*` with `DIR/val/CLASS/*` and/or `DIR/test/CLASS/*`, or one folder of classes, `DIR/CLASS/*`.

    As torchvision's `ImageFolder`: classes are the names of the training folders, sorted (but whole numbers by their
    value, as in timm), class folders are searched in depth, links are followed, and files that do not end like an image
    are passed over. The parts may be called `training`, `valid`, `validation`, `testing` too, in any case. Hidden and
    system entries are no content (`data.listing`). A test folder may lack some classes. Without `test`, or if that has
    no class folders, `val` is the test split.

    With split "all", one folder of classes is taken whole, and where their names are numbers these are the labels, as
    in ImageNet-V2 (0 to 999), so that a class may be absent.

    Raises:
        MissingData: the folder does not exist.
        ValueError: it has no class folders, a class without images, or (unless `unknown` is "skip") a class that
            training does not know.
    """
    root = existing_folder(data_dir, what="folder")
    if not root.is_dir():
        raise ValueError(f"data_dir: {printable(root)} is a file; give the folder of the classes")
    passed = PassedOver()
    parts = parts_in(root, passed)
    if "train" not in parts:
        if parts:
            lonely = next(iter(parts.values()))
            raise MissingData(
                f"data_dir: {printable(root)} has {lonely.name}/ but no train/; to take that one whole, give "
                f"{printable(lonely)}, with split='all'"
            )
        return {"all": _classes_in(root, _numbered(root) if split == "all" else None, passed=passed)}
    if split == "all":
        raise ValueError(f"split: {printable(root)} has train/ and other parts; choose train, val or test")
    for part in ("val", "test"):
        if part in parts and not _class_folders(parts[part]):
            passed.add("parts without class folders", parts.pop(part).name)
    tests = [part for part in ("test", "val") if part in parts]
    classes = _class_names(parts["train"])
    if split == "train":
        return {"train": _classes_in(parts["train"], classes, passed=passed)}
    if split == "test" and not tests:
        raise MissingData(
            f"data_dir: {printable(root)} has train/ but neither test/ nor val/ with class folders, so no test split"
        )
    splits: Splits = {"train": _classes_in(parts["train"], classes)} if split == "val" else {}
    if tests:
        splits["test"] = _classes_in(parts[tests[0]], classes, unknown=unknown, passed=passed)
    if len(tests) == 2 and split == "val":
        splits["val"] = _classes_in(parts["val"], classes, unknown=unknown)
    return splits


def open_packed(name: str, data_dir: Path | None, *, split: str, unknown: Unknown = "raise") -> Splits:
    """Packed files in a folder; see `find_packed`. A single file, given as `data_dir`, is split by seed.

    Test images are labelled by the names of the training file's classes, if that is there.
    """
    place = existing_folder(data_dir, what=name)
    if place.is_file():
        return {"all": PackedSource(place)}
    part = "test" if split == "test" else "train"
    path = find_packed(name, place, part)
    if path is None:
        patterns = "*_train*.npz" if part == "train" else "*_test*.npz or *_val*.npz"
        raise MissingData(f"data_dir: {place} holds no packed {part} file of {name!r} ({patterns})")
    source = PackedSource(path)
    training = find_packed(name, place, "train") if part == "test" else None
    return {part: source if training is None else _as_in(packed_classes(training), source, unknown)}


def _as_in(classes: list[str], source: PackedSource, unknown: Unknown) -> ImageSource:
    assert source.labels is not None
    numbers = numbers_of(source.classes, classes)
    lost = [source.classes[label] for label in np.unique(source.labels) if numbers[label] < 0]
    if lost and unknown == "raise":
        raise ValueError(
            f"data_dir: {source.description} has a class {lost[0]!r} that the training file does not have "
            f"({listed(classes)}); give both the same names, or leave its images out (unknown_classes='skip')"
        )
    if source.classes == classes:
        return source
    relabelled = Relabelled(source, classes, numbers)
    if lost:
        out = len(source) - len(relabelled)
        relabelled.passed_over = f"{out:,} images of classes that training lacks ({listed(lost)})"
    return relabelled


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
        fits = files_in(folder, _fits(tuple(stem + ending for stem in stems)))
        if not fits and name != "packed" and (folder / name).is_dir():
            fits = files_in(folder / name, _fits(("*" + ending,)))
        if len(fits) > 1:
            names = ", ".join(path.name for path in fits)
            raise ValueError(
                f"data_dir: {folder} has several packed {part} files ({names}); keep one, or name the file"
            )
        if fits:
            return fits[0]
    return None


def _fits(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def _class_folders(root: Path, passed: PassedOver | None = None) -> dict[str, Path]:
    """Class -> folder, in the order of the labels; images that lie beside the folders are passed over.

    Raises:
        ValueError: two folders have one name, but for the form of their accents.
    """
    folders: dict[str, Path] = {}
    for entry in entries(root, passed):
        if entry.is_dir():
            name = class_name(entry.name)
            if name in folders:
                raise ValueError(f"data_dir: {printable(root)} has two folders called {name}; join them")
            folders[name] = Path(entry.path)
        elif passed is not None:
            passed.add("files outside the class folders", printable(entry.name))
    order = sorted(folders, key=int) if all(map(_is_number, folders)) else sorted(folders)
    return {name: folders[name] for name in order}


def _class_names(root: Path) -> list[str]:
    names = list(_class_folders(root))
    if not names:
        raise ValueError(
            f"data_dir: {printable(root)} has no class folders; expected {printable(root.name)}/CLASS/IMAGE or "
            "train/CLASS/IMAGE and test/..."
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


def _classes_in(
    root: Path, classes: list[str] | None, *, unknown: Unknown = "raise", passed: PassedOver | None = None
) -> FileSource:
    passed = PassedOver() if passed is None else passed
    if classes is None:
        classes = _class_names(root)
    numbers = {name: number for number, name in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    for name, folder in _class_folders(root, passed).items():
        if name not in numbers and unknown == "raise":
            raise ValueError(
                f"data_dir: {printable(root)} has a class {name!r} that the training split does not have; remove it, "
                "or leave it out (unknown_classes='skip')"
            )
        files = files_below(folder, IMAGES, passed)
        if not files:
            raise ValueError(f"data_dir: class folder {printable(folder)} has no images; add some or remove it")
        if name not in numbers:
            for _ in files:
                passed.add("images of classes that training lacks", name)
            continue
        paths += files
        labels += [numbers[name]] * len(files)
    source = FileSource(paths, np.array(labels, np.int64), classes=classes, root=root)
    source.passed_over = passed.summary()
    return source
