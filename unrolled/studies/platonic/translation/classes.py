"""Classes matched with their names, without knowing which is which: the published test of vision against language."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from unrolled.models.given import find_weights
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.networks import Data, Network
from unrolled.studies.pictures import pictures
from unrolled.studies.platonic.given import IMAGENET, GivenFeatures, open_model
from unrolled.studies.platonic.words import word_vectors
from unrolled.studies.platonic.zoo import Features

TEXTS = ("minilm", "glove")
_STARTS = 200


@dataclass(frozen=True, kw_only=True)
class Named(Cell):
    """Means of the features of each class, matched with vectors of the classes' names by their similarities alone.

    Attributes:
        side: features of the images.
        text: of `TEXTS`.
        data: what the images are of.
    """

    side: GivenFeatures | Features
    text: str
    data: Data

    def require(self, context: Context) -> None:
        """The images, and the text model."""
        self.side.require(context)
        open_model(self.text, context)

    def compute(self, context: Context) -> Result:
        """`accuracy`, share of the `classes` given their own names, the `order` of names that was found, and more.

        `value` is the correlation of the similarities in that order, `truth` the same with every class at its own name:
        if the latter is smaller, no search could have found it.
        """
        from unrolled.alignment.translation.anchors import matched, similarities

        rows = list(self.side.load(context).values())[-1]
        shown = pictures(self.data, "test", context.data_dir).first(len(rows))
        units = torch.nn.functional.normalize((rows - rows.mean(0)).double(), dim=1)
        means = torch.stack([units[shown.labels == i].mean(0) for i in range(len(shown.classes))]).numpy()
        words = word_vectors(self.text, list(shown.classes), find_weights(context.data_dir)).double().numpy()
        words = words / np.linalg.norm(words, axis=1, keepdims=True)
        one, other = similarities(means), similarities(words)
        order, value = matched(one, other, starts=_STARTS, generator=np.random.default_rng(0))
        return {
            "accuracy": float((order == np.arange(len(order))).mean()),
            "classes": list(shown.classes),
            "order": order.tolist(),
            "value": value,
            "truth": float((one * other).sum()),
        }


def class_cells(data: Data, samples: int, networks: tuple[Network, ...]) -> Iterator[Named]:
    """Four networks of ImageNet, and `networks`, which are controls, with every text model."""
    if data != "cifar10":  # the classes of digits have no names that say what they look like
        return
    for text in TEXTS:
        for given in IMAGENET:
            yield Named(side=GivenFeatures(given=given, data=data, samples=min(samples, 1000)), text=text, data=data)
        for network in networks:
            yield Named(side=Features(network=network, samples=samples), text=text, data=data)
