"""How well what a model separates fits what people marked: the table of `unrolled segment --eval`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from unrolled.commands.pictures import Preparation
from unrolled.data import MaskSource, Scene
from unrolled.instruments import (
    bootstrap_interval,
    cluster_tokens,
    covering,
    read_patches,
    score_attention,
    untrained_control,
    upsample,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

Progress = Callable[[Iterable[int]], Iterable[int]]
_SIDE = 512  # longer side at which covering is measured


@dataclass(frozen=True)
class Settings:
    """What is measured; the meanings are in the help of `unrolled segment`."""

    layers: tuple[int, ...]
    facet: Any
    mass: float
    clusters: int
    seed: int


def evaluate_regions(
    network: nn.Module, prepared: Preparation, source: MaskSource, count: int, settings: Settings, progress: Progress
) -> list[dict[str, Any]]:
    """Jaccard of thresholded class-token attention with the pixels of each class of things.

    Returns:
        One row for each system, layer and threshold rule: means over images, of the mean over an image's classes, of
        the best head (chosen for each class by looking at the answer), of the mean over heads and of the heads'
        averaged map, which has a 95 % bootstrap interval over images. The centre prior is a Gaussian bump.
    """
    control = untrained_control(network, settings.seed + 1)
    scores: dict[tuple[str, int, str], dict[int, list[dict[str, Any]]]] = {}
    for index in progress(_indices(len(source), count)):
        scene = source.load(index)
        targets = {name: torch.from_numpy(mask) for name, mask in scene.classes().items()}
        ignore = None if scene.ignore is None else torch.from_numpy(scene.ignore)
        if not targets:
            continue
        pixels = prepared.tensor(scene.image)
        for system, model in {"model": network, "untrained": control}.items():
            found = read_patches(
                model, pixels, layers=list(settings.layers), prefix=prepared.prefix, grid=_grid(prepared, pixels)
            )
            assert found.attention is not None
            maps = {system: (found.attention[:, 0].cpu(), list(found.layers))}
            if system == "model":
                maps["centre prior"] = (_bump(found.grid), [-1])
            for name, (attention, layers) in maps.items():
                for row in score_attention(
                    attention, found.grid, targets, keep=settings.mass, ignore=ignore, layers=layers
                ):
                    scores.setdefault((name, row["layer"], row["by"]), {}).setdefault(index, []).append(row)
    if not scores:
        raise ValueError(f"--data-dir: none of {count} images of {source.description} has a marked thing")
    out = []
    for (system, layer, rule), images in scores.items():
        means = {
            key: [float(np.mean([row[key] for row in rows])) for rows in images.values()]
            for key in ("best", "mean", "averaged")
        }
        low, high = bootstrap_interval(means["averaged"])
        row = {"system": system, "layer": None if layer < 0 else layer, "by": rule, "images": len(images)}
        out.append(row | {key: float(np.mean(values)) for key, values in means.items()} | {"low": low, "high": high})
    return sorted(out, key=lambda row: (row["by"], row["layer"] is None, row["layer"] or 0, row["system"]))


def evaluate_covering(
    network: nn.Module, prepared: Preparation, source: MaskSource, count: int, settings: Settings, progress: Progress
) -> list[dict[str, Any]]:
    """Covering of people's whole segmentations by k-means clusters of patches.

    Returns:
        One row for each system and layer: the mean over images, of the mean over an image's annotators, with a 95 %
        bootstrap interval over images. Colour: clusters of the patches' mean colours, less the image's own and by their
        direction, as features are; one region: the whole image.
    """
    control = untrained_control(network, settings.seed + 1)
    scores: dict[tuple[str, int], list[float]] = {}
    for index in progress(_indices(len(source), count)):
        scene = _at_most(source.load(index), _SIDE)
        pixels = prepared.tensor(scene.image)
        grid = _grid(prepared, pixels)
        truths = [torch.from_numpy(labels.astype(np.int64)) for labels in scene.segmentations]
        rows, columns = grid
        small = np.asarray(scene.image.resize((columns, rows), Image.Resampling.BOX), np.float32).reshape(
            rows * columns, 3
        )
        tokens = {
            ("colour", -1): torch.from_numpy(small - small.mean(0)),
            ("one region", -1): torch.ones(len(small), 1),
        }
        for system, model in {"model": network, "untrained": control}.items():
            found = read_patches(
                model,
                pixels,
                layers=list(settings.layers),
                facets=[settings.facet],
                attention=False,
                prefix=prepared.prefix,
                grid=grid,
            )
            features = found.features[settings.facet][:, 0].float().cpu()
            tokens |= {(system, layer): own for layer, own in zip(found.layers, features, strict=True)}
        for key, own in tokens.items():
            labels = cluster_tokens(own, min(settings.clusters, len(own)), seed=settings.seed)
            whole = upsample(labels, grid, scene.size)
            scores.setdefault(key, []).append(float(np.mean([covering(whole, truth) for truth in truths])))
    out = []
    for (system, layer), values in scores.items():
        low, high = bootstrap_interval(values)
        row = {"system": system, "layer": None if layer < 0 else layer, "images": len(values)}
        out.append(row | {"covering": float(np.mean(values)), "low": low, "high": high})
    return sorted(out, key=lambda row: (row["layer"] is None, row["layer"] or 0, row["system"]))


def _indices(total: int, count: int) -> list[int]:
    """`count` of `total`, evenly spread."""
    return [int(i) for i in np.linspace(0, total - 1, min(count, total)).round()]


def _grid(prepared: Preparation, pixels: Tensor) -> tuple[int, int]:
    return (pixels.shape[2] // prepared.patch[0], pixels.shape[3] // prepared.patch[1])


def _bump(grid: tuple[int, int]) -> Tensor:
    """A Gaussian in the middle as the attention of one head, `[1, 1, n]`; its width is a quarter of each side."""
    y, x = ((torch.arange(side) + 0.5) / side - 0.5 for side in grid)
    return torch.exp(-8 * (y[:, None] ** 2 + x**2)).reshape(1, 1, -1)


def _at_most(scene: Scene, side: int) -> Scene:
    height, width = scene.size
    scale = side / max(height, width)
    return scene if scale >= 1 else scene.resized((max(1, round(height * scale)), max(1, round(width * scale))))
