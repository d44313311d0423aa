"""Annotated images in the layouts their authors publish."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from unrolled.data.masks import (
    MaskSource,
    Missing,
    Region,
    Scene,
    as_labels,
    check_size,
    found_images,
    to_rgb,
)
from unrolled.data.sources import BadImage, decode
from unrolled.errors import CorruptFile, MissingData, require
from unrolled.reading import read_json

_IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
VOID = 255


class _Files(MaskSource):
    """Images that are files; `_keep` restricts the annotated ones to those that exist."""

    _paths: list[Path]

    def _keep(self, paths: list[Path], missing: Missing, what: str) -> list[int]:
        here, self.missing = found_images(paths, missing, what=what)
        self._paths = [paths[index] for index in here]
        self.description = f"{what}, {len(here):,} images" + (
            f", {len(self.missing):,} missing" if self.missing else ""
        )
        return here

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """Path of the image."""
        return str(self._paths[index])


class CocoPanoptic(_Files):
    """COCO panoptic: PNG masks whose colour is the segment's id, R + 256 G + 65536 B."""

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        path = root / "annotations" / f"panoptic_{split}2017.json"
        self._masks = path.with_suffix("")
        data = _read_json(path, ("images", "annotations", "categories"))
        files = {image["id"]: image["file_name"] for image in data["images"]}
        annotations = [a for a in data["annotations"] if a["image_id"] in files]
        paths = [root / f"{split}2017" / files[a["image_id"]] for a in annotations]
        here = self._keep(paths, missing, f"COCO panoptic {split}2017")
        self._annotations = [annotations[index] for index in here]
        self._categories = {c["id"]: (c["name"], bool(c["isthing"])) for c in data["categories"]}
        self.classes = [c["name"] for c in data["categories"]]

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`."""
        annotation = self._annotations[index]
        image = to_rgb(decode(self._paths[index]))
        colours = np.asarray(_mask_image(self._masks / annotation["file_name"]).convert("RGB")).astype(np.int32)
        ids = colours @ np.array([1, 256, 65536], np.int32)
        check_size(ids, image, "panoptic mask")
        regions = []
        for segment in annotation["segments_info"]:
            name, thing = self._categories[segment["category_id"]]
            regions.append(Region(ids == segment["id"], name, thing, bool(segment.get("iscrowd", 0))))
        return Scene(image, tuple(regions), ids == 0)


class CocoInstances(_Files):
    """COCO instances: polygons and run lengths, which pycocotools decodes. Images without instances are included."""

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        self._coding = require("pycocotools.mask", extra="eval", feature="reading COCO instances")
        data = _read_json(root / "annotations" / f"instances_{split}2017.json", ("images", "annotations", "categories"))
        images = data["images"]
        here = self._keep(
            [root / f"{split}2017" / image["file_name"] for image in images], missing, f"COCO instances {split}2017"
        )
        by_image: dict[int, list[dict[str, Any]]] = {images[index]["id"]: [] for index in here}
        for annotation in data["annotations"]:
            by_image.get(annotation["image_id"], []).append(annotation)
        self._annotations = [by_image[images[index]["id"]] for index in here]
        self._categories = {c["id"]: c["name"] for c in data["categories"]}
        self.classes = [c["name"] for c in data["categories"]]

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`."""
        image = to_rgb(decode(self._paths[index]))
        regions = []
        for annotation in self._annotations[index]:
            code = annotation["segmentation"]
            if isinstance(code, list):
                code = self._coding.merge(self._coding.frPyObjects(code, image.height, image.width))
            elif isinstance(code["counts"], list):
                code = self._coding.frPyObjects(code, *code["size"])
            mask = self._coding.decode(code).astype(bool)
            check_size(mask, image, "instance mask")
            crowd = bool(annotation.get("iscrowd", 0))
            regions.append(Region(mask, self._categories[annotation["category_id"]], True, crowd))
        return Scene(image, tuple(regions))


class Voc(_Files):
    """PASCAL VOC segmentation; 255 (contours and difficult objects) is ignored."""

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        self._root = root = _descend(root, "VOCdevkit/VOC2012", "VOC2012", has="ImageSets")
        listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not listing.is_file():
            raise MissingData(f"data_dir: {listing} does not exist")
        paths = [root / "JPEGImages" / f"{stem}.jpg" for stem in listing.read_text().split()]
        self._keep(paths, missing, f"PASCAL VOC {split}")
        self.classes = list(VOC_CLASSES)

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`."""
        path = self._paths[index]
        image = to_rgb(decode(path))
        classes, objects = (
            as_labels(_mask_image(self._root / f"Segmentation{kind}" / f"{path.stem}.png"))
            for kind in ("Class", "Object")
        )
        check_size(classes, image, "class mask")
        check_size(objects, image, "object mask")
        regions = []
        for number in np.unique(objects[(objects > 0) & (objects < VOID)]):
            mask = objects == number
            inside = classes[mask & (classes > 0) & (classes <= len(VOC_CLASSES))]
            if len(inside):
                regions.append(Region(mask, VOC_CLASSES[np.bincount(inside).argmax() - 1], True))
        return Scene(image, tuple(regions), classes == VOID)


