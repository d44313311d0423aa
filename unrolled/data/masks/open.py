"""Annotated images by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unrolled.data.masks.base import MaskSource, Missing
from unrolled.data.masks.files import Ade20k, CocoInstances, CocoPanoptic, MaskFolder, Voc
from unrolled.data.masks.packs import open_bsds, open_coco
from unrolled.data.sources import existing_folder


def open_masks(name: str, *, data_dir: str | Path, split: str = "val", missing: Missing = "error") -> MaskSource:
    """Open a set of annotated images.

    | name             | expects in `data_dir`                                                                 |
    |------------------|---------------------------------------------------------------------------------------|
    | `coco`           | a packed `coco_panoptic*.npz`, or panoptic annotations if any, or else instances      |
    | `coco-panoptic`  | `annotations/panoptic_SPLIT2017.json` and folder of the same stem, `SPLIT2017/*.jpg`  |
    | `coco-instances` | `annotations/instances_SPLIT2017.json`, `SPLIT2017/*.jpg`; needs the extra `eval`     |
    | `voc`            | `JPEGImages`, `SegmentationClass`, `SegmentationObject`, `ImageSets/Segmentation`     |
    | `bsds`           | a packed `bsds*.npz`, or `images/SPLIT/*.jpg` and `groundTruth/SPLIT/*.mat`           |
    | `ade20k`         | scene parsing: `images/validation`, `annotations/validation`, `objectInfo150.txt`     |
    | `masks`          | `images/*` and `masks/*` with equal stems, or `NAME.jpg` beside `NAME_mask.png`       |

    Args:
        name: one of these.
        data_dir: the folder, or the packed file itself. Folders of VOC and BSDS may also be the ones above
            (`VOCdevkit/VOC2012`, `BSDS500/data`).
        split: `"val"`, `"train"` or what the set calls it; packed COCO holds `"train"`, `"val"` and `"all"`. Ignored by
            `masks`.
        missing: what to do when annotated images are not there: raise, or pass over them and list them in `.missing`.

    Raises:
        ValueError: unknown name or split.
        MissingData: files are not where they should be; the message says which.
        CorruptFile: an annotation file is damaged.
    """

    readers: dict[str, Callable[[Path, str, Missing], MaskSource]] = {
        "coco": open_coco,
        "coco-panoptic": CocoPanoptic,
        "coco-instances": CocoInstances,
        "voc": Voc,
        "bsds": open_bsds,
        "ade20k": Ade20k,
        "masks": MaskFolder,
    }
    if name not in readers:
        raise ValueError(f"name={name!r}: choose from {', '.join(readers)}")
    if missing not in ("error", "skip"):
        raise ValueError(f"missing={missing!r}: choose 'error' or 'skip'")
    return readers[name](existing_folder(Path(data_dir), what=name), split, missing)
