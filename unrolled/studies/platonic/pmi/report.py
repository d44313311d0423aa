"""The report of `platonic-pmi`: kernels that are learnt, what a lossy modality does, where one encoder fails."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from unrolled.studies.platonic.pmi.cells import GROUPS, Blurred, PmiConfig, Reached, channels, looks, worlds
from unrolled.studies.platonic.pmi.claims import agreement, learners, trend
from unrolled.studies.results import NOT_RUN, Results, Values, line

if TYPE_CHECKING:
    from unrolled.report import Report


def report(report: Report, config: PmiConfig, results: Results[Any]) -> None:
    """The kernels that are learnt, what blurring one modality does, and where one encoder cannot follow."""
    from unrolled.report import Fact

    errors, agree = learners(results, "InfoNCE", "errors"), agreement(results, "InfoNCE")
    falls, merged = trend(results, config), results.of(Blurred, kind="merge")
    report.headline(
        f"After {config.steps} steps the kernel of InfoNCE differs from K_PMI, up to a constant, by {errors:.3f} of "
        f"its standard deviation; two modalities agree with CKA {agree:.3f}. With shuffled pairs the error stays at "
        f"{learners(results, 'InfoNCE, pairs shuffled', 'errors'):.2f}.",
        [
            Fact(label="Error against K_PMI", value=f"{errors:.3f}", detail=errors.count),
            Fact(label="CKA of two modalities", value=f"{agree:.3f}", detail=f"{len(agree)} pairs"),
            Fact(label="Rank correlation with bits lost", value=f"{falls:.2f}", detail=f"{len(merged)} channels"),
        ],
    )
    _learning(report, config, results)
    _losing(report, config, results)
    _encoders(report, config, results)
    report.section(
        "What this does not show",
        "Vectors here are free: one for every symbol, wide enough for any kernel. Networks generalise over symbols and "
        "have priors of their own. The world is small and stationary, and every event is seen thousands of times.",
    )


def _learning(report: Report, config: PmiConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    x = looks(config.steps, config.points)
    errors, agree, rows = [], [], []
    for place, (group, which) in enumerate(GROUPS.items()):
        draw = partial(line, group, x, color=place, dashed=which["shuffled"])
        errors.append(draw([learners(results, group, "errors", i) for i in range(len(x))]))
        agree.append(draw([agreement(results, group, "cka", i) for i in range(len(x))]))
        for when, look in (("untrained", 0), (f"{config.steps} steps", -1)):
            error, constant = (learners(results, group, key, look) for key in ("errors", "offsets"))
            cka, knn = (agreement(results, group, key, look) for key in ("cka", "knn"))
            rows.append([group, when, f"{error:.3f}", f"{constant:.2f}", f"{cka:.3f}", f"{knn:.3f}"])
    report.section(
        "Learning",
        f"{config.events} events on a ring, {config.batch_size} pairs a step, vectors of {config.dim} numbers, "
        f"{2 * len(config.seeds)} learners a row, half of them in each modality. The error is the root mean square of "
        "what is left of f(a)^T f(b) - K_PMI after a constant, weighted by P(a) P(b), as a share of K_PMI's standard "
        "deviation: a constant kernel has 1.",
    ).figure(
        [
            LineChart(title="error against K_PMI", x_label="training step", series=errors, log_y=True),
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


def _losing(report: Report, config: PmiConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    keys = ("bits", "cka", "expected_cka", "knn")
    numbers: dict[str, list[list[Values]]] = {"merge": [], "noise": []}
    rows = []
    for kind, level in channels(config):
        of = results.of(Blurred, kind=kind, level=level)
        numbers[kind].append([of.values(key) for key in keys])
        name = f"{level:g} symbols" if kind == "merge" else f"{100 * level:g} % random"
        rows.append([name, *(f"{values:.2f}" for values in numbers[kind][-1])])
    series = []
    for place, (label, every) in enumerate(zip(("events merged", "random symbols"), numbers.values(), strict=True)):
        measured = [values for values in every if values[0]]
        if not measured:
            continue
        bits, cka, expected, _ = zip(*measured, strict=True)
        x = [values.mean for values in bits]
        series.append(line(label, x, cka, color=place))
        series.append(line(f"{label}, theory", x, expected, color=place, dashed=True))
    section = report.section(
        "When observation loses something",
        "One modality observes bijectively, the other merges events at random or shows a wrong symbol now and then. "
        "Both are trained to the end (expected InfoNCE, no sampling). Bits lost are H(event | symbol); an event's "
        "vector is the mean over its symbols'. Theory is the CKA of the two modalities' own K_PMI.",
    )
    if series:
        section.figure(
            LineChart(
                title="CKA with the bijective modality", x_label="bits lost", series=series, y_range=(-0.1, 1.05)
            ),
            name="lossy",
            caption=f"Mean over {len(config.seeds)} seeds. Bits alone do not decide: merged events get one vector "
            "however far apart they are, while noise blurs all events alike, which scales the kernel more than it "
            "bends it.",
        )
    section.table(["channel", "bits lost", "CKA", "CKA, theory", f"mutual {config.neighbours}-NN"], rows)


def _encoders(report: Report, config: PmiConfig, results: Results[Any]) -> None:
    names = [f"{loss} {n}" for loss in ("infonce", "nce 0.9", "nce 0.5", "nce 0.1") for n in (1, 2)]
    rows = []
    for name, world in worlds(config).items():
        of = results.of(Reached, **vars(world))
        condition = {True: "holds", False: "fails", None: NOT_RUN}[of.first("condition")]
        smallest = of.values("smallest_offset")
        errors = of.first("errors", {})
        row = [name, condition, "none" if math.inf in smallest else f"{smallest:.2f}"]
        rows.append([*row, *(f"{errors[name]:.1e}" if errors else NOT_RUN for name in names)])
    report.section(
        "When K_PMI is not positive semi-definite",
        "f(a)^T f(b) with one encoder is positive semi-definite. K_PMI + c must be so as well, for the constant c that "
        "the loss ends at: any for InfoNCE, log(p / (1 - p)) for binary NCE, which is negative as soon as there are "
        "more false pairs than true ones. Otherwise one encoder ends at another kernel, while two, f(a)^T g(b), end at "
        "K_PMI all the same.",
    ).table(
        ["world", "paper's condition", "smallest c", *(name.replace("infonce", "InfoNCE") for name in names)],
        rows,
        caption="Errors against K_PMI after unlimited training, one seed; the last digit of a column's name counts "
        "encoders, the number before it is p. Smallest c is the least constant that makes K_PMI + c positive "
        "semi-definite. The paper's condition is sufficient, not necessary: most worlds that fail it are learnt.",
    )
