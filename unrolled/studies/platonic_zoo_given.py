"""What the zoo is compared with and did not learn from: networks trained by others, words, and brains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unrolled.studies.platonic_zoo import ZooConfig, pictures

if TYPE_CHECKING:
    from unrolled.instruments.features.extraction import FeatureSet

CIFAR = ("resnet20", "resnet56", "vit_d128_p4")
IMAGENET = ("efficientnet_lite0", "mobilenet_v1_075", "squeezenet1_1", "tiny_darknet")
GIVEN_VISION = (*CIFAR, *IMAGENET)
_SIDE = 96
"""Pixels to which images are enlarged for the networks of ImageNet: a fifth of the work of their own 224."""


@dataclass(frozen=True, kw_only=True)
class Brain:
    """Responses to 92 photographs of objects (Kriegeskorte et al. 2008).

    Attributes:
        stimuli: uint8 [92, 3, 175, 175].
        human: dissimilarities in human inferior temporal cortex, [8, 92, 92]: 4 people, 2 sessions each.
        monkey: in monkey inferior temporal cortex, [92, 92].
    """

    stimuli: Tensor
    human: Tensor
    monkey: Tensor


def given_features(config: ZooConfig) -> dict[str, FeatureSet]:
    """Features of the held-out images by networks that others trained; empty for digits or without the weights."""
    from unrolled.errors import MissingData
    from unrolled.instruments.features.extraction import extract
    from unrolled.models.given import find_weights, open_given

    if config.data != "cifar10":
        return {}
    try:
        folder = find_weights(config.data_dir)
        models = {name: open_given(name, folder) for name in GIVEN_VISION}
    except MissingData:
        return {}
    images = pictures(config.data, "test", config.data_dir).images[: config.samples]
    return {
        name: extract(
            _Enlarged(model.module, _SIDE if name in IMAGENET else images.shape[-1]),
            images,
            layers=tuple(f"model.{pattern}" for pattern in model.layers) if name != "vit_d128_p4" else model.layers,
            pooling=model.pooling,
            batch_size=100,
            name=name,
            data=f"{config.data}, first {len(images)} held-out",
            inputs=f"{_SIDE if name in IMAGENET else images.shape[-1]} px",
            cache=config.zoo / "features",
        )
        for name, model in models.items()
    }


class _Enlarged(nn.Module):
    """A given network on uint8 images of another size: resized and normalised as its weights expect."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.model, self.side = model, side
        said: Any = model.pretrained_cfg
        self.register_buffer("mean", 255 * torch.tensor(said["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(said["std"]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float()
        if pixels.shape[-1] != self.side:
            pixels = nn.functional.interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True)
        logits: Tensor = self.model((pixels - self.mean) / self.std)
        return logits


def word_vectors(config: ZooConfig, texts: Sequence[str]) -> dict[str, Tensor]:
    """Vectors [n, d] of texts by the last layers of MiniLM and GloVe, of those whose weights are there."""
    from unrolled.errors import MissingData, MissingExtra
    from unrolled.instruments.features.extraction import extract
    from unrolled.models.given import find_weights, open_given

    found = {}
    for name in ("minilm", "glove"):
        try:
            model = open_given(name, find_weights(config.data_dir))
        except (MissingData, MissingExtra):
            continue
        assert model.tokenizer is not None
        batches = [model.tokenizer(list(texts[start : start + 64])) for start in range(0, len(texts), 64)]
        # a text model's own pooling is the mean over its tokens
        layers = extract(model.module, batches, layers=model.layers, pooling=model.pooling, prefix=0, name=name)
        found[name] = list(layers.values())[-1]
    return found


def brain(config: ZooConfig) -> Brain | None:
    """The 92 photographs and what brains made of them; None without the file."""
    import numpy as np

    path = config.data_dir / "brain-92images" / "brain_92images.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        return Brain(
            stimuli=torch.from_numpy(file["stimuli"]).movedim(-1, 1).contiguous(),
            human=torch.from_numpy(file["human_it"]).double(),
            monkey=torch.from_numpy(file["monkey_it"]).double(),
        )