class BsdsFolder(_Files):
    """BSDS500: `images/SPLIT/*.jpg` and `groundTruth/SPLIT/*.mat`."""

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        root = _descend(root, "BSDS500/data", "data", has="groundTruth")
        truths = sorted((root / "groundTruth" / split).glob("*.mat"))
        if not truths:
            raise MissingData(f"data_dir: {root / 'groundTruth' / split} holds no .mat files")
        here = self._keep([root / "images" / split / f"{t.stem}.jpg" for t in truths], missing, f"BSDS500 {split}")
        self._truths = [truths[index] for index in here]
        self.classes = []

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`."""
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError

        image = to_rgb(decode(self._paths[index]))
        try:
            people = loadmat(self._truths[index], variable_names=["groundTruth"])["groundTruth"].ravel()
            segmentations = tuple(np.asarray(one["Segmentation"][0, 0]).astype(np.int32) for one in people)
        except (MatReadError, OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError) as error:
            raise BadImage(f"its ground truth {self._truths[index].name} cannot be read: {error}") from error
        for labels in segmentations:
            check_size(labels, image, "segmentation")
        return Scene(image, segmentations=segmentations)


class Ade20k(_Files):
    """ADE20K scene parsing, 150 classes; 0 is ignored. Its regions are classes, not instances."""

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        root = _descend(root, "ADEChallengeData2016", has="annotations")
        table = root / "objectInfo150.txt"
        if not table.is_file():
            raise MissingData(f"data_dir: {table} does not exist")
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        try:
            entries = [(r["Name"].split(",")[0].strip(), r["Stuff"].strip() == "0") for r in rows]
        except (KeyError, AttributeError) as error:
            raise CorruptFile(f"{table}: needs tab-separated columns Name and Stuff") from error
        self._categories = entries
        self.classes = [name for name, _ in entries]
        folder = {"val": "validation", "train": "training"}.get(split, split)
        truths = sorted((root / "annotations" / folder).glob("*.png"))
        if not truths:
            raise MissingData(f"data_dir: {root / 'annotations' / folder} holds no .png files")
        here = self._keep([root / "images" / folder / f"{t.stem}.jpg" for t in truths], missing, f"ADE20K {folder}")
        self._truths = [truths[index] for index in here]

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`."""
        # people draw on what a viewer shows them, turned as its EXIF record says
        image = to_rgb(ImageOps.exif_transpose(decode(self._paths[index])))
        labels = as_labels(_mask_image(self._truths[index]))
        check_size(labels, image, "mask")
        numbers = np.unique(labels[labels > 0])
        if len(numbers) and numbers[-1] > len(self._categories):
            raise BadImage(f"its mask has class {numbers[-1]} of {len(self._categories)}")
        regions = tuple(Region(labels == k, *self._categories[k - 1]) for k in numbers)
        return Scene(image, regions, labels == 0)


class MaskFolder(_Files):
    """Images with mask files: 0 is background, other values are regions named by their number.

    A mask of 0 and one other value, as 0 and 255, is one region, `object`. Every region counts as a thing.
    """

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        if (root / "masks").is_dir():
            masks = {p.stem: p for p in sorted((root / "masks").iterdir()) if p.suffix.lower() in _IMAGES}
            folder = root / "images"
        else:
            masks = {
                p.stem.removesuffix("_mask"): p
                for p in sorted(root.iterdir())
                if p.suffix.lower() in _IMAGES and p.stem.endswith("_mask")
            }
            folder = root
        if not masks:
            raise MissingData(f"data_dir: {root} holds neither masks/ with images nor files named *_mask.png")
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        images = {p.stem: p for p in files if p.suffix.lower() in _IMAGES and p not in masks.values()}
        paths = [images.get(stem, folder / f"{stem}.jpg") for stem in masks]
        here = self._keep(paths, missing, f"masks in {root.name}")
        self._truths = [list(masks.values())[index] for index in here]
        self.classes = []

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`."""
        # people draw on what a viewer shows them, turned as its EXIF record says
        image = to_rgb(ImageOps.exif_transpose(decode(self._paths[index])))
        labels = as_labels(_mask_image(self._truths[index]))
        check_size(labels, image, "mask")
        numbers = np.unique(labels[labels > 0])
        single = len(numbers) == 1
        return Scene(image, tuple(Region(labels == k, "object" if single else str(k), True) for k in numbers))


def _mask_image(path: Path) -> Any:
    try:
        return decode(path)
    except FileNotFoundError as error:
        raise BadImage(f"its mask {path.name} does not exist") from error
    except BadImage as error:
        if not path.is_file():
            raise BadImage(f"its mask {path.name} does not exist") from error
        raise BadImage(f"its mask {path.name} {error}") from error


def _read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise MissingData(f"data_dir: {path} does not exist")
    data = read_json(path)
    lacking = [key for key in keys if not isinstance(data, dict) or key not in data]
    if lacking:
        raise CorruptFile(f"{path} lacks {', '.join(lacking)}")
    return dict(data)


def _descend(root: Path, *inner: str, has: str) -> Path:
    """`root`, or the folder inside it that archives unpack to."""
    return next((root / part for part in ("", *inner) if (root / part / has).is_dir()), root)
