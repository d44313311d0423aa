"""The table and the page of `unrolled align-grid`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unrolled.commands.align.words import FIRST_LAYERS, RANDOM
from unrolled.reading import Json

if TYPE_CHECKING:
    from unrolled.alignment.models import ModelGrid, PairScore
    from unrolled.commands.align.entries import Entry
    from unrolled.report import Report, Section

COLUMNS = ["metric", "A", "B", "score", "chance", "z", "p", "q", "layer of A", "layer of B"]


def pair_rows(result: ModelGrid, random: Sequence[str] = ()) -> list[list[str]]:
    """A row for each pair and metric, the smallest p-values first."""
    from unrolled.alignment import p_text

    rows = []
    for metric in result.metrics:
        for pair, q in sorted(
            zip(result.of(metric), result.q_values(metric), strict=True), key=lambda each: each[0].p_value
        ):
            z = "-" if pair.z is None else f"{pair.z:.3g}"
            rows.append(
                [
                    *(metric, _named(pair.a, random), _named(pair.b, random)),
                    *(f"{pair.score:.4g}", f"{pair.chance:.4g}", z),
                    *(p_text(pair.p_value, pair.p_method), p_text(q), *pair.layers),
                ]
            )
    return rows


def grid_report(models: Mapping[str, Entry], result: ModelGrid, null: str, *, random: Sequence[str] = ()) -> Report:
    """The page of all pairs.

    Args:
        models: what the file says of each.
        result: the pairs.
        null: what p-values are from.
        random: models whose weights were drawn and not trained; every figure names them so.
    """
    from unrolled.report import Fact, Report

    report = Report(f"{len(models)} models compared", question="Which models agree, and is it more than chance?")
    drawn = f"{len(random)} with random weights" if random else ""
    facts = [
        Fact(label="Models", value=str(len(models)), detail=drawn),
        Fact(label="Samples", value=f"{result.pairs[0].n:,}"),
    ]
    report.headline(_lead(result, random), facts)
    names = [_named(name, random) for name in models]
    for metric in result.metrics:
        _section(report.section(metric), metric, models, names, result)
    how = (
        f"p-values are {p_value_note(result, null)}. z is of the pair of layers alone and takes no "
        "account of the search over layers; it comes from closed-form moments under random pairing, where these are "
        "known."
    )
    shown = pair_rows(result, random)[:60]
    report.section("Pairs").table(
        COLUMNS,
        shown,
        caption=f"{how} q: Benjamini-Hochberg over all pairs of models of a metric. "
        + (f"The first {len(shown)}; report.json has all." if len(pair_rows(result, random)) > len(shown) else ""),
    )
    return report


def pair_records(result: ModelGrid) -> list[Json]:
    """Every pair of models by every metric, with its q-value."""
    return [
        {**vars(pair), "q_value": q}
        for metric in result.metrics
        for pair, q in zip(result.of(metric), result.q_values(metric), strict=True)
    ]


def p_value_note(result: ModelGrid, null: str) -> str:
    """How the p-values were found, each way with the number of pairs, and what was relabelled."""
    ways = {
        "Pearson III": "tails of three exact moments (Pearson III), times the number of pairs of layers",
        "Cantelli": "bounds by Cantelli's inequality for two exact moments, times the number of pairs of layers",
        "Pareto": "Pareto tails of relabellings, none of which reached the score",
        "": "shares of relabellings whose best pair of layers reaches the score"
        + (", drawn until ten do" if null == "moments" else ""),
    }
    counts = dict.fromkeys(ways, 0)
    for pair in result.pairs:
        counts[next(way for way in ways if pair.p_method.startswith(way))] += 1
    counted = "; ".join(f"{ways[way]} ({count:,} pairs)" for way, count in counts.items() if count)
    return f"{counted}; relabelled are {result.units}" if result.units else counted


def _lead(result: ModelGrid, random: Sequence[str]) -> str:
    """How many pairs agree beyond chance by the first metric, those with random weights counted by themselves."""
    from unrolled.alignment.significance import SMALLEST

    metric = result.metrics[0]
    tested = list(zip(result.of(metric), result.q_values(metric), strict=True))
    drawn = [(pair, q) for pair, q in tested if pair.a in random or pair.b in random]
    trained = [(pair, q) for pair, q in tested if pair.a not in random and pair.b not in random]
    counted, of = (trained, "pairs of trained models" if random else "pairs") if trained else (drawn, "pairs")
    best, _ = max(counted, key=lambda each: each[0].z or -math.log(max(each[0].p_value, SMALLEST)))
    lead = (
        f"{_beyond(counted)} {of} agree beyond chance at a false discovery rate of 5 % ({metric}); furthest beyond it "
        f"are {best.a} and {best.b} with {best.score:.3g}, where chance gives {best.chance:.3g}."
    )
    if not random:
        return lead
    which = f"{', '.join(random[:3])}{' and others' if len(random) > 3 else ''} {'has' if len(random) == 1 else 'have'}"
    if trained:
        return f"{lead} {which} random weights, and {_beyond(drawn)} pairs with them agree beyond chance too. {RANDOM}"
    return f"{lead} In every pair one side has random weights: {which} nothing learned. {RANDOM}"


def _named(name: str, random: Sequence[str]) -> str:
    return f"{name} (random)" if name in random else name


def _beyond(pairs: Sequence[tuple[PairScore, float]]) -> str:
    return f"{sum(q <= 0.05 for _, q in pairs)} of {len(pairs)}"


def _section(section: Section, metric: str, models: Mapping[str, Entry], names: list[str], result: ModelGrid) -> None:
    """Matrix, clusters, map and trend of one metric; `names` are those that figures show."""
    import numpy as np
    from scipy.cluster.hierarchy import linkage

    from unrolled.alignment.registry import get_metric
    from unrolled.report import HeatMap, Scatter, Tree

    kind = get_metric(metric)
    scores = result.matrix(metric)
    both = (scores + scores.T) / 2
    top = kind.range[1] if kind.higher_is_closer else kind.range[0]
    off = ~np.eye(len(both), dtype=bool)
    far = np.abs((top if math.isfinite(top) else np.nanmax(both[off])) - both)
    np.fill_diagonal(far, 0.0)
    far = np.nan_to_num(far, nan=float(np.nanmax(far)))
    if len(names) > 2:
        tree = Tree(
            title=f"clusters by {metric}",
            merges=linkage(far[np.triu_indices(len(names), 1)], "average"),
            leaves=names,
            x_label="distance: best possible score minus score",
        )
        order = tree.order()
    else:
        tree, order = None, list(range(len(names)))
    ordered = [names[i] for i in order]
    matrix = HeatMap(title=metric, values=scores[np.ix_(order, order)], rows=ordered, columns=ordered)
    section.figure(
        [matrix, *([tree] if tree is not None else [])],
        caption="Best pair of layers of every pair of models, like beside like. "
        + ("" if kind.symmetric else "Rows predict columns. ")
        + f"{matrix.scale_words()} {FIRST_LAYERS}; the table below says which layers they are.",
        name=f"{metric}-matrix",
    )
    groups = ["" if entry.group is None else str(entry.group) for entry in models.values()]
    if len(names) > 3:
        place = _map(far)
        section.figure(
            Scatter(
                title=f"map of models by {metric}", x_label="classical scaling of the distances",
                x=place[:, 0], y=place[:, 1], names=names, groups=groups if any(groups) else (), equal=True,
            ),
            caption="Models that agree lie close; two dimensions cannot show all distances.",
            name=f"{metric}-map",
        )  # fmt: skip
    known = {i: entry.competence for i, entry in enumerate(models.values()) if entry.competence is not None}
    if len(known) > 2:
        _trend(section, metric, names, both, known, groups)


def _trend(
    section: Section,
    metric: str,
    names: list[str],
    scores: Any,
    known: Mapping[int, float],
    groups: list[str],
) -> None:
    """Alignment with the others (of other groups, where there are groups) against competence."""
    import numpy as np
    from scipy.stats import spearmanr

    from unrolled.report import Scatter

    divided = len(set(groups)) > 1

    def others(i: int) -> list[int]:
        return [j for j in range(len(names)) if j != i and (not divided or groups[j] != groups[i])]

    x = list(known.values())
    y = [float(np.nanmean(scores[i, others(i)])) for i in known]
    rho = spearmanr(x, y)
    section.figure(
        Scatter(
            title=f"mean {metric} with " + ("models of other groups" if divided else "the other models"),
            x_label="competence",
            x=x,
            y=y,
            names=[names[i] for i in known],
            groups=[groups[i] for i in known] if any(groups) else (),
        ),
        caption=f"Competence as the file gives it. Spearman {rho.statistic:.2f} (p = {rho.pvalue:.2g}, {len(known)} "
        "models; they are not independent, so p is too small).",
        name=f"{metric}-trend",
    )


def _map(far: Any) -> Any:
    """Two coordinates a model, by classical multidimensional scaling of its distances."""
    import numpy as np

    centre = np.eye(len(far)) - 1 / len(far)
    values, vectors = np.linalg.eigh(-0.5 * centre @ far**2 @ centre)
    return vectors[:, -2:][:, ::-1] * np.sqrt(values[-2:][::-1].clip(min=0))
