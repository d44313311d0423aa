"""`unrolled segment`."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unrolled.commands.common import (
    Device,
    choose_device,
    default_folder,
    open_model,
    progress,
    say_where,
    table,
    write_run,
)
from unrolled.commands.pictures import (
    Pixels,
    Preparation,
    blend,
    canvas,
    grid_section,
    origin,
    paint_labels,
    prepare,
    sheet,
    stems,
)
from unrolled.commands.settings import AsJson, ConfigFiles, ModelArgs, Pretrained, Quiet

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from unrolled.instruments import Patches

Method = Literal["attention", "pca", "maskcut", "cluster"]
METHODS: tuple[Method, ...] = ("attention", "pca", "maskcut", "cluster")
_SAID = {
    "attention": "attention of the {query}, averaged over heads, dark to light over its own range; the line encloses "
    "{mass:.0%} of it",
    "pca": "first three principal components of the {facet} features as red, green and blue",
    "maskcut": "objects found one after another by normalised cuts of the {facet} features, tau {tau:g}",
    "cluster": "{clusters} k-means clusters of the {facet} features",
}


@dataclass(frozen=True)
class _Options:
    methods: tuple[Method, ...]
    facet: Literal["key", "query", "value", "token"]
    mass: float
    tau: float
    objects: int
    clusters: int
    refine: bool
    seed: int


@dataclass(frozen=True)
class _View:
    """One picture at one layer."""

    name: str
    layer: int
    row: dict[str, Any]
    original: Pixels
    overlays: dict[str, Pixels]
    heads: list[Pixels]


def segment(
    images: tuple[Path, ...],
    *,
    model: str = "crate_tiny_patch16_224",
    method: Annotated[tuple[Method, ...], Parameter(negative="", consume_multiple=False)] = METHODS,
    layers: Annotated[tuple[int, ...], Parameter(negative="", consume_multiple=True)] = (-2,),
    facet: Literal["key", "query", "value", "token"] = "key",
    mass: float = 0.6,
    tau: float = 0.2,
    objects: int = 3,
    clusters: int = 5,
    refine: Annotated[bool, Parameter(negative="")] = False,
    weights: Path | None = None,
    pretrained: Pretrained = False,
    model_args: ModelArgs = None,
    image_size: int | None = None,
    seed: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    device: Device = "auto",
    out: Path | None = None,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show which parts of pictures a model tells apart, without labels.

    Overlays are written for every picture, layer and method, and all of them side by side in contact-sheet.png and in
    the report. Pictures keep their shape: positions are interpolated to it.

        unrolled segment cat.jpg dog.jpg --model timm:vit_small_patch16_dinov3 --pretrained --method attention
        unrolled segment photos/ --model runs/crate --layers 3 5 --method maskcut --method pca
        unrolled segment cat.jpg --model crate_base_patch8_224 --weights models/crate-b8 --image-size 448

    Parameters
    ----------
    images
        Pictures, or folders of them.
    model
        A run folder, or any model by one string (`unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR, ...).
    method
        `attention` of the class token, `pca` colours, `maskcut` objects or `cluster`s; may be repeated; default: all.
    layers
        Blocks to look at, from 0; negative ones count from the end. The papers look at the last but one.
    facet
        Features for pca, maskcut and cluster. In white-box attention key, query and value are one.
    mass
        Share of the attention that the outlined area holds.
    tau
        Cosine similarity above which maskcut joins two patches; the CRATE papers use 0.15.
    objects
        How many objects maskcut looks for.
    clusters
        How many clusters.
    refine
        Fit the objects of maskcut to the edges of the picture with a guided filter.
    weights
        Load these: a folder of `unrolled convert`, a run folder or a published checkpoint.
    image_size
        What the shorter side becomes, in pixels; default: the model's own. Larger means a finer grid of patches.
    seed
        Of random weights and of k-means.
    on_error
        A picture that cannot be read stops the run, or is named and left out.
    device
        What to run on.
    out
        Where overlays, config.yaml, report.html and report.json go; default: runs/segment-MODEL-PICTURE.
    """
    if not images:
        raise ValueError("images: give at least one picture, or a folder of them")
    import torch

    from unrolled.data.pictures import find_pictures

    options = _Options(tuple(dict.fromkeys(method)), facet, mass, tau, objects, clusters, refine, seed)
    _check(options)
    paths = find_pictures(images)
    where = choose_device(device)
    torch.manual_seed(seed)
    network = _encoder(open_model(model, weights=weights, pretrained=pretrained, model_args=model_args)).to(where)
    prepared = prepare(network, image_size=image_size)
    folder = out or default_folder("segment", model, paths[0].stem if len(paths) == 1 else f"{len(paths)}-pictures")
    began = time.perf_counter()
    views: list[_View] = []
    skipped: list[str] = []
    for path, name in zip(progress(paths, total=len(paths), what="segment", quiet=quiet), stems(paths), strict=False):
        picture = _open(path, on_error, skipped)
        if picture is not None:
            views += _look(network, prepared, picture, path, name, layers, options)
    if not views:
        raise ValueError(f"images: none of {len(paths)} could be read; the first: {skipped[0]}")
    seconds = time.perf_counter() - began
    source = origin(model, weights=weights, pretrained=pretrained)
    result: dict[str, Any] = {"model": model, "weights": source, "images": [view.row for view in views]}
    result["skipped"] = skipped
    _write_pictures(folder, views, options)
    settings: dict[str, Any] = {
        "images": list(images),
        "model": model,
        "method": list(options.methods),
        "layers": list(layers),
        "facet": facet,
        "mass": mass,
        "tau": tau,
        "objects": objects,
        "clusters": clusters,
        "refine": refine,
        "weights": weights,
        "pretrained": pretrained,
        "model_args": model_args or {},
        "image_size": image_size,
        "seed": seed,
        "on_error": on_error,
        "device": device,
    }
    page = _report(folder, settings, result, views, options, seconds)
    say_where(page, quiet=quiet)
    print(json_module.dumps({**result, "report": str(page)}, indent=2) if json else table(*_numbers(result, options)))


