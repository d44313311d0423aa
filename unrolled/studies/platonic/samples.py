"""How alignment depends on the number of samples: at a fixed number of neighbours, and at a fixed share of them.

Claim of the critics (arXiv 2604.18572): mutual k-NN at fixed k falls as the gallery grows; with k proportional to n it
stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from unrolled.reading import Json
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import AT_LEAST_0, Claim
from unrolled.studies.networks import Network
from unrolled.studies.pictures import Pictures, pictures
from unrolled.studies.platonic.zoo import FAMILIES, GPU, QUICK, LastLayer, ZooConfig, family
from unrolled.studies.results import NOT_RUN, Results, Values
from unrolled.studies.study import AtLeast, Budgets, Study

if TYPE_CHECKING:
    from unrolled.report import LineChart, Report, Series

SHARE = 0.01
TEN, SHARED, ONE, KERNEL = "k = 10", "k = n / 100", "k = 1", "unbiased CKA"
Splits = tuple[Literal["test", "train"], ...]


@dataclass(kw_only=True)
class SamplesConfig(ZooConfig):
    """Budgets change the zoo, the gallery and how far the simulation goes."""

    budgets: ClassVar[Budgets] = {
        "quick": {**QUICK, "sizes": (100, 200, 359), "simulated": (1000, 2000), "queries": 100},
        "cpu": {},
        "gpu": {**GPU, "simulated": (200_000, 1_000_000, 5_000_000)},
    }

    others: Splits = ("test", "train")
    """Splits of Tiny-ImageNet at 32 px that join CIFAR-10's test images; no member was trained on them."""
    sizes: Annotated[tuple[int, ...], AtLeast(100)] = (1000, 2500, 6000, 15_000, 35_000, 70_000)
    """Galleries of real images; those larger than what is there are left out, and what is there is the last."""
    simulated: Annotated[tuple[int, ...], AtLeast(100)] = (70_000, 200_000, 400_000)
    """Galleries of a Gaussian with the means and covariances of the measured features."""
    queries: Annotated[int, AtLeast(2)] = 1000
    """Images whose neighbours are compared, part of the smallest gallery."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sizes) < 2 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes={self.sizes}: must be at least two growing numbers")


@dataclass(frozen=True, kw_only=True)
class Gallery(LastLayer):
    """Of all images that no member was trained on."""

    others: Splits

    def require(self, context: Context) -> None:
        """The images."""
        self.parts(context)

    def images(self, context: Context) -> Tensor:
        """Held-out ones, then the other splits."""
        return torch.cat([part.images for part in self.parts(context)])

    def parts(self, context: Context) -> list[Pictures]:
        """The splits."""
        others = [pictures("tiny-imagenet-32", split, context.data_dir) for split in self.others]
        return [pictures(self.network.data, "test", context.data_dir), *others]


@dataclass(frozen=True, kw_only=True)
class Curves(Cell):
    """Scores of two networks at growing n, of real images and of a Gaussian twin."""

    galleries: tuple[Gallery, Gallery]
    sizes: tuple[int, ...]
    simulated: tuple[int, ...]
    queries: int

    @property
    def pair(self) -> str:
        """The two networks, in words."""
        one, other = (gallery.network for gallery in self.galleries)
        if one.kind == other.kind:
            return f"two seeds of the {FAMILIES[family(one)]}"
        return f"{'untrained ' * (not one.images)}{FAMILIES[family(one)]} and {FAMILIES[family(other)]}"

    def compute(self, context: Context) -> Result:
        """As `curves` says."""
        x, y = (gallery.load(context) for gallery in self.galleries)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # the parts mixed
        return curves(x[order], y[order], self.sizes, self.simulated, self.queries)


def curves(x: Tensor, y: Tensor, sizes: Sequence[int], simulated: Sequence[int], queries: int) -> Result:
    """Points at growing n by the score's name; those of a Gaussian twin have `, simulated` after it."""
    from unrolled.alignment.registry import cka
    from unrolled.alignment.scale import mutual_knn_curve

    sizes = [size for size in sizes if size < len(x)] + [len(x)] * (sizes[-1] >= len(x))
    curve_of = {
        ONE: partial(mutual_knn_curve, k=1),
        TEN: partial(mutual_knn_curve, k=10),
        SHARED: partial(mutual_knn_curve, k=None, share=SHARE),
    }
    points: Result = {}
    for words, curve in curve_of.items():
        points[words] = [asdict(point) for point in curve(x, y, sizes, queries=queries)]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    points[KERNEL] = [{"n": size, "score": cka(x[order[:size]], y[order[:size]], unbiased=True)} for size in sizes]
    if simulated:
        twin = sorted({*sizes, *simulated})
        a, b = gaussian_twin(x, y, twin[-1])
        # long lists of neighbours are what costs
        for words, some in ((TEN, queries), (SHARED, max(2, queries // 4))):
            points[f"{words}, simulated"] = [asdict(point) for point in curve_of[words](a, b, twin, queries=some)]
    return points


def gaussian_twin(x: Tensor, y: Tensor, n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n pairs from the Gaussian whose mean and covariance are those of the paired features x [m, d], y [m, e]."""
    both = torch.cat([x, y], 1).double()
    mean = both.mean(0)
    centred = both - mean
    values, vectors = torch.linalg.eigh(centred.mT @ centred / (len(both) - 1))
    root = (vectors * values.clamp_min(0).sqrt()).float()
    # on the CPU, so that a seed means the same everywhere
    draws = torch.randn(n, len(values), generator=torch.Generator().manual_seed(seed))
    drawn = (draws @ root.cpu().mT).add_(mean.float().cpu())
    return drawn[:, : x.shape[1]].contiguous(), drawn[:, x.shape[1] :].contiguous()


def cells(config: SamplesConfig) -> Iterator[Curves]:
    """A CNN, a CRATE and the CNN of another seed beside a ViT or each other, and an untrained CNN as the control."""
    size = "large" if config.members == "full" else "small"
    cnn, twin, crate, vit = (
        config.member(name, size, seed) for name, seed in (("cnn", 0), ("cnn", 1), ("crate", 0), ("vit", 0))
    )
    untrained = config.member("cnn", size, 7, share=0)

    def gallery(network: Network) -> Gallery:
        return Gallery(network=network, others=config.others if config.data == "cifar10" else ())

    for one, other in ((cnn, vit), (crate, vit), (cnn, twin), (untrained, vit)):
        galleries = (gallery(one), gallery(other))
        yield Curves(galleries=galleries, sizes=config.sizes, simulated=config.simulated, queries=config.queries)


def trained(results: Results[Curves]) -> Results[Curves]:
    """The pairs of which both were trained."""
    return Results(row for row in results if all(gallery.network.images for gallery in row.cell.galleries))


def untrained(results: Results[Curves]) -> Results[Curves]:
    """The control: the pair of which one was not."""
    return Results(row for row in results if not all(gallery.network.images for gallery in row.cell.galleries))


def left(results: Results[Curves], words: str) -> Values:
    """Score at the largest n over that at the smallest, by trained pair."""
    return _left(trained(results), words)


def _left(results: Results[Curves], words: str) -> Values:
    return Values(
        {row.cell.pair: row.result[words][-1]["score"] / row.result[words][0]["score"] for row in results}, unit="pair"
    )


def span(results: Results[Curves]) -> str:
    """The smallest and the largest n."""
    points = trained(results).first(TEN)
    return f"n from {points[0]['n']:,} to {points[-1]['n']:,}"


def _claim(words: str, **claim: Any) -> Claim:
    return Claim(
        value=lambda results, config: left(results, words),
        detail=lambda results, config: (
            f" ({', '.join(f'{ratio:.2f}' for ratio in left(results, words))}; {span(results)})"
        ),
        spec=".2f",
        within=AT_LEAST_0,
        **claim,
    )


CLAIMS = (
    _claim(
        TEN,
        statement="Mutual 10-NN falls as the gallery grows (score at the largest measured n over that at the smallest, "
        "mean over pairs of trained models)",
        source="arXiv 2604.18572: DINOv2 and OpenLLaMA-3B on WIT and LAION, 1,024 queries",
        published="0.81 / 13.5 = 0.06 over a gallery of 15 million",
        high=0.5,
        outside="a score that does not depend on n, as with k = n / 100: 1",
        control=lambda results, config: _left(untrained(results), TEN),
    ),
    _claim(
        SHARED,
        statement="With k = n / 100 it stays (the same ratio)",
        source="arXiv 2604.18572, as its readers report it; CLIP on COCO, 1,000 to 118,000",
        published="about 1 (0.304 at both ends)",
        low=0.8,
        high=1.25,
        outside="k of 10: 0.1 to 0.3",
        control=lambda results, config: _left(untrained(results), SHARED),
    ),
)


def report(report: Report, config: SamplesConfig, results: Results[Curves]) -> None:
    """The answer, curves of real images, every number, the Gaussian twin, and what is not shown."""
    from unrolled.report import Fact

    if not trained(results):
        report.headline(f"Scores of trained networks at growing n: {NOT_RUN}.", [])
        return
    row = trained(results)[0]
    ends = {words: [row.result[words][place]["score"] for place in (0, -1)] for words in (TEN, SHARED)}
    first, last = (f"{row.result[TEN][place]['n']:,}" for place in (0, -1))
    fall, stay = (left(results, words) for words in (TEN, SHARED))
    report.headline(
        f"With k = 10, agreement of a {row.cell.pair.replace(' and ', ' and a ')} goes from {ends[TEN][0]:.3f} at "
        f"n = {first} to {ends[TEN][1]:.3f} at n = {last}; with k = n / 100, from {ends[SHARED][0]:.3f} to "
        f"{ends[SHARED][1]:.3f}.",
        [
            Fact(
                label="Left of the score at k = 10",
                value=f"{fall.mean:.2f}",
                detail=f"{span(results)}, mean of {fall.count}",
            ),
            Fact(label="Left of it at k = n / 100", value=f"{stay.mean:.2f}", detail="the same"),
        ],
    )
    _real(report, config, results)
    _simulated(report, config, results)
    falls, stays = (_left(untrained(results), words) for words in (TEN, SHARED))
    report.section(
        "What this does not show",
        "Published falls are across modalities and to 15 million pairs; here both models see, the images are tiny, and "
        "the gallery ends at what the data hold. Neither the fall nor its absence is of what networks learn: with an "
        f"untrained CNN {falls:.2f} of the score is left at k = 10, and {stays:.2f} at k = n / 100.",
    )


def _line(label: str, points: list[Json], color: int, *, y: str = "score", dashed: bool = False) -> Series:
    from unrolled.report import Series

    error = [point["standard_error"] for point in points] if y == "score" and "standard_error" in points[0] else None
    x = [math.log10(point["n"]) for point in points]
    return Series(label=label, x=x, y=[point[y] for point in points], error=error, color=color, dashed=dashed)


def _real(report: Report, config: SamplesConfig, results: Results[Curves]) -> None:
    from unrolled.report import LineChart

    def chart(title: str, words: str) -> LineChart:
        series = [_line(row.cell.pair, row.result[words], color) for color, row in enumerate(results)]
        points = results.first(words)
        if "chance" in points[0]:
            series.append(_line("chance", points, 5, y="chance", dashed=True))
        return LineChart(title=title, x_label="log10 of the number of images", series=series)

    what = (
        f"{config.data}'s test images"
        if config.data != "cifar10"
        else "CIFAR-10's test images and those of Tiny-ImageNet at 32 px, in random order"
    )
    report.section(
        "Real images",
        f"Last layers of two networks; {what}. The same queries at every size, so that only the gallery grows. A "
        "neighbour among ten of a thousand images is of the same sort; among ten of a million it is nearly the same "
        "image, and agreeing on that is harder. So at fixed k the score answers another question at every n, and "
        "chance falls as well. A score without its n says little, and neither curve is the true one.",
    ).figure(
        [
            chart("mutual 10-NN", TEN),
            chart("mutual k-NN at k = n / 100", SHARED),
            chart("mutual 1-NN", ONE),
            chart("unbiased CKA", KERNEL),
        ],
        name="real",
        caption=f"{config.queries} queries at most; bars are standard errors over queries. The untrained CNN is the "
        "control.",
    )
    rows = []
    for cell, result, _ in results:
        for ten, share, one, kernel in zip(*(result[words] for words in (TEN, SHARED, ONE, KERNEL)), strict=True):
            rows.append(
                [
                    *(cell.pair, f"{ten['n']:,}", f"{ten['score']:.4f} ± {ten['standard_error']:.4f}"),
                    *(f"{ten['chance']:.4f}", f"{ten['score'] / ten['chance']:.1f}", f"{one['score']:.4f}"),
                    *(f"{share['score']:.4f} ± {share['standard_error']:.4f}", f"{kernel['score']:.4f}"),
                ]
            )
    report.section("Every number").table(
        ["pair", "n", "k = 10", "chance", "over chance", "k = 1", "k = n / 100", "unbiased CKA"],
        rows,
        caption="Chance of k = n / 100 is 0.01 at every n; that of unbiased CKA is 0.",
    )


def _simulated(report: Report, config: SamplesConfig, results: Results[Curves]) -> None:
    from unrolled.report import LineChart

    if not config.simulated:
        report.section("Beyond", "No simulated sizes were asked for: not run.")
        return
    ten, share = f"{TEN}, simulated", f"{SHARED}, simulated"
    panels = [
        LineChart(
            title=cell.pair,
            x_label="log10 of the number of samples",
            series=[
                _line("images, k = 10", result[TEN], 0),
                _line("Gaussian, k = 10", result[ten], 0, dashed=True),
                _line("images, n / 100", result[SHARED], 1),
                _line("Gaussian, n / 100", result[share], 1, dashed=True),
            ],
        )
        for cell, result, _ in results
    ]
    report.section(
        "Simulated beyond",
        "Pairs of feature vectors drawn from a Gaussian with the measured joint mean and covariance, which can be had "
        "in any number (n / 100: with a quarter of the queries). Where solid and dotted lines agree, second moments "
        "explain the score; how far they part says how far the extrapolation is to be trusted.",
    ).figure(panels, name="simulated").table(
        ["pair", "n", "k = 10", "k = n / 100"],
        [
            [cell.pair, f"{a['n']:,}", f"{a['score']:.4f}", f"{b['score']:.4f}"]
            for cell, result, _ in results
            for a, b in zip(result[ten], result[share], strict=True)
        ],
    )


STUDY = Study(
    name="platonic-samples",
    title="Alignment against the number of samples",
    question="Does a mutual k-NN score mean the same at another number of samples?",
    citation="A. S. Koepke et al., arXiv 2604.18572; M. Huh et al., arXiv 2405.07987",
    config=SamplesConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
