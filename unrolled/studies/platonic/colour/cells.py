"""What `platonic-colour` computes: counts of neighbouring colours, and layouts by pixels, by words and by people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

import numpy as np
import torch

from unrolled.alignment.people import unit_ranks, upper
from unrolled.data.human import colours, named_colours, read_arrays
from unrolled.errors import MissingData
from unrolled.studies.cells import Cell, Columns, Context, Result, data_missing
from unrolled.studies.platonic.colour.layouts import (
    Array,
    Zeros,
    count_colours,
    dissimilarities,
    embed,
    lab_of_rgb,
    laid_over,
    made_up_images,
    pixel_pairs,
)
from unrolled.studies.platonic.given import open_model
from unrolled.studies.platonic.words import word_vectors
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Seeds

if TYPE_CHECKING:
    from unrolled.data import ImageSource

Source = Literal["cifar10", "shuffled", "made-up"]
TEXTS = ("minilm", "glove", "stories260k")
# the paper's 20 words and their Munsell centroids were shared privately; these are in the xkcd survey under these names
COLOUR_WORDS = (
    "black", "white", "grey", "red", "green", "blue", "yellow", "orange", "brown", "pink", "purple", "teal",
    "turquoise", "lavender", "maroon", "gold", "beige", "peach", "lime", "olive",
)  # fmt: skip
TEMPLATES = ("the color {}", "this color is {}", "the color of this thing is {}")
_MADE_UP = 2000  # images, at most
_PEOPLE = "human-similarity"


@dataclass(kw_only=True)
class ColourConfig(Config):
    """Budgets change how many pairs of pixels and permutations there are, and the table of choices."""

    budgets: ClassVar[Budgets] = {
        "quick": {"images": 1000, "pairs": 100_000, "seeds": (0,), "permutations": 200, "fits": 2, "all_bins": (4,)},
        "cpu": {},
        "gpu": {"images": 50_000, "seeds": (0, 1, 2, 3, 4), "fits": 50},
    }

    data_dir: Path = Path("data")
    """Folder with `cifar10`, `human-similarity` and `weights`; rows without their data are not run."""
    images: Count = 10_000
    """Images of CIFAR-10 that pixels are drawn from."""
    pairs: Count = 300_000
    """Pairs of pixels; the paper's 300,000."""
    radius: Annotated[float, AtLeast(1)] = 4.0
    """Greatest distance of a pair in pixels; the paper's 4."""
    bins: Annotated[int, AtLeast(2)] = 6
    """Parts of each of R, G and B; the paper does not say how many."""
    min_count: Count = 200
    """Appearances below which a colour is left out: its PMI would be noise."""
    zeros: Zeros = "add half"
    """Pairs that never occur: half a count is added to every pair, or they get the smallest PMI that occurs ("floor"),
    or the embedding ignores their distance ("leave out"). The paper does not say."""
    all_bins: Annotated[tuple[int, ...], AtLeast(2)] = (4, 6, 8)
    """Numbers of bins in the table of choices."""
    fits: Count = 4
    """Starts of multidimensional scaling, the best of which counts; the paper's 1,000."""
    permutations: Count = 2000
    """Random assignments of colours to places, for chance and p."""
    seeds: Seeds = (0, 1, 2)
    """Draws of images and pixels."""


