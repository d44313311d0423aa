"""Annotated images in the layouts their authors publish."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from unrolled.data.files import IMAGES
from unrolled.data.listing import files_in, printable
from unrolled.data.masks.base import (
    MaskSource,
    Missing,
    Region,
    Scene,
    as_labels,
    check_size,
    present_files,
    to_rgb,
)
from unrolled.data.sources import BadImage, decode
from unrolled.errors import CorruptFile, MissingData, require
from unrolled.reading import below, id_text, read_json, read_text

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
_FARTHEST = 1e6  # pixels


class _Files(MaskSource):
    """Images that are files; `_keep` restricts the annotated ones to those that exist."""

    _paths: list[Path]

    def _keep(self, paths: list[Path], missing: Missing, what: str) -> list[int]:
        here, self.missing = present_files(paths, missing, what=what)
        self._paths = [paths[index] for index in here]
        self.description = f"{what}, {len(here):,} images" + (
            f", {len(self.missing):,} missing" if self.missing else ""
        )
        return here

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """Path of the image."""
        return printable(self._paths[index])


class _Coco(_Files):
    """What the two kinds of COCO annotations share: images, categories and annotations that name each other by ids.

    Ids are compared as text, so that the image "1" is the one an annotation calls 1, or 1.0.
    """

    _images: list[dict[str, Any]]
    _annotations: list[list[dict[str, Any]]]

    def _open(self, path: Path, folder: Path, missing: Missing, what: str, *, panoptic: bool) -> None:
        """Read categories, and the images that exist with their annotations; of panoptic ones those that have some."""
        data = _read_json(path, ("images", "annotations", "categories"))
        described = ("id", "name", *(["isthing"] if panoptic else []))
        self._categories: dict[str, dict[str, Any]] = {}
        for category in _records(data, "categories", described, path):
            if self._categories.setdefault(id_text(category["id"]), category) is not category:
                raise CorruptFile(f"{path}: several categories have the id {category['id']}")
        self.classes = [str(c["name"]) for c in data["categories"]]
        by_image: dict[str, list[dict[str, Any]]] = {}
        images = _records(data, "images", ("id", "file_name"), path)
        for image in images:
            if id_text(image["id"]) in by_image:
                raise CorruptFile(f"{path}: several images have the id {image['id']}")
            by_image[id_text(image["id"])] = []
        strays = 0
        for annotation in _records(data, "annotations", ("image_id",), path):
            if (of := by_image.get(id_text(annotation["image_id"]))) is not None:
                of.append(annotation)
            else:
                strays += 1
        images = [image for image in images if by_image[id_text(image["id"])] or not panoptic]
        here = self._keep([below(folder, image["file_name"]) for image in images], missing, what)
        self._images = [images[index] for index in here]
        self._annotations = [by_image[id_text(image["id"])] for image in self._images]
        if strays:
            self.description += f" ({strays:,} annotations are of images that {path.name} does not list)"

    def _category(self, record: dict[str, Any], what: str) -> dict[str, Any]:
        number = record.get("category_id")
        if id_text(number) not in self._categories:
            raise BadImage(f"its {what} is of category {number}, which the annotations do not describe")
        return self._categories[id_text(number)]

    def _image(self, index: int) -> Any:
        """The picture, which must have the size that the annotations were drawn at."""
        image, record = to_rgb(decode(self._paths[index])), self._images[index]
        size = record.get("width"), record.get("height")
        if None not in size and size != image.size:
            raise BadImage(
                f"its annotations are of {size[0]} x {size[1]} pixels, the file has {image.width} x {image.height}"
            )
        return image


class CocoPanoptic(_Coco):
    """COCO panoptic: PNG masks whose colour is the segment's id, R + 256 G + 65536 B."""

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        path = root / "annotations" / f"panoptic_{split}2017.json"
        self._masks = path.with_suffix("")
        self._open(path, root / f"{split}2017", missing, f"COCO panoptic {split}2017", panoptic=True)

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`."""
        annotation, *more = self._annotations[index]
        image = self._image(index)
        if more:
            raise BadImage(f"has {1 + len(more)} panoptic annotations; one is needed")
        if not isinstance(annotation.get("file_name"), str) or not isinstance(annotation.get("segments_info"), list):
            raise BadImage("its annotation has no file_name or no segments_info")
        colours = np.asarray(_mask_image(below(self._masks, annotation["file_name"])).convert("RGB")).astype(np.int32)
        ids = colours @ np.array([1, 256, 65536], np.int32)
        check_size(ids, image, "panoptic mask")
        numbers, places = np.unique(ids, return_inverse=True)
        labels = places.reshape(ids.shape).astype(np.int32)
        place_of = {str(number): place for place, number in enumerate(numbers)}
        regions, labelled = [], np.zeros(ids.shape, bool)
        for segment in annotation["segments_info"]:
            if not isinstance(segment, dict) or "id" not in segment:
                raise BadImage("one of its segments has no id")
            category = self._category(segment, f"segment {segment['id']}")
            if (place := place_of.get(id_text(segment["id"]))) is None:
                raise BadImage(f"its segment {segment['id']} has no pixels in the mask")
            labelled |= labels == place
            thing, crowd = bool(category["isthing"]), bool(segment.get("iscrowd", 0))
            regions.append(Region(labels, place, str(category["name"]), thing, crowd))
        return Scene(image, tuple(regions), ~labelled)


class CocoInstances(_Coco):
    """COCO instances: polygons and run lengths, which pycocotools decodes, but for those without a pixel.

    Images without instances are included.
    """

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        self._coding = require("pycocotools.mask", extra="eval", feature="reading COCO instances")
        path = root / "annotations" / f"instances_{split}2017.json"
        self._open(path, root / f"{split}2017", missing, f"COCO instances {split}2017", panoptic=False)

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`."""
        image = self._image(index)
        regions = []
        for number, annotation in enumerate(self._annotations[index]):
            what = f"annotation {annotation.get('id', f'number {number}')}"
            category = self._category(annotation, what)
            mask = self._mask(annotation.get("segmentation"), image, what)
            check_size(mask, image, "instance mask")
            if not mask.any():  # a polygon of no area, or outside the picture, marks nothing
                continue
            crowd = bool(annotation.get("iscrowd", 0))
            regions.append(Region(mask, True, str(category["name"]), True, crowd))
        return Scene(image, tuple(regions))

    def _mask(self, code: Any, image: Any, what: str) -> NDArray[np.bool_]:
        if not code:
            raise BadImage(f"its {what} has no segmentation")
        try:
            if isinstance(code, list):
                short = [len(polygon) for polygon in code if len(polygon) < 6 or len(polygon) % 2]
                if short:  # four numbers would be taken for a box
                    raise BadImage(f"its {what} has a polygon of {short[0]} numbers; three points, x and y, are needed")
                if not all((np.abs(np.asarray(polygon, float)) <= _FARTHEST).all() for polygon in code):
                    # pycocotools fills memory on the way to a point that is nowhere
                    raise BadImage(f"its {what} has a polygon with a point that is no number, or far from any image")
                code = self._coding.merge(self._coding.frPyObjects(code, image.height, image.width))
            elif isinstance(code["counts"], list):
                if min(code["counts"], default=0) < 0:
                    raise BadImage(f"its {what} has a negative run length")
                if sum(code["counts"]) != (pixels := int(np.prod(code["size"]))):
                    raise BadImage(f"its {what} has run lengths of {sum(code['counts'])} pixels for {pixels}")
                code = self._coding.frPyObjects(code, *code["size"])
            return np.asarray(self._coding.decode(code)).astype(bool)
        except BadImage:
            raise
        except Exception as error:  # whatever pycocotools makes of what is no polygon and no run lengths
            raise BadImage(f"its {what} has a segmentation that cannot be read: {error}") from error


class Voc(_Files):
    """PASCAL VOC segmentation; 255 (contours and difficult objects) is ignored."""

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        self._root = root = _descend(root, "VOCdevkit/VOC2012", "VOC2012", has="ImageSets")
        listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not listing.is_file():
            raise MissingData(f"data_dir: {listing} does not exist")
        paths = [below(root / "JPEGImages", f"{stem}.jpg") for stem in read_text(listing).split()]
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
        known = (classes <= len(VOC_CLASSES)) | (classes == VOID)
        if not known.all():
            raise BadImage(f"its class mask has class {classes[~known][0]} of {len(VOC_CLASSES)}")
        regions = []
        for number in np.unique(objects[(objects > 0) & (objects < VOID)]):
            mask = objects == number
            inside = classes[mask & (classes > 0) & (classes < VOID)]
            if len(inside):
                regions.append(Region(objects, int(number), VOC_CLASSES[np.bincount(inside).argmax() - 1], True))
        return Scene(image, tuple(regions), classes == VOID)


class BsdsFolder(_Files):
    """BSDS500: `images/SPLIT/*.jpg` and `groundTruth/SPLIT/*.mat`."""

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        root = _descend(root, "BSDS500/data", "data", has="groundTruth")
        truths = _files(root / "groundTruth" / split, {".mat"})
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
        except (
            MatReadError, OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, zlib.error,
        ) as error:  # fmt: skip
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
        try:
            with table.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            entries = [(r["Name"].split(",")[0].strip(), r["Stuff"].strip() == "0") for r in rows]
        except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
            raise CorruptFile(f"{table}: needs tab-separated columns Name and Stuff, in UTF-8") from error
        self._categories = entries
        self.classes = [name for name, _ in entries]
        folder = {"val": "validation", "train": "training"}.get(split, split)
        truths = _files(root / "annotations" / folder, {".png"})
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
        regions = tuple(Region(labels, int(k), *self._categories[k - 1]) for k in numbers)
        return Scene(image, regions, labels == 0)


class MaskFolder(_Files):
    """Images with mask files: 0 is background, other values are regions named by their number.

    A mask of 0 and one other value, as 0 and 255, is one region, `object`. Beside other values 255 is void, as in
    PASCAL VOC: no score counts there. Every region counts as a thing.
    """

    def __init__(self, root: Path, split: str, missing: Missing) -> None:
        apart = (root / "masks").is_dir()
        if apart:
            masks = _by_stem(files_in(root / "masks", IMAGES), "masks")
        else:
            mask_files = [path for path in files_in(root, IMAGES) if path.stem.endswith("_mask")]
            masks = {stem.removesuffix("_mask"): path for stem, path in _by_stem(mask_files, "masks").items()}
        folder = root / "images" if apart else root
        if not masks:
            raise MissingData(
                f"data_dir: {printable(root)} holds neither masks/ with images nor files named *_mask.png"
            )
        images = _by_stem([p for p in _files(folder, IMAGES) if p not in masks.values()], "images")
        paths = [images.get(stem, folder / f"{stem}.jpg") for stem in masks]
        here = self._keep(paths, missing, f"masks in {printable(root.name)}")
        self._truths = [list(masks.values())[index] for index in here]
        self.classes = []
        if without := [stem for stem in images if stem not in masks]:
            self.description += (
                f" ({len(without):,} images without a mask are passed over, {printable(without[0])} first)"
            )

    def load(self, index: int) -> Scene:
        """See `MaskSource.load`."""
        # people draw on what a viewer shows them, turned as its EXIF record says
        image = to_rgb(ImageOps.exif_transpose(decode(self._paths[index])))
        labels = as_labels(_mask_image(self._truths[index]))
        check_size(labels, image, "mask")
        numbers = np.unique(labels[labels > 0])
        single = len(numbers) == 1
        void = None if single or VOID not in numbers else labels == VOID
        numbers = numbers if void is None else numbers[numbers != VOID]
        return Scene(image, tuple(Region(labels, int(k), "object" if single else str(k), True) for k in numbers), void)


def _files(folder: Path, endings: Collection[str]) -> list[Path]:
    return files_in(folder, endings) if folder.is_dir() else []


def _by_stem(paths: list[Path], what: str) -> dict[str, Path]:
    """Paths by their names without the ending.

    Raises:
        ValueError: two share one, so that it is open which is meant.
    """
    by_stem: dict[str, Path] = {}
    for path in paths:
        if path.stem in by_stem:
            raise ValueError(f"data_dir: {what} {printable(by_stem[path.stem])} and {path.name} share a name; keep one")
        by_stem[path.stem] = path
    return by_stem


def _records(data: dict[str, Any], key: str, needed: tuple[str, ...], path: Path) -> list[dict[str, Any]]:
    """The list under `key`, every entry of which must be a record with what is needed.

    Raises:
        CorruptFile: naming the first that is not.
    """
    records = data[key]
    if not isinstance(records, list):
        raise CorruptFile(f"{path}: {key} must be a list, not a {type(records).__name__}")
    for number, record in enumerate(records):
        lacking = [name for name in needed if not isinstance(record, dict) or record.get(name) is None]
        if lacking:
            raise CorruptFile(f"{path}: entry {number} of {key} lacks {', '.join(lacking)}")
    return records


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
