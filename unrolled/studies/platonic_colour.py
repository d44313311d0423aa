"""Colour from three sources: which pixels are neighbours, which words are used alike, and what people say.

Claim (arXiv 2405.07987, section 4.1): distances learnt from co-occurring pixels, and from language alone, both mirror
the perceptual layout of colours. Distances are embedded in three dimensions and laid over CIELAB.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    from unrolled.report import Report

Array = NDArray[Any]
Zeros = Literal["add half", "floor", "leave out"]
_SOURCE = "arXiv 2405.07987, section 4.1, figure 8 (shown, not scored)"
PIXELS = Expectation(
    statement="Colours laid out by the PMI of neighbouring pixels of CIFAR-10 mirror CIELAB (p of Procrustes R2)",
    source=_SOURCE,
    published="shown, no number",
    high=0.01,
)
WORDS = Expectation(
    statement="Colour words laid out by a language model mirror CIELAB (smallest p over the text models)",
    source=_SOURCE,
    published="shown, no number",
    high=0.05 / 3,
)
PEOPLE = Expectation(
    statement="So do people's ratings of 93 colours (p of Procrustes R2)",
    source="ratings of Kawakita et al. 2023",
    published="not in the paper",
    high=0.01,
)
TEXTS = ("minilm", "glove", "stories260k")
# the paper's 20 words and their Munsell centroids were shared privately; these are in the xkcd survey under these names
COLOUR_WORDS = (
    "black", "white", "grey", "red", "green", "blue", "yellow", "orange", "brown", "pink", "purple", "teal",
    "turquoise", "lavender", "maroon", "gold", "beige", "peach", "lime", "olive",
)  # fmt: skip
TEMPLATES = ("the color {}", "this color is {}", "the color of this thing is {}")


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change how many pairs of pixels and permutations there are, and the table of choices."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"images": 1000, "pairs": 100_000, "seeds": (0,), "permutations": 200, "fits": 2, "all_bins": (4,)},
        "cpu": {},
        "gpu": {"images": 50_000, "seeds": (0, 1, 2, 3, 4), "fits": 50},
    }

    data_dir: Path = Path("data")
    """Folder with `cifar10`, `human-similarity` and `weights`; rows without their data are not run."""
    images: int = 10_000
    """Images of CIFAR-10 that pixels are drawn from."""
    pairs: int = 300_000
    """Pairs of pixels; the paper's 300,000."""
    radius: float = 4.0
    """Greatest distance of a pair in pixels; the paper's 4."""
    bins: int = 6
    """Parts of each of R, G and B; the paper does not say how many."""
    min_count: int = 200
    """Appearances below which a colour is left out: its PMI would be noise."""
    zeros: Zeros = "add half"
    """Pairs that never occur: half a count is added to every pair, or they get the smallest PMI that occurs ("floor"),
    or the embedding ignores their distance ("leave out"). The paper does not say."""
    all_bins: tuple[int, ...] = (4, 6, 8)
    """Numbers of bins in the table of choices."""
    fits: int = 4
    """Starts of multidimensional scaling, the best of which counts; the paper's 1,000."""
    permutations: int = 2000
    """Random assignments of colours to places, for chance and p."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Draws of images and pixels."""
    out: Path = Path("runs/platonic-colour")
    """Where the report and the kept cells go."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if min(self.images, self.pairs, self.fits, self.permutations, self.min_count) < 1 or not self.radius >= 1:
            raise ValueError("images, pairs, fits, permutations, min_count and radius must be at least 1")
        if min(self.bins, *self.all_bins) < 2:
            raise ValueError("bins and all_bins must be at least 2")
        if self.zeros not in get_args(Zeros):
            raise ValueError(f"zeros={self.zeros!r}: choose one of {', '.join(get_args(Zeros))}")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Lay out colours by pixels, words and people; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text per cell.
    """
    from unrolled.models.given import GIVEN
    from unrolled.studies.platonic_colour_report import make_report
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    keys = ("images", "pairs", "min_count", "fits", "permutations")
    shared = {key: getattr(config, key) for key in keys}

    def cell(name: str, compute: Callable[[], dict[str, Any]], **more: Any) -> dict[str, Any]:
        result = remembered(config.out / "cells", name.replace(" ", "-"), {**shared, **more}, compute)
        if on_progress is not None:
            on_progress(f"{name}: R2 {result['r2']:.3f} against {result['null']:.3f} by chance")
        return result

    plain = {"radius": config.radius, "bins": config.bins, "zeros": config.zeros}
    choices: list[tuple[str, int, dict[str, Any]]] = [("made-up", config.seeds[0], plain)]
    if any((config.data_dir / place).is_file() for place in ("cifar10/cifar10_train_jpeg.npz",)):
        choices += [(source, seed, plain) for source in ("cifar10", "shuffled") for seed in config.seeds]
        grid = [{**plain, "bins": bins, "zeros": zeros} for bins in config.all_bins for zeros in get_args(Zeros)]
        grid += [{**plain, "radius": radius} for radius in (1.0, 2.0, 8.0)]
        choices += [("cifar10", config.seeds[0], one) for one in grid if one != plain]
    pixels = [
        cell(
            f"{source} seed{seed} bins{one['bins']} radius{one['radius']:g} {one['zeros']}",
            partial(_pixels, config, source, seed, **one), source=source, seed=seed, **one,
        )
        for source, seed, one in choices
    ]  # fmt: skip
    names = config.data_dir / "human-similarity"
    words = [
        cell(f"words {name}", partial(_words, config, name))
        for name in TEXTS
        if (names / "xkcd_colours.tsv").is_file() and (config.data_dir / "weights" / GIVEN[name].file).is_file()
    ]
    people = [cell("people", partial(_people, config))] if (names / "colour93_human.npz").is_file() else []
    report = make_report(config, pixels, words, people, began)
    report.write(config.out)
    return report