def _check(options: _Options) -> None:
    from unrolled.commands.pictures import COLOURS

    if not 0 < options.mass <= 1:
        raise ValueError(f"--mass {options.mass:g}: must be above 0 and at most 1")
    for flag, value in {"--objects": options.objects, "--clusters": options.clusters}.items():
        if not 1 <= value <= len(COLOURS):
            raise ValueError(f"{flag} {value}: give 1 to {len(COLOURS)}")
    if not options.methods:
        raise ValueError(f"--method: give at least one of {', '.join(METHODS)}")


def _encoder(network: nn.Module) -> nn.Module:
    """The model itself; of a masked autoencoder the encoder, which is then shown every patch."""
    from unrolled.models import MaskedAutoencoder

    return network.classifier(0).eval() if isinstance(network, MaskedAutoencoder) else network


def _open(path: Path, on_error: str, skipped: list[str]) -> Image.Image | None:
    from unrolled.data.pictures import read_picture

    try:
        return read_picture(path)
    except (ValueError, OSError) as error:
        if on_error == "raise":
            raise
        skipped.append(" ".join(str(error).split()))
        print(f"skipped: {skipped[-1]}", file=sys.stderr)
        return None


def _look(
    network: nn.Module,
    prepared: Preparation,
    picture: Image.Image,
    path: Path,
    name: str,
    layers: Sequence[int],
    options: _Options,
) -> list[_View]:
    """Every layer of one picture."""
    import numpy as np

    from unrolled.instruments import read_patches

    pixels = prepared.tensor(picture)
    attention = "attention" in options.methods
    try:
        found = read_patches(
            network,
            pixels,
            layers=list(layers),
            facets=[options.facet] if set(options.methods) - {"attention"} else [],
            attention=attention,
            grid=(pixels.shape[2] // prepared.patch[0], pixels.shape[3] // prepared.patch[1]),
        )
    except ValueError as error:
        if "attention weights are not known" not in str(error):
            raise
        raise ValueError(
            f"{str(error).split(';')[0]}; give --facet token, and --method pca, maskcut or cluster"
        ) from error
    shown = canvas(picture)
    original = np.asarray(shown)
    views = []
    for index, layer in enumerate(found.layers):
        row: dict[str, Any] = {"image": str(path), "layer": layer, "size": list(pixels.shape[2:])}
        row |= {"grid": list(found.grid), "blank": bool(found.blank[0]), "files": {}}
        overlays: dict[str, Pixels] = {}
        for method in options.methods:
            row["files"][method] = f"{name}-layer{layer:02d}-{method}.png"
            if found.blank[0]:
                overlays[method] = original  # its patches differ by position alone
            else:
                overlays[method] = _PAINTERS[method](found, index, original, options, row)
        heads = _heads(found, index, original) if attention and not found.blank[0] else []
        views.append(_View(name, layer, row, original, overlays, heads))
    return views


def _attention(found: Patches, index: int, original: Pixels, options: _Options, row: dict[str, Any]) -> Pixels:
    import numpy as np

    from unrolled.commands.pictures import faded
    from unrolled.instruments import threshold_attention
    from unrolled.report import heat

    assert found.attention is not None
    mean = found.attention[index, 0].mean(0).cpu()
    inside = threshold_attention(mean, options.mass, by="mass")
    # 1 is uniform attention, which shows nothing
    row |= {"attention_query": found.query, "attention_peak": float(mean.max() * len(mean))}
    row["attention_area"] = float(inside.float().mean())
    values = _enlarge(mean, found.grid, original)
    low, high = float(mean.min()), float(mean.max())
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    painted = blend(faded(original, 0.35), heat(values, low, high), 0.25 + 0.6 * share)
    edge = _enlarge(inside.float(), found.grid, original) > 0.5
    return _outline(painted, edge)


def _pca(found: Patches, index: int, original: Pixels, options: _Options, row: dict[str, Any]) -> Pixels:
    import numpy as np
    import torch

    from unrolled.instruments import token_pca

    features = found.features[options.facet][index, 0].float().cpu()
    record = token_pca(features, min(3, *features.shape))
    row["pca_explained"] = [float(value) for value in record.explained]
    low, high = (record.scores.quantile(q, 0) for q in (0.02, 0.98))
    scaled = torch.where(high > low, (record.scores - low) / (high - low).clamp(min=1e-12), 0.5).clamp(0, 1)
    planes = [_enlarge(scaled[:, c], found.grid, original) for c in range(scaled.shape[1])]
    planes += [np.full_like(planes[0], 0.5)] * (3 - len(planes))
    return blend(original, np.stack(planes, -1) * 255, 0.8)


def _maskcut(found: Patches, index: int, original: Pixels, options: _Options, row: dict[str, Any]) -> Pixels:
    import numpy as np
    import torch

    from unrolled.instruments import maskcut, refine_mask

    features = found.features[options.facet][index, 0].float().cpu()
    masks = maskcut(features, found.grid, options.tau, options.objects).flatten(1)
    planes = [_enlarge(mask.float(), found.grid, original) > 0.5 for mask in masks if mask.any()]
    if options.refine and planes:
        image = torch.from_numpy(original.astype(np.float32) / 255).permute(2, 0, 1)
        radius = max(2, max(original.shape[:2]) // max(found.grid))
        planes = list(refine_mask(torch.from_numpy(np.stack(planes)), image, radius=radius).numpy())
    row["objects"] = [float(plane.mean()) for plane in planes if plane.any()]
    labels = np.zeros(original.shape[:2], np.int64)
    for number, plane in reversed(list(enumerate(planes, 1))):  # the first found stays on top
        labels[plane] = number
    return paint_labels(original, labels, background=0)


def _cluster(found: Patches, index: int, original: Pixels, options: _Options, row: dict[str, Any]) -> Pixels:
    import numpy as np

    from unrolled.instruments import cluster_tokens

    features = found.features[options.facet][index, 0].float().cpu()
    labels = cluster_tokens(features, min(options.clusters, len(features)), seed=options.seed)
    count = int(labels.max()) + 1
    row["clusters"] = [float((labels == label).float().mean()) for label in range(count)]
    planes = [_enlarge((labels == label).float(), found.grid, original) for label in range(count)]
    return paint_labels(original, np.stack(planes).argmax(0))


_PAINTERS: dict[str, Callable[[Patches, int, Pixels, _Options, dict[str, Any]], Pixels]] = {
    "attention": _attention,
    "pca": _pca,
    "maskcut": _maskcut,
    "cluster": _cluster,
}


def _heads(found: Patches, index: int, original: Pixels) -> list[Pixels]:
    from unrolled.report import heat

    assert found.attention is not None
    return [heat(_enlarge(row, found.grid, original)) for row in found.attention[index, 0].cpu()]


def _enlarge(values: Tensor, grid: tuple[int, int], original: Pixels) -> Any:
    from unrolled.instruments import upsample

    return upsample(values, grid, (original.shape[0], original.shape[1]), smooth=True).numpy()


def _outline(picture: Pixels, inside: Any) -> Pixels:
    import numpy as np
    from scipy import ndimage

    edge = inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)
    return blend(picture, np.full(3, 255.0), 0.9 * edge)


def _write_pictures(folder: Path, views: Sequence[_View], options: _Options) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for view in views:
        for method, pixels in view.overlays.items():
            Image.fromarray(pixels).save(folder / view.row["files"][method])
    rows = [(_caption(view), [view.original, *view.overlays.values()]) for view in views]
    sheet(rows, ["picture", *options.methods]).save(folder / "contact-sheet.png")


def _caption(view: _View) -> str:
    rows, columns = view.row["grid"]
    said = f"{view.name}, layer {view.layer}, {rows} x {columns} patches"
    return said + (", one colour: nothing to tell apart" if view.row["blank"] else "")


def _numbers(result: dict[str, Any], options: _Options) -> tuple[list[str], list[list[str]]]:
    columns = ["image", "layer", "patches", *(_COLUMNS[method][0] for method in options.methods)]
    rows = [
        [
            Path(row["image"]).name,
            str(row["layer"]),
            "{} x {}".format(*row["grid"]),
            *("-" if row["blank"] else _COLUMNS[method][1](row) for method in options.methods),
        ]
        for row in result["images"]
    ]
    return columns, rows


_COLUMNS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "attention": ("attention peak / uniform", lambda row: f"{row['attention_peak']:.3g}"),
    "pca": ("variance in 3 components", lambda row: f"{sum(row['pca_explained']):.0%}"),
    "maskcut": ("objects (area)", lambda row: " ".join(f"{a:.0%}" for a in row["objects"]) or "none"),
    "cluster": ("clusters", lambda row: str(len(row["clusters"]))),
}


