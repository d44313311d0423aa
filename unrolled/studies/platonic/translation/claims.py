"""What is claimed of translation without pairs, and how it is read off the results."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from unrolled.studies.claim import AT_LEAST_0, CONTROL, NOBODY, SHARE, Claim
from unrolled.studies.platonic.translation.cells import SORTS, FewPairs, Sort, Translated
from unrolled.studies.platonic.translation.classes import TEXTS, Named
from unrolled.studies.platonic.zoo import Features
from unrolled.studies.results import Results, Values
from unrolled.studies.statistics import difference

_MINI = "G. Dar, arXiv 2510.02348, abstract"
_BLIND = "D. Schnaus et al., arXiv 2503.24129, abstract"


def splits(results: Results[Any], sort: Sort, of: Callable[[Any], float], *, trained: bool = True) -> Values:
    """A number of each split's result."""
    rows = results.of(Translated, sort=sort, trained=trained)
    return Values({row.cell.split: of(row.result) for row in rows}, "split")


def top1(result: Any) -> float:
    """Of the map fitted without pairs."""
    return float(result["scores"]["top1"])


def share(result: Any) -> float:
    """Of the top-1 accuracy that the map fitted to pairs has, chance taken off both."""
    chance, paired = (float(result[name][key]) for name, key in (("scores", "chance"), ("paired", "top1")))
    return (top1(result) - chance) / (paired - chance) if paired > chance else 0.0


def rank_gain(result: Any) -> float:
    """0 where partners rank as by chance, 1 where all come first; below 0 where a map misleads."""
    scores = result["scores"]
    return 1 - (float(scores["mean_rank"]) - 1) / (float(scores["chance_rank"]) - 1)


def named(results: Results[Any], *, trained: bool = True) -> Values:
    """Share of classes that are given their own names: by image network, mean over the text models."""
    rows = [row for row in results.of(Named) if isinstance(row.cell.side, Features) != trained]
    by: dict[Any, list[float]] = {}
    for row in rows:
        by.setdefault(row.cell.side, []).append(float(row.result["accuracy"]))
    return Values(
        {side: sum(values) / len(values) for side, values in by.items() if len(values) == len(TEXTS)}, "network"
    )


def verdicts(results: Results[Any], config: Any) -> Values:
    """1 where the test without pairs and the pairs say the same of two networks, 0 elsewhere.

    Pairs say that a map works where its top-1 accuracy is at least ten times chance.
    """
    rows = [row for row in results.of(Translated) if row.result["worked"] is not None]
    agree: dict[Hashable, float] = {
        (row.cell.sort, row.cell.trained): float(row.result["worked"] == (top1(row.result) >= 10 / row.result["n"]))
        for row in rows
    }
    return Values(agree, "sort")


def few(results: Results[Any], sort: Sort, pairs: int, of: Callable[[Any], float]) -> Values:
    """A number of each split's result with so many pairs."""
    rows = results.of(FewPairs, sort=sort, pairs=pairs)
    return Values({row.cell.split: of(row.result) for row in rows}, "split")


def gained(results: Results[Any], config: Any) -> Values:
    """Top-1 accuracy that unpaired samples add to the fewest pairs, orthogonal maps: by sort, mean over splits."""
    fewest = min(config.pairs)
    added = {
        sort: few(results, sort, fewest, lambda r: r["scores"]["orthogonal"]["top1"] - r["alone"]["orthogonal"]["top1"])
        for sort in SORTS
    }
    return Values({sort: values.mean for sort, values in added.items() if values}, "sort")


def _share(sort: Sort) -> Claim:
    return Claim(
        statement=f"{SORTS[sort][0].upper()}{SORTS[sort][1:]}: share of the top-1 accuracy of the map fitted to all "
        "pairs that is reached without one",
        source="this study",
        published="no number",
        value=lambda results, config: splits(results, sort, share),
        low=0.5,
        within=AT_LEAST_0,
        unjudged=NOBODY,
        control=lambda results, config: splits(results, sort, share, trained=False),
        spec=".2f",
        detail=lambda results, config: f" (top-1 {splits(results, sort, top1):.3f})",
    )


CLAIMS = (
    Claim(
        statement="Sentence encoders are translated without pairs almost perfectly (top-1, MiniLM to GloVe)",
        source=f"{_MINI}: encoders of hundreds of dimensions, tens of thousands of texts",
        published="near-perfect",
        value=lambda results, config: splits(results, "sentences", top1),
        low=0.9,
        within=SHARE,
        unjudged="one of the two is a mean of word vectors of 50 numbers, and texts are a tenth as many",
        control=lambda results, config: splits(results, "sentences", top1, trained=False),
        detail=lambda results, config: (
            f"; with all pairs {splits(results, 'sentences', lambda result: float(result['paired']['top1'])):.3f}"
        ),
    ),
    Claim(
        statement="Classes of images find their names by similarities alone, and more often with trained networks than "
        "with untrained ones (CIFAR-10, difference of the shares of classes, mean over two text models)",
        source=f"{_BLIND}: for many instances vision and language are matched without supervision",
        published="non-trivial matches",
        value=lambda results, config: difference(named(results), named(results, trained=False)),
        low=0.0,
        outside="networks that have learnt nothing, whose classes lie to each other as their colours do: 0",
        spec="+.2f",
        detail=lambda results, config: (
            f" (trained {named(results):.2f}, untrained {named(results, trained=False):.2f}, by chance 0.1)"
        ),
        unless=lambda config: "" if config.data == "cifar10" else "only CIFAR-10's classes have names",
    ),
    Claim(
        statement="Photos find their captions without pairs (rank of the partner: 0 as by chance, 1 always first)",
        source=f"{_BLIND}, which matches classes; here single photos, MobileNet to MiniLM",
        published="no number",
        value=lambda results, config: splits(results, "image-text", rank_gain),
        low=0.1,
        within=(-1.0, 1.0),
        unjudged="nobody claims it of single photos and networks this small",
        control=lambda results, config: splits(results, "image-text", rank_gain, trained=False),
        spec=".2f",
    ),
    *(_share(sort) for sort in ("seeds", "families", "imagenet")),
    Claim(
        statement="Samples without partners help the fewest pairs (top-1 accuracy that they add, mean over splits)",
        source="this study",
        published="no number",
        value=gained,
        low=0.0,
        unjudged=NOBODY,
        spec="+.3f",
    ),
    Claim(
        statement="What the test without pairs says agrees with what pairs say (share of the five sorts and of their "
        "untrained controls, first split)",
        source="this study",
        published="no number",
        value=verdicts,
        low=0.99,
        within=SHARE,
        unjudged=CONTROL,
        spec=".2f",
    ),
)