@dataclass(frozen=True, kw_only=True)
class Counted(Cell):
    """How often colours are neighbours in images; of source "shuffled" pairs are of different images."""

    source: Source
    seed: int
    images: int
    pairs: int
    radius: float
    bins: int
    min_count: int

    def require(self, context: Context) -> None:
        """The images."""
        if self.source != "made-up":
            _cifar10(context)

    def compute(self, context: Context) -> Result:
        """Symmetric `counts` [k, k] of pairs of colours, and the `middles` of their bins [k, 3] in [0, 1]."""
        generator = np.random.default_rng(self.seed)
        images = self._images(context, generator)
        first, second = pixel_pairs(images, self.pairs, self.radius, generator)
        if self.source == "shuffled":
            second = second[generator.permutation(len(second))]
        counts, middles = count_colours(first, second, self.bins, self.min_count)
        return {"counts": counts.astype(int).tolist(), "middles": middles.tolist()}

    def load(self, context: Context) -> tuple[Array, Array]:
        """Both, as floats."""
        result = context.result(self)
        return np.array(result["counts"], dtype=np.float64), np.array(result["middles"])

    def _images(self, context: Context, generator: np.random.Generator) -> Array:
        if self.source == "made-up":
            return made_up_images(min(self.images, _MADE_UP), generator)
        source = _cifar10(context)
        chosen = generator.choice(len(source), min(self.images, len(source)), replace=False)
        return np.stack([np.asarray(source.load(int(i))[0]) for i in chosen])


def _cifar10(context: Context) -> ImageSource:
    from unrolled.data.files import open_packed  # `open_images` would download what is not there

    try:
        (images,) = open_packed("cifar10", context.data_dir, split="train").values()
    except MissingData as error:
        raise data_missing("cifar10", error) from error
    return images


@dataclass(frozen=True, kw_only=True)
class Layout(Cell):
    """Colours laid out by distances between them, and how well that meets CIELAB.

    Attributes:
        fits: starts of the embedding.
        permutations: of colours, for chance and p.
        seed: of both.
    """

    fits: int
    permutations: int
    seed: int

    def score(self, distances: Array, lab: Array, observed: Array | None = None) -> Result:
        """Of `n` colours Procrustes `r2`, its mean over permutations (`null`), deviation (`spread`) and `p`.

        Also `spearman`, between the distances [k, k] and those in CIELAB, and the points: `placed` and `lab` [k, 3].
        """
        points = embed(distances, observed, fits=self.fits, seed=self.seed)
        placed, r2 = laid_over(points, lab)
        generator = np.random.default_rng(self.seed)
        null = [laid_over(points, lab[generator.permutation(len(lab))])[1] for _ in range(self.permutations)]
        lab_distances = np.sqrt(((lab[:, None] - lab[None]) ** 2).sum(-1))
        return {
            "n": len(lab),
            "r2": r2,
            "null": float(np.mean(null)),
            "spread": float(np.std(null)),
            "p": (1 + sum(value >= r2 - 1e-12 for value in null)) / (self.permutations + 1),
            "spearman": float(unit_ranks(upper(distances)) @ unit_ranks(upper(lab_distances))),
            "placed": placed.tolist(),
            "lab": lab.tolist(),
        }


@dataclass(frozen=True, kw_only=True)
class ByPixels(Layout):
    """Colours laid out by how often they are neighbours; `zeros` says what becomes of pairs that never are."""

    counted: Counted
    zeros: Zeros

    def compute(self, context: Context) -> Result:
        """The score, and `never`, the share of pairs of colours that never occur."""
        counts, middles = self.counted.load(context)
        distances, observed = dissimilarities(counts, self.zeros)
        return {**self.score(distances, lab_of_rgb(middles), observed), "never": float((counts == 0).mean())}


