"""The report of `platonic-pmi`: claims, curves and tables from its cells."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from unrolled.studies.platonic_pmi import (
    AGREE,
    CONDITION,
    KERNEL,
    LOSSY,
    OFFSET,
    UNREACHABLE,
    WORLDS,
    Config,
)

if TYPE_CHECKING:
    from unrolled.report import Report, Series


def make_report(
    config: Config,
    trained: list[dict[str, Any]],
    blurred: list[dict[str, Any]],
    worlds: list[dict[str, Any]],
    began: float,
) -> Report:
    """The report of `platonic-pmi` from its cells; `began` is the time the study began."""
    from scipy.stats import spearmanr

    from unrolled.report import Fact, Provenance, Report, mean_std
    from unrolled.theory import nce_offset

    groups = {
        "InfoNCE": [c for c in trained if c["loss"] == "infonce" and not c["shuffled"]],
        "binary NCE": [c for c in trained if c["loss"] == "nce"],
        "InfoNCE, pairs shuffled": [c for c in trained if c["shuffled"]],
    }
    report = Report(
        "Contrastive kernels and pointwise mutual information",
        question="Do contrastive learners end at K_PMI, and do two modalities end at the same kernel?",
    )
    main = groups["InfoNCE"]
    errors = _last(main, "errors")
    offsets = [value - nce_offset(config.share_of_true_pairs) for value in _last(groups["binary NCE"], "offsets")]
    agreement = [c["agreement"][-1]["cka"] for c in main]
    merged = [c for c in blurred if c["kind"] == "merge"]
    trend = float(spearmanr([c["bits"] for c in merged], [c["cka"] for c in merged]).statistic)
    met = [max(v for k, v in c["errors"].items() if k in ("infonce 1", "nce 0.9 1")) for c in worlds if c["condition"]]
    unreachable = [c["errors"]["infonce 1"] / c["errors"]["infonce 2"] for c in worlds if _never(c)]
    report.claims = [
        KERNEL.judge(fmean(errors), mean_std(errors, digits=3)),
        OFFSET.judge(fmean(offsets), mean_std(offsets, digits=3)),
        AGREE.judge(fmean(agreement), mean_std(agreement, digits=3)),
        LOSSY.judge(trend, f"{trend:.2f}"),
        CONDITION.judge(max(met, default=math.nan), f"{max(met):.1e}" if met else "not run"),
        UNREACHABLE.judge(min(unreachable, default=math.nan), f"{min(unreachable):.0f}" if unreachable else "not run"),
    ]
    shuffled = mean_std(_last(groups["InfoNCE, pairs shuffled"], "errors"), digits=2)
    report.headline(
        f"After {config.steps} steps the kernel of InfoNCE differs from K_PMI, up to a constant, by "
        f"{mean_std(errors, digits=3)} of its standard deviation; two modalities agree with CKA "
        f"{mean_std(agreement, digits=3)}. With shuffled pairs the error stays at {shuffled}.",
        [
            Fact(label="Error against K_PMI", value=mean_std(errors, digits=3), detail=f"{2 * len(main)} learners"),
            Fact(label="CKA of two modalities", value=mean_std(agreement, digits=3), detail=f"{len(main)} pairs"),
            Fact(label="Rank correlation with bits lost", value=f"{trend:.2f}", detail=f"{len(merged)} channels"),
        ],
    )
    _learning(report, config, groups)
    _losing(report, config, blurred)
    _worlds(report, worlds)
    report.section(
        "What this does not show",
        "Vectors here are free: one for every symbol, wide enough for any kernel. Networks generalise over symbols and "
        "have priors of their own. The world is small and stationary, and every event is seen thousands of times.",
    )
    report.results = {"trained": trained, "blurred": blurred, "worlds": worlds}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _never(cell: dict[str, Any]) -> bool:
    return bool(cell["smallest_offset"] == math.inf)


def _last(cells: list[dict[str, Any]], key: str) -> list[float]:
    return [float(one[-1]) for cell in cells for one in cell[key]]


def _series(
    label: str, x: Sequence[float], runs: Sequence[Sequence[float]], color: int, dashed: bool = False
) -> Series:
    from unrolled.report import Series

    means = [fmean(values) for values in zip(*runs, strict=True)]
    error = [stdev(values) for values in zip(*runs, strict=True)] if len(runs) > 1 else None
    return Series(label=label, x=x, y=means, error=error, color=color, dashed=dashed)


def _learning(report: Report, config: Config, groups: dict[str, list[dict[str, Any]]]) -> None:
    from unrolled.report import LineChart, mean_std

    curves, agree = [], []
    for color, (name, cells) in enumerate(groups.items()):
        curves.append(
            _series(name, cells[0]["looks"], [one for c in cells for one in c["errors"]], color, cells[0]["shuffled"])
        )
        runs = [[point["cka"] for point in c["agreement"]] for c in cells]
        agree.append(_series(name, cells[0]["looks"], runs, color, cells[0]["shuffled"]))
    rows = [
        [
            name, when, mean_std([one[i] for c in cells for one in c["errors"]], digits=3),
            mean_std([one[i] for c in cells for one in c["offsets"]], digits=2),
            *(mean_std([c["agreement"][i][key] for c in cells], digits=3) for key in ("cka", "knn")),
        ]
        for name, cells in groups.items()
        for when, i in (("untrained", 0), (f"{config.steps} steps", -1))
    ]  # fmt: skip
    report.section(
        "Learning",
        f"{config.events} events on a ring, {config.batch_size} pairs a step, vectors of {config.dim} numbers, "
        f"{2 * len(config.seeds)} learners a row, half of them in each modality. The error is the root mean square of "
        "what is left of f(a)^T f(b) - K_PMI after a constant, weighted by P(a) P(b), as a share of K_PMI's standard "
        "deviation: a constant kernel has 1.",
    ).figure(
        [
            LineChart(title="error against K_PMI", x_label="training step", series=curves, log_y=True),
            LineChart(title="CKA of two modalities", x_label="training step", series=agree),
        ],
        name="learning",
        caption="Mean over learners; bars are one standard deviation.",
    ).table(
        ["loss", "training", "error", "constant", "CKA", f"mutual {config.neighbours}-NN"],
        rows,
        caption="Mean and standard deviation over learners (error, constant) or pairs of modalities. By chance mutual "
        f"{config.neighbours}-NN is {config.neighbours / (config.events - 1):.2f} and unbiased CKA 0.",
    )


def _losing(report: Report, config: Config, blurred: list[dict[str, Any]]) -> None:
    from unrolled.report import LineChart, mean_std

    series: list[Series] = []
    rows = []
    for color, (kind, label) in enumerate((("merge", "events merged"), ("noise", "random symbols"))):
        levels = dict.fromkeys(c["level"] for c in blurred if c["kind"] == kind)
        cells = [[c for c in blurred if c["kind"] == kind and c["level"] == level] for level in levels]
        bits = [fmean(c["bits"] for c in group) for group in cells]
        for key, name, dashed in (("cka", label, False), ("expected_cka", f"{label}, theory", True)):
            runs = list(zip(*([c[key] for c in group] for group in cells), strict=True))
            series.append(_series(name, bits, runs, color, dashed))
        rows += [
            [
                f"{level:g} symbols" if kind == "merge" else f"{100 * level:g} % random",
                *(mean_std([c[key] for c in group], digits=2) for key in ("bits", "cka", "expected_cka", "knn")),
            ]
            for level, group in zip(levels, cells, strict=True)
        ]
    report.section(
        "When observation loses something",
        "One modality observes bijectively, the other merges events at random or shows a wrong symbol now and then. "
        "Both are trained to the end (expected InfoNCE, no sampling). Bits lost are H(event | symbol); an event's "
        "vector is the mean over its symbols'. Theory is the CKA of the two modalities' own K_PMI.",
    ).figure(
        LineChart(title="CKA with the bijective modality", x_label="bits lost", series=series, y_range=(-0.1, 1.05)),
        name="lossy",
        caption=f"Mean over {len(config.seeds)} seeds. Bits alone do not decide: merged events get one vector however "
        "far apart they are, while noise blurs all events alike, which scales the kernel more than it bends it.",
    ).table(["channel", "bits lost", "CKA", "CKA, theory", f"mutual {config.neighbours}-NN"], rows)


def _worlds(report: Report, worlds: list[dict[str, Any]]) -> None:
    names = [f"{loss} {n}" for loss in ("infonce", "nce 0.9", "nce 0.5", "nce 0.1") for n in (1, 2)]
    report.section(
        "When K_PMI is not positive semi-definite",
        "f(a)^T f(b) with one encoder is positive semi-definite. K_PMI + c must be so as well, for the constant c that "
        "the loss ends at: any for InfoNCE, log(p / (1 - p)) for binary NCE, which is negative as soon as there are "
        "more false pairs than true ones. Otherwise one encoder ends at another kernel, while two, f(a)^T g(b), end at "
        "K_PMI all the same.",
    ).table(
        ["world", "paper's condition", "smallest c", *(name.replace("infonce", "InfoNCE") for name in names)],
        [
            [
                name if not note else f"{name} ({note})",
                "holds" if cell["condition"] else "fails",
                "none" if _never(cell) else f"{cell['smallest_offset']:.2f}",
                *(f"{cell['errors'][key]:.1e}" for key in names),
            ]
            for (name, _, note), cell in zip(WORLDS, worlds, strict=True)
        ],
        caption="Errors against K_PMI after unlimited training, one seed; the last digit of a column's name counts "
        "encoders, the number before it is p. Smallest c is the least constant that makes K_PMI + c positive "
        "semi-definite. The paper's condition is sufficient, not necessary: most worlds that fail it are learnt.",
    )
