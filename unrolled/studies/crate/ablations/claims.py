"""What `crate-ablations` judges: differences of accuracy, curves over layers, and how R^c and accuracy correlate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unrolled.studies.claim import CONTROL, NOBODY, Claim
from unrolled.studies.crate.ablations.cells import KINDS, AblationsConfig, Layers
from unrolled.studies.crate.compared import difference_claim, of_kind, trained
from unrolled.studies.networks import Data
from unrolled.studies.results import Estimate, Results, Values
from unrolled.studies.statistics import rank_correlations, spearman

PREDICTORS = {
    "last": "R^c, last layer",
    "sum": "R^c, summed over layers",
    "fall": "R^c, last to first layer",
    "last_orthonormal": "R^c with orthonormal bases, last layer",
    "fall_orthonormal": "R^c with orthonormal bases, last to first",
    "nonzero": "non-zero entries, last layer",
    "untrained": "control: R^c of the untrained network, last layer",
    "parameters": "control: number of parameters",
}
_SOURCE = "arXiv 2306.01129, ablations of CRATE-B, ImageNet-1K; less 70.8"
_CURVES = "arXiv 2306.01129, figures 3 and 4, small"
_FREE = "a change that costs nothing, such as learning step and threshold, or one that gains: 0 and above"
_NOT_FOUND = "no published value was found"
_NOTHING = float("nan")


def ratio(rows: Results[Layers], key: str = "subspace_rate") -> Values:
    """Last layer to first."""
    return rows.values(f"{key}.-1") / rows.values(f"{key}.0")


def thinning(rows: Results[Layers]) -> Values:
    """Share of non-zero entries, last layer less first."""
    return rows.values("nonzero.-1") - rows.values("nonzero.0")


def crate(results: Results[Any], config: AblationsConfig, *, trained: bool = True) -> Results[Layers]:
    """Layers of CRATE on the first data set; of the untrained one there is one seed."""
    return of_kind(results, Layers, "crate", config.data[0], trained=trained)


@dataclass(frozen=True, kw_only=True)
class Relation:
    """How a number and accuracy go together, see `relation`.

    Attributes:
        networks: how many.
        kinds: of them.
        of_networks: Spearman's correlation over networks.
        of_kinds: the same over kinds, with the interval of a bootstrap that draws kinds.
        p: two-sided, kinds permuted.
    """

    networks: int
    kinds: int
    of_networks: float
    of_kinds: Estimate
    p: float

    @property
    def enough(self) -> bool:
        """Whether there are kinds enough to say anything."""
        return self.kinds >= 4

    @property
    def confidence(self) -> str:
        """`, p = 0.012, 16 kinds`; nothing where the correlation is not defined."""
        if math.isnan(self.p):
            return ""
        return f", {f'p = {self.p:.3f}' if self.p >= 0.001 else 'p < 0.001'}, {self.kinds} kinds"


def relation(x: Sequence[float], y: Sequence[float], of: Sequence[str], *, draws: int, seed: int = 0) -> Relation:
    """Spearman's correlation over networks, and over kinds, whose seeds are not independent of each other.

    Args:
        x: of each network.
        y: of each network.
        of: the kind of each network.
        draws: bootstrap samples of kinds, and permutations.
        seed: of both.

    Returns:
        That over kinds is of means over seeds. NaN where there are fewer than four kinds or a side is constant.
    """
    names = list(dict.fromkeys(of))
    if len(names) < 4:
        nothing = Estimate(_NOTHING, _NOTHING, _NOTHING, f"bootstrap over {len(names)} kinds")
        return Relation(networks=len(x), kinds=len(names), of_networks=_NOTHING, of_kinds=nothing, p=_NOTHING)
    a, b = (
        np.array([np.mean([value for value, kind in zip(side, of, strict=True) if kind == name]) for name in names])
        for side in (x, y)
    )
    generator = np.random.default_rng(seed)
    rho = spearman(a, b)
    drawn = generator.integers(len(names), size=(draws, len(names)))
    boot = rank_correlations(a[drawn], b[drawn])
    boot = boot[np.isfinite(boot)]  # a draw of one kind alone has none
    low, high = np.quantile(boot, [0.025, 0.975]).tolist() if len(boot) > draws / 2 else (_NOTHING, _NOTHING)
    null = rank_correlations(np.tile(a, (draws, 1)), generator.permuted(np.tile(b, (draws, 1)), axis=1))
    return Relation(
        networks=len(x),
        kinds=len(names),
        of_networks=spearman(x, y),
        of_kinds=Estimate(rho, low, high, f"bootstrap over {len(names)} kinds"),
        p=float((1 + (np.abs(null) >= abs(rho) - 1e-9).sum()) / (draws + 1)) if np.isfinite(rho) else _NOTHING,
    )


def predictors(
    curves: Mapping[str, Sequence[float]], untrained: Mapping[str, Sequence[float]], parameters: int
) -> dict[str, float]:
    """The numbers of `PREDICTORS` of one network, from its layers and those of the untrained one."""
    rate, basis = curves["subspace_rate"], curves["orthonormal"]
    return {
        "last": rate[-1],
        "sum": sum(rate),
        "fall": rate[-1] / rate[0],
        "last_orthonormal": basis[-1],
        "fall_orthonormal": basis[-1] / basis[0],
        "nonzero": curves["nonzero"][-1],
        "untrained": untrained["subspace_rate"][-1],
        "parameters": float(parameters),
    }


def relation_of(
    results: Results[Any], config: AblationsConfig, predictor: str, data: Data, among: Sequence[str] = KINDS
) -> Relation:
    """How a predictor and accuracy go together over all networks of the kinds `among` that were run."""
    of, scores, values = [], [], []
    for kind in among:
        networks, controls = trained(results, kind, data).by(), of_kind(results, Layers, kind, data, trained=False)
        for seed, row in of_kind(results, Layers, kind, data).by().items():
            if seed in networks and controls:
                network = networks[seed].result
                of.append(kind)
                scores.append(network["accuracy"])
                values.append(predictors(row.result, controls[0].result, network["parameters"])[predictor])
    return relation(values, scores, of, draws=config.draws)


def _last(results: Results[Any], config: AblationsConfig) -> Relation:
    return relation_of(results, config, "last", config.data[0])


def _predicts(results: Results[Any], config: AblationsConfig) -> Estimate | float:
    relation = _last(results, config)
    return relation.of_kinds if relation.enough else _NOTHING


def _seeds(results: Results[Any], config: AblationsConfig) -> str:
    return f" ({crate(results, config).values('nonzero.0').count})"


def _learned_fall(results: Results[Any], config: AblationsConfig) -> Values:
    control = ratio(crate(results, config, trained=False))
    return ratio(crate(results, config)) - control.mean if control else Values()


def _costs(kind: str, statement: str, published: str) -> Claim:
    return difference_claim(statement, kind, "crate", source=_SOURCE, published=published, high=0.0, outside=_FREE)


def _little(kind: str, what: str, published: str) -> Claim:
    statement = f"A {what} instead of 0.1 changes accuracy by less than 2 points"
    outside = "a tied output, by more than 5 points, and a compression step as derived, by more than 3"
    return difference_claim(
        statement, kind, "crate", source=_SOURCE, published=published, low=-2.0, high=2.0, outside=outside
    )


def _unpublished(kind: str, statement: str, source: str, published: str, unjudged: str) -> Claim:
    return difference_claim(statement, kind, "crate", source=source, published=published, unjudged=unjudged)


# differences are accuracy less CRATE's, in points; all ranges were fixed before any network was trained
CLAIMS = (
    _costs("tied", "Tying the output to the subspaces costs accuracy", "-7.5"),
    _costs("step-0.5", "A step of 0.5 instead of 0.1 costs accuracy", "-4.1"),
    _little("step-0.02", "step of 0.02", "-0.1"),
    _little("sparsity-0.02", "sparsity of 0.02", "0.0"),
    _little("sparsity-0.5", "sparsity of 0.5", "-0.3"),
    _unpublished("learned", "Learning step and threshold: change of accuracy", NOBODY, "none", NOBODY),
    _unpublished(
        "derived",
        "The compression step as derived, with its first-order term: change of accuracy",
        *("arXiv 2411.17182", "value not found", _NOT_FOUND),
    ),
    _unpublished(
        "negated",
        "The compression step with the opposite sign: change of accuracy",
        *("arXiv 2411.17182", "value not found", _NOT_FOUND),
    ),
    Claim(
        statement="R^c falls from the first to the last layer of a trained CRATE (ratio)",
        source=_CURVES,
        published="about 600 / 1100 = 0.55",
        value=lambda results, config: ratio(crate(results, config)),
        high=1.0,
        outside="a network whose layers expand their tokens, as the decoders of `crate-mae-layers` should",
        control=lambda results, config: ratio(crate(results, config, trained=False)),
        spec=".2f",
        detail=lambda results, config: (
            f"{_seeds(results, config)}; untrained {ratio(crate(results, config, trained=False)):.2f}"
        ),
    ),
    Claim(
        statement="R^c falls by more than in the untrained network (ratio less the control's)",
        source=CONTROL,
        published="none",
        value=_learned_fall,
        high=0.0,
        unjudged=CONTROL,
        spec=".2f",
        detail=_seeds,
    ),
    Claim(
        statement="The share of non-zero entries falls from the first to the last layer (difference)",
        source=_CURVES,
        published="about 0.2 - 0.5 = -0.3",
        value=lambda results, config: thinning(crate(results, config)),
        high=0.0,
        outside="layers that fill up, as the last one of the paper's figures does",
        control=lambda results, config: thinning(crate(results, config, trained=False)),
        spec=".2f",
        detail=lambda results, config: (
            f"{_seeds(results, config)}; untrained {thinning(crate(results, config, trained=False)):.2f}"
        ),
    ),
    Claim(
        statement="A lower R^c at the last layer goes with a higher accuracy (Spearman correlation over kinds)",
        source="arXiv 2509.16875",
        published="said of its models, no number",
        value=_predicts,
        high=-0.5,
        outside="kinds whose R^c has nothing to do with accuracy: 0",
        spec="+.2f",
        detail=lambda results, config: _last(results, config).confidence,
    ),
)
