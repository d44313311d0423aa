"""The report of `platonic-implications`: the claims, the numbers behind them, and their controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unrolled.studies.platonic.implications.cells import (
    KINDS,
    PAIRS,
    ImplicationsConfig,
    Joined,
    Networks,
    Private,
    Translated,
)
from unrolled.studies.platonic.implications.claims import apart, at_the_end, gain, saved
from unrolled.studies.results import Results, Values, line

if TYPE_CHECKING:
    from unrolled.report import Report


def report(report: Report, config: ImplicationsConfig, results: Results[Any]) -> None:
    """The claims, the numbers behind them, and their controls."""
    from unrolled.report import Fact

    first = results.of(Translated, steps=config.training_steps[0]).values("matched")
    matched, joint, specialists = at_the_end(results).values("matched"), gain(results, config), apart(results, config)
    bits, random = (f"{saved(at_the_end(results), by):.2f}" for by in ("bits", "shuffled"))
    report.headline(
        f"Without a single pair, {100 * matched:.0f} % of {config.events} events are matched between two modalities by "
        f"their kernels alone ({100 * first:.0f} % after {config.training_steps[0]} steps, "
        f"{100 / config.events:.0f} % by chance), and the match saves {bits} bits of prediction, one at random "
        f"{random}.",
        [
            Fact(label="Matched without pairs", value=f"{matched:.2f}", detail=matched.count),
            Fact(label="Gain of joint training", value=f"{joint:.2f}", detail="unbiased CKA"),
            Fact(label="Specialists are further by", value=f"{specialists:.2f}", detail="mutual 10-NN"),
        ],
    )
    _translation(report, config, results)
    _joint(report, config, results)
    _exceptions(report, config, results)
    report.section(
        "What this does not show",
        "Matching is a quadratic assignment over a handful of events or classes, whose frequencies differ; it does not "
        "scale to single images, and symmetric worlds cannot be matched at all. Symbols are known to be those of a "
        "bijective observation. What large models need for translation without pairs is another question.",
    )


def _translation(report: Report, config: ImplicationsConfig, results: Results[Any]) -> None:
    networks = results.of(Networks)
    names = ("unconditional", "own", "shuffled", "least")
    unconditional, same_kernel, shuffled, least = (f"{at_the_end(results).values(name):.2f}" for name in names)
    rows = []
    for steps in (*config.training_steps, None):
        of = results.of(Translated, steps=steps)
        numbers = (f"{of.values(key):.2f}" for key in ("matched", "retrieved", "bits"))
        rows.append(["unlimited" if steps is None else str(steps), *numbers])
    report.section(
        "Translation without pairs",
        "Two learners see the same kind of world, each through symbols of its own. Their kernels are matched as "
        "matrices, without a pair; the matching then gives a linear map between vectors. Bits are the cross-entropy of "
        "the second event of a pair in one modality, predicted by the kernel of the other across the match. A wrong "
        "match may save bits too: it keeps the diagonal of the kernel, by which an event goes with itself.",
    ).table(
        ["training steps", "matched", "retrieved by the map", "bits"],
        rows,
        caption=f"Mean and standard deviation over {len(config.seeds)} seeds; by chance {1 / config.events:.2f} are "
        f"matched. Bits: unconditional {unconditional}; own kernel {same_kernel}; the other's kernel with a shuffled "
        f"match {shuffled}; least possible {least}.",
    ).table(
        ["networks on digits", "classes matched without pairs"],
        [[kind, f"{networks.values(f'matched.{kind}'):.2f}"] for kind in KINDS],
        caption="Ten class means of two networks, matched by their inner products; by chance 0.10. Untrained networks, "
        "which still pass on some of the geometry of pixels, are the control.",
    )


def _joint(report: Report, config: ImplicationsConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    def at(key: str) -> list[Values]:
        return [results.of(Joined, symbols=symbols).values(key) for symbols in config.symbols]

    lines = {"one modality": at("one"), "the other": at("other"), "together": at("together")}
    series = [
        line(label, config.symbols, values, color=place, dashed=label != "together")
        for place, (label, values) in enumerate(lines.items())
    ]
    report.section(
        "Joint training",
        f"Each modality shows {config.events} events as fewer symbols, merging different ones. Together they tell more "
        "events apart. CKA (unbiased) is with a learner that sees the events themselves; all are trained to the end.",
    ).figure(
        LineChart(title="CKA with the events' kernel", x_label="symbols of each modality", series=series),
        name="joint",
        caption=f"Mean over {len(config.seeds)} seeds; bars are one standard deviation.",
    ).table(
        ["symbols", *lines],
        [
            [str(symbols), *(f"{values[place]:.2f}" for values in lines.values())]
            for place, symbols in enumerate(config.symbols)
        ],
    )


def _exceptions(report: Report, config: ImplicationsConfig, results: Results[Any]) -> None:
    networks = results.of(Networks)
    rows = []
    for level in config.private:
        of = results.of(Private, persistence=level)
        rows.append([f"{level:g}", *(f"{of.values(key):.2f}" for key in ("bits", "cka"))])
    shared = results.of(Private, persistence=config.private[0]).values("shared_bits")
    report.section(
        "Exceptions",
        "What only one modality sees: besides the event it shows one of three private states, which persist more or "
        "less. Specialists: networks taught one halving of the ten digits instead of all classes.",
    ).table(
        ["persistence", "private bits", "CKA with the other modality"],
        rows,
        caption=f"Events share {shared:.2f} bits within a pair. Persistence of 1 is run as 0.99.",
    ).table(
        ["pair", "mutual 10-NN"],
        [[pair, f"{networks.values(f'alignment.{pair}'):.3f}"] for pair in map(" and ".join, PAIRS)],
        caption=f"On 599 held-out digits, {len(config.seeds)} seeds; by chance {10 / 598:.3f}.",
    )