def lab_of_rgb(rgb: Array) -> Array:
    """CIELAB (D65) of sRGB in [0, 1], [..., 3]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    relative = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def pixel_pairs(images: Array, count: int, radius: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """Colours of `count` pairs of different pixels of one image at most `radius` apart, [count, 3] uint8 each."""
    n, height, width, _ = images.shape
    reach = math.floor(radius)
    steps = np.array(
        [
            (dy, dx)
            for dy in range(-reach, reach + 1)
            for dx in range(-reach, reach + 1)
            if 0 < dy * dy + dx * dx <= radius * radius
        ]
    )
    first, second = [], []
    left = count
    while left > 0:  # pairs that reach over the edge are drawn again
        which, y, x = (generator.integers(size, size=left) for size in (n, height, width))
        dy, dx = steps[generator.integers(len(steps), size=left)].T
        inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        which, y, x, dy, dx = (part[inside] for part in (which, y, x, dy, dx))
        first.append(images[which, y, x])
        second.append(images[which, y + dy, x + dx])
        left -= len(which)
    return np.concatenate(first), np.concatenate(second)


def count_colours(first: Array, second: Array, bins: int, min_count: int) -> tuple[Array, Array]:
    """Symmetric counts [k, k] of pairs of colours and the middles of their bins [k, 3] in [0, 1].

    R, G and B are cut into `bins` equal parts; colours in fewer than `min_count` pairs are left out.
    """
    codes = []
    for colours in (first, second):
        part = colours.astype(np.int64) * bins // 256
        codes.append((part[:, 0] * bins + part[:, 1]) * bins + part[:, 2])
    total = bins**3
    table = np.bincount(codes[0] * total + codes[1], minlength=total * total).reshape(total, total)
    table = table + table.T
    seen = np.flatnonzero(table.sum(1) >= min_count)
    middles = (np.stack([seen // bins**2, seen // bins % bins, seen % bins], 1) + 0.5) / bins
    return table[np.ix_(seen, seen)].astype(np.float64), middles


def dissimilarities(counts: Array, zeros: Zeros) -> tuple[Array, Array]:
    """max(PMI) - PMI of counts [k, k], zero on the diagonal, and which of its entries are observed."""
    import torch

    from unrolled.theory import pointwise_mutual_information

    smoothed = counts + 0.5 if zeros == "add half" else counts
    pmi = pointwise_mutual_information(torch.as_tensor(smoothed)).numpy().copy()
    observed = np.isfinite(pmi)
    pmi[~observed] = pmi[observed].min()
    out = pmi.max() - pmi
    np.fill_diagonal(out, 0)
    return out, observed if zeros == "leave out" else np.ones_like(observed)


def embed(distances: Array, observed: Array | None = None, *, fits: int, seed: int) -> Array:
    """Points [k, 3] whose distances are near `distances` [k, k]: multidimensional scaling by stress majorisation.

    Starts are the classical solution and `fits - 1` random ones; the smallest stress wins. Unobserved pairs take the
    fitted distance in every iteration, so they have no say.
    """
    generator = np.random.default_rng(seed)
    k = len(distances)
    weights = np.ones((k, k), dtype=bool) if observed is None else observed | np.eye(k, dtype=bool)
    best, least = np.zeros((k, 3)), math.inf
    for fit in range(fits):
        points = _classical(distances) if fit == 0 else generator.normal(size=(k, 3)) * distances.std()
        stress = math.inf
        for _ in range(300):
            near = np.sqrt(np.maximum(((points[:, None] - points[None]) ** 2).sum(-1), 1e-18))
            wanted = np.where(weights, distances, near)
            before, stress = stress, float(((wanted - near) ** 2).sum())
            if before - stress < 1e-6 * max(stress, 1e-12):
                break
            ratio = wanted / near
            np.fill_diagonal(ratio, 0)
            # Guttman transform, whose weights are all one once gaps are filled
            points = (np.diag(ratio.sum(1)) - ratio) @ points / k
        if stress < least:
            best, least = points, stress
    return best


def _classical(distances: Array) -> Array:
    squared = distances**2
    centred = -0.5 * (squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean())
    values, vectors = np.linalg.eigh(centred)
    out: Array = vectors[:, -3:][:, ::-1] * np.sqrt(np.maximum(values[-3:][::-1], 1e-9))
    return out


def laid_over(points: Array, target: Array) -> tuple[Array, float]:
    """`points` [k, 3] moved, turned, mirrored if need be and scaled onto `target` [k, 3], and R2 of the fit.

    R2 is the share of the target's variance that is met (Kabsch and Umeyama, reflections allowed).
    """
    x, y = points - points.mean(0), target - target.mean(0)
    u, singular, vt = np.linalg.svd(x.T @ y)
    total = float((x**2).sum())
    placed = x @ (u @ vt) * (singular.sum() / max(total, 1e-12)) + target.mean(0)
    return placed, float(singular.sum() ** 2 / max(total * float((y**2).sum()), 1e-12))


def judged(distances: Array, observed: Array | None, lab: Array, config: Config, seed: int) -> dict[str, Any]:
    """Layout and its scores: Procrustes R2 with chance and p, and Spearman's correlation with CIELAB distances."""
    from unrolled.studies.platonic.human import unit_ranks, upper

    points = embed(distances, observed, fits=config.fits, seed=seed)
    placed, r2 = laid_over(points, lab)
    generator = np.random.default_rng(seed)
    null = [laid_over(points, lab[generator.permutation(len(lab))])[1] for _ in range(config.permutations)]
    lab_distances = np.sqrt(((lab[:, None] - lab[None]) ** 2).sum(-1))
    return {
        "n": len(lab), "r2": r2, "null": float(np.mean(null)), "spread": float(np.std(null)),
        "p": (1 + sum(value >= r2 - 1e-12 for value in null)) / (config.permutations + 1),
        "spearman": float(unit_ranks(upper(distances)) @ unit_ranks(upper(lab_distances))),
        "placed": placed.tolist(), "lab": lab.tolist(),
    }  # fmt: skip


