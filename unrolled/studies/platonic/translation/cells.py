"""What `platonic-translation` computes: maps between pairs of networks, fitted without pairs of samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import nn

from unrolled.alignment.translation.fitting import Recipe
from unrolled.data.sources import evenly
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.compared import NetworksConfig
from unrolled.studies.networks import Data
from unrolled.studies.platonic.photos import CAPTIONS, OfCaptions, OfPhotos, TextModel
from unrolled.studies.platonic.translation.classes import class_cells
from unrolled.studies.platonic.zoo import Features
from unrolled.studies.study import AtLeast, Budgets, Count, Distinct

Sort = Literal["seeds", "families", "imagenet", "sentences", "image-text"]
SORTS: dict[Sort, str] = {
    "seeds": "two seeds of a CRATE",
    "families": "CRATE to ViT",
    "imagenet": "MobileNet to EfficientNet",
    "sentences": "MiniLM to GloVe",
    "image-text": "MobileNet to MiniLM",
}
SideCell = Features | OfPhotos | OfCaptions
_FRESH = 7  # first seed of untrained networks of the roster
_DRAWN = (0, 1)  # seeds that the first and the second of given networks are drawn anew from
_RUNGS = ((0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2))  # seeds of the two networks, split by split


@dataclass(kw_only=True)
class TranslationConfig(NetworksConfig):
    """Budgets change the data and how much is tried."""

    budgets: ClassVar[Budgets] = {
        "quick": {
            **{"data": "digits", "images": 1280, "workers": 1, "samples": 300, "photos": 128, "texts": 1},
            **{"splits": (0, 1), "restarts": 2, "controls": 2, "fresh": 1, "rounds": 5, "anchor_sets": 2},
            **{"pairs": (4,)},
        },
        "cpu": {},
        "gpu": {"device": "cuda", "images": 1_280_000, "workers": 1, "samples": 10_000, "texts": 5, "restarts": 30},
    }

    data: Data = "cifar10"
    """What CRATEs and ViTs are trained on, and whose held-out images they are compared on."""
    samples: Annotated[int, AtLeast(120)] = 6000
    """Held-out images for CRATE and ViT: a third is shown to either side alone, and a third scores."""
    photos: Annotated[int, AtLeast(120)] = 2000
    """Photos of Flickr8k for image networks and text models, divided alike."""
    texts: Annotated[int, AtLeast(1)] = 2
    """Captions of a photo that are texts for the sentence encoders; those of one photo stay in one third."""
    splits: Annotated[tuple[Annotated[int, AtLeast(0)], ...], Distinct()] = (0, 1, 2, 3, 4)
    """Divisions into thirds, each with other seeds of the networks and of the fit."""
    restarts: Count = 8
    """Attempts of a fit; the one whose rows match most closely is taken."""
    fresh: Count = 3
    """Attempts with an untrained network."""
    controls: Count = 19
    """Rearrangements of clusters, on the first split of each sort; fewer than 19 cannot reach p = 0.05."""
    pairs: Annotated[tuple[Annotated[int, AtLeast(2)], ...], Distinct()] = (4, 16, 64)
    """How many pairs are given where a few are."""
    rounds: Count = 60
    """Of refinement."""
    anchor_sets: Count = 8
    """k-means runs whose matched centroids are the anchors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.texts > CAPTIONS:
            raise ValueError(f"texts={self.texts}: a photo has {CAPTIONS} captions")
        most = min(self.photos, self.samples) // 3
        if max(self.pairs) > most:
            raise ValueError(f"pairs={self.pairs}: the smallest third has {most} samples to take them from")

    @property
    def recipe(self) -> Recipe:
        """The numbers of the method."""
        return Recipe(rounds=self.rounds, anchor_sets=self.anchor_sets, sample=500, starts=10)


class Thirds(NamedTuple):
    """Features of both sides [n, d], and the rows that score, that fit the first and that fit the second."""

    x: Any
    y: Any
    scored: Any
    one: Any
    other: Any


