"""`unrolled extract`."""

from __future__ import annotations

import hashlib
import json as json_module
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from unrolled.commands.common import (
    Device,
    batches,
    data_settings,
    default_folder,
    images_of,
    open_model,
    progress,
    sharing,
    shown_everything,
    table,
    write_settings,
)
from unrolled.commands.settings import SEVERAL, AsJson, ConfigFiles, ModelArgs, Pretrained, Quiet
from unrolled.commands.sides import Paired, Side, check_alone, is_paired, side_features, sound_features
from unrolled.locks import hold

if TYPE_CHECKING:
    from torch import nn

    from unrolled.data import ImageSource
    from unrolled.data.sources import Subset
    from unrolled.instruments import FeatureSet
    from unrolled.instruments.features.parts import Processes

Precision = Literal["fp32", "bf16", "fp16"]
Pool = Literal["cls", "mean", "max", "grid", "last"]


@dataclass(frozen=True)
class Samples:
    """Images to compute features of: rows of a split, and what they are in words, with a digest of them."""

    source: Subset
    data: str

    @classmethod
    def choose(cls, everything: ImageSource, images: int, name: str) -> Samples:
        """`images` of them, drawn evenly; all if there are fewer."""
        import numpy as np

        from unrolled.data.sources import Subset

        count = min(images, len(everything))
        source = Subset(everything, np.linspace(0, len(everything) - 1, count).round().astype(np.int64))
        return cls(source, f"{name}, {count:,} of {len(everything):,} images ({_digest(source)})")


