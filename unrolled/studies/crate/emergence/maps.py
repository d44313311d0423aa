"""One member on annotated photos: maps of every layer and head, and how they fit things, regions, borders and parts.

Legend: l layers, b photos, h heads (the last of h + 1 is their mean map), n patches, p width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.data.masks import Scene
from unrolled.instruments.regions.emergence import Photo, centre_prior, emergence_baselines, moved_patches
from unrolled.instruments.regions.overlap import pixels_in_patches
from unrolled.instruments.regions.patches import Patches, read_patches
from unrolled.instruments.regions.segmentation import Threshold, threshold_attention, upsample
from unrolled.studies.cells import Result
from unrolled.studies.crate.emergence.photos import Halves, as_square, commonest, ignored, parts, things
from unrolled.studies.pictures import as_input

MAPS = {
    "class token": "the class token's attention to each patch, as published",
    "seed patch": "cosine similarity of keys to the patch that resembles the fewest others (LOST, arXiv 2109.14279); "
    "needs no class token",
    "subspace energy": "squared norm of each patch's projection on the head's subspace (a ViT's keys); needs no query",
}
RULES: tuple[Threshold, ...] = ("mass", "fraction")
# what claims are judged by: the CRATE papers' rule, under which all masks are as large, so that a diffuse map has no
# advantage over a peaked one of the same order
RULE: Threshold = "fraction"
KEEP = 0.6
_BATCH = 16
_DRAWS = 200


def maps_of(patches: Patches, heads: int) -> dict[str, Tensor]:
    """The three kinds of maps `[l, b, h, n]`, non-negative, of what `read_patches` read with keys."""
    assert patches.attention is not None
    keys = patches.features["key"].float().unflatten(-1, (heads, -1)).transpose(2, 3)
    return {
        "class token": patches.attention,
        "seed patch": torch.stack([_from_seed(layer) for layer in keys]),
        "subspace energy": keys.square().sum(-1),
    }


def _from_seed(keys: Tensor) -> Tensor:
    """Similarity, at least 0, to the patch with the fewest positive ones; keys `[b, h, n, p]` -> `[b, h, n]`."""
    unit = F.normalize(keys, dim=-1)
    similarity = unit @ unit.mT
    seed = (similarity > 0).sum(-1).argmin(-1, keepdim=True)
    return similarity.gather(2, seed[..., None].expand(-1, -1, -1, similarity.shape[-1])).squeeze(2).clamp(min=0)


def read(model: nn.Module, scenes: Sequence[Scene], side: int) -> Iterator[tuple[Sequence[Scene], Patches]]:
    """Photos a few at a time, with what the model makes of them at `side` pixels."""
    weight = next(model.parameters())
    for start in range(0, len(scenes), _BATCH):
        batch = scenes[start : start + _BATCH]
        images = as_input(as_square(batch, side)).to(weight)
        yield batch, read_patches(model, images, facets=("key",))


def chosen(
    model: nn.Module, scenes: Sequence[Scene], side: int, name: str, layer: int, head: int
) -> tuple[Tensor, Tensor]:
    """One map of each photo and what `RULE` keeps of it, both `[b, rows, columns]`; last comes the heads' mean."""
    shown = []
    for _, patches in read(model, scenes, side):
        assert patches.attention is not None
        maps = maps_of(patches, patches.attention.shape[2])[name][layer].cpu()
        picked = torch.cat([maps, maps.mean(1, keepdim=True)], 1)[:, head]
        shown.append(
            [each.unflatten(-1, patches.grid) for each in (picked, threshold_attention(picked, KEEP, by=RULE))]
        )
    values, masks = zip(*shown, strict=True)
    return torch.cat(values), torch.cat(masks)


def jaccard_of(maps: Tensor, rule: Threshold, things: Tensor, area: Tensor) -> Tensor:
    """Jaccard index of cut maps with things, in pixels.

    Args:
        maps: `[l, b, h, n]`.
        rule: of `RULES`.
        things: `[b, n]`, pixels of things in each patch.
        area: `[b, n]`, pixels that count.

    Returns:
        `[b, l, h + 1]`, last the heads' mean map; a map without contrast scores 0.
    """
    both_kinds = torch.cat([maps, maps.mean(2, keepdim=True)], 2)
    masks = threshold_attention(both_kinds, KEEP, by=rule).double()
    both = torch.einsum("lbhn,bn->blh", masks, things.double())
    size = torch.einsum("lbhn,bn->blh", masks, area.double())
    return both / (size + things.double().sum(1)[:, None, None] - both).clamp(min=1)


