"""The report of `crate-ablations`: accuracies, layer curves, and what R^c says about accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate_ablations import (
    DIFFERENCES,
    FALL,
    KINDS,
    LEARNED_FALL,
    PREDICTORS,
    PREDICTS,
    SAME_LAYER,
    SPARSER,
    Config,
)
from unrolled.studies.crate_members import NAMES

if TYPE_CHECKING:
    from unrolled.report import Claim, LineChart, Report, Scatter, Series
    from unrolled.studies.base import Expectation

NOT_RUN = "not run"
Found = dict[str, dict[str, Any]]
_PANELS = (
    ("steps", ("crate", "step-0.02", "step-0.5", "sparsity-0.02", "sparsity-0.5")),
    ("layers", ("crate", "tied", "learned", "derived", "negated")),
)


def build_report(
    config: Config, found: dict[str, Found], relations: dict[str, dict[str, Any]], *, seconds: float
) -> Report:
    """The report of what `run` measured; `found` by data set and kind, `relations` by data set and set of kinds."""
    from unrolled.report import Provenance, Report

    report = Report(
        "CRATE's ablations, layer by layer",
        question="Which of CRATE's choices matter for accuracy, and does a lower R^c predict a higher one?",
    )
    report.claims = _claims(config, found, relations)
    _headline(report, config, found, relations)
    for data, kinds in found.items():
        if any(entry["accuracy"] for entry in kinds.values()):
            _table(report, config, data, kinds)
            _curves(report, data, kinds)
            _relations(report, data, kinds, relations[data])
        else:
            report.section(NAMES[data], f"All members trained on {NAMES[data]}: {NOT_RUN}.")
    _limits(report, config, found)
    report.results = {"members": found, "relations": relations}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=seconds)
    return report


def ratios(curves: Sequence[dict[str, list[float]]], key: str = "subspace_rate") -> list[float]:
    """Last layer to first, of each."""
    return [curve[key][-1] / curve[key][0] for curve in curves]


def _claims(config: Config, found: dict[str, Found], relations: dict[str, dict[str, Any]]) -> list[Claim]:
    first = config.data[0]
    claims = []
    for kind, expectation in DIFFERENCES.items():
        by_data = {data: differences(kinds, kind, "crate") for data, kinds in found.items()}
        told = "; ".join(points(values, NAMES[data]) for data, values in by_data.items())
        claims.append(judged(expectation, settled(by_data[first]), told))
    crate = found[first]["crate"]
    curves = list(crate["layers"].values())
    falls = ratios(curves)
    control = ratios([crate["untrained"]])[0] if crate["untrained"] else math.nan
    sparser = [curve["nonzero"][-1] - curve["nonzero"][0] for curve in curves]
    dense = crate["untrained"]["nonzero"] if crate["untrained"] else [math.nan]
    alone = dense[-1] - dense[0]  # what the architecture does untrained; training must do more to have done it
    thinner = judged(SPARSER, mean(sparser), _told(sparser, f"; untrained {alone:.2f}"))
    claims += [
        judged(FALL, mean(falls), _told(falls, f"; untrained {control:.2f}")),
        judged(LEARNED_FALL, mean(falls) - control, _told([fall - control for fall in falls])),
        replace(thinner, reproduced=None) if alone <= mean(sparser) else thinner,
    ]
    last = relations[first]["all"]["last"]
    return [*claims, judged(PREDICTS, last["rho_kinds"], _correlation(last))]


def _told(values: Sequence[float], more: str = "") -> str:
    if not values:
        return NOT_RUN
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread} ({len(values)} seed{'s' if len(values) > 1 else ''}){more}"


def _correlation(entry: dict[str, Any]) -> str:
    if not math.isfinite(entry["rho_kinds"]):
        return f"{NOT_RUN}: {entry['kinds']} kinds" if entry["kinds"] < 4 else "undefined"
    return f"{entry['rho_kinds']:+.2f} {_interval(entry)}, {_p(entry['p'])}, {entry['kinds']} kinds"


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


def _interval(entry: dict[str, Any]) -> str:
    if not math.isfinite(entry["low"]):
        return "(no interval)"
    return f"[{entry['low']:+.2f}, {entry['high']:+.2f}]"


def _headline(report: Report, config: Config, found: dict[str, Found], relations: dict[str, dict[str, Any]]) -> None:
    from unrolled.report import Fact, mean_std

    data = config.data[0]
    crate = found[data]["crate"]
    if not crate["accuracy"]:
        report.headline(f"No CRATE trained on {NAMES[data]} is kept: what is compared with it was {NOT_RUN}.")
        return
    last, same = relations[data]["all"]["last"], relations[data]["same layer"]["last"]
    enough = math.isfinite(last["rho_kinds"]) and math.isfinite(same["rho_kinds"])
    report.headline(
        f"On {NAMES[data]}, the rank correlation of accuracy with R^c at the last layer is {_correlation(last)}; over "
        f"CRATE and its ablations alone {_correlation(same)}."
        if enough
        else f"On {NAMES[data]}, too few kinds were run to say whether R^c predicts accuracy.",
        [
            Fact(
                label="CRATE, accuracy",
                value=f"{mean_std(list(crate['accuracy'].values()), scale=100)} %",
                detail=f"{NAMES[data]}, {crate['images']:,} images, seeds: {len(crate['accuracy'])}",
            ),
            Fact(
                label="R^c, last to first layer",
                value=mean_std(ratios(list(crate["layers"].values())), digits=2),
                detail=f"untrained {ratios([crate['untrained']])[0]:.2f}",
            ),
        ],
    )


def _table(report: Report, config: Config, data: str, kinds: Found) -> None:
    from unrolled.report import mean_std

    rows: list[list[str | int]] = []
    for kind in KINDS:
        entry = kinds[kind]
        if not entry["accuracy"]:
            rows.append([words(kind), 0, *[NOT_RUN] * 7])
            continue
        curves, control = list(entry["layers"].values()), entry["untrained"]
        rows.append(
            [
                words(kind),
                len(entry["accuracy"]),
                mean_std(list(entry["accuracy"].values()), scale=100),
                difference(differences(kinds, kind, "crate")) if kind != "crate" else "-",
                *(mean_std([curve["subspace_rate"][place] for curve in curves], digits=0) for place in (0, -1)),
                f"{mean_std(ratios(curves), digits=2)} ({ratios([control])[0]:.2f})",
                f"{mean_std(ratios(curves, 'orthonormal'), digits=2)} ({ratios([control], 'orthonormal')[0]:.2f})",
                f"{mean_std([curve['nonzero'][-1] for curve in curves], digits=2)} ({control['nonzero'][-1]:.2f})",
            ]
        )
    seeds = kinds["crate"]["accuracy"].values()
    noise = (
        f" Seeds of CRATE differ by a standard deviation of {100 * stdev(seeds):.1f} points." if len(seeds) > 1 else ""
    )
    report.section(
        NAMES[data],
        "Accuracy in percent on all test images; differences to CRATE, in points, pair members of the same seed."
        f"{noise} R^c in nats an image, on normalised tokens at Z+half with eps {config.eps:g}, over the first "
        f"{config.samples} test images.",
    ).table(
        ["model", "seeds", "accuracy", "to CRATE", "R^c first", "last", "last / first", "orthonormal", "non-zero"],
        rows,
        caption="In parentheses, the untrained network. Orthonormal: last to first layer again, each head's subspace "
        "with an orthonormal basis, so that the norm of U_k does not count. Non-zero: share of entries after the last "
        "layer. Mean and standard deviation over seeds. `tied` also has no bias in its output.",
    )


def _curves(report: Report, data: str, kinds: Found) -> None:
    from unrolled.report import LineChart

    def chart(title: str, key: str, group: Sequence[str]) -> LineChart | None:
        shown = [_series(kind, kinds[kind], key, place) for place, kind in enumerate(group) if kinds[kind]["accuracy"]]
        control = kinds["crate"]["untrained"]
        if control:
            shown.append(_series("untrained", {"layers": {"0": control}}, key, 5, dashed=True))
        return LineChart(title=title, x_label="layer", series=shown) if shown else None

    panels = [
        panel
        for key, title in (("subspace_rate", "R^c, nats"), ("nonzero", "share of non-zero entries"))
        for name, group in _PANELS
        if any(kinds[kind]["accuracy"] for kind in group) and (panel := chart(f"{title}: {name}", key, group))
    ]
    if panels:
        report.section(f"By layer, {NAMES[data]}").figure(
            panels,
            name=f"layers-{data}",
            caption="Mean over seeds, bars one standard deviation where there are several. Dashed: CRATE untrained.",
        )


def _series(label: str, entry: dict[str, Any], key: str, color: int, *, dashed: bool = False) -> Series:
    from unrolled.report import Series

    columns = list(zip(*(curve[key] for curve in entry["layers"].values()), strict=True))
    return Series(
        label=label,
        x=list(range(1, len(columns) + 1)),
        y=[fmean(column) for column in columns],
        error=[stdev(column) for column in columns] if len(columns[0]) > 1 else None,
        color=color,
        dashed=dashed,
    )


def _relations(report: Report, data: str, kinds: Found, relations: dict[str, Any]) -> None:
    def cells(entry: dict[str, Any]) -> list[str]:
        if not math.isfinite(entry["rho_kinds"]):
            return [NOT_RUN if entry["kinds"] < 4 else "undefined"] * 4
        return [f"{entry['rho_members']:+.2f}", f"{entry['rho_kinds']:+.2f}", _interval(entry), f"{entry['p']:.3f}"]

    columns = ["predictor", "rho, members", "rho, kinds", "95 % interval", "p"]
    first = next(iter(relations["all"].values()))
    same = next(iter(relations["same layer"].values()))
    section = report.section(
        f"Does R^c predict accuracy on {NAMES[data]}?",
        "Spearman's correlation with test accuracy: over members, and over kinds after averaging their seeds, which "
        "are not independent. Intervals are bootstraps over kinds and p-values permutations of kinds, two-sided; "
        f"{len(PREDICTORS)} predictors are tried, so a single p of {0.05 / len(PREDICTORS):.3f} is what 0.05 would be "
        "for one. A negative sign means that less goes with more accuracy. The last two are controls: what R^c says "
        "before training, and size.",
    ).table(
        columns,
        [[PREDICTORS[key], *cells(entry)] for key, entry in relations["all"].items()],
        caption=f"All {first['kinds']} kinds with MSSA, {first['members']} members.",
    )
    section.table(
        columns,
        [[PREDICTORS[key], *cells(entry)] for key, entry in relations["same layer"].items()],
        caption=f"CRATE and its ablations only, {same['kinds']} kinds and {same['members']} members.",
    )
    section.figure(
        [
            _scatter(kinds, "R^c, last layer, nats", lambda curve: curve["subspace_rate"][-1]),
            _scatter(kinds, "R^c, orthonormal bases, last layer, nats", lambda curve: curve["orthonormal"][-1]),
        ],
        name=f"predicts-{data}",
        caption="Every member.",
    )


def _scatter(kinds: Found, x_label: str, of: Any) -> Scatter:
    from unrolled.report import Scatter

    dots = [
        (of(entry["layers"][seed]), 100 * accuracy, kind)
        for kind, entry in kinds.items()
        for seed, accuracy in entry["accuracy"].items()
    ]
    groups = {"crate": "CRATE", **dict.fromkeys(SAME_LAYER[1:], "ablation")}
    return Scatter(
        title="test accuracy, %",
        x_label=x_label,
        x=[dot[0] for dot in dots],
        y=[dot[1] for dot in dots],
        names=[dot[2] for dot in dots],
        groups=[groups.get(dot[2], "other") for dot in dots],
    )


def _limits(report: Report, config: Config, found: dict[str, Found]) -> None:
    wanted = len(config.data) * len(KINDS) * len(config.seeds)
    here = sum(len(entry["accuracy"]) for kinds in found.values() for entry in kinds.values())
    missing = f" {wanted - here} of {wanted} members were {NOT_RUN}: not kept; `train=True` trains them."
    single = [words(kind) for kind in KINDS if len(found[config.data[0]][kind]["accuracy"]) == 1]
    noisy = (
        f" Of one seed only on {NAMES[config.data[0]]}: {', '.join(single)}; such a difference means something only if "
        "it is several standard deviations over CRATE's seeds."
        if single and len(config.seeds) > 1
        else ""
    )
    report.section(
        "What this does not show",
        "A correlation over a handful of kinds, chosen by us, says nothing of other kinds, of longer training or of "
        "larger models, and nothing of causes: a kind that changes R^c changes other things too. R^c compares kinds "
        "fairly only if their subspaces have the same scale, which nothing enforces; the orthonormal version and the "
        "untrained control are there to tell. A rate that is low because the tokens have collapsed is no "
        "compression of anything worth keeping: the objective is R - R^c. Four layers are a short curve, and the "
        "published models have 12 to 24 layers and see hundreds of millions of images."
        + noisy
        + (missing if here < wanted else ""),
    )


def differences(kinds: dict[str, Any], one: str, other: str) -> list[float]:
    """Accuracy of `one` less that of `other`, in points, for each seed that both have."""
    first, second = kinds[one]["accuracy"], kinds[other]["accuracy"]
    return [100 * (first[seed] - second[seed]) for seed in first if seed in second]


def mean(values: Sequence[float]) -> float:
    """Mean, NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def words(kind: str) -> str:
    """What tables call a kind."""
    from unrolled.studies.crate_members import KINDS

    return KINDS[kind].words


def points(values: Sequence[float], what: str = "") -> str:
    """`+1.2 ± 0.4 (CIFAR-10, 3 seeds)`, or `not run` of nothing."""
    if not values:
        return f"{NOT_RUN} ({what})" if what else NOT_RUN
    seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
    return f"{difference(values)} ({what + ', ' if what else ''}{seeds})"


def difference(values: Sequence[float]) -> str:
    """`+1.2 ± 0.4`, or `not run` of nothing."""
    if not values:
        return NOT_RUN
    return f"{fmean(values):+.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def settled(values: list[float]) -> float:
    """Their mean; NaN of fewer than two seeds, because one may be luck."""
    return mean(values) if len(values) > 1 else math.nan


def judged(expectation: Expectation, value: float, told: str) -> Claim:
    """The claim, not judged where it was not run, or with one seed only: NaN."""
    claim = expectation.judge(value, told)
    return replace(claim, reproduced=None) if math.isnan(value) else claim
