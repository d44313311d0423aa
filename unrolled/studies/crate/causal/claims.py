"""What would be true if white-box layers could be acted on piece by piece; ranges stood here before any result."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

from unrolled.reading import Json
from unrolled.studies.claim import CORRELATION, NOBODY, Claim
from unrolled.studies.crate.causal.cells import SHIPPED, CausalConfig, Removal, What
from unrolled.studies.crate.compared import of_kind
from unrolled.studies.results import Estimate, Results, Values

_OURS = "a question of ours"
_LAYERS = "the paper says that layers descend R^c, and of removals nothing"


def removals(
    results: Results[Any], config: CausalConfig, kind: str, what: What, *, trained: bool = True
) -> Results[Removal]:
    """What came of removing one sort of places from the networks of a kind, one row a seed."""
    return of_kind(results.of(Removal, what=what), Removal, kind, config.data, trained=trained)


def classes(results: Results[Any], config: CausalConfig, kind: str, what: What, key: str = "classes") -> Values:
    """Effective number of classes hit, over that under shuffled labels; a mean over places."""
    return removals(results, config, kind, what).values(f"{key}.value")


def patches(results: Results[Any], config: CausalConfig, kind: str, what: What, sort: str = "places") -> Values:
    """Effective share of the patches whose last tokens change, per cent; a mean over places and images."""
    return removals(results, config, kind, what).values(lambda result: 100 * mean_of(result[sort], "patches"))


def mean_of(places: list[Json], key: str) -> float:
    """Mean over places of what is defined: a removal that changes nothing hits no class."""
    values = [place[key] for place in places if place[key] is not None]
    return fmean(values) if values else math.nan


def predicts(
    results: Results[Any], config: CausalConfig, kind: str, name: str = "subspace_rate", *, trained: bool = True
) -> Values:
    """Rank correlation over subspaces of what removing them does to a rate and to the loss."""
    return removals(results, config, kind, "subspace", trained=trained).values(f"predicts.places_{name}.value")


def marked(results: Results[Any], config: CausalConfig, kind: str, key: str = "fall") -> Values:
    """Fall of the class that a head marks beyond other classes and heads, in points of probability."""
    scale = 100 if key != "correlation" else 1
    return scale * removals(results, config, kind, "head").values(f"marked.{key}")


def shipped(results: Results[Any], what: What, path: str) -> Estimate | float:
    """A number of `SHIPPED` with its jackknife interval over images."""
    row = results.of(Removal, what=what).where(kind=SHIPPED) if results.of(Removal) else Results[Any]([])
    record = row.first(path)
    if record is None or record["value"] is None:
        return math.nan
    half = 1.96 * (record["error"] or math.nan)
    count = row[0].cell.tested
    return Estimate(record["value"], record["value"] - half, record["value"] + half, f"jackknife over {count} images")


def _versus(what: What, other: str) -> Callable[[Results[Any], CausalConfig], str]:
    def words(results: Results[Any], config: CausalConfig) -> str:
        values = classes(results, config, "crate", what), classes(results, config, other, what)
        return f" ({values[0].mean:.2f} and {values[1].mean:.2f}, {values[0].count})"

    return words


def _classes_claim(what: What, other: str, statement: str) -> Claim:
    return Claim(
        statement=f"{statement} (effective number of classes over that under shuffled labels, CRATE less ViT)",
        source=_OURS,
        published="none",
        unjudged=NOBODY,
        value=lambda results, config: classes(results, config, "crate", what) - classes(results, config, other, what),
        high=0.0,
        spec="+.3f",
        detail=_versus(what, other),
    )


def _random_claim(what: What, statement: str) -> Claim:
    return Claim(
        statement=f"{statement} (effective number of classes over that under shuffled labels, difference)",
        source=_OURS,
        published="none",
        unjudged=NOBODY,
        value=lambda results, config: classes(results, config, "crate", what, "classes_more"),
        high=0.0,
        spec="+.3f",
        detail=lambda results, config: (
            f" ({classes(results, config, 'crate', what).mean:.2f} and "
            f"{classes(results, config, 'crate', what, 'classes_random').mean:.2f})"
        ),
    )


def _energy_beyond(results: Results[Any], config: CausalConfig) -> Values:
    return predicts(results, config, "crate") - predicts(results, config, "crate", "energy")


CLAIMS = (
    _random_claim("subspace", "Projecting out a subspace U_k of CRATE hits fewer classes than a random subspace"),
    Claim(
        statement="Projecting out U_k changes fewer patches than a random subspace (effective share of them, points)",
        source=_OURS,
        published="none",
        unjudged=NOBODY,
        value=lambda results, config: (
            patches(results, config, "crate", "subspace") - patches(results, config, "crate", "subspace", "random")
        ),
        high=0.0,
        spec="+.1f",
    ),
    _random_claim("atom", "Removing an atom of D hits fewer classes than as long a step in a random direction"),
    _classes_claim("subspace", "vit", "U_k of CRATE hits fewer classes than a head's values of a ViT of its width"),
    _classes_claim(
        "subspace", "vit-48", "U_k of CRATE hits fewer classes than a head's values of a ViT of as many parameters"
    ),
    _classes_claim("head", "vit", "A head of CRATE hits fewer classes than a head of a ViT of its width"),
    _classes_claim("head", "vit-48", "A head of CRATE hits fewer classes than a head of a ViT of as many parameters"),
    Claim(
        statement="The fall of R^c when U_k is projected out predicts the rise of the loss (rank correlation over all "
        "layers' subspaces)",
        source="arXiv 2306.01129: layers descend R^c; no number",
        published="none",
        unjudged=_LAYERS,
        value=lambda results, config: predicts(results, config, "crate"),
        low=0.0,
        within=CORRELATION,
        spec="+.2f",
        detail=lambda results, config: (
            f"; of R {predicts(results, config, 'crate', 'rate'):+.2f}; within layers "
            f"{predicts(results, config, 'crate', 'subspace_rate_within'):+.2f}; untrained "
            f"{predicts(results, config, 'crate', trained=False):+.2f}; ViT {predicts(results, config, 'vit'):+.2f}"
        ),
    ),
    Claim(
        statement="R^c predicts it better than the share of the tokens' energy in U_k does (difference of rank "
        "correlations)",
        source=_OURS,
        published="none",
        unjudged=NOBODY,
        value=_energy_beyond,
        low=0.0,
        spec="+.2f",
        detail=lambda results, config: f" (energy {predicts(results, config, 'crate', 'energy'):+.2f})",
    ),
    Claim(
        statement="The class that a head of CRATE attends to most is the one that falls without it (fall beyond other "
        "classes and heads, points of probability)",
        source="arXiv 2308.16271: heads have meanings, seen in their maps; no intervention",
        published="none",
        unjudged="the paper shows maps, and removes nothing",
        value=lambda results, config: marked(results, config, "crate"),
        low=0.0,
        spec="+.2f",
        detail=lambda results, config: (
            f"; classes renamed: {marked(results, config, 'crate', 'null_low').mean:+.2f} to "
            f"{marked(results, config, 'crate', 'null_high').mean:+.2f}; ViT {marked(results, config, 'vit'):+.2f}"
        ),
    ),
    Claim(
        statement=f"In `{SHIPPED}` U_k hits fewer classes than a random subspace (difference as above)",
        source=_OURS,
        published="none",
        unjudged=NOBODY,
        value=lambda results, config: shipped(results, "subspace", "classes_more"),
        high=0.0,
        spec="+.3f",
    ),
    Claim(
        statement="In it the fall of R^c predicts the rise of the loss (rank correlation over its 24 subspaces)",
        source="arXiv 2306.01129: layers descend R^c; no number",
        published="none",
        unjudged=_LAYERS,
        value=lambda results, config: shipped(results, "subspace", "predicts.places_subspace_rate"),
        low=0.0,
        within=CORRELATION,
        spec="+.2f",
        detail=lambda results, config: (
            f"; within layers {shipped(results, 'subspace', 'predicts.places_subspace_rate_within'):+.2f}, of random "
            f"subspaces {shipped(results, 'subspace', 'predicts.random_subspace_rate_within'):+.2f}"
        ),
    ),
)
