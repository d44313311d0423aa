"""Which class of one data set or model is which of another: by name, in one place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unrolled.data.sources import ImageSource, Picture, Subset

_SHOWN = 5


class Relabelled(Subset):
    """The images of another source whose classes are known elsewhere, labelled by their numbers there.

    Args:
        base: images and labels.
        classes: the class names of the other data set or model.
        numbers: of each class of `base` its number there, or -1: its images are left out.

    Raises:
        ValueError: the labels of `base` are not known without decoding.
    """

    def __init__(self, base: ImageSource, classes: Sequence[str], numbers: np.ndarray) -> None:
        if base.labels is None:
            raise ValueError(f"{base.description}: its labels are not known beforehand, so it cannot be relabelled")
        labels = numbers[base.labels]
        rows = np.flatnonzero(labels >= 0)
        super().__init__(base, rows, description=base.description)
        self.classes = list(classes)
        self.labels = labels[rows]

    def load(self, index: int) -> tuple[Picture, int]:
        """Image of the base source, and its label elsewhere."""
        assert self.labels is not None
        return super().load(index)[0], int(self.labels[index])


def numbers_of(names: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """The position in `known` of every name, int64 [len(names)]; -1 for those that it lacks."""
    place = {name: number for number, name in reversed(list(enumerate(known)))}
    return np.array([place.get(name, -1) for name in names], np.int64)


def by_name(source: ImageSource, known: Sequence[str], *, what: str) -> tuple[ImageSource, str]:
    """`source` with the labels that its classes have in `known`, and in words what that changed.

    Args:
        source: images and labels.
        known: class names.
        what: whose they are, for messages.

    Returns:
        The source itself and no words where the names are the same; else a `Relabelled` one.

    Raises:
        ValueError: none of its images is of a known class.
    """
    if list(source.classes) == list(known):
        return source, ""
    numbers = numbers_of(source.classes, known)
    relabelled = Relabelled(source, known, numbers)
    assert source.labels is not None
    lost = [source.classes[label] for label in np.unique(source.labels) if numbers[label] < 0]
    if len(relabelled) == 0:
        raise ValueError(
            f"the classes of {source.description} ({listed(source.classes)}) are none of those of {what} "
            f"({listed(known)}); if they are the same ones under other names, classes_by='number' takes them by number"
        )
    note = f"classes are those of {what}, by name"
    if lost:
        out = len(source) - len(relabelled)
        note += f"; left out: {out:,} of {len(source):,} images, of {counted(len(lost))} it lacks ({listed(lost)})"
    return relabelled, note


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(map(str, names[:_SHOWN])) + (f", ... {len(names):,} in all" if len(names) > _SHOWN else "")


def counted(number: int) -> str:
    """`1 class`, `2 classes`."""
    return f"{number:,} class{'' if number == 1 else 'es'}"


def reading_note(**parts: ImageSource | None) -> str:
    """One line on what was read: of every part its images and classes, and what was passed over.

    Args:
        parts: name -> source; None is left out.
    """
    present = {name: source for name, source in parts.items() if source is not None}
    lines = []
    for name, source in present.items():
        line = f"{name.replace('_', ' ')}: {len(source):,} images of {_classes(source)}"
        lines.append(line + (f" (passed over: {source.passed_over})" if source.passed_over else ""))
    return "; ".join(lines)


def one_class_note(source: ImageSource) -> str | None:
    """A warning where all images are of one class, so that any constant answer is right; None otherwise."""
    if source.labels is None or not len(source.labels) or (source.labels != source.labels[0]).any():
        return None
    name = _named(source, int(source.labels[0]))
    return f"all {len(source):,} images are of one class ({name}): a model that always answers it is right every time"


def _classes(source: ImageSource) -> str:
    if source.labels is None:
        return counted(len(source.classes))
    present, counts = np.unique(source.labels, return_counts=True)
    of = "" if len(present) == len(source.classes) else f"{len(present):,} of the "
    if len(source.classes) <= _SHOWN:
        named = ", ".join(f"{_named(source, label)} {count:,}" for label, count in zip(present, counts, strict=True))
        return f"{of}{counted(len(source.classes))} ({named})"
    low, high = (counts.min(), counts.max()) if len(counts) else (0, 0)
    return f"{of}{counted(len(source.classes))}, {low:,}{f' to {high:,}' if high != low else ''} of each"


def _named(source: ImageSource, label: int) -> str:
    """The name of a label; one outside the classes, which the loader refuses when its turn comes, is its number."""
    return source.classes[label] if 0 <= label < len(source.classes) else f"label {label}"