def segmentation(model: nn.Module, photos: Halves, side: int) -> Result:
    """Jaccard with things by map, rule, layer and head; layer and head are chosen on one half of the photos.

    Returns:
        `photos` of each half, `layers`, `heads`, and by map and rule: `choose`, `report` and `chance`, means
        `[l, h + 1]` (`chance`: the reporting photos' maps moved around the edges, as large and as connected, but
        anywhere); `picked`, the (layer, head) best on the choosing half, with `picked_photos` and `picked_chance`;
        `layer_photos` `[l, photos]`, the same within each layer; `last_photos`, the last layer's mean map; `best` of
        heads chosen for each photo by looking at the answer and `best_chance`, both `[l]`.
    """
    tables: dict[tuple[str, Threshold], list[tuple[Tensor, Tensor]]] = {}
    heads = layers = count = 0
    for batch, patches in read(model, (*photos.choose, *photos.report), side):
        assert patches.attention is not None
        layers, heads = patches.attention.shape[0], patches.attention.shape[2]
        inside = [pixels_in_patches({"": things(scene)}, patches.grid, ignored(scene)) for scene in batch]
        marked, area = torch.stack([one[0] for one, _ in inside]), torch.stack([every for _, every in inside])
        order = torch.stack([
            moved_patches(patches.grid, torch.Generator().manual_seed(count + i)) for i in range(len(batch))
        ])  # fmt: skip
        for name, maps in maps_of(patches, heads).items():
            maps = maps.cpu()
            moved = maps.gather(-1, order[None, :, None].expand_as(maps))
            for rule in RULES:
                pair = jaccard_of(maps, rule, marked, area), jaccard_of(moved, rule, marked, area)
                tables.setdefault((name, rule), []).append(pair)
        count += len(batch)
    choose = torch.arange(count) < len(photos.choose)
    out: dict[str, Result] = {name: {} for name in MAPS}
    for (name, rule), pairs in tables.items():
        scores, chance = map(torch.cat, zip(*pairs, strict=True))
        means = scores[choose].mean(0)
        layer, head = divmod(int(means.flatten().argmax()), heads + 1)
        reported, other = scores[~choose], chance[~choose]
        heads_of = means.argmax(1)
        out[name][rule] = {
            "choose": _plain(means),
            "report": _plain(reported.mean(0)),
            "chance": _plain(other.mean(0)),
            "picked": [layer, head],
            "picked_photos": _plain(reported[:, layer, head]),
            "picked_chance": float(other[:, layer, head].mean()),
            "layer_photos": _plain(reported[:, torch.arange(layers), heads_of].T),
            "last_photos": _plain(reported[:, -1, -1]),
            "best": _plain(reported[..., :-1].amax(-1).mean(0)),
            "best_chance": _plain(other[..., :-1].amax(-1).mean(0)),
        }
    return {
        "photos": [len(photos.choose), len(photos.report)],
        "layers": layers,
        "heads": heads,
        "maps": out,
    }