def made_up_images(count: int, generator: np.random.Generator) -> Array:
    """Smooth random fields of colour [count, 32, 32, 3] uint8: neighbours are alike, and nothing else is true."""
    from scipy.ndimage import gaussian_filter

    fields = gaussian_filter(generator.normal(size=(count, 32, 32, 3)), sigma=(0, 5, 5, 0), mode="wrap")
    base = generator.uniform(0.1, 0.9, size=(count, 1, 1, 3))
    out: Array = (255 * np.clip(base + 0.1 * fields / fields.std(), 0, 1)).astype(np.uint8)
    return out


def _images(config: Config, source: str, generator: np.random.Generator) -> Array:
    if source == "made-up":
        return made_up_images(min(config.images, 2000), generator)
    from unrolled.data.images import open_images

    found = open_images("cifar10", "train", data_dir=config.data_dir)
    chosen = generator.choice(len(found), min(config.images, len(found)), replace=False)
    return np.stack([np.asarray(found.load(int(i))[0]) for i in chosen])


def _pixels(config: Config, source: str, seed: int, *, radius: float, bins: int, zeros: Zeros) -> dict[str, Any]:
    """One layout of colours by co-occurrence; "shuffled" pairs pixels of different images."""
    generator = np.random.default_rng(seed)
    began = time.perf_counter()
    first, second = pixel_pairs(_images(config, source, generator), config.pairs, radius, generator)
    if source == "shuffled":
        second = second[generator.permutation(len(second))]
    counts, middles = count_colours(first, second, bins, config.min_count)
    distances, observed = dissimilarities(counts, zeros)
    found = judged(distances, observed, lab_of_rgb(middles), config, seed)
    return {
        **found, "source": source, "seed": seed, "radius": radius, "bins": bins, "zeros": zeros,
        "never": float((counts == 0).mean()), "people": _beside_people(config, distances, middles, bins),
        "seconds": time.perf_counter() - began,
    }  # fmt: skip


