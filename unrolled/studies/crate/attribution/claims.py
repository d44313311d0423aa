"""What would be true if terms said what heads are needed for; ranges stood here before any result."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from unrolled.studies.claim import NOBODY, Claim
from unrolled.studies.crate.attribution.cells import AttributionConfig, Terms
from unrolled.studies.crate.causal.cells import SHIPPED
from unrolled.studies.crate.compared import of_kind
from unrolled.studies.results import Estimate, Results, Values

_ours = partial(Claim, source="a question of ours; ../edit.md has the means", published="none", unjudged=NOBODY)


def networks(results: Results[Any], config: AttributionConfig, kind: str, *, trained: bool = True) -> Results[Terms]:
    """The networks of a kind, one row a seed."""
    return of_kind(results, Terms, kind, config.data, trained=trained)


def number(results: Results[Any], config: AttributionConfig, kind: str, path: str, *, trained: bool = True) -> Values:
    """A number of a kind's networks by seed, such as `all.lost` or `layers.-1.lost`."""
    return networks(results, config, kind, trained=trained).values(f"{path}.value")


def shipped(results: Results[Any], path: str) -> Estimate | float:
    """A number of `SHIPPED` with its bootstrap interval over images."""
    rows = results.of(Terms)
    row = rows.where(kind=SHIPPED) if rows else rows
    record = row.first(path)
    if record is None:
        return math.nan
    basis = f"bootstrap over {row[0].cell.tested} images"
    return Estimate(record["value"], record["low"], record["high"], basis)


def _no_shipped(config: AttributionConfig) -> str:
    return "" if config.data == "cifar10" else f"`{SHIPPED}` knows CIFAR-10"


CLAIMS = (
    _ours(
        statement=f"In the last layer of `{SHIPPED}` terms rank heads and images as removing the heads does (rank "
        "correlation)",
        value=lambda results, config: shipped(results, "layers.-1.lost"),
        low=0.9,
        unless=_no_shipped,
    ),
    _ours(
        statement="In its first layer they still do, above chance (rank correlation)",
        value=lambda results, config: shipped(results, "layers.0.lost"),
        low=0.0,
        unless=_no_shipped,
    ),
    _ours(
        statement=f"Over all layers of `{SHIPPED}` (rank correlation)",
        value=lambda results, config: shipped(results, "all.lost"),
        low=0.5,
        unless=_no_shipped,
    ),
    _ours(
        statement=f"A random change as large has nothing to do with the term (rank correlation, `{SHIPPED}`)",
        value=lambda results, config: shipped(results, "all.random"),
        low=-0.1,
        high=0.1,
        unless=_no_shipped,
    ),
    _ours(
        statement="Terms and removals part because later attention reacts: held as it was, they agree better (gain in "
        f"rank correlation, `{SHIPPED}`)",
        value=lambda results, config: shipped(results, "all.gain"),
        low=0.0,
        spec="+.3f",
        unless=_no_shipped,
    ),
    _ours(
        statement="In small CRATEs the last layer agrees better than the first (difference of rank correlations)",
        value=lambda results, config: (
            number(results, config, "crate", "layers.-1.lost") - number(results, config, "crate", "layers.0.lost")
        ),
        low=0.0,
        spec="+.3f",
    ),
    _ours(
        statement="Terms of CRATE, which go through ISTA, agree better than a ViT's, which do not go through its MLPs "
        "(difference of rank correlations over all layers)",
        value=lambda results, config: (
            number(results, config, "crate", "all.lost") - number(results, config, "vit", "all.lost")
        ),
        low=0.0,
        spec="+.3f",
        detail=lambda results, config: (
            f" (CRATE {number(results, config, 'crate', 'all.lost'):.3f}, ViT "
            f"{number(results, config, 'vit', 'all.lost'):.3f})"
        ),
    ),
    _ours(
        statement="Training changes the agreement (CRATE, trained less untrained)",
        value=lambda results, config: (
            number(results, config, "crate", "all.lost") - number(results, config, "crate", "all.lost", trained=False)
        ),
        spec="+.3f",
    ),
)
