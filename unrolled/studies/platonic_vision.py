"""Alignment against competence over a zoo of vision models: do better models represent images more alike?

Claim (arXiv 2405.07987, figure 2): models that solve more transfer tasks agree more with one another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study
from unrolled.studies.platonic_zoo import GPU, QUICK, ZooConfig, settings_of, zoo

if TYPE_CHECKING:
    from unrolled.alignment.metric import Metric
    from unrolled.report import Report
    from unrolled.studies.platonic_zoo_stats import Pairs

_SOURCE = "arXiv 2405.07987, figure 2: 78 models, five bins of transfer performance on VTAB"
RISES = Expectation(
    statement="Mutual k-NN alignment rises with transfer competence (rank correlation over pairs of models, lower end "
    "of its 95 % interval)",
    source=_SOURCE,
    published="rises; shown as bars, no number",
    low=0.0,
)
ACROSS = Expectation(
    statement="It does so among models of different kinds, where architecture cannot be the reason (lower end)",
    source="a control of this package; the paper's bins mix architectures",
    published="not measured",
    low=0.0,
)
METRICS = Expectation(
    statement="Metrics order pairs of models alike (smallest rank correlation of mutual k-NN with another metric)",
    source="arXiv 2405.07987, appendix: Spearman correlations of metrics",
    published="all p < 2.24e-105",
    low=0.0,
)
# metric -> options; compared at the last layers, all against mutual k-NN at the last layers
_OTHERS: dict[str, dict[str, Any]] = {
    "unbiased_cka": {},
    "cka": {},
    "cknna": {},
    "lcs_knn": {},
    "rsa": {"dissimilarity": "cosine"},
    "svcca": {},
}


@dataclass(kw_only=True)
class Config(ZooConfig):
    """Budgets change the zoo's training and the draws."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {**QUICK, "draws": 39},
        "cpu": {},
        "gpu": {**GPU, "draws": 999},
    }

    k: int = 10
    """Neighbours; the paper's 10."""
    draws: int = 99
    """Relabellings of the images: p-values are at least 1 / (draws + 1)."""
    bins: int = 4
    """Bins of competence, as many models in each; the paper has five of equal width."""
    out: Path = Path("runs/platonic-vision")
    """Where the report and the kept scores go."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1 or self.bins < 2 or not 1 <= self.k < self.samples:
            raise ValueError("draws must be at least 1, bins at least 2, and k between 1 and samples - 1")


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train the zoo, align all pairs, bin; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text as members and metrics are done.

    Raises:
        MissingData: CIFAR-10 is not in `config.data_dir`.
    """
    from unrolled.studies.platonic_vision_report import build

    began = time.perf_counter()
    records = zoo(config, on_progress=on_progress)
    best, last, others = aligned(config, on_progress=on_progress)
    given = aligned_with_given(config)
    found = analysed(config, records, best, last, others)
    found["given"] = [] if given is None else _with_given(records, given)
    report = build(config, records, found, best, last, given, seconds=time.perf_counter() - began)
    report.write(config.out)
    return report


