"""Samples that a model is shown: images, texts or sounds, drawn evenly from more, and how their features are made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from unrolled.data import ImageSource, model_input
from unrolled.data.sounds import open_sounds
from unrolled.data.sources import BadImage, Subset, evenly
from unrolled.instruments.features import FeatureSet, extract, feature_key
from unrolled.instruments.features.text import extract_texts, extract_waveforms, text_feature_key
from unrolled.models.encoders import Encoder, waveform
from unrolled.subjects.images import batches
from unrolled.terminal import progress

if TYPE_CHECKING:
    from unrolled.subjects.options import Reading

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Samples(Protocol):
    """Of one kind: what they are in words, with a digest, and which rows of their data."""

    @property
    def data(self) -> str:
        """In words; equal words, equal samples."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Which of the data they are."""

    def key(self, encoder: Encoder, reading: Reading) -> str:
        """Tells their features from others, before the model runs."""

    def part(self, encoder: Encoder, reading: Reading, start: int, stop: int, *, quiet: bool) -> FeatureSet:
        """Features of those from `start` to `stop`; `indices` count from `start`."""


def _options(encoder: Encoder, reading: Reading) -> dict[str, Any]:
    return {
        "layers": encoder.layers if reading.layers == ("block*",) else reading.layers,
        "pooling": reading.pool,
        "autocast": _AUTOCAST[reading.precision],
    }


@dataclass(frozen=True)
class ImageSamples:
    """Images, and how many classes they and the rest of their data have; 0 for images without."""

    source: ImageSource
    rows: NDArray[np.int64]
    data: str
    classes: int = 0

    @classmethod
    def drawn(cls, everything: ImageSource, most: int, name: str) -> ImageSamples:
        """At most `most` of the images, drawn evenly."""
        source = Subset.evenly(everything, most)
        description = f"{name}, {len(source):,} of {len(everything):,} images ({_digest(source)})"
        return cls(source, source.indices, description, len(everything.classes))

    def key(self, encoder: Encoder, reading: Reading) -> str:
        """As in `Samples`."""
        return feature_key(encoder.module, **self._options(encoder, reading))

    def part(self, encoder: Encoder, reading: Reading, start: int, stop: int, *, quiet: bool) -> FeatureSet:
        """As in `Samples`."""
        loader = batches(
            encoder.module, Subset(self.source, np.arange(start, stop)), image_size=reading.image_size,
            batch_size=reading.batch_size, workers=reading.workers, on_error=reading.on_error,
        )  # fmt: skip
        total = -(-(stop - start) // reading.batch_size)
        bar = progress(loader, total=total, what=f"{reading.model}, from {start:,}", quiet=quiet)
        features = extract(encoder.module, bar, name=reading.model, **self._options(encoder, reading))
        return features if self.classes else replace(features, labels=None)

    def _options(self, encoder: Encoder, reading: Reading) -> dict[str, Any]:
        expects = model_input(encoder.module, native_size=self.source.native_size, image_size=reading.image_size)
        inputs = json.dumps({"on_error": reading.on_error, **expects}, sort_keys=True, default=str)
        return {**_options(encoder, reading), "data": self.data, "inputs": inputs}


@dataclass(frozen=True)
class TextSamples:
    """Texts."""

    texts: list[str]
    rows: NDArray[np.int64]
    data: str

    def key(self, encoder: Encoder, reading: Reading) -> str:
        """As in `Samples`."""
        assert encoder.collate is not None
        return text_feature_key(
            encoder.module, self.texts, encoder.collate, batch_size=reading.batch_size, data=self.data,
            **_options(encoder, reading),
        )  # fmt: skip

    def part(self, encoder: Encoder, reading: Reading, start: int, stop: int, *, quiet: bool) -> FeatureSet:
        """As in `Samples`."""
        assert encoder.collate is not None

        def bar(items: Iterable[Any], total: int) -> Iterable[Any]:
            return progress(items, total=total, what=reading.model, quiet=quiet)

        features = extract_texts(
            encoder.module, self.texts[start:stop], encoder.collate, batch_size=reading.batch_size, data=self.data,
            name=reading.model, progress=bar, **_options(encoder, reading),
        )  # fmt: skip
        return replace(features, indices=torch.arange(stop - start))


NOTHING = TextSamples([], np.zeros(0, np.int64), "")
"""What a model is shown that is only opened as yet."""


@dataclass(frozen=True)
class SoundSamples:
    """Waveforms at the rate that a model expects."""

    waves: list[NDArray]
    rows: NDArray[np.int64]
    data: str

    @classmethod
    def drawn(cls, folder: Path, most: int, rate: int) -> SoundSamples:
        """At most `most` of the sounds of a folder, drawn evenly.

        Raises:
            MissingData: there are none.
            CorruptFile: one of them is damaged.
        """
        source = open_sounds(folder)
        rows = evenly(most, len(source))
        waves = [waveform(*source.load(int(row)), rate) for row in rows]
        digest = hashlib.sha256(b"".join(wave.tobytes() for wave in waves)).hexdigest()[:16]
        description = f"sounds of {folder.name}: {len(waves):,} of {len(source):,} (sha256 {digest})"
        return cls(waves, rows, description)

    def key(self, encoder: Encoder, reading: Reading) -> str:
        """As in `Samples`."""
        return feature_key(encoder.module, data=self.data, **_options(encoder, reading))

    def part(self, encoder: Encoder, reading: Reading, start: int, stop: int, *, quiet: bool) -> FeatureSet:
        """As in `Samples`."""
        assert encoder.collate is not None
        features = extract_waveforms(
            encoder.module, self.waves[start:stop], encoder.collate, batch_size=reading.batch_size,
            name=reading.model, data=self.data, **_options(encoder, reading),
        )  # fmt: skip
        return replace(features, indices=torch.arange(stop - start))


def _digest(source: ImageSource) -> str:
    """Tells apart data of one name: labels are not always cheap, so a few images spread over the source must do."""
    total = hashlib.sha256()
    for index in evenly(16, len(source)):
        try:
            total.update(np.ascontiguousarray(source.load(int(index))[0]).tobytes())
        except BadImage as error:
            total.update(str(error).encode())
    return f"sha256 {total.hexdigest()[:16]}"
