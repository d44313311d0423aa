"""Features of captioned photos as cells: of image networks and text models, as trained, drawn anew, or damaged."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from unrolled.data.sources import evenly
from unrolled.errors import CorruptFile, MissingData, MissingExtra
from unrolled.instruments.control import drawn_anew
from unrolled.studies.cells import Cell, Context, Result, data_missing
from unrolled.studies.platonic.fetched import GRAPHS, folder_of, open_in

if TYPE_CHECKING:
    from unrolled.data.pairs import PairSource
    from unrolled.instruments.features import FeatureSet
    from unrolled.models.encoders import Encoder

NETS = ("efficientnet_lite0", "mobilenet_v1_075", "tiny_darknet", "squeezenet1_1")
"""The given ImageNet networks, from the most accurate on the sample of ImageNet photos to the least."""
TOP1 = {"efficientnet_lite0": 85.6, "mobilenet_v1_075": 83.0, "tiny_darknet": 64.3, "squeezenet1_1": 59.1}
"""Their top-1 accuracy on that sample, percent, as the notes of the weights give it."""
LABELS = {
    "given:efficientnet_lite0": "EfficientNet-Lite0", "given:mobilenet_v1_075": "MobileNet v1 0.75",
    "given:tiny_darknet": "Tiny Darknet", "given:squeezenet1_1": "SqueezeNet 1.1", "given:minilm": "MiniLM-L6",
    "given:glove": "GloVe 50d", "given:stories260k": "TinyStories LLaMA",
    "given:efficientnet_lite1": "EfficientNet-Lite1", "given:efficientnet_lite2": "EfficientNet-Lite2",
    "given:wordllama": "WordLlama", "given:tokenlearn": "tokenlearn",
    **{name: graph.label for name, graph in GRAPHS.items()},
}  # fmt: skip
Collection = Literal["flickr8k", "coco"]
FOLDERS: dict[Collection, str] = {"flickr8k": "flickr8k-2000", "coco": "coco-panoptic-200"}
"""Where captioned photos are, in the folder of data."""
CAPTIONS = 5
"""Captions of every photo."""
_CALIBRATION = 64  # photos from which an untrained network's batch norms take their statistics


def label(spec: str, state: str = "") -> str:
    """What a report calls a model."""
    return LABELS.get(spec, spec) + (f", {state}" if state else "")


@cache
def open_photos(data_dir: Path, pairs: int, collection: Collection = "flickr8k") -> PairSource:
    """So many photos of a collection with their captions, drawn evenly from all: 2,000 of Flickr8k, 363 of COCO.

    Raises:
        MissingData: they are not in `data_dir`.
    """
    from unrolled.data.pairs import open_pairs

    try:
        everything = open_pairs(collection, data_dir=data_dir.expanduser())
    except MissingData as error:
        raise data_missing(FOLDERS[collection], error) from error
    return everything.take(evenly(pairs, len(everything)))


@lru_cache(maxsize=2)  # an image network and a text model
def _encoder(spec: str, kind: Literal["image", "text"], folder: Path) -> Encoder:
    return open_in(spec, kind, folder)


def opened(spec: str, kind: Literal["image", "text"], context: Context) -> Encoder:
    """A model and what it is fed with, on the device.

    Raises:
        ValueError: there is no such model.
        MissingData: it cannot be had, or a package that it needs.
    """
    try:
        encoder = _encoder(spec, kind, folder_of(spec, context))
    except MissingExtra as error:
        raise MissingData(str(error)) from error
    encoder.module.to(context.device)
    return encoder


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A text model.

    Attributes:
        text: as in `open_encoder`.
        text_drawn: the seed that its weights are drawn anew from; None as it is.
        damage: Gaussian noise is added of so many standard deviations of it to every matrix.
    """

    text: str
    text_drawn: int | None = None
    damage: float = 0.0

    @property
    def state(self) -> str:
        """What was done to it, in words."""
        return "untrained" if self.text_drawn is not None else f"damaged {self.damage:g}" if self.damage else ""

    @property
    def label(self) -> str:
        """What a report calls it."""
        return label(self.text, self.state)

    def module(self, context: Context) -> nn.Module:
        """The model with weights drawn anew or damaged."""
        module = opened(self.text, "text", context).module
        if self.text_drawn is not None:
            return drawn_anew(module, self.text_drawn)
        return damaged(module, self.damage) if self.damage else module