def _beside_people(config: Config, distances: Array, middles: Array, bins: int) -> dict[str, float] | None:
    """Spearman's correlation of PMI with people's ratings, and of CIELAB with them, over pairs in different bins."""
    from scipy.stats import spearmanr

    from unrolled.studies.platonic.human import colours, read_arrays

    path = config.data_dir / "human-similarity" / "colour93_human.npz"
    if not path.is_file():
        return None
    found = colours(config.data_dir)
    rgb = read_arrays(path, ("rgb",))["rgb"].astype(np.int64)
    ours = {tuple(code): i for i, code in enumerate((middles * bins).astype(np.int64).tolist())}
    place = [ours.get(tuple(code), -1) for code in (rgb * bins // 256).tolist()]
    pairs = [(i, j) for i in range(len(place)) for j in range(i) if place[i] >= 0 <= place[j] and place[i] != place[j]]
    if len(pairs) < 10:
        return None
    i, j = np.array(pairs).T
    where = np.array(place)
    human = found.together[i, j]
    lab = np.sqrt(((found.lab[i] - found.lab[j]) ** 2).sum(-1))
    return {
        "pairs": len(pairs),
        "pmi": float(spearmanr(distances[where[i], where[j]], human).statistic),
        "lab": float(spearmanr(lab, human).statistic),
    }


def _words(config: Config, name: str) -> dict[str, Any]:
    """Layout of colour words by a language model's vectors; GloVe sees the word, the others three short sentences."""
    import torch

    from unrolled.models.given import find_weights
    from unrolled.studies.platonic.human import named_colours, word_vectors

    began = time.perf_counter()
    table = dict(named_colours(config.data_dir / "human-similarity" / "xkcd_colours.tsv"))
    chosen = [word for word in COLOUR_WORDS if word in table]
    templates: Sequence[str] = ("{}",) if name == "glove" else TEMPLATES
    weights = find_weights(config.data_dir)
    vectors = sum(word_vectors(name, [t.format(word) for word in chosen], weights) for t in templates)
    assert isinstance(vectors, torch.Tensor)
    vectors = vectors.double() / len(templates)
    distances = torch.cdist(vectors, vectors).fill_diagonal_(0).numpy()
    found = judged(distances, None, np.array([table[word] for word in chosen]), config, 0)
    return {**found, "name": name, "words": chosen, "seconds": time.perf_counter() - began}


def _people(config: Config) -> dict[str, Any]:
    """Layout of 93 colours by people's ratings."""
    from unrolled.studies.platonic.human import colours

    began = time.perf_counter()
    found = colours(config.data_dir)
    distances = found.together.copy()
    np.fill_diagonal(distances, 0)
    distances = (distances + distances.T) / 2
    return {**judged(distances, None, found.lab, config, 0), "seconds": time.perf_counter() - began}


STUDY = Study(
    name="platonic-colour",
    title="Colours laid out by pixels, by words and by people",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=Config,
    run=run,
    expectations=(PIXELS, WORDS, PEOPLE),
)
