"""How alignment depends on the number of samples: at a fixed number of neighbours, and at a fixed share of them.

Claim of the critics (arXiv 2604.18572): mutual k-NN at fixed k falls as the gallery grows; with k proportional to n it
stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.platonic_zoo import GPU, QUICK, ZooConfig, settings_of, zoo

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report

FALLS = Expectation(
    statement="Mutual 10-NN falls as the gallery grows (score at the largest measured n over that at the smallest, "
    "mean over pairs of trained models)",
    source="arXiv 2604.18572: DINOv2 and OpenLLaMA-3B on WIT and LAION, 1,024 queries",
    published="0.81 / 13.5 = 0.06 over a gallery of 15 million",
    high=0.5,
)
STAYS = Expectation(
    statement="With k = n / 100 it stays (the same ratio)",
    source="arXiv 2604.18572, as its readers report it; CLIP on COCO, 1,000 to 118,000",
    published="about 1 (0.304 at both ends)",
    low=0.8,
    high=1.25,
)
SHARE = 0.01


@dataclass(kw_only=True)
class Config(ZooConfig):
    """Budgets change the zoo, the gallery and how far the simulation goes."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {**QUICK, "sizes": (100, 200, 359), "simulated": (1000, 2000), "queries": 100},
        "cpu": {},
        "gpu": {**GPU, "simulated": (200_000, 1_000_000, 5_000_000)},
    }

    sizes: tuple[int, ...] = (1000, 2500, 6000, 15_000, 35_000, 70_000)
    """Galleries of real images; those larger than what is there are left out, and what is there is the last."""
    simulated: tuple[int, ...] = (70_000, 200_000, 400_000)
    """Galleries of a Gaussian with the means and covariances of the measured features."""
    queries: int = 1000
    """Images whose neighbours are compared, part of the smallest gallery."""
    out: Path = Path("runs/platonic-samples")
    """Where the report and the kept scores go."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sizes) < 2 or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 100:
            raise ValueError("sizes must be at least two growing numbers, none below 100")
        if self.queries < 2 or any(size < 100 for size in self.simulated):
            raise ValueError("queries must be at least 2, and simulated sizes at least 100")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Extract, search, simulate; the report is also written to `config.out`.

    Raises:
        MissingData: CIFAR-10 is not in `config.data_dir`.
    """
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    zoo(config, on_progress=on_progress)
    size = "large" if config.members == "full" else "small"
    untrained = f"cnn-{size}-random-seed7"
    pairs = {
        "CNN and ViT": (f"cnn-{size}-seed0", f"vit-{size}-seed0"),
        "CRATE and ViT": (f"crate-{size}-seed0", f"vit-{size}-seed0"),
        "two seeds of the CNN": (f"cnn-{size}-seed0", f"cnn-{size}-seed1"),
        "untrained CNN and ViT": (untrained, f"vit-{size}-seed0"),
    }
    found: dict[str, dict[str, Any]] = {}
    seen: dict[str, Tensor] = {}
    for words, names in pairs.items():
        kept = {
            **settings_of(config), "sizes": config.sizes, "simulated": config.simulated, "queries": config.queries,
            "names": names,
        }  # fmt: skip

        def compute(names: tuple[str, str] = names) -> dict[str, Any]:
            for name in names:
                if name not in seen:
                    seen[name] = gallery_features(config, name)
            return curves(config, seen[names[0]], seen[names[1]])

        found[words] = remembered(config.out / "cells", words.replace(" ", "-"), kept, compute)
        if on_progress is not None:
            first, last = found[words]["k = 10"][0], found[words]["k = 10"][-1]
            on_progress(
                f"{words}: mutual 10-NN {first['score']:.3f} at n = {first['n']:,}, {last['score']:.3f} at "
                f"n = {last['n']:,}"
            )
    report = _report(config, found, began)
    report.write(config.out)
    return report


