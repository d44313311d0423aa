"""Class means of small networks beside vectors of the classes' names, by language models that others trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        from unrolled.studies.platonic.human import word_vectors

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
