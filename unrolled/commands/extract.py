"""`unrolled extract`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unrolled.commands.options import check_counts, verb
from unrolled.harness import OutputFlags, default_folder, print_answer, settings_of, write_settings
from unrolled.locks import hold
from unrolled.subjects.models import sharing
from unrolled.subjects.options import FeatureFlags, LoaderFlags, OneModelFlags, PairFlags, Reading, SampleFlags, Side
from unrolled.terminal import say, table

if TYPE_CHECKING:
    import torch

    from unrolled.subjects.subject import Subject


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(OneModelFlags, SampleFlags, PairFlags, FeatureFlags, LoaderFlags, OutputFlags):
    """Flags of `unrolled extract`."""

    model: str = field(kw_only=False)
    split: Literal["train", "test", "all"] = "test"
    """Which part of the data, divided as in the run the weights are from; `all` is for paired data."""
    side: Side | None = None
    """Of paired data (flickr8k, coco, wit, folder, packed, hf:ORG/NAME@REVISION, text): the image, its captions as one
    text, or of pairs of texts the first (text) or the second (text2); default for them: image."""
    sounds: Path | None = None
    """A folder of .wav files instead of data, for audio models (hf:ORG/NAME)."""
    images: int = 1024
    """How many images, texts or sounds, drawn evenly from the whole split."""
    layers: tuple[str, ...] = ("block*",)
    """Patterns of layer names; `*` stays within one part of a name. A pattern without a match names the nearest. Given
    models and text models have a default of their own."""
    out: Path | None = None
    """Where the features go; default: runs/features-MODEL-DATA."""

    def __post_init__(self) -> None:
        check_counts(images=self.images)


@verb
def extract(options: ExtractOptions) -> None:
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
    """
    with sharing(options.device) as (where, processes):
        quiet = options.quiet or processes.rank > 0
        options, subject, seen = _subject(options, where, quiet=quiet)
        folder = options.out or default_folder("features", options.model, seen)
        if processes.rank == 0:
            hold(folder)
        processes.barrier()  # none writes before the first has the folder
        began = time.perf_counter()
        features, reused = subject.features(folder, processes=processes, quiet=quiet)
        seconds = time.perf_counter() - began
    if processes.rank > 0:
        return
    write_settings(folder, settings_of(options))
    result = {
        "model": options.model, "data": features.data, "pooling": features.pooling, "samples": features.samples,
        "layers": {name: value.shape[1] for name, value in features.items()}, "skipped": features.skipped,
        "checksum": features.checksum, "reused": reused, "seconds": seconds, "folder": str(folder),
    }  # fmt: skip
    rows = [[name, f"{len(x)}", f"{x.shape[1]}"] for name, x in features.items()]
    print_answer("extract", result, table(["layer", "samples", "dim"], rows), json=options.json)
    for name in features.skipped:
        say(f"skipped: {name}", quiet=quiet)
    say(f"features: {folder}{' (were there already)' if reused else ''}", quiet=quiet)


def _subject(options: ExtractOptions, where: torch.device, *, quiet: bool) -> tuple[ExtractOptions, Subject, str]:
    """What is looked at; the options completed, and what to call the data in the name of a folder."""
    from unrolled.subjects.pairs import is_paired
    from unrolled.subjects.samples import ImageSamples
    from unrolled.subjects.subject import Subject, material_for

    if options.sounds is not None:
        if options.data is not None or is_paired(options.data, options.side, options.texts):
            raise ValueError("--sounds: is data by itself; leave --data, --side and --texts out")
        subject = Subject.of(Reading.of(options), options.sounds, where, most=options.images)
        return options, subject, options.sounds.name
    material, options = material_for(
        [options.model], options, side=options.side, texts=options.texts, weights=options.weights, quiet=quiet
    )
    side: Side = options.side or ("image" if options.texts is None else "text")
    subject = Subject.of(Reading.of(options), material, where, side=side)
    if isinstance(material, ImageSamples):
        return replace(options, image_size=subject.reading.image_size), subject, str(options.data)
    return replace(options, side=side), subject, f"{options.data or (options.texts and options.texts.stem)}-{side}"