def extract(
    model: str,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    split: Literal["train", "test", "all"] = "test",
    side: Side | None = None,
    texts: Path | None = None,
    sounds: Path | None = None,
    captions: int | None = None,
    images: int = 1024,
    layers: Annotated[tuple[str, ...], SEVERAL] = ("block*",),
    pool: Pool = "mean",
    weights: Path | None = None,
    pretrained: Pretrained = False,
    model_args: ModelArgs = None,
    image_size: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    precision: Precision = "fp32",
    seed: int = 0,
    device: Device = "auto",
    out: Path | None = None,
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a model over images, texts or sounds and keep one vector per layer and sample.

    The folder holds features.safetensors (features, labels, and which rows of the split they are of), features.json
    (model, data, pooling, checksums) and config.yaml. Features of the same model, weights, images and pooling that it
    holds already are left as they are.

        unrolled extract runs/digits --out features/digits
        unrolled extract timm:resnet18 --pretrained --data cifar10 --data-dir data --layers "layer*"
        unrolled extract crate_nano_patch2_8 --layers "block*/half" norm --pool cls
        unrolled extract hf:ORG/NAME --data wit --side text --pool mean
        unrolled extract given:minilm --texts sentences.txt --data-dir data
        unrolled extract hf:facebook/wav2vec2-base --sounds recordings/
        torchrun --nproc-per-node 4 -m unrolled extract timm:resnet18 --pretrained --data hf:ORG/NAME --images 1000000

    Samples are taken in parts of about a thousand, which the processes of torchrun share, on one machine or on several
    that see the same folder. An extraction that was killed goes on with the parts that are missing.

    Parameters
    ----------
    model
        A run folder, or any model by one string (`unrolled list`, timm:NAME, hf:ORG/NAME, local:DIR, ...).
    data
        Data set; default: the one of the run folder, else digits.
    data_dir
        Where the data are; default: that of the run folder.
    split
        Which part of the data, divided as in the run the weights are from; `all` is for paired data.
    side
        Of paired data (flickr8k, coco, wit, folder, packed, hf:ORG/NAME@REVISION, text): the image, its captions as one
        text, or of pairs of texts the first (text) or the second (text2); default for them: image.
    texts
        A file with one text a line instead of data, or a .tsv of two columns.
    sounds
        A folder of .wav files instead of data, for audio models (hf:ORG/NAME).
    captions
        How many of an image's captions make the text; default: all.
    images
        How many images, texts or sounds, drawn evenly from the whole split.
    layers
        Patterns of layer names; `*` stays within one part of a name. A pattern without a match names the nearest. Given
        models and text models have a default of their own.
    pool
        How the tokens of a layer become one vector.
    weights
        Load these: a folder of `unrolled convert`, a run folder or a published checkpoint.
    image_size
        Side in pixels; default: the model's own input size.
    batch_size
        Images in one forward pass.
    workers
        Loader processes; 0 loads in this process.
    on_error
        An undecodable image stops the extraction, or is named and left out.
    precision
        Of the forward pass; features are stored as float32.
    seed
        Of weights that are not loaded.
    device
        What to run on.
    out
        Where the features go; default: runs/features-MODEL-DATA.
    """
    if images < 1:
        raise ValueError(f"--images {images}: give at least 1")
    with sharing(device) as (where, processes):
        options: dict[str, Any] = {
            "layers": layers, "pool": pool, "batch_size": batch_size, "workers": workers, "on_error": on_error,
            "precision": precision, "processes": processes, "quiet": quiet or processes.rank > 0,
        }  # fmt: skip
        paired = is_paired(data, side, texts)
        if sounds is not None:
            if paired or data is not None:
                raise ValueError("--sounds: is data by itself; leave --data, --side and --texts out")
            folder = _own(out or default_folder("features", model, sounds.name), processes)
            began = time.perf_counter()
            found, reused = sound_features(
                folder, model, sounds, images, where=where, layers=layers, pool=pool, pretrained=pretrained,
                batch_size=batch_size, precision=precision, seed=seed,
            )  # fmt: skip
        elif paired:
            pairs = Paired.choose(data, split, data_dir, texts, images)
            side = side or ("image" if texts is None else "text")
            folder = _own(
                out or default_folder("features", model, f"{data or (texts and texts.stem)}-{side}"), processes
            )
            began = time.perf_counter()
            found, reused = side_features(
                folder, model, pairs, side, where=where, data_dir=data_dir, captions=captions, weights=weights,
                pretrained=pretrained, model_args=model_args, image_size=image_size, seed=seed, **options,
            )  # fmt: skip
        else:
            check_alone(model, paired)
            own = data_settings(model, weights, data=data, data_dir=data_dir, image_size=image_size)
            data, data_dir, image_size = own["data"], own["data_dir"], own["image_size"]
            folder = _own(out or default_folder("features", model, str(data)), processes)
            if split not in ("train", "test"):
                raise ValueError(f"--split {split}: is for paired data; choose train or test")
            everything = images_of(own, split, quiet=options["quiet"])
            samples = Samples.choose(everything, images, f"{data} ({split})")
            network = open_model(
                model, weights=weights, pretrained=pretrained, model_args=model_args,
                classes=len(everything.classes), seed=seed,
            )  # fmt: skip
            network = shown_everything(network).to(where)
            began = time.perf_counter()
            found, reused = features_in(folder, network, samples, name=model, image_size=image_size, **options)
        seconds = time.perf_counter() - began
    if processes.rank > 0:
        return
    settings: dict[str, Any] = {
        "model": model,
        "data": data,
        "data_dir": data_dir,
        "split": split,
        "side": side,
        "texts": texts,
        "sounds": sounds,
        "captions": captions,
        "images": images,
        "layers": layers,
        "pool": pool,
        "weights": weights,
        "pretrained": pretrained,
        "model_args": model_args or {},
        "image_size": image_size,
        "batch_size": batch_size,
        "workers": workers,
        "on_error": on_error,
        "precision": precision,
        "seed": seed,
        "device": device,
    }
    write_settings(folder, settings)
    result = {
        "model": model, "data": found.data, "pooling": found.pooling, "samples": found.samples,
        "layers": {name: value.shape[1] for name, value in found.items()}, "skipped": found.skipped,
        "checksum": found.checksum, "reused": reused, "seconds": seconds, "folder": str(folder),
    }  # fmt: skip
    if json:
        print(json_module.dumps(result, indent=2))
        return
    print(table(["layer", "samples", "dim"], [[name, f"{len(x)}", f"{x.shape[1]}"] for name, x in found.items()]))
    if not quiet:
        for name in found.skipped:
            print(f"skipped: {name}", file=sys.stderr)
        print(f"features: {folder}{' (were there already)' if reused else ''}", file=sys.stderr)


def _own(folder: Path, processes: Processes) -> Path:
    """`folder`, which from now on is these processes'."""
    if processes.rank == 0:
        hold(folder)
    processes.barrier()  # none writes before the first has it
    return folder


def features_in(
    folder: Path,
    network: nn.Module,
    samples: Samples,
    *,
    name: str,
    layers: Sequence[str],
    pool: str,
    image_size: int | None,
    batch_size: int,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    precision: Precision = "fp32",
    processes: Processes | None = None,
    quiet: bool,
) -> tuple[FeatureSet, bool]:
    """The features, read if `folder` holds the same, else computed and written there; and whether they were read."""
    import numpy as np
    import torch

    from unrolled.data import model_input
    from unrolled.data.sources import Subset
    from unrolled.errors import CorruptFile, MissingData
    from unrolled.instruments import FeatureSet
    from unrolled.instruments import extract as compute
    from unrolled.instruments.features.extraction import feature_key, read_descriptors
    from unrolled.instruments.features.parts import extract_in_parts

    expects = model_input(network, native_size=samples.source.native_size, image_size=image_size)
    options: dict[str, Any] = {
        "layers": layers,
        "pooling": pool,
        "data": samples.data,
        "inputs": json_module.dumps({"on_error": on_error, **expects}, sort_keys=True, default=str),
        "autocast": {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision],
    }
    key = feature_key(network, **options)
    try:
        if read_descriptors(folder)["key"] == key:
            return FeatureSet.load(folder), True
    except (CorruptFile, MissingData):
        pass  # nothing usable there: computed anew, and what is damaged is written over

    def part(start: int, stop: int) -> FeatureSet:
        source = Subset(samples.source, np.arange(start, stop))
        loader = batches(
            network, source, image_size=image_size, batch_size=batch_size, workers=workers, on_error=on_error
        )
        bar = progress(loader, total=-(-len(source) // batch_size), what=f"{name}, from {start:,}", quiet=quiet)
        return compute(network, bar, name=name, **options)

    rows = torch.from_numpy(samples.source.indices)
    found = extract_in_parts(
        folder, part, key=key, total=len(rows), batch_size=batch_size, rows=rows, processes=processes
    )
    return found, False


def _digest(source: ImageSource) -> str:
    """Tells apart data of one name: labels are not always cheap, so a few images spread over the source must do."""
    import numpy as np

    from unrolled.data.sources import BadImage

    total = hashlib.sha256()
    for index in np.unique(np.linspace(0, len(source) - 1, 16).round().astype(int)):
        try:
            total.update(np.ascontiguousarray(source.load(int(index))[0]).tobytes())
        except BadImage as error:
            total.update(str(error).encode())
    return f"sha256 {total.hexdigest()[:16]}"