def aligned(
    config: Config, *, on_progress: Callable[[str], None] | None = None
) -> tuple[Pairs, Pairs, dict[str, Pairs]]:
    """Mutual k-NN at the best layers, unbiased CKA at the last layers, and other metrics at the last layers."""
    from dataclasses import asdict

    from unrolled.alignment.registry import get_metric
    from unrolled.studies.platonic_members import roster
    from unrolled.studies.platonic_zoo import features
    from unrolled.studies.platonic_zoo_stats import Pairs, pair_scores
    from unrolled.studies.remembered import remembered

    members = roster(config.members)
    sets: list[Any] = []

    def layers(last: bool) -> list[Any]:
        if not sets:
            sets.extend(dict(features(config, member)) for member in members)
        return [dict([list(found.items())[-1]]) if last else found for found in sets]

    def scores(name: str, metric: str, *, last: bool, draws: int, **options: Any) -> Pairs:
        settings = {
            **settings_of(config), "samples": config.samples, "draws": draws, "options": options, "last": last,
            "members": [asdict(member) for member in members],
        }  # fmt: skip

        def compute() -> dict[str, Any]:
            return pair_scores(layers(last), get_metric(metric, **options), draws=draws).to_dict()

        pairs = Pairs.of(remembered(config.out / "cells", name, settings, compute))
        if on_progress is not None:
            on_progress(f"{name}: {len(members) * (len(members) - 1) // 2} pairs of models")
        return pairs

    best = scores("mutual_knn-best", "mutual_knn", last=False, draws=config.draws, k=config.k)
    last = scores("unbiased_cka-last", "unbiased_cka", last=True, draws=config.draws)
    others = {"mutual_knn": scores("mutual_knn-last-uncalibrated", "mutual_knn", last=True, draws=0, k=config.k)}
    for name, options in _OTHERS.items():
        near = {"k": config.k} if name.endswith(("knn", "cknna")) else {}
        others[name] = scores(f"{name}-last-uncalibrated", name, last=True, draws=0, **near, **options)
    return best, last, others


def aligned_with_given(config: Config) -> Pairs | None:
    """Mutual k-NN of all members with the networks of `GIVEN_VISION`; None without their weights."""
    from unrolled.studies.platonic_members import roster
    from unrolled.studies.platonic_zoo import features
    from unrolled.studies.platonic_zoo_given import given_features
    from unrolled.studies.platonic_zoo_stats import Pairs, pair_scores
    from unrolled.studies.remembered import remembered

    others = given_features(config)
    if not others:
        return None

    def compute() -> dict[str, Any]:
        sets = [dict(features(config, member)) for member in roster(config.members)]
        metric = _mutual(config)
        return pair_scores(sets, metric, against=[dict(found) for found in others.values()], draws=19).to_dict()

    settings = {**settings_of(config), "samples": config.samples, "k": config.k, "members": config.members}
    return Pairs.of(remembered(config.out / "cells", "given", settings, compute))


def _mutual(config: Config) -> Metric:
    from unrolled.alignment.registry import MutualKNN

    return MutualKNN(k=config.k)


def _with_given(records: dict[str, dict[str, Any]], given: Pairs) -> list[dict[str, Any]]:
    import numpy as np

    from unrolled.studies.platonic_members import KINDS
    from unrolled.studies.platonic_zoo_given import GIVEN_VISION
    from unrolled.studies.platonic_zoo_stats import over_models, spearman

    rows = list(records.values())
    competence = competence_of(rows)
    kinds = np.array([row["member"]["kind"] for row in rows])
    untrained = np.array([row["member"]["taught"] == "nothing" for row in rows])
    sound = sound_of(rows)
    found = []
    for place, name in enumerate(GIVEN_VISION):
        gain = given.gain[:, place]

        def rho(drawn: Any, gain: Any = gain) -> float:
            return spearman(competence[drawn], gain[drawn])

        low, high = over_models(rho, len(rows))
        mean: dict[str, float] = {kind: float(gain[(kinds == kind) & sound].mean()) for kind in KINDS}
        mean["untrained"] = float(gain[untrained].mean())
        found.append({"name": name, "mean": mean, "rho": rho(np.arange(len(rows))), "low": low, "high": high})
    return found


def competence_of(rows: list[dict[str, Any]]) -> Any:
    """[m] transfer accuracy of the members, or their probe's on their own data where there are no others."""
    import numpy as np

    transfers = all(row["transfer"] is not None for row in rows)
    return np.array([row["transfer"] if transfers else row["probe"] for row in rows])


def sound_of(rows: list[dict[str, Any]]) -> Any:
    """[m] whether a member was taught true labels of all classes."""
    import numpy as np

    return np.array([row["member"]["taught"] == "labels" and not row["member"]["classes"] for row in rows])


