"""What `unrolled segment-eval` measures: attention against things, objects of MaskCut, regions of clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from unrolled.commands.segment.options import SegmentEvalOptions
from unrolled.data import MaskSource, Scene
from unrolled.data.sources import evenly
from unrolled.errors import CorruptFile
from unrolled.instruments import (
    BoundaryCounts,
    EmergenceScorer,
    ObjectScorer,
    Photo,
    bootstrap_interval,
    boundary_counts,
    boundary_f,
    boundary_interval,
    cluster_tokens,
    covering,
    emergence_baselines,
    label_boundary,
    maskcut,
    matched_iou,
    read_patches,
    threshold_attention,
    untrained_control,
    upsample,
)
from unrolled.instruments.regions.emergence import by_shape, centre_prior, in_order, patch_colours
from unrolled.instruments.regions.overlap import matched_boundary
from unrolled.instruments.regions.patches import of_one_colour
from unrolled.reading import Json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unrolled.instruments import Patches
    from unrolled.subjects.pictures import Preparation

Progress = Callable[[Iterable[int]], Iterable[int]]
Row = Json
_SIDE = 512  # longer side at which regions are compared
_REGIONS = ("covering", "miou", "boundary_jaccard")
_DRAWS = 200  # bootstrap samples of average precision, each of which costs a whole evaluation


@dataclass(frozen=True, kw_only=True)
class Item(Photo):
    """One annotated photo on its way through, as it was read and as the model takes it."""

    scene: Scene
    grid: tuple[int, int]


def evaluate(
    network: nn.Module,
    prepared: Preparation,
    source: MaskSource,
    count: int,
    settings: SegmentEvalOptions,
    progress: Progress,
    skipped: list[str] | None = None,
    notes: list[str] | None = None,
) -> dict[str, list[Row]]:
    """Every measure in one pass over `count` photos, evenly spread: the model, its untrained twin and baselines.

    Args:
        network: in eval mode, on its device.
        prepared: how it wants its photos.
        source: annotated photos.
        count: how many of them.
        settings: what to measure.
        progress: wraps the indices.
        skipped: where photos that cannot be read are named; without it they raise.
        notes: where it is said whose attention it is without a class token, and why there is no untrained twin;
            without it that raises.

    Returns:
        Rows by table: `attention` (classes), `layers` and `heads` (things against background), `maskcut`, `clusters`.
    """
    parts: list[_Part] = [_PARTS[name](settings) for name in settings.measures]
    systems = {"model": network}
    try:
        systems["untrained"] = untrained_control(network, settings.seed + 1)
    except ValueError as error:
        if notes is None:
            raise
        notes.append(f"No untrained twin: {error}.")
    items = _items(prepared, source, progress(evenly(count, len(source)).tolist()), skipped)
    used = (item for item in items if any(part.takes(item) for part in parts))
    attention = "attention" in settings.measures
    facets = [settings.facet] if set(settings.measures) - {"attention"} else []

    def read() -> Iterator[tuple[int, tuple[Item, int, dict[str, Patches]]]]:
        for batch in by_shape(used, settings.batch_size, lambda item: tuple(item.pixels.shape)):
            images, grid = torch.stack([item.pixels for _, item in batch]), batch[0][1].grid
            seen = {
                name: _patches(model, images, settings, facets, prepared.prefix, grid)
                for name, model in systems.items()
            }
            yield from ((place, (item, index, seen)) for index, (place, item) in enumerate(batch))

    # in the order of photos, which breaks ties of confidence in average precision, as pycocotools has it
    for item, index, seen in in_order(read()):
        for system, patches in seen.items():
            note = f"Attention is that of the {patches.query}: the model has no class token."
            if attention and patches.query != "class token" and notes is not None and note not in notes:
                notes.append(note)
            for part in parts:
                if part.takes(item):
                    part.add(system, patches, index, item)
        for part in parts:
            if part.takes(item):
                part.baselines(item)
    out: dict[str, list[Row]] = {}
    for part in parts:
        out |= part.tables(source.description)
    return out


def _patches(
    model: nn.Module,
    images: Tensor,
    settings: SegmentEvalOptions,
    facets: list[Any],
    prefix: int | None,
    grid: tuple[int, int],
) -> Patches:
    """What the measures look at of a batch `[b, c, h, w]`."""
    attention = "attention" in settings.measures
    try:
        return read_patches(
            model,
            images,
            layers=_together(settings) if attention else list(settings.detailed),
            facets=facets,
            facet_layers=list(settings.detailed) if facets else None,
            attention=attention,
            prefix=prefix,
            grid=grid,
        )
    except ValueError as error:
        if "attention weights are not known" not in str(error):
            raise
        hint = "give --facet token, and --measure maskcut or clusters"
        raise ValueError(f"{str(error).split(';')[0]}; {hint}") from error


def _together(settings: SegmentEvalOptions) -> list[int] | None:
    """Layers to read: every one, or those of attention and the detailed ones."""
    return [*dict.fromkeys((*settings.layers, *settings.detailed))] if settings.layers else None


def _items(
    prepared: Preparation, source: MaskSource, indices: Iterable[int], skipped: list[str] | None
) -> Iterator[Item]:
    for index in indices:
        try:
            scene = source.load(index)
        except (ValueError, OSError) as error:
            message = " ".join(f"{source.name(index)}: {error}".split())
            if skipped is None:
                raise CorruptFile(f"{message}; --on-error skip leaves it out") from error
            skipped.append(message)
            continue
        pixels = prepared.tensor(scene.image)[0]
        classes = {name: torch.from_numpy(mask) for name, mask in scene.classes().items()}
        ignore = None if scene.ignore is None else torch.from_numpy(scene.ignore)
        yield Item(pixels, classes, ignore, index, scene=scene, grid=prepared.grid(pixels))


class _Part(Protocol):
    """One measure: takes photos, gives tables."""

    def takes(self, item: Item) -> bool: ...
    def add(self, system: str, patches: Patches, index: int, item: Item) -> None: ...
    def baselines(self, item: Item) -> None: ...
    def tables(self, data: str) -> dict[str, list[Row]]: ...


class _Attention:
    """Jaccard of thresholded attention with the pixels of things, of each class and of all together."""

    def __init__(self, settings: SegmentEvalOptions) -> None:
        self._settings = settings
        self._scorers: dict[str, EmergenceScorer] = {}
        self._plain: list[Row] = []

    def takes(self, item: Item) -> bool:
        ignore = item.ignore
        return any(bool((m if ignore is None else m & ~ignore).any()) for m in item.classes.values())

    def add(self, system: str, patches: Patches, index: int, item: Item) -> None:
        assert patches.attention is not None
        if system not in self._scorers:
            self._scorers[system] = EmergenceScorer(patches.layers, keep=self._settings.mass, seed=self._settings.seed)
        self._scorers[system].add(patches.attention[:, index], patches.grid, item)

    def baselines(self, item: Item) -> None:
        self._plain += emergence_baselines(item, item.grid, seed=self._settings.seed)

    def tables(self, data: str) -> dict[str, list[Row]]:
        if not self._scorers:
            raise ValueError(f"--data-dir: none of the photos of {data} has a marked thing; for --measure clusters "
                             "none is needed")  # fmt: skip
        results = {system: scorer.result() for system, scorer in self._scorers.items()}
        classes = [row for name, record in results.items() for row in _by_class(name, record.classes)]
        layers = [
            {"system": name} | row | {"fixed": _number(row["fixed"])}
            for name, record in results.items()
            for row in record.sweep()
        ]
        for name in ("centre prior", "colour", "whole photo"):
            rows = [row for row in self._plain if row["by"] == name]
            classes += _by_class(name, [row for row in rows if row["class"] is not None])
            joint = [row for row in rows if row["class"] is None]
            low, high = bootstrap_interval([row["averaged"] for row in joint])
            row: Row = {"system": name, "by": None, "layer": None, "photos": len(joint), "fixed": None}
            row |= {key: float(np.mean([r[key] for r in joint])) for key in ("best", "mean", "averaged")}
            layers.append(row | {"low": low, "high": high, "chance": None, "chance_averaged": None})
        heads = [{"system": name} | row for name, record in results.items() for row in record.rows()]
        return {"attention": sorted(classes, key=_place), "layers": sorted(layers, key=_place), "heads": heads}


class _Objects:
    """Average precision of MaskCut's objects, class-agnostic."""

    def __init__(self, settings: SegmentEvalOptions) -> None:
        self._settings = settings
        self._scorers: dict[tuple[str, int], ObjectScorer] = {}
        self._random = np.random.default_rng(settings.seed)

    def takes(self, item: Item) -> bool:
        return bool(item.scene.regions)

    def add(self, system: str, patches: Patches, index: int, item: Item) -> None:
        for layer, features in zip(patches.feature_layers, patches.features[self._settings.facet], strict=True):
            masks = self._cut(features[index].float().cpu(), patches.grid, bool(patches.blank[index]))
            given = self._give(system, layer, masks, item)
            if system == "model":
                rows, columns = (int(self._random.integers(side)) for side in item.scene.size)
                self._give("model's masks, moved", layer, given.roll((rows, columns), (-2, -1)), item)

    def baselines(self, item: Item) -> None:
        blank = bool(of_one_colour(item.pixels))
        self._give("colour", -1, self._cut(patch_colours(item.pixels, item.grid), item.grid, blank), item)
        self._give("centre prior", -1, threshold_attention(centre_prior(item.grid), 0.6, by="mass")[None], item)

    def _cut(self, features: Tensor, grid: tuple[int, int], blank: bool) -> Tensor:
        if blank:  # an object in a photo of one colour is invented
            return torch.zeros(0, grid[0] * grid[1], dtype=torch.bool)
        return maskcut(features, grid, self._settings.tau, self._settings.objects).flatten(1)

    def _give(self, system: str, layer: int, masks: Tensor, item: Item) -> Tensor:
        """Masks of patches, or of pixels, into the account of a system; as pixels."""
        whole = masks if masks.dim() == 3 else upsample(masks, item.grid, item.scene.size)
        instances, crowd = item.scene.instances()
        scorer = self._scorers.setdefault((system, layer), ObjectScorer(self._settings.confidence))
        scorer.add(whole, torch.from_numpy(instances), crowd=crowd)
        return whole

    def tables(self, data: str) -> dict[str, list[Row]]:
        if not self._scorers:
            raise ValueError(f"--measure maskcut: the photos of {data} have no marked objects; give --measure clusters")
        rows = []
        for (system, layer), scorer in self._scorers.items():
            result = scorer.result(draws=_DRAWS, seed=self._settings.seed)
            row = {"system": system, "layer": None if layer < 0 else layer, "confidence": result["confidence"]}
            row |= {key: result[key] for key in ("images", "predicted", "instances")}
            for kind in ("bbox", "segm"):
                row[kind] = {key: _number(value) for key, value in result[kind].items() if key != "interval"}
                row[kind]["interval"] = {
                    key: list(map(_number, ends)) for key, ends in result[kind]["interval"].items()
                }
            rows.append(row)
        return {"maskcut": sorted(rows, key=_place)}


