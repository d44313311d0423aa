"""ImageNet ReaL: several labels, or none, for each validation image (Beyer et al., arXiv 2006.07159)."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from unrolled.data.sources import FileSource, ImageSource, Subset
from unrolled.errors import CorruptFile, MissingData
from unrolled.reading import read_json

_NUMBER = re.compile(r"_val_(\d{8})(?:\D|$)")


class RealLabels:
    """The sets of labels of one data source's images.

    Args:
        path: `real.json`, a list with one list of class indices for each validation image in the order of their
            numbers.
        source: the images. Which number one has is read off its name (`ILSVRC2012_val_00000001.JPEG`), since folders of
            classes have another order. Where no name has a number, as in packed files, there must be as many images as
            lists, in their order.

    Raises:
        MissingData: no such file.
        CorruptFile: it holds something else.
        ValueError: it is not about these images.
    """

    def __init__(self, path: Path, source: ImageSource) -> None:
        lists = _read(path)
        matches = [_NUMBER.search(source.name(index)) for index in range(len(source))]
        if all(matches):
            self.order = [int(match[1]) - 1 for match in matches if match]
            if not all(0 <= place < len(lists) for place in self.order):
                raise ValueError(f"labels: {path} has {len(lists):,} lists, fewer than the numbers in the files' names")
        else:
            base = source.base if isinstance(source, Subset) else source
            if len(lists) != len(source) or isinstance(base, FileSource):
                raise ValueError(
                    f"labels: {path} has {len(lists):,} lists and there are {len(source):,} images, whose names do not "
                    "all have a number like ILSVRC2012_val_00000001.JPEG; give the ImageNet validation images"
                )
            self.order = list(range(len(source)))
        self.lists = lists

    def score(self, predicted: Tensor, indices: Tensor) -> tuple[int, int]:
        """How many predictions [m] for images `indices` [m] are among the labels, and how many images have labels."""
        right = judged = 0
        for guess, index in zip(predicted.tolist(), indices.tolist(), strict=True):
            labels = self.lists[self.order[index]]
            judged += bool(labels)
            right += guess in labels
        return right, judged

    def check_classes(self, classes: int) -> None:
        """Refuse labels that a model of so many classes does not have."""
        highest = int(max((max(labels) for labels in self.lists if labels), default=0))
        if highest >= classes:
            raise ValueError(f"labels: they reach {highest}, and the model tells {classes} classes apart")


def _read(path: Path) -> list[list[int]]:
    if not path.is_file():
        raise MissingData(f"labels: there is no file {path}")
    lists = read_json(path)
    if not isinstance(lists, list) or not all(
        isinstance(labels, list) and all(type(label) is int and label >= 0 for label in labels) for labels in lists
    ):
        raise CorruptFile(f"labels: {path} is not a list of lists of class indices")
    return lists