@dataclass(frozen=True, kw_only=True)
class Features(Cell):
    """Features of `pairs` captioned photos of a collection in every layer of a model, kept in the store."""

    pairs: int
    collection: Collection = "flickr8k"

    def captioned(self, context: Context) -> PairSource:
        """The photos with their captions."""
        return open_photos(context.data_dir, self.pairs, self.collection)

    def require(self, context: Context) -> None:
        """The photos."""
        self.captioned(context)

    @abstractmethod
    def extract(self, context: Context) -> FeatureSet:
        """Run the model."""

    def compute(self, context: Context) -> Result:
        """The names of the `layers`, in the order of the model, and the number of `rows`."""
        features = self.load(context)
        return {"layers": list(features), "rows": features.samples}

    def load(self, context: Context) -> FeatureSet:
        """layer -> [rows, d], from the store if the model was run before."""
        from unrolled.instruments.features import FeatureSet

        folder = self.file(context, "")
        try:
            return FeatureSet.load(folder)
        except (MissingData, CorruptFile):
            features = self.extract(context)
            features.save(folder)
            return features


@dataclass(frozen=True, kw_only=True)
class OfPhotos(Features):
    """The mean over places of every layer of an image network, photos as they are (224 x 224 pixels, not cropped).

    Attributes:
        image: as in `open_encoder`.
        image_drawn: the seed that its weights are drawn anew from; None as it is.
    """

    image: str
    image_drawn: int | None = None

    @property
    def label(self) -> str:
        """What a report calls the network."""
        return label(self.image, "" if self.image_drawn is None else "untrained")

    def require(self, context: Context) -> None:
        """The photos and the network."""
        super().require(context)
        opened(self.image, "image", context)

    def extract(self, context: Context) -> FeatureSet:
        """Run the network; batch norms of an untrained one take their statistics from 64 photos."""
        from unrolled.data import eval_loader, eval_transform, model_input
        from unrolled.instruments.features import extract

        encoder = opened(self.image, "image", context)
        source = self.captioned(context).images()
        expects = model_input(encoder.module, native_size=source.native_size)
        settings = {key: expects[key] for key in ("input_size", "mean", "std", "interpolation")}
        transform = eval_transform(**settings, crop_pct=1.0)
        module = encoder.module
        if self.image_drawn is not None:
            first = next(iter(eval_loader(source, transform, batch_size=min(_CALIBRATION, len(source))))).images
            module = drawn_anew(module, self.image_drawn, first.to(context.device))
        return extract(
            module, eval_loader(source, transform, batch_size=32), layers=list(encoder.layers), pooling="mean",
            name=self.image, data=source.description,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OfTexts(Features):
    """The mean over tokens of every layer, of texts made from the captions."""

    model: TextModel

    def require(self, context: Context) -> None:
        """The photos and the model."""
        super().require(context)
        opened(self.model.text, "text", context)

    @abstractmethod
    def texts(self, source: PairSource) -> list[str]:
        """What is read."""

    def extract(self, context: Context) -> FeatureSet:
        """Run the model."""
        from unrolled.instruments.features.text import extract_texts

        encoder = opened(self.model.text, "text", context)
        assert encoder.collate is not None
        texts = self.texts(self.captioned(context))
        return extract_texts(
            self.model.module(context), texts, encoder.collate, layers=list(encoder.layers), name=self.model.text,
            data="flickr8k captions",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OfCaptions(OfTexts):
    """Every caption read alone."""

    def texts(self, source: PairSource) -> list[str]:
        """The captions of the first photo, then of the second."""
        return [text for captions in source.captions for text in captions[:CAPTIONS]]

    def by_photo(self, context: Context) -> dict[str, Tensor]:
        """layer -> [photos, captions, d] of unit length."""
        return {
            layer: nn.functional.normalize(value, dim=1).unflatten(0, (-1, CAPTIONS))
            for layer, value in self.load(context).items()
        }


@dataclass(frozen=True, kw_only=True)
class OfJoined(OfTexts):
    """The first `joined` captions read as one text, of `photos` of the photos, drawn evenly."""

    photos: int
    joined: int

    def texts(self, source: PairSource) -> list[str]:
        """One text a photo."""
        return [" ".join(source.captions[i][: self.joined]) for i in evenly(self.photos, len(source))]


def damaged(module: nn.Module, amount: float, seed: int = 0) -> nn.Module:
    """A copy whose matrices have Gaussian noise of `amount` times their own standard deviation added."""
    worse = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in worse.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(amount * parameter.std() * noise)
    return worse
