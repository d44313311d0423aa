"""Vectors of names by language models that others trained, and class means of small networks beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.networks import OfNetwork
from unrolled.studies.pictures import unseen_pictures
from unrolled.studies.platonic.given import open_model
from unrolled.studies.platonic.pairs import pair_scores
from unrolled.studies.platonic.zoo import Unseen


@dataclass(frozen=True, kw_only=True)
class NearWords(OfNetwork):
    """Mutual k-NN of the class means of Tiny-ImageNet's images with vectors of the names of the classes.

    Attributes:
        words: the language model, of `unrolled.models.given`.
        k: neighbours.
        share: of the images, the first ones.
    """

    words: str
    k: int
    share: float = 1.0

    @property
    def needs(self) -> Sequence[Cell]:
        """The features."""
        return (Unseen(network=self.network),)

    def require(self, context: Context) -> None:
        """The images and the language model."""
        super().require(context)
        unseen_pictures(context.data_dir)
        open_model(self.words, context)

    def compute(self, context: Context) -> Result:
        """`gain`, the score above chance; None where too few names have a vector. How many `classes` have one."""
        from unrolled.alignment.registry import get_metric
        from unrolled.models.given import find_weights

        unseen = unseen_pictures(context.data_dir)
        some = unseen.first(int(self.share * len(unseen.labels)))
        rows = Unseen(network=self.network).load(context)[: len(some.labels)]
        means = class_means(rows, some.labels, len(some.classes))
        names = [name.split(",")[0].lower() for name in some.classes]
        vectors = word_vectors(self.words, names, find_weights(context.data_dir))
        known = torch.nonzero(vectors.norm(dim=1) > 0)[:, 0]
        if len(known) <= 2 * self.k:
            return {"gain": None, "classes": len(known)}
        sides: list[dict[str, Tensor]] = [{"": rows[known]} for rows in (means, vectors)]
        pairs = pair_scores(sides[:1], get_metric("mutual_knn", k=self.k), against=sides[1:], draws=199)
        return {"gain": float(pairs.gain[0, 0]), "classes": len(known)}


def class_means(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[classes, d] mean features of each class, from features [n, d] and labels [n]."""
    sums = torch.zeros(classes, rows.shape[1], dtype=rows.dtype).index_add_(0, labels, rows)
    return sums / torch.bincount(labels, minlength=classes).clamp_min(1)[:, None]


def word_vectors(name: str, texts: Sequence[str], weights_dir: Path) -> torch.Tensor:
    """[n, d] of a given language model's customary layer; a row without a known word is zero.

    Args:
        name: of `unrolled.models.given`.
        texts: words or phrases.
        weights_dir: folder of the weights.
    """
    from unrolled.instruments.features.extraction import extract
    from unrolled.models.given import open_given

    model = open_given(name, weights_dir)
    assert model.tokenizer is not None
    batches = [model.tokenizer(list(texts[i : i + 256])) for i in range(0, len(texts), 256)]
    features = extract(model.module, batches, layers=model.layers, pooling=model.pooling)
    return list(features.values())[-1]
