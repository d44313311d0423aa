"""More views, more agreement, and less with each: a law of diminishing returns over captions and crops of a photo.

Claim (arXiv 2511.02767, "Dynamic Reflections"): when models read more captions and see more frames at test time, their
agreement follows s(f, c) = S - a f^-alpha - b c^-beta with R^2 above 0.98; ten captions give about 60 % more than one.
Here frames are crops of one photo, and the models are small.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import AT_LEAST_0, AT_MOST_1, Claim
from unrolled.studies.platonic.photos import (
    CAPTIONS,
    Features,
    OfCaptions,
    TextModel,
    label,
    open_photos,
    opened,
)
from unrolled.studies.platonic.returns import common, fit_law, neighbours, overlaps
from unrolled.studies.results import NOT_RUN, Results, Values
from unrolled.studies.statistics import of_pairs
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Distinct, Study

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.instruments.features import FeatureSet
    from unrolled.report import Report

_PAPER = "arXiv 2511.02767, the law of agreement over frames and captions"
_SHARE = 0.65  # side of a crop over the photo's
_SIDE = 160  # pixels that crops are resized to


@dataclass(kw_only=True)
class SaturationConfig(Config):
    """Budgets change the number of photos and models."""

    budgets: ClassVar[Budgets] = {
        "quick": {"photos": 64, "images": ("given:squeezenet1_1",), "texts": ("given:glove",), "resamples": 20},
        "cpu": {},
        "gpu": {"device": "cuda", "photos": 2000, "resamples": 1000, "crops": 8},
    }

    data_dir: Path = Path("data")
    """Holds `flickr8k-2000` and `weights`."""
    photos: Count = 600
    """Photos with their five captions, drawn evenly from the 2,000."""
    crops: Annotated[int, AtLeast(3)] = 4
    """Crops of every photo, at places drawn at random; their features are averaged."""
    images: Annotated[tuple[str, ...], Distinct()] = ("given:efficientnet_lite0", "given:mobilenet_v1_075")
    """Image networks; their last layers."""
    texts: Annotated[tuple[str, ...], Distinct()] = ("given:minilm", "given:glove", "given:stories260k")
    """Text models; their last layers."""
    k: Count = 10
    """Neighbours."""
    resamples: Annotated[int, AtLeast(2)] = 300
    """Draws of the photos with replacement, for the intervals of the law's numbers."""
    seed: int = 0
    """Of crops, resamples and what is shuffled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.photos < 4 * self.k:
            raise ValueError(f"photos={self.photos} are too few for k={self.k}: give at least {4 * self.k}")


@dataclass(frozen=True, kw_only=True)
class OfCrops(Features):
    """The mean over places of an image network's last layer, of crops of every photo.

    Attributes:
        image: as in `open_encoder`.
        crops: of every photo, each of 0.65 of its side.
        seed: of their places.
    """

    image: str
    crops: int
    seed: int

    def require(self, context: Context) -> None:
        """The photos and the network."""
        super().require(context)
        opened(self.image, "image", context)

    def extract(self, context: Context) -> FeatureSet:
        """Run the network on all crops of the first photo, then of the second."""
        import torch

        from unrolled.data import model_input
        from unrolled.instruments.features import extract, layer_names

        encoder = opened(self.image, "image", context)
        source = open_photos(context.data_dir, self.pairs).images()
        expects = model_input(encoder.module, native_size=source.native_size)
        mean, std = (torch.tensor(expects[key]).view(3, 1, 1) for key in ("mean", "std"))
        generator = torch.Generator().manual_seed(self.seed)

        def batches() -> Iterator[Tensor]:
            for place in range(self.pairs):
                pixels = torch.from_numpy(np.array(source.load(place)[0])).movedim(-1, 0).float() / 255
                yield (crops_of(pixels, self.crops, generator) - mean) / std

        return extract(
            encoder.module, batches(), layers=layer_names(encoder.module, list(encoder.layers))[-1:], pooling="mean",
            name=self.image, data=f"{source.description}, crops",
        )  # fmt: skip

    def by_photo(self, context: Context) -> Tensor:
        """[photos, crops, d] of unit length."""
        import torch

        (rows,) = self.load(context).values()
        return torch.nn.functional.normalize(rows, dim=1).unflatten(0, (-1, self.crops))


def crops_of(pixels: Tensor, count: int, generator: Any) -> Tensor:
    """[count, 3, 160, 160] crops of 0.65 of the side of an image [3, h, w], at places drawn from the generator."""
    import torch

    height, width = (round(_SHARE * size) for size in pixels.shape[1:])
    parts = []
    for _ in range(count):
        top, left = (
            int(torch.randint(size - part + 1, (), generator=generator))
            for size, part in zip(pixels.shape[1:], (height, width), strict=True)
        )
        part = pixels[None, :, top : top + height, left : left + width]
        parts.append(torch.nn.functional.interpolate(part, (_SIDE, _SIDE), mode="bicubic", antialias=True)[0])
    return torch.stack(parts)


@dataclass(frozen=True, kw_only=True)
class Law(Cell):
    """An image network that sees 1 to `crops` crops beside a text model that reads 1 to 5 captions, and the law.

    Attributes:
        resamples, seed: of the photos, for intervals; neighbours are those among all photos.
        shuffled: the control in which captions are given to other photos.
    """

    seen: OfCrops
    read: OfCaptions
    k: int
    resamples: int
    shuffled: bool = False

    @property
    def labels(self) -> tuple[str, str]:
        """What tables call the two models."""
        return label(self.seen.image), self.read.model.label

    @property
    def name(self) -> str:
        """What progress calls it."""
        return " with ".join(self.labels) + ", shuffled" * self.shuffled

    def compute(self, context: Context) -> Result:
        """`scores` [crops, captions], and of the law's numbers (`S`, `a`, `alpha`, `b`, `beta`, `r2`, `many`: the score
        with ten captions over that with one, one crop seen) `value`, `low` and `high`; `foreign`: the score with one
        crop of the photo and the others of another, over that with one.
        """
        import torch

        images = self.seen.by_photo(context)
        texts = torch.nn.functional.normalize(list(self.read.load(context).values())[-1], dim=1)
        texts = texts.unflatten(0, (-1, CAPTIONS))
        generator = torch.Generator().manual_seed(self.seen.seed)
        order, other = (torch.randperm(len(images), generator=generator) for _ in range(2))
        if self.shuffled:
            texts = texts[order]
        shares = overlaps(images, texts, self.k)
        mixed = torch.cat([images[:, :1], images[other][:, 1:]], 1).mean(1)
        foreign = common([neighbours(mixed, self.k)], [neighbours(texts[:, 0], self.k)], self.k).mean()
        drawn = np.random.default_rng(self.seen.seed).multinomial(
            len(images), np.full(len(images), 1 / len(images)), size=self.resamples
        )
        scores = shares.mean(-1)
        every = np.concatenate([scores[None], np.einsum("rn,fcn->rfc", drawn, shares) / len(images)])
        numbers = fit_law(every)
        law = {
            key: {
                "value": float(values[0]), "low": float(np.quantile(values[1:], 0.025)),
                "high": float(np.quantile(values[1:], 0.975)),
            }
            for key, values in numbers.items()
        }  # fmt: skip
        return {"scores": scores.tolist(), "law": law, "foreign": float(foreign / scores[0, 0]), "n": len(images)}


def cells(config: SaturationConfig) -> Iterator[Law]:
    """Every image network with every text model, and the first of each with shuffled captions."""
    for shuffled in (False, True):
        for image in config.images:
            seen = OfCrops(image=image, pairs=config.photos, crops=config.crops, seed=config.seed)
            for text in config.texts:
                read = OfCaptions(model=TextModel(text=text), pairs=config.photos)
                yield Law(seen=seen, read=read, k=config.k, resamples=config.resamples, shuffled=shuffled)


def numbers(results: Results[Law], read: Callable[[Any], float], *, shuffled: bool = False) -> Values:
    """A number of every pair's result, by models of the kind that differ more."""
    return of_pairs(_by_pair(results, read, shuffled=shuffled), ("image network", "text model"))