def segmentation_baselines(scenes: Sequence[Scene], side: int, patch: int) -> dict[str, list[float]]:
    """Jaccard with things, by photo, of what needs no model; the centre prior is cut by `RULE`.

    `best patches` is the ceiling of the grid.
    """
    grid = (side // patch, side // patch)
    out: dict[str, list[float]] = {}
    for scene in scenes:
        photo = Photo(as_square([scene], side)[0], {"things": things(scene)}, ignored(scene))
        for row in emergence_baselines(photo, grid):
            if row["class"] is None and row["by"] != "centre prior":  # which is cut by mass
                out.setdefault(row["by"], []).append(row["averaged"])
        inside, area = pixels_in_patches(photo.classes, grid, photo.ignore)
        bump = centre_prior(grid)[None, None, None].expand(1, 1, 1, -1)
        middle = jaccard_of(bump, RULE, inside[:1], area[None])[0, 0, 0]
        out.setdefault("centre prior", []).append(float(middle))
        out.setdefault("best patches", []).append(_ceiling(inside[0].double(), area.double()))
    return out


def _ceiling(things: Tensor, area: Tensor) -> float:
    """The highest Jaccard index that any set of patches has: patches in order of their share of things, cut best."""
    order = (things / area.clamp(min=1)).argsort(descending=True)
    both, size = things[order].cumsum(0), area[order].cumsum(0)
    return float((both / (size + things.sum() - both).clamp(min=1)).max())


def objects(model: nn.Module | None, scenes: Sequence[Scene], side: int, layer: int) -> Result:
    """Class-agnostic average precision of MaskCut's objects, on the keys of one layer; None cuts patches' colours."""
    from unrolled.instruments.regions.detection import ObjectScorer
    from unrolled.instruments.regions.spectral import maskcut

    scorer, moved = ObjectScorer("order"), ObjectScorer("order")
    random = np.random.default_rng(0)
    for scene, grid, features in _rows(model, scenes, side, layer):
        masks = upsample(maskcut(features, grid, 0.15, 3).flatten(1), grid, scene.size)
        instances, crowds = scene.instances()
        scorer.add(masks, torch.from_numpy(instances), crowd=crowds)
        shift = tuple(int(random.integers(length)) for length in scene.size)
        moved.add(masks.roll(shift, (-2, -1)), torch.from_numpy(instances), crowd=crowds)
    result, chance = scorer.result(), moved.result()
    out: Result = {"scored": result["images"], **{key: result[key] for key in ("predicted", "instances")}}
    for kind in ("bbox", "segm"):
        out[kind] = {name: result[kind][name] for name in ("AP50", "AP75", "AP", "AR100")}
        out[f"{kind}_moved"] = {name: chance[kind][name] for name in ("AP50", "AP75", "AP", "AR100")}
    return out


def borders(model: nn.Module | None, scenes: Sequence[Scene], side: int, layer: int, clusters: int = 5) -> Result:
    """F-measure of the borders between k-means clusters of the keys against those people drew; None takes colours."""
    from unrolled.instruments.regions.boundaries import boundary_counts, boundary_f, boundary_interval, label_boundary
    from unrolled.instruments.regions.spectral import cluster_tokens

    counts, moved = [], []
    random = np.random.default_rng(0)
    for scene, grid, features in _rows(model, scenes, side, layer):
        method = "kmeans-euclidean" if model is None else "kmeans"
        labels = cluster_tokens(features, min(clusters, len(features)), method=method)  # type: ignore[arg-type]
        drawn = label_boundary(upsample(labels, grid, scene.size).numpy())
        counts.append(boundary_counts(drawn, scene.segmentations, matching="nearest"))
        shift = [int(random.integers(length)) for length in drawn.shape]
        moved.append(boundary_counts(np.roll(drawn, shift, (0, 1)), scene.segmentations, matching="nearest"))
    scores = boundary_f(counts)
    return {
        "f": scores["ods_f"],
        "precision": scores["ods_precision"],
        "recall": scores["ods_recall"],
        "interval": list(boundary_interval(counts)),
        "moved": boundary_f(moved)["ods_f"],
    }


def consistency(model: nn.Module, scenes: Sequence[Scene], side: int, layer: int, count: int, name: str) -> Result:
    """Whether heads keep to their part across photos: the maps `name` of one layer, and `count` parts.

    Parts are COCO's commonest categories, things and stuff. Null `heads` shuffles the heads of every photo; null
    `images` pairs maps with other photos' parts, so that a head that looks at one place does not pass.
    """
    from unrolled.instruments.regions.semantics import head_semantics, pool_labels

    names = commonest(scenes, count)
    attention: list[Tensor] = []
    labels: list[Tensor] = []
    for batch, patches in read(model, scenes, side):
        assert patches.attention is not None
        maps = maps_of(patches, patches.attention.shape[2])[name][layer].cpu()
        grid = patches.grid
        attention += list(maps)
        labels += [pool_labels(parts(scene, names), grid) for scene in batch]
    out: Result = {"parts": list(names)}
    for null in ("heads", "images"):
        record = head_semantics(attention, labels, names=len(names), null=null, draws=_DRAWS)  # type: ignore[arg-type]
        out |= {
            "consistency": record.consistency,
            "lift": [[None if value != value else round(value, 4) for value in row] for row in record.lift.tolist()],
            f"{null}_chance": record.chance,
            f"{null}_p": record.p_value,
        }
    return out


def _rows(
    model: nn.Module | None, scenes: Sequence[Scene], side: int, layer: int, patch: int = 4
) -> Iterator[tuple[Scene, tuple[int, int], Tensor]]:
    """Photos with the features `[n, d]` of their patches: keys of a layer, or the patches' mean colours."""
    from unrolled.instruments.regions.emergence import patch_colours

    if model is None:
        for scene in scenes:
            grid = (side // patch, side // patch)
            yield scene, grid, patch_colours(as_square([scene], side)[0], grid)
        return
    for batch, patches in read(model, scenes, side):
        for index, scene in enumerate(batch):
            yield scene, patches.grid, patches.features["key"][layer, index].float().cpu()


def _plain(values: Tensor) -> Any:
    return values.double().mul(1e4).round().div(1e4).tolist()
