"""Packed annotated images: encoded photos and PNG masks end to end in one `.npz` file."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from PIL import Image

from unrolled.arrays import read_npz
from unrolled.data.listing import files_in
from unrolled.data.masks.base import MaskSource, Missing, Region, Scene, as_labels, check_size, to_rgb
from unrolled.data.masks.files import BsdsFolder, CocoInstances, CocoPanoptic
from unrolled.data.sources import BadImage, decode
from unrolled.errors import CorruptFile


def open_coco(root: Path, split: str, missing: Missing) -> MaskSource:
    """A packed file if there is one, else panoptic annotations, else instances."""
    path = _packed(root, "coco_panoptic*.npz")
    if path is not None:
        return PackedCoco(path, split)
    if (root / "annotations" / f"panoptic_{split}2017.json").is_file():
        return CocoPanoptic(root, split, missing)
    return CocoInstances(root, split, missing)


def open_bsds(root: Path, split: str, missing: Missing) -> MaskSource:
    """A packed file if there is one, else the published folders."""
    path = _packed(root, f"bsds*{split}*.npz")
    return PackedBsds(path) if path is not None else BsdsFolder(root, split, missing)


class _Packed(MaskSource):
    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self._path = path
        self._arrays = _read(path, ("payload", "offsets", "mask_payload", "mask_offsets", *keys))

    def name(self, index: int) -> str:
        """`FILE[index]`."""
        return f"{self._path}[{index}]"

    def _decode(self, kind: str, index: int) -> Image.Image:
        offsets = self._arrays[f"{kind}offsets"]
        start, stop = int(offsets[index]), int(offsets[index + 1])
        return decode(self._arrays[f"{kind}payload"][start:stop].tobytes())


class PackedCoco(_Packed):
    """COCO photos with panoptic masks: value k of a mask is the photo's segment k, 0 is unlabelled.

    Arrays: `payload`/`offsets`, `mask_payload`/`mask_offsets`; `segments` (photo, k, category id, is thing, is crowd,
    area) and `is_val`; `category_ids` and `category_names`.
    """

    def __init__(self, path: Path, split: str) -> None:
        super().__init__(path, ("segments", "is_val", "category_ids", "category_names"))
        if split not in ("train", "val", "all"):
            raise ValueError(f"split={split!r}: choose 'train', 'val' or 'all'")
        a = self._arrays
        if a["segments"].ndim != 2 or a["segments"].shape[1] < 5:
            raise CorruptFile(f"{path}: segments must be [n, 6], not {a['segments'].shape}")
        counts = {key: len(a[key].ravel()) for key in ("is_val", "category_ids", "category_names")}
        if counts["category_ids"] != counts["category_names"]:
            raise CorruptFile(f"{path}: there are not as many category_ids as category_names")
        if not len(a["offsets"]) == len(a["mask_offsets"]) == counts["is_val"] + 1:
            raise CorruptFile(f"{path}: is_val, offsets and mask_offsets are not of as many photos")
        val = a["is_val"].ravel().astype(bool)
        self._index = np.flatnonzero(np.ones_like(val) if split == "all" else val if split == "val" else ~val)
        self._names = dict(zip(a["category_ids"].ravel().tolist(), a["category_names"].ravel().tolist(), strict=True))
        self.classes = [str(name) for name in a["category_names"].ravel()]
        self.description = f"packed COCO panoptic {path.name}, {split}, {len(self):,} images"

    def __len__(self) -> int:
        return len(self._index)

    def name(self, index: int) -> str:
        """`FILE[number in the file]`."""
        return f"{self._path}[{self._index[index]}]"

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`. Segments too small to survive the resized mask are left out."""
        number = int(self._index[index])
        image, labels = to_rgb(self._decode("", number)), as_labels(self._decode("mask_", number))
        check_size(labels, image, "mask")
        segments = self._arrays["segments"]
        rows = segments[segments[:, 0] == number]
        if lost := [int(category) for category in rows[:, 2] if int(category) not in self._names]:
            raise BadImage(f"one of its segments is of category {lost[0]}, which the file does not describe")
        regions = tuple(
            Region(labels, int(k), str(self._names[int(category)]), bool(thing), bool(crowd))
            for _, k, category, thing, crowd, *_ in rows
            if (labels == k).any()
        )
        return Scene(image, regions, labels == 0)


class PackedBsds(_Packed):
    """BSDS photos with the segmentations of several people; `mask_image` says whose photo each mask is."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ("mask_image",))
        self.classes = []
        self.description = f"packed BSDS {path.name}, {len(self):,} images"

    def __len__(self) -> int:
        return len(self._arrays["offsets"]) - 1

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`."""
        image = to_rgb(self._decode("", index))
        people = [as_labels(self._decode("mask_", int(m))) for m in np.flatnonzero(self._arrays["mask_image"] == index)]
        for labels in people:
            check_size(labels, image, "segmentation")
        return Scene(image, segmentations=tuple(people))


def _packed(root: Path, pattern: str) -> Path | None:
    if root.is_file():
        return root
    fits = files_in(root, lambda name: fnmatchcase(name, pattern))
    if len(fits) > 1:
        raise ValueError(
            f"data_dir: {root} has several packed files ({', '.join(f.name for f in fits)}); name one of them"
        )
    return fits[0] if fits else None


def _read(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    arrays = read_npz(path, keys)
    if lacking := [key for key in keys if key not in arrays]:
        raise CorruptFile(f"{path} is not a packed file of annotated images: it lacks {', '.join(lacking)}")
    for kind in ("", "mask_"):
        payload, offsets = arrays[f"{kind}payload"], arrays[f"{kind}offsets"]
        if payload.dtype != np.uint8 or payload.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
            raise CorruptFile(f"{path}: {kind}payload must be bytes and {kind}offsets integers")
        whole = offsets.astype(np.int64)
        if len(whole) < 2 or whole[0] < 0 or (np.diff(whole) < 0).any() or whole[-1] > len(payload):
            raise CorruptFile(f"{path}: {kind}offsets do not describe the {len(payload):,} bytes of {kind}payload")
        arrays[f"{kind}offsets"] = whole
    return arrays
