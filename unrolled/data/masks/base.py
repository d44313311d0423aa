"""Annotated images: COCO, VOC, BSDS, ADE20K, folders of masks and packed files behind one interface.

`open.open_masks(name, data_dir=...)` gives a `MaskSource`; `source.load(i)` gives a `Scene`. The readers of each layout
are in `files` and `packs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unrolled.data.sources import BadImage
from unrolled.errors import MissingData

Bools = NDArray[np.bool_]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Region:
    """One annotated region of an image: the pixels that have its value.

    Regions that do not overlap share one map, so that hundreds of photos can be held; those of COCO instances, which
    may overlap, have a boolean one each.
    """

    labels: NDArray[Any]
    """`[h, w]`, integers or booleans."""
    value: int | bool
    category: str
    thing: bool
    """Countable object, as opposed to stuff; every region of a folder of masks is one."""
    crowd: bool = False
    """Several objects under one mask."""

    @property
    def mask(self) -> Bools:
        """Its pixels, `[h, w]`."""
        return np.asarray(self.labels == self.value)


@dataclass(frozen=True)
class Scene:
    """An image and what people marked on it."""

    image: Image.Image
    """RGB."""
    regions: tuple[Region, ...] = ()
    ignore: Bools | None = None
    """`[h, w]`, pixels without a label, where no score counts."""
    segmentations: tuple[Labels, ...] = ()
    """`[h, w]` each: whole segmentations by several people, without classes (BSDS)."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.height, self.image.width

    def foreground(self) -> Bools:
        """Pixels of things, `[h, w]`."""
        out = np.zeros(self.size, bool)
        for region in self.regions:
            if region.thing:
                out |= region.mask
        return out

    def classes(self, *, things: bool = True) -> dict[str, Bools]:
        """Category -> pixels of all its regions, in order of appearance; of things only, or of everything."""
        out: dict[str, Bools] = {}
        for region in self.regions:
            if region.thing or not things:
                out[region.category] = out.get(region.category, np.zeros(self.size, bool)) | region.mask
        return out

    def instances(self) -> tuple[Bools, list[bool]]:
        """Masks of things `[k, h, w]`, and which are crowds."""
        things = [region for region in self.regions if region.thing]
        masks = np.stack([r.mask for r in things]) if things else np.zeros((0, *self.size), bool)
        return masks, [r.crowd for r in things]

    def resized(self, size: tuple[int, int]) -> Scene:
        """The scene at (height, width): image bicubic, annotations by nearest neighbours."""
        if min(size) < 1:
            raise ValueError(f"size={size}: must be at least 1 x 1")
        rows = ((np.arange(size[0]) + 0.5) * self.size[0] / size[0]).astype(int)
        columns = ((np.arange(size[1]) + 0.5) * self.size[1] / size[1]).astype(int)
        where = np.ix_(rows, columns)
        maps = {id(region.labels): region.labels[where] for region in self.regions}
        return Scene(
            self.image.resize((size[1], size[0]), Image.Resampling.BICUBIC),
            tuple(replace(region, labels=maps[id(region.labels)]) for region in self.regions),
            None if self.ignore is None else self.ignore[where],
            tuple(labels[where] for labels in self.segmentations),
        )


class MaskSource(ABC):
    """Annotated images, addressed by index.

    Attributes:
        classes: category names that may occur.
        missing: names of annotated images that are not there, when they were passed over.
        description: what this is, in words for a report.
    """

    classes: list[str]
    description: str = ""
    missing: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Scene:
        """Image and annotations.

        Raises:
            BadImage: one of them cannot be decoded, or they differ in size.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call image `index` in a message."""


Missing = Literal["error", "skip"]


def present_files(paths: list[Path], missing: Missing, *, what: str) -> tuple[list[int], tuple[str, ...]]:
    """Indices of the files that exist, and the names of those that do not.

    Raises:
        MissingData: some do not and `missing` is `"error"`, or none exists.
    """
    here = [index for index, path in enumerate(paths) if path.is_file()]
    gone = tuple(path.name for path in paths if not path.is_file())
    if gone and (missing == "error" or not here):
        raise MissingData(
            f"data_dir: {len(gone):,} of {len(paths):,} images of {what} are missing, the first is {gone[0]}"
            + ("; missing='skip' passes over them" if here else "")
        )
    return here, gone


def to_rgb(image: Image.Image) -> Image.Image:
    """As RGB: alpha on white, 16-bit scaled by its own range of 65,535."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def as_labels(image: Image.Image) -> Labels:
    """A mask image as integers `[h, w]`: palette indices or grey values."""
    if image.mode == "RGB" and (pixels := np.asarray(image)).ndim == 3:
        if not (pixels == pixels[..., :1]).all():
            raise BadImage("is a colour image; a mask needs one channel of region numbers, or a palette")
        return pixels[..., 0].astype(np.int32)
    if image.mode not in ("L", "P", "1", "I", "I;16", "I;16B"):
        raise BadImage(f"has mode {image.mode}; a mask needs one channel of region numbers, or a palette")
    return np.asarray(image).astype(np.int32)


def check_size(mask: NDArray[np.generic], image: Image.Image, what: str) -> None:
    """Raise BadImage unless `mask` has the size of `image`."""
    if mask.shape != (image.height, image.width):
        raise BadImage(
            f"its {what} has {mask.shape[1]} x {mask.shape[0]} pixels, the image {image.width} x {image.height}"
        )