class _Regions:
    """How k-means clusters of patches cover the regions people drew: covering, matched mIoU, boundaries."""

    def __init__(self, settings: SegmentEvalOptions) -> None:
        self._settings = settings
        self._scores: dict[tuple[str, int], list[dict[str, float]]] = {}
        self._counts: dict[tuple[str, int], list[BoundaryCounts]] = {}

    def takes(self, item: Item) -> bool:
        return bool(item.scene.segmentations or item.scene.regions)

    def add(self, system: str, patches: Patches, index: int, item: Item) -> None:
        for layer, features in zip(patches.feature_layers, patches.features[self._settings.facet], strict=True):
            count = min(self._settings.clusters, features.shape[1])
            labels = cluster_tokens(features[index].float().cpu(), count, seed=self._settings.seed)
            self._give(system, layer, labels, item)

    def baselines(self, item: Item) -> None:
        n, seed = item.grid[0] * item.grid[1], self._settings.seed
        colours = patch_colours(item.pixels, item.grid)
        labels = cluster_tokens(colours, min(self._settings.clusters, n), method="kmeans-euclidean", seed=seed)
        self._give("colour", -1, labels, item)
        self._give("one region", -1, torch.zeros(n, dtype=torch.int64), item)
        self._give("every patch", -1, torch.arange(n), item)

    def _give(self, system: str, layer: int, labels: Tensor, item: Item) -> None:
        scene = _at_most(item.scene, _SIDE)
        whole = upsample(labels, item.grid, scene.size)
        if scene.segmentations:
            counts = boundary_counts(label_boundary(whole.numpy()), scene.segmentations)
            self._counts.setdefault((system, layer), []).append(counts)
        scores = []
        for truth, counted in _truths(scene):
            target, chosen = torch.from_numpy(truth.astype(np.int64)), torch.from_numpy(counted)
            pair = whole[chosen], target[chosen]
            scores.append((covering(*pair), matched_iou(*pair), matched_boundary(whole, target, ignore=~chosen)))
        if scores:
            means = np.mean(scores, 0).tolist()
            self._scores.setdefault((system, layer), []).append(dict(zip(_REGIONS, means, strict=True)))

    def tables(self, data: str) -> dict[str, list[Row]]:
        if not self._scores:
            raise ValueError(f"--measure clusters: the photos of {data} have no marked regions")
        rows = []
        for (system, layer), scores in self._scores.items():
            row: Row = {"system": system, "layer": None if layer < 0 else layer, "images": len(scores)}
            for name in _REGIONS:
                values = [score[name] for score in scores]
                row |= {name: float(np.mean(values)), f"{name}_interval": list(bootstrap_interval(values))}
            if counts := self._counts.get((system, layer)):
                f = boundary_f(counts)
                row |= {"boundary_f": _number(f["ods_f"]), "precision": _number(f["ods_precision"])}
                row |= {"recall": _number(f["ods_recall"]), "boundary_interval": list(boundary_interval(counts))}
            rows.append(row)
        return {"clusters": sorted(rows, key=_place)}


