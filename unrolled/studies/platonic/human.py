"""What people and monkeys see alike: reading the records, comparing dissimilarities, and their noise ceilings.

Shared by the studies of brains and of colours.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unrolled.errors import CorruptFile, MissingData
from unrolled.studies.cells import data_missing

Array = NDArray[Any]


def _require(path: Path) -> None:
    if not path.is_file():
        raise data_missing(path.parent.name, MissingData(f"there is no {path}"))


def read_arrays(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """The arrays called `keys` of an `.npz` file.

    Raises:
        MissingData: there is no such file.
        CorruptFile: it cannot be read or lacks an array.
    """
    _require(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in keys}
    except (ValueError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFile(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class Brains:
    """92 photographs of objects and dissimilarities of the responses to them (Kriegeskorte et al. 2008).

    Attributes:
        stimuli: [92, 175, 175, 3] uint8.
        human: [4, 92, 92], fMRI of inferior temporal cortex, mean of two sessions of each person.
        monkey: [92, 92], cells of the same region in two monkeys.
        models: name -> [92, 92], models supplied with the records.
    """

    stimuli: Array
    human: Array
    monkey: Array
    models: dict[str, Array]


def brains(data_dir: Path) -> Brains:
    """Read `brain-92images` of `data_dir`."""
    keys = ("stimuli", "human_it", "human_it_names", "monkey_it", "models", "model_names")
    arrays = read_arrays(data_dir / "brain-92images" / "brain_92images.npz", keys)
    people = [str(name).split("|")[1].strip() for name in arrays["human_it_names"]]
    order = list(dict.fromkeys(people))
    human = np.stack(
        [np.mean([rdm for rdm, who in zip(arrays["human_it"], people, strict=True) if who == one], 0) for one in order]
    )
    models = {str(name): rdm for name, rdm in zip(arrays["model_names"], arrays["models"], strict=True)}
    return Brains(arrays["stimuli"], human, arrays["monkey_it"], models)


@dataclass(frozen=True)
class Colours:
    """93 colours and how unlike people find them (Kawakita et al. 2023).

    Attributes:
        lab: [93, 3] CIELAB.
        names: the nearest of the 949 colours of the xkcd survey, by CIELAB distance; two colours may share one.
        groups: [5, 93, 93] mean dissimilarity in five groups of people, 0 same to 7 most different; 3.5 where a group
            did not rate a pair, as in the source.
        missing: [5, 93, 93], those.
    """

    lab: Array
    names: list[str]
    groups: Array
    missing: Array

    @property
    def together(self) -> Array:
        """[93, 93] mean over the groups that rated a pair; 3.5 where none did."""
        rated = ~self.missing
        counts = rated.sum(0)
        mean: Array = np.where(counts > 0, (self.groups * rated).sum(0) / np.maximum(counts, 1), 3.5)
        return mean


def colours(data_dir: Path) -> Colours:
    """Read `human-similarity/colour93_human.npz` and `xkcd_colours.tsv` of `data_dir`."""
    folder = data_dir / "human-similarity"
    arrays = read_arrays(folder / "colour93_human.npz", ("lab", "group_dissimilarity", "missing"))
    table = named_colours(folder / "xkcd_colours.tsv")
    lab = arrays["lab"].astype(np.float64)
    known = np.array([value for _, value in table])
    nearest = ((lab[:, None] - known[None]) ** 2).sum(-1).argmin(1)
    names = [table[i][0] for i in nearest]
    return Colours(lab, names, arrays["group_dissimilarity"].astype(np.float64), arrays["missing"].astype(bool))


def named_colours(path: Path) -> list[tuple[str, tuple[float, float, float]]]:
    """Names and CIELAB of a table of colours (columns name, L, a, b_lab, separated by tabs).

    Raises:
        MissingData: there is no such file.
        CorruptFile: a column is missing or not a number.
    """
    _require(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            return [(row["name"], (float(row["L"]), float(row["a"]), float(row["b_lab"]))) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise CorruptFile(f"{path} is not a table of colours: {error}") from error


def things(data_dir: Path, count: int, seed: int) -> tuple[list[str], Array]:
    """Names of some of the 1,854 things and their dissimilarities [4, n, n] in four groups of people.

    Args:
        data_dir: holds `human-similarity/things1854_human.npz`.
        count: things, drawn at random.
        seed: of the draw.
    """
    stored = read_arrays(data_dir / "human-similarity" / "things1854_human.npz", ("concepts", "group_embeddings"))
    total = len(stored["concepts"])
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    vectors = np.clip(stored["group_embeddings"][:, chosen].astype(np.float64), 0, None)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return [str(stored["concepts"][i]).replace("_", " ") for i in chosen], 1 - vectors @ vectors.transpose(0, 2, 1)


def upper(rdm: Array) -> Array:
    """The entries above the diagonal of [..., n, n], [..., n (n - 1) / 2] float64."""
    rows, columns = np.triu_indices(rdm.shape[-1], 1)
    return np.asarray(rdm, dtype=np.float64)[..., rows, columns]


def unit_ranks(values: Array) -> Array:
    """Ranks [..., m], centred and of unit length: the inner product of two such vectors is Spearman's correlation."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    norm = np.linalg.norm(ranks, axis=-1, keepdims=True)
    out: Array = ranks / np.where(norm > 0, norm, 1.0)
    return out