def _by_pair(
    results: Results[Law], read: Callable[[Any], float], *, shuffled: bool = False
) -> dict[tuple[Hashable, Hashable], float]:
    rows = results.where(shuffled=shuffled) if results else results
    return {row.cell.labels: read(row.result) for row in rows}


def _over(results: Results[Law], read: Callable[[Any], float], digits: int) -> str:
    every = _by_pair(results, read).values()
    least, most = (f"{each:.{digits}f}" for each in (min(every), max(every)))
    return f" over {numbers(results, read).count} ({least} to {most} over {len(every)} pairs of models)"


def _r2(result: Any) -> float:
    return float(result["law"]["r2"]["value"])


def _gain(result: Any) -> float:
    return float(result["scores"][-1][0]) / float(result["scores"][0][0])


def _many(result: Any) -> float:
    return float(result["law"]["many"]["value"])


CLAIMS = (
    Claim(
        statement="The law S - a f^-alpha - b c^-beta describes agreement over crops and captions (R^2)",
        source=_PAPER,
        published="above 0.98",
        value=lambda results, config: numbers(results, _r2),
        low=0.98,
        within=AT_MOST_1,
        outside="scores that do not grow, as of shuffled captions",
        control=lambda results, config: numbers(results, _r2, shuffled=True),
        detail=lambda results, config: (
            f"{_over(results, _r2, 3)}; five numbers fitted to {config.crops * CAPTIONS} points"
        ),
    ),
    Claim(
        statement="More crops of a photo agree more with one caption (all crops averaged over one, ratio of scores)",
        source=f"{_PAPER}: frames of a video there",
        published="rises",
        value=lambda results, config: numbers(results, _gain),
        low=1.0,
        within=AT_LEAST_0,
        outside="crops of another photo beside one of its own",
        control=lambda results, config: numbers(results, lambda result: float(result["foreign"])),
        spec=".2f",
        detail=lambda results, config: _over(results, _gain, 2),
    ),
    Claim(
        statement="Ten captions over one, by the law fitted to five (ratio of scores, one crop)",
        source=f"{_PAPER}: measured with ten captions, other models",
        published="about 1.6",
        value=lambda results, config: numbers(results, _many),
        unjudged="read off the law beyond the captions it was fitted to, for other models",
        spec=".2f",
        detail=lambda results, config: _over(results, _many, 2),
    ),
)