def _report(
    folder: Path,
    settings: dict[str, Any],
    result: dict[str, Any],
    views: Sequence[_View],
    options: _Options,
    seconds: float,
) -> Path:
    from unrolled.report import Provenance, Report

    report = Report(f"What {result['model']} tells apart", question="Which parts of a picture does the model separate?")
    count = len({view.name for view in views})
    headline = f"{count} picture{'s' if count > 1 else ''}, layer {', '.join(str(v) for v in _layers(views))}. "
    if result["weights"] == "random":
        headline += "The weights are random: what these pictures show comes from the picture and the architecture, "
        headline += "nothing was learned."
    else:
        headline += f"Weights: {result['weights']}."
    report.headline(headline)
    query = next((view.row["attention_query"] for view in views if "attention_query" in view.row), "class token")
    said = [
        f"{name}: {_SAID[name].format(query=query, mass=options.mass, **_named(options))}" for name in options.methods
    ]
    panels = [
        (_caption(view), f"{_caption(view)}: the picture and overlays of {', '.join(view.overlays)}.",
         [view.original, *view.overlays.values()], ["picture", *view.overlays])
        for view in views
    ]  # fmt: skip
    section = grid_section(report, "Contact sheet", panels)
    section.text("; ".join(said) + ". Maps are enlarged smoothly from the grid of patches; overlays in full size lie "
                 "beside this report.")  # fmt: skip
    with_heads = [
        (_caption(view), f"{_caption(view)}: attention of the {query} in every head.", view.heads,
         [str(head) for head in range(len(view.heads))])
        for view in views if view.heads
    ]  # fmt: skip
    if with_heads:
        grid_section(report, "Attention by head", with_heads)
    report.section("Numbers").table(*_numbers(result, options))
    if result["skipped"]:
        report.section("Left out", "\n\n".join(result["skipped"]))
    report.results = result
    report.provenance = Provenance.collect(config=settings, seeds=[options.seed], duration=seconds)
    return write_run(folder, settings, report)


def _named(options: _Options) -> dict[str, Any]:
    return {"facet": options.facet, "tau": options.tau, "clusters": options.clusters}


def _layers(views: Sequence[_View]) -> list[int]:
    return sorted({view.layer for view in views})