@dataclass(frozen=True, kw_only=True)
class BesidePeople(Cell):
    """How often colours are neighbours beside what people say of them, over pairs that fall into different bins."""

    counted: Counted
    zeros: Zeros

    def require(self, context: Context) -> None:
        """The ratings."""
        colours(context.data_dir)

    def compute(self, context: Context) -> dict[str, float | None]:
        """How many pairs are `compared`, and Spearman's correlation of ratings with `pmi` and `lab`; None below ten."""
        from scipy.stats import spearmanr

        counts, middles = self.counted.load(context)
        distances, _ = dissimilarities(counts, self.zeros)
        people, bins = colours(context.data_dir), self.counted.bins
        rgb = read_arrays(context.data_dir / _PEOPLE / "colour93_human.npz", ("rgb",))["rgb"].astype(np.int64)
        ours = {tuple(code): i for i, code in enumerate((middles * bins).astype(np.int64).tolist())}
        place = np.array([ours.get(tuple(code), -1) for code in (rgb * bins // 256).tolist()])
        i, j = np.tril_indices(len(place), -1)
        apart = (place[i] >= 0) & (place[j] >= 0) & (place[i] != place[j])
        i, j = i[apart], j[apart]
        if len(i) < 10:
            return {"compared": len(i), "pmi": None, "lab": None}
        ratings = people.together[i, j]
        lab = np.sqrt(((people.lab[i] - people.lab[j]) ** 2).sum(-1))
        return {
            "compared": len(i),
            "pmi": float(spearmanr(distances[place[i], place[j]], ratings).statistic),
            "lab": float(spearmanr(lab, ratings).statistic),
        }


@dataclass(frozen=True, kw_only=True)
class ByWords(Layout):
    """Colour words laid out by a language model's vectors; GloVe sees the word, the others three short sentences."""

    model: str

    def require(self, context: Context) -> None:
        """The words' colours and the model."""
        named_colours(context.data_dir / _PEOPLE / "xkcd_colours.tsv")
        open_model(self.model, context)

    def compute(self, context: Context) -> Result:
        """The score, and the `words`."""
        from unrolled.models.given import find_weights

        table = dict(named_colours(context.data_dir / _PEOPLE / "xkcd_colours.tsv"))
        words = [word for word in COLOUR_WORDS if word in table]
        templates = ("{}",) if self.model == "glove" else TEMPLATES
        weights = find_weights(context.data_dir)
        each = [word_vectors(self.model, [text.format(word) for word in words], weights) for text in templates]
        vectors = torch.stack(each).sum(0).double() / len(templates)
        distances = torch.cdist(vectors, vectors).fill_diagonal_(0).numpy()
        return {**self.score(distances, np.array([table[word] for word in words])), "words": words}


@dataclass(frozen=True, kw_only=True)
class ByPeople(Layout):
    """93 colours laid out by people's ratings."""

    def require(self, context: Context) -> None:
        """The ratings."""
        colours(context.data_dir)

    def compute(self, context: Context) -> Result:
        """The score."""
        people = colours(context.data_dir)
        distances = people.together.copy()
        np.fill_diagonal(distances, 0)
        return self.score((distances + distances.T) / 2, people.lab)


def chosen(config: ColourConfig) -> Columns:
    """The free choices that claims are judged at, as columns."""
    return {"radius": config.radius, "bins": config.bins, "zeros": config.zeros}


def cells(config: ColourConfig) -> Iterator[Cell]:
    """Made-up images, photographs and their control, the table of choices, words, people."""
    first = config.seeds[0]
    layouts: list[tuple[Source, int, Columns]] = [("made-up", first, {})]
    layouts += [(source, seed, {}) for source in ("cifar10", "shuffled") for seed in config.seeds]
    layouts += [("cifar10", first, {"bins": b, "zeros": z}) for b in config.all_bins for z in get_args(Zeros)]
    layouts += [("cifar10", first, {"radius": radius}) for radius in (1.0, 2.0, 8.0)]
    how: Columns = {"fits": config.fits, "permutations": config.permutations}
    for source, seed, changed in layouts:
        choice = {**chosen(config), **changed}
        zeros = choice.pop("zeros")
        amounts = {"images": config.images, "pairs": config.pairs, "min_count": config.min_count}
        counted = Counted(source=source, seed=seed, **amounts, **choice)
        yield ByPixels(counted=counted, zeros=zeros, seed=seed, **how)
        yield BesidePeople(counted=counted, zeros=zeros)
    for model in TEXTS:
        yield ByWords(model=model, seed=0, **how)
    yield ByPeople(seed=0, **how)
