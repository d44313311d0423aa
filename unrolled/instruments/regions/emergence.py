"""Where objects appear without labels: Jaccard with things and background by layer and head, beside chance.

Photos come a few at a time, and of each only numbers are kept: no map outlives its batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unrolled.instruments.regions.overlap import (
    Row,
    bootstrap_intervals,
    pixels_in_patches,
    score_attention,
    score_masks,
)
from unrolled.instruments.regions.patches import Patches, read_patches
from unrolled.instruments.regions.segmentation import Threshold, threshold_attention
from unrolled.instruments.regions.spectral import cluster_tokens

Scores = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class Photo:
    """A photo as a model takes it, and what people marked on it."""

    pixels: Tensor
    """Preprocessed `[c, h, w]`."""
    classes: Mapping[str, Tensor]
    """Class of things -> boolean `[height, width]`, of any size: maps are enlarged to it."""
    ignore: Tensor | None = None
    """Boolean `[height, width]`, pixels that do not count."""
    name: str | int = 0

    def things(self) -> Tensor:
        """Pixels of any class, boolean `[height, width]`.

        Raises:
            ValueError: the photo has no class.
        """
        if not self.classes:
            raise ValueError("classes: hold no mask; leave out photos without a marked thing")
        return torch.stack(list(self.classes.values())).any(0)


def by_shape(photos: Iterable[T], batch_size: int, shape: Any) -> Iterator[list[tuple[int, T]]]:
    """Batches of equal `shape(photo)`, each photo with its place among all of them, from 0; for `in_order`.

    A batch that does not fill goes when four times as many photos wait, so that few are held.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    waiting: dict[Any, list[tuple[int, T]]] = {}
    for place, photo in enumerate(photos):
        group = waiting.setdefault(shape(photo), [])
        group.append((place, photo))
        if len(group) == batch_size:
            yield waiting.pop(shape(photo))
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(next(iter(waiting)))  # the group of the first photo that waits
    yield from waiting.values()