@dataclass(frozen=True, kw_only=True)
class _OfSides(Cell):
    """Maps from the last layer of one network to that of another.

    Attributes:
        sort: of `SORTS`.
        sides: features of the two, row by row of the same samples.
        texts: captions of a photo that are rows each; 0 of images, and where five captions are one row.
        split: seed of the division into thirds and of the fit.
        recipe: the numbers of the method.
    """

    sort: Sort
    sides: tuple[SideCell, SideCell]
    texts: int
    split: int
    recipe: Recipe

    def thirds(self, context: Context) -> Thirds:
        """What fits and what scores."""
        from unrolled.alignment.translation import thirds

        x, y = (_rows(side, self.texts, context) for side in self.sides)
        return Thirds(x, y, *thirds(len(x) // max(1, self.texts), self.split, of=max(1, self.texts)))


@dataclass(frozen=True, kw_only=True)
class Translated(_OfSides):
    """Maps that are fitted to samples of which no pair is known.

    Attributes:
        trained: of an untrained control the second network has fresh weights (the first, where the second is of texts).
        restarts: attempts.
        controls: rearrangements of clusters.
    """

    trained: bool
    restarts: int
    controls: int

    @property
    def name(self) -> str:
        """What progress calls it."""
        return f"Translated {SORTS[self.sort]}{'' if self.trained else ', untrained'}, split {self.split}"

    def compute(self, context: Context) -> Result:
        """How the maps score, beside those fitted to pairs, and what could be said of it without them.

        `scores` and `paired` of orthogonal maps on the `n` held-out samples, and both of the `linear` ones; `fitted`
        samples of each side, the `level` (what the best of three restarts reaches on the average) and the same of each
        of the `controls`, `p_value` and whether it `worked`, and of all `restarts` their criterion and what pairs say
        of them.
        """
        from unrolled.alignment.translation import translate, translate_paired
        from unrolled.alignment.translation.record import KINDS

        x, y, scored, one, other = self.thirds(context)
        both = np.concatenate([one, other])
        with TemporaryDirectory() as attempts:  # which both kinds of map follow from
            fits = {
                kind: translate(
                    x[one], y[other], kind=kind, restarts=self.restarts, controls=self.controls, seed=self.split,
                    folder=attempts, recipe=self.recipe,
                )
                for kind in KINDS
            }  # fmt: skip
        scores = {
            kind: {
                "scores": fitted.scores(x[scored], y[scored]).to_dict(),
                "paired": translate_paired(x[both], y[both], kind=kind, recipe=self.recipe)
                .scores(x[scored], y[scored])
                .to_dict(),
            }
            for kind, fitted in fits.items()
        }
        fitted = fits["orthogonal"]
        restarts = []
        for i, record in enumerate(fitted.records()):
            of_restart = fitted.of_restart(i).scores(x[scored], y[scored])
            restarts.append({**record, "top1": of_restart.top1, "mean_rank": of_restart.mean_rank})
        return {
            "n": len(scored),
            "fitted": [len(one), len(other)],
            **scores["orthogonal"],
            "linear": scores["linear"],
            "level": fitted.level,
            "controls": list(fitted.controls),
            "p_value": fitted.p_value,
            "worked": fitted.worked,
            "restarts": restarts,
        }


@dataclass(frozen=True, kw_only=True)
class FewPairs(_OfSides):
    """Maps that are fitted to a few pairs and to samples of which no pair is known, beside maps fitted to these alone.

    Attributes:
        pairs: how many, of the samples that fit the first side.
    """

    pairs: int

    @property
    def name(self) -> str:
        """What progress calls it."""
        return f"FewPairs {SORTS[self.sort]}, {self.pairs} pairs, split {self.split}"

    def compute(self, context: Context) -> Result:
        """`scores` on the `n` held-out samples by kind of map, and those of maps fitted to the pairs `alone`."""
        from unrolled.alignment.translation import translate, translate_paired
        from unrolled.alignment.translation.record import KINDS

        x, y, scored, one, other = self.thirds(context)
        known = one[evenly(self.pairs, len(one))]
        few = x[known], y[known]
        with TemporaryDirectory() as attempts:
            fits = {
                kind: translate(
                    x[one], y[other], pairs=few, kind=kind, restarts=1, controls=0, seed=self.split, folder=attempts,
                    recipe=self.recipe,
                )
                for kind in KINDS
            }  # fmt: skip
        alone = {kind: translate_paired(*few, kind=kind, recipe=self.recipe) for kind in KINDS}
        return {
            "n": len(scored),
            "scores": {kind: fitted.scores(x[scored], y[scored]).to_dict() for kind, fitted in fits.items()},
            "alone": {kind: fitted.scores(x[scored], y[scored]).to_dict() for kind, fitted in alone.items()},
        }


def _rows(side: SideCell, texts: int, context: Context) -> Any:
    """[n, d] of the last layer; of captions each a row, or the mean of a photo's five as unit vectors."""
    if isinstance(side, OfCaptions):
        each = list(side.by_photo(context).values())[-1]
        rows = each[:, :texts].flatten(0, 1) if texts else nn.functional.normalize(each.mean(1), dim=1)
    else:
        rows = list(side.load(context).values())[-1]
    return rows.double().numpy()


def cells(config: TranslationConfig) -> Iterator[Cell]:
    """Every sort on every split, without and with a few pairs; with an untrained network; classes with their names."""
    for trained in (True, False):
        for place, split in enumerate(config.splits):
            for sort in SORTS:
                sides, texts = _sides(config, sort, place, trained), config.texts if sort == "sentences" else 0
                yield Translated(
                    sort=sort,
                    trained=trained,
                    sides=sides,
                    texts=texts,
                    split=split,
                    restarts=config.restarts if trained else config.fresh,
                    controls=config.controls if place == 0 else 0,
                    recipe=config.recipe,
                )
                for pairs in config.pairs if trained else ():
                    yield FewPairs(sort=sort, sides=sides, texts=texts, split=split, pairs=pairs, recipe=config.recipe)
    fresh = (config.network(kind, config.data, _FRESH + i, trained=False) for kind in ("crate", "vit") for i in (0, 1))
    yield from class_cells(config.data, config.samples, tuple(fresh))


def _sides(config: TranslationConfig, sort: Sort, place: int, trained: bool) -> tuple[SideCell, SideCell]:
    first_drawn, second_drawn = (None, None) if trained else _DRAWN
    photos, mobile = config.photos, "given:mobilenet_v1_075"
    if sort in ("seeds", "families"):
        i, j = (each % len(config.seeds) for each in _RUNGS[place % len(_RUNGS)])
        seed = config.seeds[j] if trained else _FRESH + place % 2
        first = config.network("crate", config.data, config.seeds[i])
        second = config.network("crate" if sort == "seeds" else "vit", config.data, seed, trained=trained)
        return Features(network=first, samples=config.samples), Features(network=second, samples=config.samples)
    if sort == "imagenet":
        second_photos = OfPhotos(pairs=photos, image="given:efficientnet_lite0", image_drawn=second_drawn)
        return OfPhotos(pairs=photos, image=mobile), second_photos
    text = TextModel(text="given:minilm")
    if sort == "sentences":
        words = TextModel(text="given:glove", text_drawn=second_drawn)
        return OfCaptions(pairs=photos, model=text), OfCaptions(pairs=photos, model=words)
    return OfPhotos(pairs=photos, image=mobile, image_drawn=first_drawn), OfCaptions(pairs=photos, model=text)
