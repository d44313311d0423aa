"""`unrolled align`."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from unrolled.commands.align_report import COLUMNS, align_report, found_by, row
from unrolled.commands.common import (
    Device,
    choose_device,
    data_settings,
    default_folder,
    images_of,
    open_model,
    say_where,
    shown_everything,
    table,
)
from unrolled.commands.dependence import dependence, noted
from unrolled.commands.extract import Pool, Precision, Samples, features_in
from unrolled.commands.settings import SEVERAL, AsJson, ConfigFiles, Pretrained, Quiet
from unrolled.commands.sides import Paired, Side, check_alone, is_paired, side_features
from unrolled.locks import hold

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from unrolled.alignment import Metric


def align(
    a: str | None = None,
    b: str | None = None,
    *,
    grid: Path | None = None,
    metric: tuple[str, ...] = ("mutual_knn",),
    k: int = 10,
    null: Literal["permutation", "moments"] | None = None,
    draws: int = 200,
    resamples: int = 100,
    held_out: bool = False,
    groups: str | None = None,
    blocks: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    split: Literal["train", "test", "all"] = "test",
    side: Side | None = None,
    side_b: Side | None = None,
    texts: Path | None = None,
    captions: int | None = None,
    images: int = 1024,
    layers: Annotated[tuple[str, ...], SEVERAL] = ("block*",),
    layers_b: tuple[str, ...] | None = None,
    pool: Pool = "mean",
    pretrained: Pretrained = False,
    image_size: int | None = None,
    batch_size: int = 64,
    precision: Precision = "fp32",
    seed: int = 0,
    device: Device = "auto",
    workers: int = 1,
    scheduler: str | None = None,
    out: Path | None = None,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """How far two representations of the same samples agree, and whether that is more than chance.

    Every layer of A is compared with every layer of B; the best pair is judged against the best pairs of randomly
    paired samples, which corrects for the search. Features of models stay in the folder and are used again.

        unrolled align runs/crate runs/vit --metric mutual_knn --metric cka
        unrolled align runs/crate timm:resnet18 --pretrained --layers-b "layer*"
        unrolled align features/crate features/vit --k 20
        unrolled align images.npy captions.npy --null moments
        unrolled align timm:resnet18 hf:ORG/NAME --pretrained --data wit --layers "layer*" --layers-b "block*"
        unrolled align given:mobilenet_v1_075 given:minilm --data flickr8k --split all --data-dir data
        unrolled align --grid models.yaml --metric mutual_knn --metric cka

    Above 50,000 samples mutual_knn is estimated from 1,024 of them as queries against all, with its standard error, and
    unbiased_cka takes one pass; other metrics are refused.

    `--grid` compares many models, every one with every other. The file names them: `models:` followed by lines
    `NAME: MODEL`, or `NAME: {model: MODEL, group: vision, competence: 0.76, layers: ["block*"], pool: cls}`; the
    competence is any number to set the alignment against. Of paired data (--data flickr8k) `side: text` feeds a model
    the captions; the default is the image.

    Parameters
    ----------
    a
        A run folder or any model by one string, a folder of `unrolled extract`, or an array file: .npy [n, d] or
        [n, layers, d], .safetensors with one [n, d] a layer.
    b
        As A; row i must be the same sample.
    grid
        A YAML file of models; A and B are then left out.
    metric
        May be repeated: mutual_knn, cycle_knn, lcs_knn, edit_knn, cknna, cka, unbiased_cka, svcca, pwcca, procrustes (a
        distance), rsa, ridge_predictivity, pls_predictivity, stitching.
    k
        Neighbours, for the metrics that have them.
    null
        `permutation` (default for two) relabels samples; `moments` (default for many) takes the tail of three exact
        moments where that is safe and relabels until p is resolved elsewhere; the result says which.
    draws
        Relabellings; the smallest p-value is 1 / (draws + 1).
    resamples
        Subsamples for the interval, which is of the score at this many samples, not of a population; 0: none.
    held_out
        Also choose the layers on one half of the samples and judge them on the other.
    groups
        Which samples depend on each other (captions of a photo, frames of a video, sentences of a document): a file
        with one label a line (.npy too), or a column of paired data of a hub. They are relabelled, left out and
        resampled together. Pairs that share a photo or a text are grouped without being told.
    blocks
        For samples in order, such as a film: how many in a row move as one, or `shift` to shift the whole series.
        Few blocks are liberal (six of an autocorrelated series: 9 % at 5 %); shifts hold.
    data
        Data set both models see; default: the one of the first that is a run folder, else digits.
    data_dir
        Where the data are; default: that of the run folder.
    split
        Which part of the data; `all` is for paired data.
    side
        What A is fed with of paired data (flickr8k, coco, wit, folder, packed, hf:ORG/NAME@REVISION, text): the image,
        its captions as one text, or of pairs of texts the first (text) or the second (text2); default: image.
    side_b
        The same for B; default: text.
    texts
        A file with one text a line, or a .tsv of two columns, for two text models.
    captions
        How many of an image's captions make the text; default: all.
    images
        How many images or pairs, drawn evenly from the whole split.
    layers
        Patterns of layer names of the models; `*` stays within one part of a name. Features in files are all compared.
    layers_b
        The same for B alone; default: as for A.
    pool
        How the tokens of a layer become one vector.
    image_size
        Side in pixels; default: each model's own input size.
    batch_size
        Images in one forward pass.
    precision
        Of the forward passes.
    seed
        Of relabellings, subsamples and weights that are not loaded.
    device
        What to run on.
    workers
        Processes that compare the pairs of `--grid`; needs Dask: pip install 'unrolled[many]'.
    scheduler
        Address of a running Dask scheduler, such as tcp://host:8786, to compare on its workers instead.
    out
        Where config.yaml, report.html, report.json and features go; default: runs/align-A-B, runs/align-GRID-grid.
    """
    if images < 2:
        raise ValueError(f"--images {images}: give at least 2")
    if draws < 1:
        raise ValueError(f"--draws {draws}: give at least 1; the smallest p-value is 1 / (draws + 1)")
    if grid is not None:
        if a is not None:
            raise ValueError(f"--grid {grid}: takes its models from the file; leave {a!r} out, or --grid")
        for_two = {
            "--held-out": held_out, "--side": side, "--side-b": side_b, "--texts": texts, "--captions": captions,
            "--layers-b": layers_b,
        }  # fmt: skip
        for flag, value in for_two.items():
            if value:
                raise ValueError(f"{flag}: is for two models, and --grid would ignore it; leave one of them out")
        from unrolled.commands.align_grid import align_grid

        return align_grid(
            grid, metric=metric, k=k, null=null or "moments", draws=draws, groups=groups, blocks=blocks, data=data,
            data_dir=data_dir, split=split,
            images=images, layers=layers, pool=pool, pretrained=pretrained, image_size=image_size,
            batch_size=batch_size, precision=precision, seed=seed, device=device, workers=workers,
            scheduler=scheduler, out=out, json=json, quiet=quiet,
        )  # fmt: skip
    if a is None or b is None:
        raise ValueError("give two models, feature folders or arrays; or many in a file: --grid models.yaml")
    null = null or "permutation"
    import torch

    from unrolled.alignment import compare
    from unrolled.alignment.scale import LARGE, compare_large
    from unrolled.instruments.features.files import Rows, check_same_samples
    from unrolled.report.provenance import plain

    metrics = [_metric(name, k) for name in metric]
    where = choose_device(device)
    folder = out or default_folder("align", _stem(a), _stem(b))
    hold(folder)
    sides = [_read(spec) for spec in (a, b)]
    pairs: Paired | None = None
    models = [spec for spec, side in zip((a, b), sides, strict=True) if side is None]
    paired = is_paired(data, side or side_b, texts)
    for spec in models:
        check_alone(spec, paired)
    if models and paired:
        pairs = Paired.choose(data, split, data_dir, texts, images)
    elif models:
        if split == "all":
            raise ValueError("--split all: is for paired data; choose train or test")
        found = [data_settings(spec, None, data=data, data_dir=data_dir, image_size=None) for spec in models]
        own = next((each for spec, each in zip(models, found, strict=True) if _is_run(spec)), found[0])
        data, data_dir = own["data"], own["data_dir"]
        everything = images_of(own, split, quiet=quiet)
        samples = Samples.choose(everything, images, f"{data} ({split})")
    wanted = layers, layers_b or layers
    began = time.perf_counter()
    for i, (spec, letter) in enumerate(((a, "a"), (b, "b"))):
        if sides[i] is None and pairs is not None:
            sides[i], _ = side_features(
                folder / "features" / letter, spec, pairs, _side(i, (side, side_b), data, texts), where=where,
                data_dir=data_dir, layers=wanted[i], pool=pool, captions=captions, pretrained=pretrained,
                image_size=image_size, batch_size=batch_size, precision=precision, seed=seed + i, quiet=quiet,
            )  # fmt: skip
        elif sides[i] is None:
            size = image_size or data_settings(spec, None, data=data, data_dir=data_dir, image_size=None)["image_size"]
            # A and B must not be one model by accident
            network = open_model(spec, pretrained=pretrained, classes=len(everything.classes), seed=seed + i)
            sides[i], _ = features_in(
                folder / "features" / letter, shown_everything(network).to(where), samples, name=spec, layers=wanted[i],
                pool=pool, image_size=size, batch_size=batch_size, precision=precision, quiet=quiet,
            )  # fmt: skip
    left, right = (_checked(side, spec) for side, spec in zip(sides, (a, b), strict=True))
    check_same_samples(Rows.of(left), Rows.of(right), a, b)
    n = Rows.of(left).samples
    for chosen in metrics:
        if getattr(chosen, "k", 1) >= n:
            raise ValueError(f"--k {k}: must be less than the {n} samples; lower it or give more samples")
    options: dict[str, Any] = {"draws": draws, "seed": seed}
    options |= dependence(groups, blocks, Rows.of(left), None if pairs is None else pairs.pairs, quiet=quiet)
    notes: list[str] = []
    with noted(notes, quiet=quiet):
        if n > LARGE:
            if held_out:
                raise ValueError(f"--held-out: needs at most {LARGE:,} samples, not {n:,}; leave it out or give fewer")
            results = [compare_large(left, right, each, **options) for each in metrics]
        else:
            first, second = (
                {name: torch.as_tensor(value).to(where) for name, value in side.items()} for side in (left, right)
            )
            options |= {"null": null, "resamples": resamples, "select_held_out": held_out}
            results = [compare(first, second, each, **options) for each in metrics]
    seconds = time.perf_counter() - began
    settings: dict[str, Any] = {
        "a": a, "b": b, "metric": metric, "k": k, "null": null, "draws": draws, "resamples": resamples,
        "held_out": held_out, "groups": groups, "blocks": blocks,
        "data": data, "data_dir": data_dir, "split": split, "side": side, "side_b": side_b,
        "texts": texts, "captions": captions, "images": images, "layers": layers, "layers_b": layers_b, "pool": pool,
        "pretrained": pretrained, "image_size": image_size, "batch_size": batch_size, "precision": precision,
        "seed": seed, "device": device,
    }  # fmt: skip
    page = align_report(folder, settings, results, n, seconds, notes)
    say_where(page, quiet=quiet)
    if json:
        comparisons = [each.to_dict() for each in results]
        said = {"a": a, "b": b, "n": n, "comparisons": comparisons, "notes": notes, "report": str(page)}
        print(json_module.dumps(plain(said), indent=2))
    else:
        print(table(COLUMNS, [row(name, each) for name, each in zip(metric, results, strict=True)]))
        print(found_by(metric, results))


def _metric(name: str, k: int) -> Metric:
    """The metric, with `k` neighbours if it has them."""
    import inspect

    from unrolled.alignment import METRICS, get_metric

    if k < 1:
        raise ValueError(f"--k {k}: give at least 1")
    takes_k = name in METRICS and "k" in inspect.signature(METRICS[name]).parameters
    return get_metric(name, **({"k": k} if takes_k else {}))


def _side(i: int, said: tuple[Side | None, Side | None], data: str | None, texts: Path | None) -> Side:
    """What side `i` is fed with: as said, else images against captions, or first against second texts."""
    given = said[i]
    if given is not None:
        return given
    if texts is not None and texts.suffix != ".tsv":
        return "text"
    defaults: tuple[Side, Side] = ("text", "text2") if texts is not None or data == "text" else ("image", "text")
    return defaults[i]


def _is_run(spec: str) -> bool:
    from unrolled.commands.common import run_settings

    return bool(run_settings(spec).get("data"))


def _stem(spec: str) -> str:
    from unrolled.instruments.features.files import ARRAY_SUFFIXES

    return Path(spec.removeprefix("local:")).stem if "/" in spec or Path(spec).suffix in ARRAY_SUFFIXES else spec


def _read(spec: str) -> Mapping[str, Tensor | ndarray] | None:
    """Features of a folder or array file; None if `spec` is a model."""
    from unrolled.instruments.features.files import is_feature_file, read_features

    return read_features(spec) if is_feature_file(spec) else None


def _checked(side: Mapping[str, Tensor | ndarray] | None, spec: str) -> Mapping[str, Tensor | ndarray]:
    from unrolled.instruments.features.extraction import check_finite

    assert side is not None
    for name, value in side.items():
        check_finite(value, f"{spec}, {name}", "drop these samples on both sides")
    return side