def in_order(placed: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Items by their place, from 0, as soon as all before them have come.

    What is added up, drawn at random or ranked photo by photo must not depend on how photos were batched.
    """
    early: dict[int, T] = {}
    turn = 0
    for place, item in placed:
        early[place] = item
        while turn in early:
            yield early.pop(turn)
            turn += 1


@dataclass(frozen=True)
class Emergence:
    """Record of `emergence_scores`. Scores are Jaccard indices in 0..1, `[photos, rules, layers, heads + 1]`.

    The last of heads + 1 is the mask of the heads' mean map.
    """

    rules: tuple[str, ...]
    layers: tuple[int, ...]
    things: Scores
    """Of each mask with the pixels of all things."""
    background: Scores
    """Of what the mask leaves out with everything else."""
    chance: Scores
    """As `things`, of the same maps moved, around the edges: as large and as connected, but anywhere."""
    names: tuple[str | int, ...]
    """Of the photos, in the order of the scores, which is theirs; those without a thing that counts are left out."""
    classes: list[Row] = field(repr=False)
    """The rows of `score_attention`: every photo, layer, rule and class of things."""

    @property
    def heads(self) -> int:
        """How many heads, without the mean map."""
        return int(self.things.shape[-1]) - 1

    def grid(self, by: str, score: str = "things") -> Scores:
        """Means over photos `[layers, heads + 1]` of `things`, `background`, `chance`, `miou` or `margin`."""
        if by not in self.rules:
            raise ValueError(f"by={by!r}: choose from {', '.join(self.rules)}")
        means: Scores = self._score(score)[:, self.rules.index(by)].mean(0)
        return means

    def rows(self, level: float = 0.95) -> list[Row]:
        """One row for each rule, layer and head (None: the mean map).

        Means over photos of `things`, `background`, `miou` (the mean of the two), `chance` and `margin` (things above
        chance), with bootstrap intervals over photos: `low`, `high` of things, `margin_low`, `margin_high`.
        """
        means = {name: self._score(name).mean(0) for name in ("things", "background", "miou", "chance", "margin")}
        low, high = bootstrap_intervals(self.things, level=level)
        margin_low, margin_high = bootstrap_intervals(self._score("margin"), level=level)
        means |= {"low": low, "high": high, "margin_low": margin_low, "margin_high": margin_high}
        return [
            self._place(r, layer) | {"head": k if k < self.heads else None}
            | {name: float(table[r, layer, k]) for name, table in means.items()}
            for r, layer, k in np.ndindex(*self.things.shape[1:])
        ]  # fmt: skip

    def sweep(self, level: float = 0.95) -> list[Row]:
        """One row for each rule and layer: Jaccard with things, by how the head is chosen.

        `best`: for every photo by looking at the answer, the papers' score, higher than any fixed head's; `fixed`: the
        head that is best on average over the other half of the photos; `mean` over heads; `averaged`, the mean map,
        with `low` and `high`; `chance` of `best`: the best of as many moved maps.
        """
        things, chance = self.things[..., :-1], self.chance[..., :-1]
        low, high = bootstrap_intervals(self.things[..., -1], level=level)
        out = []
        for r, layer in np.ndindex(*self.things.shape[1:3]):
            heads = things[:, r, layer]
            row = {"best": heads.max(-1).mean(), "fixed": _fixed(heads), "mean": heads.mean()}
            row |= {"averaged": self.things[:, r, layer, -1].mean(), "low": low[r, layer], "high": high[r, layer]}
            row |= {
                "chance": chance[:, r, layer].max(-1).mean(),
                "chance_averaged": self.chance[:, r, layer, -1].mean(),
            }
            out.append(self._place(r, layer) | {name: float(value) for name, value in row.items()})
        return out

    def _place(self, rule: int, layer: int) -> Row:
        return {"by": self.rules[rule], "layer": self.layers[layer], "photos": len(self.things)}

    def _score(self, name: str) -> Scores:
        if name == "miou":
            return (self.things + self.background) / 2
        if name == "margin":
            return self.things - self.chance
        if name not in ("things", "background", "chance"):
            raise ValueError(f"score={name!r}: choose 'things', 'background', 'chance', 'miou' or 'margin'")
        scores: Scores = getattr(self, name)
        return scores


class EmergenceScorer:
    """Collects the scores of photos whose maps come one at a time; `emergence_scores` is the loop around it.

    Args:
        layers: numbers of the layers of the maps, from 0.
        by: threshold rules; all are reported.
        keep: see `threshold_attention`.
        seed: of how far the maps of chance are moved.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        by: Sequence[Threshold] = ("mass", "fraction"),
        keep: float = 0.6,
        seed: int = 0,
    ) -> None:
        self._layers, self._by, self._keep = tuple(layers), tuple(by), keep
        self._random = torch.Generator().manual_seed(seed)
        self._scores: list[tuple[Scores, Scores, Scores]] = []
        self._names: list[str | int] = []
        self._rows: list[Row] = []

    def add(self, attention: Tensor, grid: tuple[int, int], photo: Photo) -> None:
        """One photo's maps `[layers, h, n]`, non-negative, such as `read_patches(...).attention[:, i]`."""
        attention = attention.float().cpu()
        if attention.dim() != 3 or len(attention) != len(self._layers):
            raise ValueError(f"attention: needs [{len(self._layers)}, h, n], got {tuple(attention.shape)}")
        maps = torch.cat([attention, attention.mean(1, keepdim=True)], 1)
        # a map without contrast, where a rule chooses nothing, marks everything as background
        masks = torch.stack([threshold_attention(maps, self._keep, by=rule) for rule in self._by])
        inside, area = pixels_in_patches({"things": photo.things()}, grid, photo.ignore)
        if not bool(inside.any()):
            return  # every thing lies where nothing counts
        inside, area = inside.cpu(), area.cpu()
        moved = masks[..., moved_patches(grid, self._random)]
        self._scores.append((*_both_sides(masks, inside[0], area), _both_sides(moved, inside[0], area)[0]))
        self._names.append(photo.name)
        self._rows += score_attention(
            attention, grid, photo.classes, by=self._by, keep=self._keep, ignore=photo.ignore,
            layers=self._layers, image=photo.name,
        )  # fmt: skip

    def result(self) -> Emergence:
        """The record.

        Raises:
            ValueError: no photo was added.
        """
        if not self._scores:
            raise ValueError("photos: none has a marked thing")
        things, background, chance = (np.stack([each[i] for each in self._scores]) for i in range(3))
        return Emergence(self._by, self._layers, things, background, chance, tuple(self._names), self._rows)


