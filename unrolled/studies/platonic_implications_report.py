"""The report of `platonic-implications`: five claims, the numbers behind them, and their controls."""

from __future__ import annotations

import time
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unrolled.studies.platonic_implications import (
    CONDITIONAL,
    JOINT,
    PRIVATE,
    SPECIALIST,
    TRANSLATION,
    Cells,
    Config,
    means_of,
)

if TYPE_CHECKING:
    from unrolled.report import Report


def make_report(config: Config, cells: dict[str, Cells], began: float) -> Report:
    """The report from all cells."""
    from scipy.stats import spearmanr

    from unrolled.report import Fact, Provenance, Report, mean_std

    translation, joint, private, networks = (cells[part] for part in ("translation", "joint", "private", "networks"))
    matched = means_of(translation, "matched", -1)
    gains = [row["together"] - max(row["one"], row["other"]) for cell in joint for row in cell["rows"]]
    saved = [cell["unconditional"] - cell["rows"][-1]["bits"] for cell in translation]
    apart = [_apart(cell) for cell in networks]
    points = [(row["bits"], row["cka"]) for cell in private for row in cell["rows"]]
    trend = float(spearmanr(*zip(*points, strict=True)).statistic)
    report = Report(
        "What convergence allows, and where it ends",
        question="Can representations be translated without pairs, do modalities help each other, and what breaks it?",
    )
    report.claims = [
        TRANSLATION.judge(fmean(matched), f"{mean_std(matched, digits=2)}; chance {1 / config.events:.2f}"),
        JOINT.judge(fmean(gains), mean_std(gains, digits=2)),
        CONDITIONAL.judge(fmean(saved), f"{mean_std(saved, digits=2)} bits"),
        SPECIALIST.judge(fmean(apart), mean_std(apart, digits=3)),
        PRIVATE.judge(trend, f"{trend:.2f}"),
    ]
    untrained = means_of(translation, "matched", 0)
    report.headline(
        f"Without a single pair, {100 * fmean(matched):.0f} % of {config.events} events are matched between two "
        f"modalities by their kernels alone ({100 * fmean(untrained):.0f} % after {config.training_steps[0]} steps, "
        f"{100 / config.events:.0f} % by chance), and the match saves {fmean(saved):.2f} bits of prediction.",
        [
            Fact(label="Matched without pairs", value=mean_std(matched, digits=2), detail=f"{len(matched)} seeds"),
            Fact(label="Gain of joint training", value=mean_std(gains, digits=2), detail="unbiased CKA"),
            Fact(label="Specialists are further by", value=mean_std(apart, digits=2), detail="mutual 10-NN"),
        ],
    )
    _translation(report, config, translation, networks)
    _joint(report, config, joint)
    _exceptions(report, config, private, networks)
    report.section(
        "What this does not show",
        "Matching is a quadratic assignment over a handful of events or classes, whose frequencies differ; it does not "
        "scale to single images, and symmetric worlds cannot be matched at all. Symbols are known to be those of a "
        "bijective observation. What large models need for translation without pairs is another question.",
    )
    report.results = dict(cells)
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def _apart(cell: dict[str, Any]) -> float:
    found = cell["alignment"]
    return float(found["generalist and generalist"] - found["generalist and specialist"])


def _translation(report: Report, config: Config, cells: Cells, networks: Cells) -> None:
    from unrolled.report import mean_std

    def bits(key: str) -> str:
        return mean_std([cell[key] for cell in cells], digits=2)

    rows = [
        [
            "unlimited" if row["steps"] is None else str(row["steps"]),
            *(mean_std(means_of(cells, key, i), digits=2) for key in ("matched", "retrieved", "bits")),
        ]
        for i, row in enumerate(cells[0]["rows"])
    ]
    report.section(
        "Translation without pairs",
        "Two learners see the same kind of world, each through symbols of its own. Their kernels are matched as "
        "matrices, without a pair; the matching then gives a linear map between vectors. Bits are the cross-entropy of "
        "the second event of a pair in one modality, predicted by the kernel of the other across the match.",
    ).table(
        ["training steps", "matched", "retrieved by the map", "bits"],
        rows,
        caption=f"Mean and standard deviation over {len(cells)} seeds; by chance {1 / config.events:.2f} are matched. "
        f"Bits: unconditional {bits('unconditional')}; own kernel {bits('own')}; the other's kernel with a shuffled "
        f"match {bits('shuffled')}; least possible {bits('least')}.",
    ).table(
        ["networks on digits", "classes matched without pairs"],
        [[kind, mean_std([c["matched"][kind] for c in networks], digits=2)] for kind in networks[0]["matched"]],
        caption="Ten class means of two networks, matched by their inner products; by chance 0.10. Untrained networks, "
        "which still pass on some of the geometry of pixels, are the control.",
    )


def _joint(report: Report, config: Config, cells: Cells) -> None:
    from unrolled.report import LineChart, Series, mean_std

    keys = (("one", "one modality"), ("other", "the other"), ("together", "together"))
    counts = [row["symbols"] for row in cells[0]["rows"]]
    values = {key: [means_of(cells, key, i) for i in range(len(counts))] for key, _ in keys}
    report.section(
        "Joint training",
        f"Each modality shows {config.events} events as fewer symbols, merging different ones. Together they tell more "
        "events apart. CKA (unbiased) is with a learner that sees the events themselves; all are trained to the end.",
    ).figure(
        LineChart(
            title="CKA with the events' kernel",
            x_label="symbols of each modality",
            series=[
                Series(label=label, x=counts, y=[fmean(v) for v in values[key]], color=i, dashed=key != "together")
                for i, (key, label) in enumerate(keys)
            ],
        ),
        name="joint",
        caption=f"Mean over {len(cells)} seeds.",
    ).table(
        ["symbols", *(label for _, label in keys)],
        [[str(n), *(mean_std(values[key][i], digits=2) for key, _ in keys)] for i, n in enumerate(counts)],
    )


def _exceptions(report: Report, config: Config, private: Cells, networks: Cells) -> None:
    from unrolled.report import mean_std

    report.section(
        "Exceptions",
        "What only one modality sees: besides the event it shows one of three private states, which persist more or "
        "less. Specialists: networks taught one halving of the ten digits instead of all classes.",
    ).table(
        ["persistence", "private bits", "CKA with the other modality"],
        [
            [f"{row['persistence']:g}", *(mean_std(means_of(private, key, i), digits=2) for key in ("bits", "cka"))]
            for i, row in enumerate(private[0]["rows"])
        ],
        caption=f"Events share {mean_std([c['shared_bits'] for c in private], digits=2)} bits within a pair. "
        "Persistence of 1 is run as 0.99.",
    ).table(
        ["pair", "mutual 10-NN"],
        [[pair, mean_std([c["alignment"][pair] for c in networks], digits=3)] for pair in networks[0]["alignment"]],
        caption=f"On 599 held-out digits, {len(networks)} seeds; by chance {10 / 598:.3f}.",
    )