_PARTS: dict[str, Callable[[SegmentEvalOptions], _Part]] = {
    "attention": _Attention,
    "maskcut": _Objects,
    "clusters": _Regions,
}


def _by_class(system: str, records: list[Row]) -> list[Row]:
    """Means over images of the mean over an image's classes, by layer and rule."""
    groups: dict[tuple[int, str], dict[Any, list[Row]]] = {}
    for row in records:
        groups.setdefault((row["layer"], row["by"]), {}).setdefault(row["image"], []).append(row)
    out = []
    for (layer, rule), images in groups.items():
        means = {
            key: [float(np.mean([row[key] for row in rows])) for rows in images.values()]
            for key in ("best", "mean", "averaged")
        }
        low, high = bootstrap_interval(means["averaged"])
        summary: Row = {"system": system, "layer": None if layer < 0 else layer, "by": None if layer < 0 else rule}
        summary |= {"images": len(images)} | {key: float(np.mean(values)) for key, values in means.items()}
        out.append(summary | {"low": low, "high": high})
    return out


def _truths(scene: Scene) -> Iterator[tuple[Any, Any]]:
    """Whole segmentations `[h, w]` and the pixels of each that count: several people's, or that of the regions."""
    everywhere = np.ones(scene.size, bool)
    for labels in scene.segmentations:
        yield labels, everywhere
    if not scene.segmentations:
        labels = np.zeros(scene.size, np.int64)  # what no region holds is one, the background
        for number, region in enumerate(scene.regions, 1):
            labels[region.mask & (labels == 0)] = number
        counted = everywhere if scene.ignore is None else ~scene.ignore
        if counted.any():
            yield labels, counted


def _place(row: Row) -> tuple[Any, ...]:
    """Rules together, then layers in order, baselines last."""
    return (row.get("by") is None, row.get("by") or "", row["layer"] is None, row["layer"] or 0)


def _number(value: float) -> float | None:
    """None where there is nothing to score, which JSON can hold."""
    return None if np.isnan(value) else float(value)


def _at_most(scene: Scene, side: int) -> Scene:
    height, width = scene.size
    scale = side / max(height, width)
    return scene if scale >= 1 else scene.resized((max(1, round(height * scale)), max(1, round(width * scale))))
