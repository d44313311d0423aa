"""Images that the studies' small networks learn and are tested on, decoded into memory once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unrolled.studies.cells import data_missing

_OTHER_CLASSES = 100


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images decoded once: uint8 [n, c, h, w], and their classes [n]."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def first(self, count: int) -> Pictures:
        """The first `count` images."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def of_classes(self, classes: tuple[int, ...]) -> Pictures:
        """The images of some classes; of all if none is named."""
        if not classes:
            return self
        rows = torch.isin(self.labels, torch.tensor(classes))
        return replace(self, images=self.images[rows], labels=self.labels[rows])


@cache
def pictures(data: str, split: Literal["train", "test"], data_dir: Path) -> Pictures:
    """A split, decoded into memory in a fixed random order (the test split of CIFAR-10 in its own).

    Raises:
        MissingData: it is not in `data_dir`.
    """
    import numpy as np

    from unrolled.data import open_images
    from unrolled.errors import MissingData

    try:
        source = open_images(data, split, data_dir=None if data == "digits" else data_dir)
    except MissingData as error:
        raise data_missing(data, error) from error
    labels = torch.as_tensor(np.asarray(source.labels), dtype=torch.int64)
    order = torch.arange(len(labels))
    if split == "train" or data != "cifar10":
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    if source.in_memory():
        pixels = torch.from_numpy(source.take(order.numpy())[0])
    else:
        pixels = torch.stack([torch.from_numpy(np.asarray(source.load(int(i))[0])) for i in order])
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    return Pictures(images=pixels.movedim(-1, 1).contiguous(), labels=labels[order], classes=tuple(source.classes))


def unseen_pictures(data_dir: Path) -> Pictures:
    """Tiny-ImageNet's validation images of its first 100 classes at 32 px, shuffled.

    No network of CIFAR-10 has seen such an image, so a probe on them measures how well features transfer.

    Raises:
        MissingData: Tiny-ImageNet is not in `data_dir`.
    """
    test_images = pictures("tiny-imagenet-32", "test", data_dir)
    some = test_images.of_classes(tuple(range(_OTHER_CLASSES)))
    return replace(some, classes=test_images.classes[:_OTHER_CLASSES])


def as_input(images: Tensor) -> Tensor:
    """uint8 pixels as floats in about [-2, 2]."""
    return images.float().sub_(127.5).div_(64)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [b, c, s, s] shifted by up to an eighth of their side, edges repeated, half of them mirrored."""
    count, _, side, _ = images.shape
    reach = side // 8
    shift = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(side) + shift[0]).clamp_(0, side - 1)
    columns = (torch.arange(side) + shift[1]).clamp_(0, side - 1)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    which = torch.arange(count)[:, None, None]
    return images[which, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