def noise_ceiling(rdms: Array) -> tuple[float, float]:
    """Bounds of what a perfect model can score on people [s, n, n], by Spearman's correlation (Nili et al. 2014).

    Each person against the mean of the others' ranks (lower), and against the mean of all (upper); means over people.
    """
    ranks = unit_ranks(upper(rdms))
    together = ranks.sum(0)
    low = [float(unit_ranks(together - each) @ each) for each in ranks]
    high = [float(unit_ranks(together) @ each) for each in ranks]
    return float(np.mean(low)), float(np.mean(high))


@dataclass(frozen=True)
class Agreement:
    """How well layers' dissimilarities agree with people's.

    Attributes:
        by_layer: [layers] mean over people of Spearman's correlation.
        best: index of the best layer.
        score: of the best layer.
        tau: mean over people of Kendall's tau-a of the best layer.
        resampled: score of the best layer on every resampling of images and people.
        interval: 95 % of these.
        null: mean of the best layer's score after shuffling the images.
        p: share of shufflings whose best layer is at least as good, with the data as one of them.
    """

    by_layer: Array
    best: int
    score: float
    tau: float
    resampled: list[float]
    interval: tuple[float, float]
    null: float
    p: float


def agreement(layers: Array, people: Array, *, draws: int, seed: int = 0) -> Agreement:
    """Compare dissimilarities of layers [l, n, n] with those of people [s, n, n].

    The p-value is corrected for the choice of the best layer, since every shuffling chooses its own.
    """
    from unrolled.alignment import compare_rdms

    ours, theirs = unit_ranks(upper(layers)), unit_ranks(upper(people))
    by_layer = (ours @ theirs.T).mean(1)
    best = int(by_layer.argmax())
    generator = np.random.default_rng(seed)
    n = people.shape[-1]
    mean_ranks = np.zeros((n, n))
    rows, columns = np.triu_indices(n, 1)
    mean_ranks[rows, columns] = theirs.mean(0)
    mean_ranks += mean_ranks.T
    shuffled = []
    for _ in range(draws):
        order = generator.permutation(n)
        shuffled.append(float((ours @ mean_ranks[np.ix_(order, order)][rows, columns]).max()))
    resampled = [_resampled(layers[best], people, generator) for _ in range(draws)]
    tau = np.mean([compare_rdms(torch.as_tensor(layers[best]), torch.as_tensor(one), "tau-a") for one in people])
    low, high = np.quantile(resampled, [0.025, 0.975])
    p = (1 + sum(value >= by_layer[best] - 1e-12 for value in shuffled)) / (draws + 1)
    return Agreement(
        by_layer=by_layer,
        best=best,
        score=float(by_layer[best]),
        tau=float(tau),
        resampled=resampled,
        interval=(float(low), float(high)),
        null=float(np.mean(shuffled)),
        p=p,
    )


def _resampled(model: Array, people: Array, generator: np.random.Generator) -> float:
    """The score on images and people drawn with replacement; pairs of one image with itself are left out."""
    n = len(model)
    images = np.sort(generator.integers(n, size=n))
    rows, columns = np.triu_indices(n, 1)
    rows, columns = images[rows], images[columns]
    apart = rows != columns
    rows, columns = rows[apart], columns[apart]
    ours = unit_ranks(model[rows, columns])
    chosen, counts = np.unique(generator.integers(len(people), size=len(people)), return_counts=True)
    scores = unit_ranks(people[chosen][:, rows, columns]) @ ours
    return float((scores * counts).sum() / counts.sum())


def correlation_rdms(features: Sequence[torch.Tensor]) -> Array:
    """1 - Pearson correlation between samples for features [n, d] of each layer, [layers, n, n] float64.

    A layer whose rows have no variance is left at distance 0.
    """
    out = []
    for layer in features:
        rows = layer.double() - layer.double().mean(1, keepdim=True)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        out.append((1 - rows @ rows.mT).fill_diagonal_(0).numpy())
    return np.stack(out)


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