def analysed(
    config: Config, records: dict[str, dict[str, Any]], best: Pairs, last: Pairs, others: dict[str, Pairs]
) -> dict[str, Any]:
    """Trends, bins, significance and agreement of metrics, as plain values."""
    from functools import partial

    import numpy as np

    from unrolled.alignment.significance import benjamini_hochberg
    from unrolled.studies.platonic_zoo_stats import over_models, pair_places, spearman

    rows = list(records.values())
    transfers = all(row["transfer"] is not None for row in rows)
    competence = competence_of(rows)
    kinds = np.array([row["member"]["kind"] for row in rows])
    sound = sound_of(rows)
    count = len(rows)
    everyone = np.ones((count, count), dtype=bool)
    selections = {
        "all pairs": everyone,
        "different kinds": kinds[:, None] != kinds[None, :],
        "different kinds, true labels only": (kinds[:, None] != kinds[None, :]) & sound[:, None] & sound[None, :],
    }

    def trend(gain: Any, allowed: Any, drawn: Any) -> float:
        i, j = pair_places(drawn, allowed)
        return spearman((competence[i] + competence[j]) / 2, gain[i, j])

    trends = []
    for metric, pairs in (("mutual k-NN", best), ("unbiased CKA", last)):
        for words, allowed in selections.items():
            low, high = over_models(partial(trend, pairs.gain, allowed), count)
            rho = trend(pairs.gain, allowed, np.arange(count))
            number = len(pair_places(np.arange(count), allowed)[0])
            trends.append({"metric": metric, "pairs": words, "rho": rho, "low": low, "high": high, "count": number})
    bins = [
        {
            "members": [rows[i]["member"]["name"] for i in places],
            "competence": float(competence[places].mean()),
            **{
                f"{metric} {words}": _bin(pairs, places, allowed)
                for metric, pairs in (("knn", best), ("cka", last))
                for words, allowed in (("all", everyone), ("across", selections["different kinds"]))
            },
        }
        for places in np.array_split(np.argsort(competence, kind="stable"), config.bins)
    ]
    i, j = pair_places(np.arange(count), everyone)
    significant = {}
    for metric, pairs in (("mutual k-NN", best), ("unbiased CKA", last)):
        _, passed = benjamini_hochberg(pairs.p_value[i, j].tolist())
        significant[metric] = int(passed.sum())
    names = list(others)
    agreement = [[spearman(others[a].score[i, j], others[b].score[i, j]) for b in names] for a in names]
    return {
        "competence": "transfer" if transfers else "probe",
        "pairs": len(i),
        "trends": trends,
        "bins": bins,
        "significant": significant,
        "metrics": names,
        "agreement": agreement,
    }


def _bin(pairs: Pairs, places: Any, allowed: Any) -> dict[str, Any]:
    """Mean gain within a bin, its chance level, and its standard error over models (leaving one out)."""
    import numpy as np

    from unrolled.studies.platonic_zoo_stats import pair_places

    def mean(chosen: Any) -> float:
        i, j = pair_places(chosen, allowed)
        return float(pairs.gain[i, j].mean()) if len(i) else math.nan

    left = np.array([mean(np.delete(places, index)) for index in range(len(places))])
    left = left[np.isfinite(left)]
    error = float(np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum())) if len(left) > 1 else None
    i, j = pair_places(places, allowed)
    value = mean(places)
    if not len(i):
        return {"gain": None, "score": None, "chance": None, "error": None, "pairs": 0}
    return {
        "gain": value, "score": float(pairs.score[i, j].mean()), "chance": float(pairs.chance[i, j].mean()),
        "error": error, "pairs": len(i),
    }  # fmt: skip


STUDY = Study(
    name="platonic-vision",
    title="Alignment against competence over a zoo of vision models",
    citation="M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=Config,
    run=run,
    expectations=(RISES, ACROSS, METRICS),
)
