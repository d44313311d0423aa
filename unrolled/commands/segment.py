"""`unrolled segment`."""

from __future__ import annotations

import dataclasses
import itertools
import json as json_module
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
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
)
from unrolled.commands.settings import AsJson, ConfigFiles, ModelArgs, Pretrained, Quiet
from unrolled.locks import hold

if TYPE_CHECKING:
    from torch import nn

    from unrolled.commands.overlays import Options, Shot, View
    from unrolled.commands.pictures import Preparation

Method = Literal["attention", "pca", "maskcut", "cluster"]
Measure = Literal["attention", "maskcut", "clusters"]
METHODS: tuple[Method, ...] = ("attention", "pca", "maskcut", "cluster")


def segment(
    images: tuple[Path, ...] = (),
    *,
    model: str = "crate_nano_patch4_32.cifar10",
    method: Annotated[tuple[Method, ...], Parameter(negative="", consume_multiple=False)] = METHODS,
    layers: Annotated[tuple[int, ...], Parameter(negative="", consume_multiple=True)] = (),
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
    stride: int | None = None,
    frames: int = 100,
    eval_: Annotated[Literal["ade20k", "bsds", "coco", "masks", "voc"] | None, Parameter(name="--eval")] = None,
    measure: Annotated[tuple[Measure, ...], Parameter(negative="", consume_multiple=True)] = (),
    confidence: Literal["order", "area", "constant"] = "order",
    data_dir: Path | None = None,
    limit: int = 200,
    batch_size: int = 4,
    seed: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    device: Device = "auto",
    out: Path | None = None,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show which parts of pictures a model tells apart, without labels.

    Overlays are written for every picture, layer and method, and side by side in contact-sheet.png (a further sheet for
    every 100 rows) and in the report. Pictures keep their shape: positions are interpolated to it.

        unrolled segment cat.jpg
        unrolled segment cat.jpg dog.jpg --model timm:vit_small_patch16_dinov3 --pretrained --method attention
        unrolled segment photos/ --model runs/crate --layers 3 5 --method maskcut --method pca
        unrolled segment cat.jpg --model crate_base_patch8_224 --weights models/crate-b8 --image-size 448
        unrolled segment --eval coco --data-dir data/coco --model runs/crate --layers 3 4 5

    With --eval nothing is painted: attention, objects or clusters are scored against what people marked, beside the
    same model with fresh weights, simple baselines and chance.

    Parameters
    ----------
    images
        Pictures, animations (GIF, WebP, PNG), or folders of them; numbered frames keep their order.
    model
        A run folder, or any model by one string (`unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR, ...). The default
        is small and comes trained.
    method
        `attention` of the class token, `pca` colours, `maskcut` objects or `cluster`s; may be repeated; default: all.
    layers
        Blocks to look at, from 0; negative ones count from the end. Default: the last but one, as the papers do; with
        --eval attention is scored in every block.
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
    stride
        A patch every so many pixels, so that they overlap: a finer grid of the same picture; default: side by side.
    frames
        Of an animation at most so many frames, drawn evenly; 1: the first alone.
    eval_
        Score against this set of annotated images instead.
    measure
        What is scored: `attention` against things, objects of `maskcut` (average precision), `clusters` against whole
        segmentations (covering, mIoU, boundaries). Default: the first two, on bsds the last.
    confidence
        How objects are ranked for average precision: those found first, the largest, or all alike.
    data_dir
        Where the annotated images are.
    limit
        How many of them, drawn evenly.
    batch_size
        Pictures of one size that go through the model together.
    seed
        Of random weights and of k-means.
    on_error
        A picture that cannot be read stops the run, or is named and left out.
    device
        What to run on.
    out
        Where overlays, config.yaml, report.html and report.json go; default: runs/segment-MODEL-PICTURE,
        with a number behind it where that holds the result of another model or picture of the same name.
    """
    for flag, value in {"--frames": frames, "--batch-size": batch_size, "--limit": limit}.items():
        if value < 1:
            raise ValueError(f"{flag} {value}: give at least 1")
    if bool(images) == bool(eval_):
        raise ValueError("images: give at least one picture or a folder of them, or else --eval SET --data-dir DIR")
    from unrolled.commands.overlays import Options, look
    from unrolled.commands.pictures import origin, prepare, stems
    from unrolled.commands.segment_report import numbers, words, write_report, write_sheets
    from unrolled.data.pictures import find_pictures

    options = Options(tuple(dict.fromkeys(method)), facet, mass, tau, objects, clusters, refine, seed)
    _check(options)
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
        "stride": stride,
        "frames": frames,
        "eval": eval_,
        "measure": list(measure),
        "confidence": confidence,
        "data_dir": data_dir,
        "limit": limit,
        "batch_size": batch_size,
        "seed": seed,
        "on_error": on_error,
        "device": device,
    }
    paths = find_pictures(images)
    where = choose_device(device)
    network = open_model(model, weights=weights, pretrained=pretrained, model_args=model_args, seed=seed)
    network = _encoder(network).to(where)
    prepared = prepare(network, image_size=image_size, stride=stride)
    if eval_:
        from unrolled.commands.segment_eval import run_eval

        result, page, said = run_eval(network, prepared, settings, options, out, quiet)
        say_where(page, quiet=quiet)
        if json:
            print(json_module.dumps({**result, "report": str(page)}, indent=2))
        else:
            print(said)
        return
    subject = paths[0].stem if len(paths) == 1 else f"{len(paths)}-pictures"
    folder = out or default_folder("segment", model, subject, settings)
    hold(folder)
    began = time.perf_counter()
    views: list[View] = []
    skipped: list[str] = []
    shots = _shots(
        progress(paths, total=len(paths), what="segment", quiet=quiet), stems(paths), frames, on_error, skipped
    )
    for batch in _batches(shots, prepared, batch_size):
        views += [_kept(folder, view) for view in look(network, prepared, batch, layers or (-2,), options)]
    if not views:
        raise ValueError(f"images: none of {len(paths)} could be read; the first: {skipped[0]}")
    seconds = time.perf_counter() - began
    source = origin(model, weights=weights, pretrained=pretrained)
    result = {"model": model, "weights": source, "images": [view.row for view in views]}
    result["skipped"] = skipped
    write_sheets(folder, views, options)
    page = write_report(folder, settings, result, views, options, seconds)
    say_where(page, quiet=quiet)
    if json:
        print(json_module.dumps({**result, "report": str(page)}, indent=2))
        return
    print(table(*numbers(result, options)))
    if not quiet:
        print("\n" + "\n".join(f"{name}: {meaning}" for name, meaning in words(options)))


def _check(options: Options) -> None:
    from unrolled.commands.overlays import COLOURS

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


def _shots(
    paths: Iterable[Path], names: Sequence[str], frames: int, on_error: str, skipped: list[str]
) -> Iterator[Shot]:
    """Every picture, and every frame of an animation; what cannot be read is named in `skipped`, or stops."""
    from unrolled.commands.overlays import Shot
    from unrolled.data.pictures import read_frames

    for path, name in zip(paths, names, strict=False):
        found = read_frames(path, most=frames)
        try:
            first = next(found)
            second = next(found, None)
            if second is None:
                yield Shot(first, path, name)
                continue
            for number, picture in enumerate(itertools.chain((first, second), found)):
                yield Shot(picture, path, f"{name}-{number:04d}", number)
        except (ValueError, OSError) as error:
            if on_error == "raise":
                raise
            skipped.append(" ".join(str(error).split()))
            print(f"skipped: {skipped[-1]}", file=sys.stderr)


def _batches(shots: Iterable[Shot], prepared: Preparation, size: int) -> Iterator[list[Shot]]:
    """Neighbours that go into the model at one size, so that frames stay in order."""
    for _, group in itertools.groupby(shots, lambda shot: prepared.size_of(shot.picture)):
        while batch := list(itertools.islice(group, size)):
            yield batch


def _kept(folder: Path, view: View) -> View:
    """Write the overlays; what is kept for the sheets are thumbnails, so that thousands of frames fit in memory."""
    from PIL import Image

    from unrolled.commands.pictures import thumbnail

    folder.mkdir(parents=True, exist_ok=True)
    for method, pixels in view.overlays.items():
        Image.fromarray(pixels).save(folder / view.row["files"][method])
    small = {method: thumbnail(pixels) for method, pixels in view.overlays.items()}
    heads = [thumbnail(pixels) for pixels in view.heads]
    return dataclasses.replace(view, original=thumbnail(view.original), overlays=small, heads=heads)
