"""Annotated photos for the study of emergence: COCO and BSDS as they are read, or generated ones that need no files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unrolled.data.masks import Region, Scene

if TYPE_CHECKING:
    from unrolled.data import MaskSource

COCO, BSDS = "coco-panoptic-200", "bsds500-val"


class Halves(NamedTuple):
    """Photos that layers and heads may be chosen by, and others that scores are reported on."""

    choose: tuple[Scene, ...]
    report: tuple[Scene, ...]


def as_square(scenes: Sequence[Scene], side: int) -> Tensor:
    """Photos squeezed to squares, as the roster's models saw theirs: floats in 0..255, `[b, 3, side, side]`."""
    pixels = [torch.from_numpy(np.array(scene.image)).movedim(-1, 0)[None].float() for scene in scenes]
    return torch.cat([F.interpolate(each, (side, side), mode="bilinear", antialias=True) for each in pixels])


def things(scene: Scene) -> Tensor:
    """Pixels of things, boolean `[h, w]`."""
    return torch.from_numpy(scene.foreground())


def ignored(scene: Scene) -> Tensor:
    """Pixels without a label, which do not count, boolean `[h, w]`."""
    return torch.zeros(scene.size, dtype=torch.bool) if scene.ignore is None else torch.from_numpy(scene.ignore)


def parts(scene: Scene, names: tuple[str, ...]) -> Tensor:
    """Category of each pixel as its place in `names`, -1 for none of them, int64 `[h, w]`."""
    out = np.full(scene.size, -1, np.int64)
    for region in scene.regions:
        if region.category in names:
            out[region.mask] = names.index(region.category)
    return torch.from_numpy(out)


@cache
def coco(data_dir: Path, count: int) -> Halves:
    """COCO's photos with a thing: `count` at most of train2017, to choose by, and of val2017, to report on.

    Raises:
        MissingData: they are not in `data_dir`.
    """
    return Halves(*(_with_things(_open("coco", data_dir / COCO, split), count) for split in ("train", "val")))


def _with_things(source: MaskSource, count: int) -> tuple[Scene, ...]:
    """The first `count` photos with a thing."""
    scenes: list[Scene] = []
    for index in range(len(source)):
        if len(scenes) == count:
            break
        scene = source.load(index)
        if scene.foreground().any():
            scenes.append(scene)
    return tuple(scenes)


@cache
def bsds(data_dir: Path, count: int) -> tuple[Scene, ...]:
    """BSDS500's validation photos at half their size, `count` at most.

    Raises:
        MissingData: they are not in `data_dir`.
    """
    source = _open("bsds", data_dir / BSDS, "val")
    scenes = (source.load(index) for index in range(min(count, len(source))))
    return tuple(scene.resized((scene.size[0] // 2, scene.size[1] // 2)) for scene in scenes)


@cache
def generated(count: int, seed: int = 0) -> Halves:
    """Made-up photos with masks, `count` in each half: one or two striped blobs before smooth noise."""
    rng = np.random.default_rng(seed)
    scenes = []
    for _ in range(2 * count):
        height, width = 48, 64
        y, x = np.mgrid[0:height, 0:width] + 0.5
        coarse = torch.from_numpy(rng.uniform(0, 160, (1, 3, 4, 4)))
        image = F.interpolate(coarse, (height, width), mode="bicubic").numpy()[0]
        labels = np.ones((height, width), np.int32)
        for blob in range(int(rng.integers(1, 3))):
            centre, reach = rng.uniform(0.25, 0.75, 2) * (height, width), rng.uniform(8, 15, 2)
            inside = ((y - centre[0]) / reach[0]) ** 2 + ((x - centre[1]) / reach[1]) ** 2 < 1
            stripes = 25 * np.sign(np.sin(x * rng.uniform(0.5, 2)))
            colour = rng.uniform(90, 255, 3)
            image = np.where(inside, colour[:, None, None] + stripes, image)
            labels[inside] = 2 + blob
        regions = [
            Region(labels, number, name, number > 1) for number, name in ((1, "ground"), (2, "blob"), (3, "blob"))
        ]
        pixels = np.moveaxis(image.clip(0, 255).astype(np.uint8), 0, -1)
        scenes.append(Scene(Image.fromarray(pixels), tuple(regions), segmentations=(labels,)))
    return Halves(tuple(scenes[:count]), tuple(scenes[count:]))


def samples() -> tuple[Scene, ...]:
    """scikit-learn's two photos, which may be shown, without annotations."""
    from sklearn.datasets import load_sample_images

    return tuple(Scene(Image.fromarray(photo)) for photo in load_sample_images().images)


def commonest(scenes: Sequence[Scene], count: int) -> tuple[str, ...]:
    """The categories that the most photos have, at least two."""
    counts: dict[str, int] = {}
    for scene in scenes:
        for name in {region.category for region in scene.regions}:
            counts[name] = counts.get(name, 0) + 1
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return tuple(name for name in ordered if counts[name] >= 2)[:count]


def _open(name: str, folder: Path, split: str) -> MaskSource:
    from unrolled.data import open_masks
    from unrolled.errors import MissingData
    from unrolled.studies.cells import data_missing

    try:
        return open_masks(name, data_dir=folder, split=split)
    except MissingData as error:
        raise data_missing(folder.name, error) from error
