"""What the zoo is compared with and did not learn from: networks trained by others, and words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unrolled.errors import MissingData, MissingExtra
from unrolled.studies.cells import Cell, Context, Result, data_missing
from unrolled.studies.networks import Data
from unrolled.studies.pictures import pictures

if TYPE_CHECKING:
    from unrolled.instruments.features import FeatureSet
    from unrolled.models.given import GivenModel

CIFAR = ("resnet20", "resnet56", "vit_d128_p4")
IMAGENET = ("efficientnet_lite0", "mobilenet_v1_075", "squeezenet1_1", "tiny_darknet")
GIVEN_VISION = (*CIFAR, *IMAGENET)
WORDS = {"MiniLM": "minilm", "GloVe": "glove"}
_SIDE = 96
"""Pixels to which images are enlarged for the networks of ImageNet: a fifth of the work of their own 224."""


def open_model(name: str, context: Context) -> GivenModel:
    """A network that others trained; those of `make models` are in the folder `models`.

    Raises:
        MissingData: its weights are not there, or what reads them is not installed.
    """
    from unrolled.models.given import find_weights, is_fetched, open_given

    try:
        return open_given(name, find_weights(context.folder("models") if is_fetched(name) else context.data_dir))
    except MissingData as error:
        argument = "models_dir" if is_fetched(name) and "models" in context.elsewhere else "data_dir"
        raise data_missing(f"the weights of {name}", error, argument=argument) from error
    except MissingExtra as error:
        raise MissingData(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class GivenFeatures(Cell):
    """Features of the first held-out images by a network that others trained.

    Attributes:
        given: of `GIVEN_VISION`; those of ImageNet see the images enlarged.
        data: what the images are of.
        samples: how many.
    """

    given: str
    data: Data
    samples: int

    def require(self, context: Context) -> None:
        """Images and weights."""
        pictures(self.data, "test", context.data_dir)
        open_model(self.given, context)

    def compute(self, context: Context) -> Result:
        """The names of the `layers`."""
        return {"layers": list(self.load(context))}

    def load(self, context: Context) -> FeatureSet:
        """The features; from the store if they were extracted before."""
        from unrolled.instruments.features import extract

        images = pictures(self.data, "test", context.data_dir).first(self.samples).images
        model = open_model(self.given, context)
        side = _SIDE if self.given in IMAGENET else images.shape[-1]
        layers = model.layers if self.given == "vit_d128_p4" else tuple(f"model.{layer}" for layer in model.layers)
        return extract(
            _Enlarged(model.module, side),
            images,
            layers=layers,
            pooling=model.pooling,
            batch_size=100,
            name=self.given,
            data=f"{self.data}, first {len(images)} held-out",
            inputs=f"{side} px",
            cache=context.store / "features",
        )


class _Enlarged(nn.Module):
    """A given network on uint8 images of another size: resized and normalised as its weights expect."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.model, self.side = model, side
        config: Any = model.pretrained_cfg
        self.register_buffer("mean", 255 * torch.tensor(config["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(config["std"]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float()
        if pixels.shape[-1] != self.side:
            pixels = nn.functional.interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True)
        logits: Tensor = self.model((pixels - self.mean) / self.std)
        return logits
