"""A model and the samples it is shown, with its features of them: one way for images, texts and sounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from unrolled.data.text import is_text
from unrolled.errors import CorruptFile, MissingData
from unrolled.instruments.control import untrained_control
from unrolled.instruments.features import FeatureSet, read_descriptors
from unrolled.instruments.features.parts import Processes, extract_in_parts
from unrolled.models.encoders import Encoder, Kind, open_encoder
from unrolled.models.masked import whole_images
from unrolled.subjects.images import images_of
from unrolled.subjects.language import is_language_model, kind_of
from unrolled.subjects.models import open_model, origin
from unrolled.subjects.options import Reading, SampleFlags, Side
from unrolled.subjects.pairs import Paired, is_paired, read_pairs, read_texts
from unrolled.subjects.runs import check_spelling, data_of, named, shared_data_of
from unrolled.subjects.samples import ImageSamples, Samples, SoundSamples
from unrolled.subjects.texts import open_reader

Flags = TypeVar("Flags", bound=SampleFlags)
OF_ENCODERS = ("given:", "tv:", "st:")
"""Models that `open_encoder` alone opens; their strings say what they take."""


def material_for(
    models: Sequence[str],
    options: Flags,
    *,
    side: Side | None = None,
    texts: Path | None = None,
    weights: Path | None = None,
    quiet: bool,
) -> tuple[ImageSamples | Paired, Flags]:
    """What all `models` are shown, images of one split, divided as in their runs, or pairs; and the options, completed.

    Args:
        models: by string.
        options: which data, and how many samples of them.
        side: of the models, if they say one: then the data are pairs.
        texts: a file of texts instead of data.
        weights: what the one model is filled with.
        quiet: do not say what was read.

    Raises:
        ValueError: a split that the data do not have, a corpus, or a model of texts where the data are images.
    """
    for model in models:
        check_spelling(model)
    if texts is None and is_text(options.data, options.data_dir):
        raise ValueError(
            f"data: {options.data} is a corpus, one long text, and features are of images or of texts by themselves; "
            "give texts=, a file with one text a line, or paired data that have texts, such as data='flickr8k'"
        )
    if is_paired(options.data, side, texts):
        pairs = read_pairs(options.data, options.split, options.data_dir) if texts is None else read_texts(texts)
        return Paired.drawn(pairs, options.images), options
    for model in models:
        if is_language_model(model) or (model.startswith(OF_ENCODERS) and kind_of(model) == "text"):
            raise ValueError(
                f"model: {model} takes texts, and the data are images; give paired data that have texts, such as "
                "data='flickr8k', or texts=, a file of them"
            )
    if options.split == "all":
        raise ValueError("split='all' is for paired data; choose train or test")
    data = shared_data_of(models, weights, options)
    everything = images_of(data, options.split, quiet=quiet)
    samples = ImageSamples.drawn(everything, options.images, f"{data.data} ({options.split})")
    return samples, replace(options, data=data.data, data_dir=data.data_dir)


@dataclass(frozen=True)
class Subject:
    """A model and what it is shown.

    Attributes:
        encoder: the model and how to feed it.
        samples: images, texts or sounds.
        reading: which features of it, and how they are computed.
    """

    encoder: Encoder
    samples: Samples
    reading: Reading

    @classmethod
    def of(
        cls, reading: Reading, material: ImageSamples | Paired | Path, where: torch.device, *,
        side: Side = "image", most: int | None = None,
    ) -> Subject:  # fmt: skip
        """The model that `reading` names, on its device, and its side of `material`.

        Args:
            reading: how it is opened and read.
            material: from `material_for`; or a folder of sounds.
            where: the device.
            side: of pairs, what it is fed with.
            most: of sounds, so many.
        """
        if isinstance(material, ImageSamples):
            run = data_of(reading.model, reading.weights)
            reading = replace(reading, image_size=reading.image_size or run.image_size)
            alone = reading.model.startswith(OF_ENCODERS)
            encoder = _encoder(reading, "image") if alone else _of_images(reading, classes=material.classes)
            samples: Samples = material
        elif isinstance(material, Paired):
            kind: Kind = "image" if side == "image" else "text"
            return cls.shown(reading, material.samples(side, reading.captions), kind, where)
        else:
            encoder = _encoder(reading, "audio")
            samples = SoundSamples.drawn(material, most or 1, encoder.rate)
        encoder.module.to(where)
        return cls(encoder, samples, reading)

    @classmethod
    def shown(cls, reading: Reading, samples: Samples, kind: Kind, where: torch.device) -> Subject:
        """The model that `reading` names, on its device, and samples of the kind that it takes."""
        ours = kind == "text" and is_language_model(reading.model)
        encoder = _of_texts(reading) if ours else _encoder(reading, kind)
        encoder.module.to(where)
        return cls(encoder, samples, replace(reading, batch_size=1) if ours else reading)

    @property
    def model(self) -> nn.Module:
        """In eval mode, on its device."""
        return self.encoder.module

    @property
    def random(self) -> bool:
        """Whether its weights were drawn and not trained."""
        return origin(self.reading) == "random"

    def untrained(self, seed: int) -> Subject:
        """The same architecture with fresh weights, shown the same samples.

        Raises:
            ValueError: not all of its weights can be drawn anew.
        """
        fixed = (each for each in self.model.buffers() if each.dtype not in (torch.bool, torch.int64))  # no masks, ids
        if sum(each.numel() for each in self.model.parameters()) <= sum(each.numel() for each in fixed):
            raise ValueError(f"{self.reading.model} keeps its weights as constants, which no seed draws anew")
        module = untrained_control(self.model, seed)
        reading = replace(self.reading, model=f"{self.reading.model}, untrained")
        return replace(self, encoder=replace(self.encoder, module=module), reading=reading)

    def features(
        self, folder: Path, *, processes: Processes | None = None, quiet: bool = False
    ) -> tuple[FeatureSet, bool]:
        """Its features, read if `folder` holds the same, else computed and written there; and whether they were read.

        Args:
            folder: of the features.
            processes: those that share the work.
            quiet: show no progress.
        """
        key = self.samples.key(self.encoder, self.reading)
        try:
            if read_descriptors(folder)["key"] == key:
                return FeatureSet.load(folder), True
        except (CorruptFile, MissingData):
            pass  # nothing usable there: computed anew, and what is damaged is written over

        def part(start: int, stop: int) -> FeatureSet:
            return replace(self.samples.part(self.encoder, self.reading, start, stop, quiet=quiet), key=key)

        rows = torch.from_numpy(self.samples.rows)
        computed = extract_in_parts(
            folder, part, key=key, total=len(rows), batch_size=self.reading.batch_size, rows=rows, processes=processes
        )
        return computed, False


def _of_images(reading: Reading, classes: int | None = None) -> Encoder:
    return Encoder(name=reading.model, module=whole_images(open_model(reading, classes)), kind="image")


def _encoder(reading: Reading, kind: Kind) -> Encoder:
    """The encoder of a kind: of a model of several modalities the tower of this kind."""
    spec = named(reading.model)
    scheme = spec.partition(":")[0]
    if kind == "image" and scheme not in ("given", "tv", "st", "hf"):
        return _of_images(reading)
    for flag, value in (("weights", reading.weights), ("model_args", reading.model_args)):
        if value:
            raise ValueError(f"{flag}: {reading.model} comes as it is; leave {flag}= out")
    torch.manual_seed(reading.seed)
    trained = reading.pretrained or scheme in ("hf", "given", "st", "local")
    return open_encoder(spec, kind, data_dir=reading.data_dir, pretrained=trained)


def _of_texts(reading: Reading) -> Encoder:
    """A language model of this package, which reads one text at a time: it knows no padding."""
    reader = open_reader(reading)

    def collate(texts: Sequence[str]) -> dict[str, Tensor]:
        (text,) = texts
        return {"tokens": torch.tensor([reader.encode(text)[: reader.limit]])}

    return Encoder(name=reading.model, module=reader.module, kind="text", collate=collate, layers=("embed", "block*"))