def gallery_features(config: Config, name: str) -> Tensor:
    """[n, d] last-layer features of all images that no member was trained on, in a fixed random order."""
    import torch

    from unrolled.errors import MissingData
    from unrolled.studies.platonic_zoo import by_name, last_layer, pictures, trained

    parts = [pictures(config.data, "test", config.data_dir).images]
    if config.data == "cifar10":
        for split in ("test", "train"):
            try:
                parts.append(pictures("tiny-imagenet-32", split, config.data_dir).images)  # type: ignore[arg-type]
            except MissingData:
                continue
    model = trained(config, by_name(config, name))
    seen = torch.cat([last_layer(model, part, config.device) for part in parts])
    return seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))]


def curves(config: Config, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Scores of two models at growing n, of real images and of a Gaussian twin, plain values."""
    import torch

    from unrolled.alignment.registry import cka
    from unrolled.alignment.scale import mutual_knn_curve

    sizes = [size for size in config.sizes if size < len(x)] + [len(x)] * (config.sizes[-1] >= len(x))
    near: dict[str, dict[str, Any]] = {
        "k = 1": {"k": 1},
        "k = 10": {"k": 10},
        "k = n / 100": {"k": None, "share": SHARE},
    }
    out: dict[str, Any] = {}
    for words, options in near.items():
        out[words] = [asdict(p) for p in mutual_knn_curve(x, y, sizes, queries=config.queries, **options)]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    out["unbiased CKA"] = [{"n": size, "score": cka(x[order[:size]], y[order[:size]], unbiased=True)} for size in sizes]
    if config.simulated:
        twin = sorted({*sizes, *config.simulated})
        a, b = gaussian_twin(x, y, twin[-1])
        # long lists of neighbours are what costs
        for words, queries in (("k = 10", config.queries), ("k = n / 100", max(2, config.queries // 4))):
            points = mutual_knn_curve(a, b, twin, queries=queries, **near[words])
            out[f"{words}, simulated"] = [asdict(point) for point in points]
    return out


def gaussian_twin(x: Tensor, y: Tensor, n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n pairs from the Gaussian whose mean and covariance are those of the paired features x [m, d], y [m, e]."""
    import torch

    both = torch.cat([x, y], 1).double()
    mean = both.mean(0)
    centred = both - mean
    values, vectors = torch.linalg.eigh(centred.mT @ centred / (len(both) - 1))
    root = (vectors * values.clamp_min(0).sqrt()).float()
    # on the CPU, so that a seed means the same everywhere
    draws = torch.randn(n, len(values), generator=torch.Generator().manual_seed(seed))
    drawn = (draws @ root.cpu().mT).add_(mean.float().cpu())
    return drawn[:, : x.shape[1]].contiguous(), drawn[:, x.shape[1] :].contiguous()


def _report(config: Config, found: dict[str, dict[str, Any]], began: float) -> Report:
    from statistics import fmean

    from unrolled.report import Fact, Provenance, Report

    report = Report(
        "Alignment against the number of samples",
        question="Does a mutual k-NN score mean the same at another number of samples?",
    )
    trained = [curve for words, curve in found.items() if not words.startswith("untrained")]

    def ratio(words: str) -> list[float]:
        return [curve[words][-1]["score"] / curve[words][0]["score"] for curve in trained]

    first, last = trained[0]["k = 10"][0]["n"], trained[0]["k = 10"][-1]["n"]
    fall, stay = ratio("k = 10"), ratio("k = n / 100")
    span = f"n from {first:,} to {last:,}"
    report.claims = [
        FALLS.judge(fmean(fall), f"{', '.join(f'{r:.2f}' for r in fall)} ({span})"),
        STAYS.judge(fmean(stay), f"{', '.join(f'{r:.2f}' for r in stay)} ({span})"),
    ]
    curve = found["CNN and ViT"]
    ends = curve["k = 10"][0]["score"], curve["k = 10"][-1]["score"]
    report.headline(
        f"With k = 10, agreement of a CNN and a ViT goes from {ends[0]:.3f} at n = {first:,} to {ends[1]:.3f} at "
        f"n = {last:,}; with k = n / 100, from {curve['k = n / 100'][0]['score']:.3f} to "
        f"{curve['k = n / 100'][-1]['score']:.3f}.",
        [
            Fact(label="Left of the score at k = 10", value=f"{fmean(fall):.2f}", detail=f"{span}, mean of 3 pairs"),
            Fact(label="Left of it at k = n / 100", value=f"{fmean(stay):.2f}", detail="the same"),
        ],
    )
    _sections(report, config, found)
    report.results = {"pairs": found}
    report.provenance = Provenance.collect(config=config, seeds=(0, 1), duration=time.perf_counter() - began)
    return report


def _sections(report: Report, config: Config, found: dict[str, dict[str, Any]]) -> None:
    import math

    from unrolled.report import LineChart, Series

    def line(label: str, points: list[dict[str, Any]], color: int, *, dashed: bool = False) -> Series:
        return Series(
            label=label, x=[math.log10(p["n"]) for p in points], y=[p["score"] for p in points],
            error=[p["standard_error"] for p in points] if "standard_error" in points[0] else None,
            color=color, dashed=dashed,
        )  # fmt: skip

    def chart(title: str, words: str) -> LineChart:
        series = [line(pair, curve[words], color) for color, (pair, curve) in enumerate(found.items())]
        points = next(iter(found.values()))[words]
        if "chance" in points[0]:
            chance = [p["chance"] for p in points]
            series.append(
                Series(label="chance", x=[math.log10(p["n"]) for p in points], y=chance, dashed=True, color=5)
            )
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
            chart("mutual 10-NN", "k = 10"),
            chart("mutual k-NN at k = n / 100", "k = n / 100"),
            chart("mutual 1-NN", "k = 1"),
            chart("unbiased CKA", "unbiased CKA"),
        ],
        name="real",
        caption=f"{config.queries} queries at most; bars are standard errors over queries. The untrained CNN is the "
        "control.",
    )
    rows = []
    for pair, curve in found.items():
        for i, point in enumerate(curve["k = 10"]):
            share = curve["k = n / 100"][i]
            rows.append(
                [
                    *(pair, f"{point['n']:,}", f"{point['score']:.4f} ± {point['standard_error']:.4f}"),
                    *(f"{point['chance']:.4f}", f"{point['score'] / point['chance']:.1f}"),
                    *(f"{curve['k = 1'][i]['score']:.4f}", f"{share['score']:.4f} ± {share['standard_error']:.4f}"),
                    f"{curve['unbiased CKA'][i]['score']:.4f}",
                ]
            )
    report.section("Every number").table(
        ["pair", "n", "k = 10", "chance", "over chance", "k = 1", "k = n / 100", "unbiased CKA"],
        rows,
        caption="Chance of k = n / 100 is 0.01 at every n; that of unbiased CKA is 0.",
    )
    if not config.simulated:
        report.section("Beyond", "No simulated sizes were asked for: not run.")
        return
    panels, beyond = [], []
    for pair, curve in found.items():
        panels.append(
            LineChart(
                title=f"{pair}",
                x_label="log10 of the number of samples",
                series=[
                    line("images, k = 10", curve["k = 10"], 0),
                    line("Gaussian, k = 10", curve["k = 10, simulated"], 0, dashed=True),
                    line("images, n / 100", curve["k = n / 100"], 1),
                    line("Gaussian, n / 100", curve["k = n / 100, simulated"], 1, dashed=True),
                ],
            )
        )
        for ten, share in zip(curve["k = 10, simulated"], curve["k = n / 100, simulated"], strict=True):
            beyond.append([pair, f"{ten['n']:,}", f"{ten['score']:.4f}", f"{share['score']:.4f}"])
    report.section(
        "Simulated beyond",
        "Pairs of feature vectors drawn from a Gaussian with the measured joint mean and covariance, which can be had "
        "in any number (n / 100: with a quarter of the queries). Where solid and dashed lines agree, second moments "
        "explain the score; how far they part says how far the extrapolation is to be trusted.",
    ).figure(panels, name="simulated").table(["pair", "n", "k = 10", "k = n / 100"], beyond)
    report.section(
        "What this does not show",
        "Published falls are across modalities and to 15 million pairs; here both models see, the images are tiny, and "
        "the gallery ends at what the data hold.",
    )


STUDY = Study(
    name="platonic-samples",
    title="Alignment against the number of samples",
    citation="A. S. Koepke et al., arXiv 2604.18572; M. Huh et al., arXiv 2405.07987",
    config=Config,
    run=run,
    expectations=(FALLS, STAYS),
)