def report(report: Report, config: SaturationConfig, results: Results[Law]) -> None:
    """The answer, the law of every pair, the scores and the law's curves, limits."""
    from unrolled.report import Fact

    rows = results.where(shuffled=False) if results else results
    top = max(rows, key=lambda row: float(row.result["scores"][-1][-1]), default=None)
    if top is None:
        report.headline(f"No pair of models was compared: {NOT_RUN}.")
    else:
        scores, law = top.result["scores"], top.result["law"]
        image, text = top.cell.labels
        report.headline(
            f"{image} and {text} share {100 * scores[0][0]:.1f} % of their nearest neighbours with one crop and one "
            f"caption, {100 * scores[-1][-1]:.1f} % with {config.crops} crops and {CAPTIONS} captions, and "
            f"{100 * law['S']['value']:.1f} % at the end of the law, where chance gives "
            f"{100 * config.k / (top.result['n'] - 1):.1f} %.",
            [
                Fact(label="R^2 of the law", value=f"{law['r2']['value']:.4f}", detail=_span(law["r2"])),
                Fact(label="Limit S", value=f"{law['S']['value']:.3f}", detail=_span(law["S"])),
                Fact(label="Exponent of captions", value=f"{law['beta']['value']:.2f}", detail=_span(law["beta"])),
            ],
        )
    keys = {"S": 3, "a": 3, "alpha": 2, "b": 3, "beta": 2, "r2": 4, "many": 2}
    table = []
    for cell, result, _ in results:
        law = result["law"]
        table.append([
            *cell.labels, "shuffled" if cell.shuffled else "", f"{result['scores'][0][0]:.3f}",
            f"{result['scores'][-1][-1]:.3f}",
            *(f"{law[key]['value']:.{digits}f} ({_span(law[key], digits)})" for key, digits in keys.items()),
        ])  # fmt: skip
    table += [[*cell.labels, "", *[NOT_RUN] * (2 + len(keys))] for cell in results.missing if isinstance(cell, Law)]
    report.section(
        "The law of every pair of models",
        f"s(f, c) = S - a f^-alpha - b c^-beta, where s is mutual {config.k}-NN of the last layers, f the number of "
        "crops and c of captions whose unit vectors are averaged; the mean over runs of crops and captions.",
    ).table(
        [
            *("image network", "text model", "captions", "one and one", "all and all", "S", "a", "alpha", "b", "beta"),
            *("R^2", "ten captions over one"),
        ],
        table,
        caption=f"n = {results.first('n', 0):,} photos; in brackets 95 % over photos as queries, drawn with "
        f"replacement {config.resamples} times, their neighbours being those among all photos. Exponents come from a "
        "grid of 0.05 to 6; one at its end says that the points do not tell it.",
    )
    if top is not None:
        _figure(report, config, rows)
    report.section("What this does not show").text(
        "The paper's frames are of a video and hold what a photo cannot; crops overlap and hold less than the photo. "
        "Five captions say little of the exponent, and S is read off where nothing was measured. A law of five numbers "
        "fits any smooth rise of so few points, so that a high R^2 says that scores rise smoothly and are separable, "
        "not that this law is the true one."
    )


def _span(number: Any, digits: int = 3) -> str:
    return f"{number['low']:.{digits}f} to {number['high']:.{digits}f}"


def _figure(report: Report, config: SaturationConfig, rows: Results[Law]) -> None:
    from unrolled.report import LineChart, Series

    counts = list(range(1, CAPTIONS + 1))
    fine = np.linspace(1, 2 * CAPTIONS, 37)
    panels = []
    for text in config.texts:
        for row in list(rows.where(text=text))[:1]:
            law = {key: entry["value"] for key, entry in row.result["law"].items()}
            series = []
            for color, crops in enumerate((1, 2, config.crops)):
                curve = law["S"] - law["a"] * crops ** -law["alpha"] - law["b"] * fine ** -law["beta"]
                words = f"{crops} crop{'s' * (crops > 1)}"
                series.append(Series(label=words, x=counts, y=row.result["scores"][crops - 1], color=color))
                series.append(
                    Series(label=f"{words}, law", x=fine.tolist(), y=curve.tolist(), color=color, dashed=True)
                )
            panels.append(LineChart(title=" and ".join(row.cell.labels), x_label="captions", series=series))
    report.section("By number of captions and crops").figure(
        panels,
        name="law",
        caption=f"Mutual {config.k}-NN of last layers, measured with 1 to {CAPTIONS} captions; dotted: the law, "
        f"beyond {CAPTIONS} where nothing was measured.",
    )


STUDY = Study(
    name="platonic-saturation",
    title="More views agree more, and each adds less",
    question="Does the agreement of image networks with text models follow a saturating law in the number of captions "
    "and crops?",
    citation="Dynamic Reflections, arXiv 2511.02767",
    config=SaturationConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
