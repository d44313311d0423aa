"""What a model sees in a picture, painted over it: attention, colours of features, objects, clusters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unrolled.reading import Json
from unrolled.subjects.pictures import Pixels, Preparation, canvas

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unrolled.commands.segment.options import SegmentOptions
    from unrolled.instruments import Patches

# Okabe and Ito's colours, told apart by colour-blind eyes, then Tol's "muted" ones
COLOURS = np.array(
    [
        [230, 159, 0],
        [86, 180, 233],
        [0, 158, 115],
        [204, 121, 167],
        [240, 228, 66],
        [0, 114, 178],
        [213, 94, 0],
        [136, 34, 85],
        [68, 170, 153],
        [221, 204, 119],
        [51, 34, 136],
        [153, 153, 51],
    ],
    dtype=np.float64,
)


@dataclass(frozen=True)
class View:
    """One picture at one layer; `row` is its entry in `report.json`."""

    name: str
    layer: int
    row: Json
    original: Pixels
    overlays: dict[str, Pixels]
    heads: list[Pixels]


@dataclass(frozen=True)
class Shot:
    """A picture, or a frame of an animation, on its way through."""

    picture: Image.Image
    path: Path
    name: str
    """What its files are named after."""
    frame: int | None = None


def look(
    network: nn.Module,
    prepared: Preparation,
    shots: Sequence[Shot],
    layers: Sequence[int],
    options: SegmentOptions,
) -> list[View]:
    """Every layer of pictures that go into the model at one size, one picture after another."""

    import torch

    from unrolled.instruments import read_patches

    pixels = torch.cat([prepared.tensor(shot.picture) for shot in shots])
    attention = "attention" in options.methods
    try:
        patches = read_patches(
            network,
            pixels,
            layers=list(layers),
            facets=[options.facet] if set(options.methods) - {"attention"} else [],
            attention=attention,
            prefix=prepared.prefix,
            grid=prepared.grid(pixels),
        )
    except ValueError as error:
        if "attention weights are not known" not in str(error):
            raise
        raise ValueError(
            f"{str(error).split(';')[0]}; give --facet token, and --method pca, maskcut or cluster"
        ) from error
    return [view for place, shot in enumerate(shots) for view in _views(patches, place, shot, prepared, options)]


def _views(patches: Patches, place: int, shot: Shot, prepared: Preparation, options: SegmentOptions) -> list[View]:
    """Every layer of one picture of those that were read together."""
    alone = dataclasses.replace(
        patches,
        attention=None if patches.attention is None else patches.attention[:, place : place + 1],
        features={facet: values[:, place : place + 1] for facet, values in patches.features.items()},
        blank=patches.blank[place : place + 1],
    )
    original = np.asarray(canvas(shot.picture))
    views = []
    for index, layer in enumerate(alone.layers):
        blank = bool(alone.blank[0])
        row: Json = {"image": str(shot.path), "layer": layer, "size": list(prepared.size_of(shot.picture))}
        row |= {} if shot.frame is None else {"frame": shot.frame}
        row |= {"grid": list(alone.grid), "blank": blank}
        row["files"] = {method: f"{shot.name}-layer{layer:02d}-{method}.png" for method in options.methods}
        overlays: dict[str, Pixels] = {}
        for method in options.methods:
            if blank:
                overlays[method] = original  # its patches differ by position alone
            else:
                overlays[method], numbers = _PAINTERS[method](alone, index, original, options)
                row |= numbers
        heads = _heads(alone, index, original) if alone.attention is not None and not blank else []
        views.append(View(shot.name, layer, row, original, overlays, heads))
    return views


def _attention(patches: Patches, index: int, original: Pixels, options: SegmentOptions) -> tuple[Pixels, Json]:
    from unrolled.instruments import threshold_attention
    from unrolled.report import heat

    assert patches.attention is not None
    mean = patches.attention[index, 0].mean(0).cpu()
    inside = threshold_attention(mean, options.mass, by="mass")
    values = _enlarge(mean, patches.grid, original)
    low, high = float(mean.min()), float(mean.max())
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    painted = blend(faded(original, 0.35), heat(values, low, high), 0.25 + 0.6 * share)
    edge = _enlarge(inside.float(), patches.grid, original) > 0.5
    return _outline(painted, edge), {
        "attention_query": patches.query,
        "attention_peak": float(mean.max() * len(mean)),  # 1 is uniform attention, which shows nothing
        "attention_area": float(inside.float().mean()),
    }


def _pca(patches: Patches, index: int, original: Pixels, options: SegmentOptions) -> tuple[Pixels, Json]:
    import torch

    from unrolled.instruments import token_pca

    features = patches.features[options.facet][index, 0].float().cpu()
    record = token_pca(features, min(3, *features.shape))
    low, high = (record.scores.quantile(q, 0) for q in (0.02, 0.98))
    scaled = torch.where(high > low, (record.scores - low) / (high - low).clamp(min=1e-12), 0.5).clamp(0, 1)
    planes = [_enlarge(scaled[:, c], patches.grid, original) for c in range(scaled.shape[1])]
    planes += [np.full_like(planes[0], 0.5)] * (3 - len(planes))
    painted = blend(original, np.stack(planes, -1) * 255, 0.8)
    return painted, {"pca_explained": [float(value) for value in record.explained]}


def _maskcut(patches: Patches, index: int, original: Pixels, options: SegmentOptions) -> tuple[Pixels, Json]:
    import torch

    from unrolled.instruments import maskcut, refine_mask

    features = patches.features[options.facet][index, 0].float().cpu()
    masks = maskcut(features, patches.grid, options.tau, options.objects).flatten(1)
    planes = [_enlarge(mask.float(), patches.grid, original) > 0.5 for mask in masks if mask.any()]
    if options.refine and planes:
        image = torch.from_numpy(original.astype(np.float32) / 255).permute(2, 0, 1)
        radius = max(2, max(original.shape[:2]) // max(patches.grid))
        planes = list(refine_mask(torch.from_numpy(np.stack(planes)), image, radius=radius).numpy())
    labels = np.zeros(original.shape[:2], np.int64)
    for number, plane in reversed(list(enumerate(planes, 1))):  # the first found stays on top
        labels[plane] = number
    painted = paint_labels(original, labels, background=0)
    return painted, {"objects": [float(plane.mean()) for plane in planes if plane.any()]}


def _cluster(patches: Patches, index: int, original: Pixels, options: SegmentOptions) -> tuple[Pixels, Json]:
    from unrolled.instruments import cluster_tokens

    features = patches.features[options.facet][index, 0].float().cpu()
    labels = cluster_tokens(features, min(options.clusters, len(features)), seed=options.seed)
    count = int(labels.max()) + 1
    planes = [_enlarge((labels == label).float(), patches.grid, original) for label in range(count)]
    painted = paint_labels(original, np.stack(planes).argmax(0))
    return painted, {"clusters": [float((labels == label).float().mean()) for label in range(count)]}


# the picture painted over, and what of it goes into `report.json`
_PAINTERS: dict[str, Callable[[Patches, int, Pixels, SegmentOptions], tuple[Pixels, Json]]] = {
    "attention": _attention,
    "pca": _pca,
    "maskcut": _maskcut,
    "cluster": _cluster,
}


def _heads(patches: Patches, index: int, original: Pixels) -> list[Pixels]:
    from unrolled.report import heat

    assert patches.attention is not None
    return [heat(_enlarge(row, patches.grid, original)) for row in patches.attention[index, 0].cpu()]


def _enlarge(values: Tensor, grid: tuple[int, int], original: Pixels) -> Any:
    from unrolled.instruments import upsample

    return upsample(values, grid, (original.shape[0], original.shape[1]), smooth=True).numpy()


def _outline(picture: Pixels, inside: Any) -> Pixels:
    from scipy import ndimage

    edge = inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)
    return blend(picture, np.full(3, 255.0), 0.9 * edge)


def blend(picture: Pixels, colours: NDArray, opacity: float | NDArray) -> Pixels:
    """Colours over a picture, both `[h, w, 3]`; opacity in 0..1, one or `[h, w]`."""
    share = np.asarray(opacity, np.float64)
    share = share[..., None] if share.ndim == 2 else share
    mixed: Pixels = (picture * (1 - share) + np.asarray(colours, np.float64) * share).round().astype(np.uint8)
    return mixed


def faded(picture: Pixels, strength: float = 0.65) -> Pixels:
    """The picture in darkened grey, on which colours are read more easily."""
    grey = picture @ np.array([0.299, 0.587, 0.114])
    return blend(picture, np.repeat(grey[..., None] * 0.6, 3, -1), strength)


def paint_labels(picture: Pixels, labels: NDArray, *, background: int | None = None, opacity: float = 0.5) -> Pixels:
    """Regions in colours with bright borders.

    Args:
        picture: `[h, w, 3]`.
        labels: integers `[h, w]` from 0.
        background: the label that is not coloured; the picture fades there.
        opacity: of the colours.
    """
    edges = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        for step in (1, 2):
            edges |= (np.roll(labels, step, axis) != labels) & (np.indices(labels.shape)[axis] >= step)
    if background is None:
        return blend(blend(picture, COLOURS[labels % len(COLOURS)], opacity), np.full(3, 255.0), 0.85 * edges)
    inside = labels != background
    index = np.where(labels > background, labels - 1, labels) % len(COLOURS)
    out = np.where(inside[..., None], blend(picture, COLOURS[index], opacity), faded(picture))
    return blend(out, np.full(3, 255.0), 0.9 * edges)