def emergence_scores(
    model: nn.Module,
    photos: Iterable[Photo],
    *,
    layers: Sequence[int] | None = None,
    by: Sequence[Threshold] = ("mass", "fraction"),
    keep: float = 0.6,
    batch_size: int = 8,
    patch: tuple[int, int] | None = None,
    prefix: int | None = None,
    seed: int = 0,
) -> Emergence:
    """Jaccard of every layer's and head's thresholded class-token attention with the things of photos.

    One pass over `photos`, which may be a generator; photos of one size go through the model together. Of a few batches
    one attention row is held for each layer and head, and only scores are kept, in the order of the photos.

    Args:
        model: see `read_patches`.
        photos: on any device; those without a thing are passed over.
        layers: from 0, negative ones count from the end; default all.
        by: threshold rules.
        keep: of the mass or of the entries.
        batch_size: photos in one forward pass.
        patch: (height, width) of a patch in pixels, or of its stride; default from the shape of the photo.
        prefix: see `read_patches`.
        seed: of chance.

    Raises:
        ValueError: no photo with a thing, or what `read_patches` refuses.
    """
    marked = (photo for photo in photos if any(bool(mask.any()) for mask in photo.classes.values()))

    def read() -> Iterator[tuple[int, tuple[Patches, int, Photo]]]:
        for batch in by_shape(marked, batch_size, lambda photo: tuple(photo.pixels.shape)):
            images = torch.stack([photo.pixels for _, photo in batch])
            grid = None if patch is None else (images.shape[-2] // patch[0], images.shape[-1] // patch[1])
            patches = read_patches(model, images, layers=layers, prefix=prefix, grid=grid)
            yield from ((place, (patches, index, photo)) for index, (place, photo) in enumerate(batch))

    scorer: EmergenceScorer | None = None
    for patches, index, photo in in_order(read()):
        assert patches.attention is not None
        scorer = scorer or EmergenceScorer(patches.layers, by=by, keep=keep, seed=seed)
        scorer.add(patches.attention[:, index], patches.grid, photo)
    if scorer is None:
        raise ValueError("photos: none has a marked thing")
    return scorer.result()


def emergence_baselines(photo: Photo, grid: tuple[int, int], *, clusters: int = 3, seed: int = 0) -> list[Row]:
    """What needs no model, in the rows of `score_attention` with layer -1 and `by` the name of the baseline.

    Centre prior: a Gaussian bump cut at 60 % of its mass. Colour: k-means clusters of the patches' mean colours; as
    the averaged map serves the cluster that touches the photo's border least. Whole photo: everything is one thing.

    Args:
        photo: with a thing.
        grid: (H, W) of patches.
        clusters: of colour.
        seed: of k-means.
    """
    n = grid[0] * grid[1]
    bump = threshold_attention(centre_prior(grid), 0.6, by="mass")
    labels = cluster_tokens(patch_colours(photo.pixels, grid), min(clusters, n), method="kmeans-euclidean", seed=seed)
    colours = torch.stack([labels == k for k in range(int(labels.max()) + 1)])
    border = torch.ones(grid, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    size = colours.sum(1)
    share = (colours & border.flatten()).sum(1) / size - 1e-6 * size / n  # of equals the largest
    masks = {
        "centre prior": bump.expand(1, 2, n),
        "colour": torch.cat([colours, colours[share.argmin()][None]])[None],
        "whole photo": torch.ones(1, 2, n, dtype=torch.bool),
    }
    rows: list[Row] = []
    for name, stack in masks.items():  # one by one: they differ in how many masks they have
        rows += score_masks({name: stack}, grid, photo.classes, ignore=photo.ignore, layers=[-1], image=photo.name)
        everything = {"": photo.things()}
        joint = score_masks({name: stack}, grid, everything, ignore=photo.ignore, layers=[-1], image=photo.name)
        rows += [row | {"class": None} for row in joint]
    return rows


def centre_prior(grid: tuple[int, int]) -> Tensor:
    """A Gaussian bump in the middle of the grid, `[n]`; its standard deviation is a quarter of each side."""
    y, x = ((torch.arange(side) + 0.5) / side - 0.5 for side in grid)
    return torch.exp(-8 * (y[:, None] ** 2 + x**2)).flatten()


def patch_colours(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean colour of each patch less the photo's own, `[n, c]`, of `[c, h, w]`."""
    means = torch.nn.functional.adaptive_avg_pool2d(pixels.float().cpu()[None], grid)[0].flatten(1).T
    return means - means.mean(0)


def moved_patches(grid: tuple[int, int], random: torch.Generator) -> Tensor:
    """`[n]`, where each patch comes from when maps `[..., n]` are moved by some distance around the edges of the grid.

    Shuffled patches would be chance for one mask, but too little for the best of several: connected masks hit or miss
    a thing as a whole, so that the best of them is better than the best of scattered ones.
    """
    n = grid[0] * grid[1]
    down, right = divmod(int(torch.randint(min(1, n - 1), n, (1,), generator=random)), grid[1])
    return torch.arange(n).view(grid).roll((down, right), (0, 1)).flatten()


def _both_sides(masks: Tensor, things: Tensor, area: Tensor) -> tuple[Scores, Scores]:
    """Jaccard of masks `[..., n]` with the things, and of their complements with the rest."""
    chosen = masks.double()
    things, area = things.double(), area.double()
    both, size = chosen @ things, chosen @ area
    union = size + things.sum() - both
    rest = area.sum() - union  # outside both
    outside = area.sum() - both
    background = torch.where(outside > 0, rest / outside.clamp(min=1), 1.0)  # neither leaves anything out
    return (both / union).numpy(), background.numpy()


def _fixed(heads: Scores) -> float:
    """Score of the head chosen on the other half of the photos, `[photos, heads]`; of one photo NaN."""
    if len(heads) < 2:
        return float("nan")
    halves = heads[::2], heads[1::2]
    scores = [half[:, other.mean(0).argmax()] for half, other in (halves, halves[::-1])]
    return float(np.concatenate(scores).mean())
