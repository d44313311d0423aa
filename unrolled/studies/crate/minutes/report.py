"""The page of `crate-minutes`: accuracy by core-minutes, the trials behind it, and training curves over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from unrolled.studies.crate.longer import STAYS, TIMES, Length, error_after, exponent
from unrolled.studies.crate.minutes.cells import (
    BATCH,
    FAMILIES,
    HELD_OUT,
    Data,
    MinutesConfig,
    Scored,
    Trial,
    trial_minutes,
)
from unrolled.studies.crate.minutes.claims import accuracy, passes
from unrolled.studies.networks import NAMES
from unrolled.studies.results import NOT_RUN, Estimate, Results, Values, line

if TYPE_CHECKING:
    from unrolled.report import Report

_TESTED: Mapping[Data, int] = MappingProxyType({"cifar10": 10_000, "digits": 357})


def report(report: Report, config: MinutesConfig, results: Results[Any]) -> None:
    """Headline, accuracies, trials, curves, limits."""
    _headline(report, config, results)
    _accuracies(report, config, results)
    _trials(report, config, results)
    _curves(report, config, results)
    _longer(report, config, results)
    report.section(
        "What this does not show",
        f"Networks of {_sizes(results)} parameters on small images, one recipe in which only the rate was tuned, "
        f"with {len(config.rates)} trials for every family alike. "
        + ("One seed has no error bar. " if _alone(config, results) else "")
        + "Minutes are images divided by the pace of one processor, measured once: on another one, or on a GPU, "
        "the same networks stand at other times, and wide products gain more there than narrow ones. Minutes do not "
        "depend on the threads that a network was trained with, which change its rounding. The images are "
        "CIFAR-10 re-encoded as JPEG at quality 75, which costs trained networks about 10 points.",
    )


def _headline(report: Report, config: MinutesConfig, results: Results[Any]) -> None:
    """Who is best after every length that two networks have had (one, where no two have), and what ISTA adds."""
    from unrolled.report import Fact

    by_minutes = {
        minutes: {each: values for each in config.families if (values := accuracy(results, each, minutes))}
        for minutes in sorted(config.minutes)
    }
    compared = min(2, max(map(len, by_minutes.values())))
    by_minutes = {minutes: scores for minutes, scores in by_minutes.items() if len(scores) >= compared}
    if not compared:
        report.headline(f"No network is kept: accuracies are {NOT_RUN}.")
        return
    best = {minutes: max(scores, key=lambda each: scores[each].mean) for minutes, scores in by_minutes.items()}
    what = "Most accurate" if compared > 1 else "Accuracy"
    sentence = f"{what} on {NAMES[config.data]}: " + "; ".join(
        f"after {minutes:g} core-minutes {_best(scores, best[minutes], _TESTED[config.data])}"
        for minutes, scores in by_minutes.items()
    )
    if any(len(values) == 1 for scores in by_minutes.values() for values in scores.values()):
        sentence += ". Where no deviation stands there is one seed"
    added = {minutes: _ista(scores) for minutes, scores in by_minutes.items() if "attention-only" in config.families}
    if any(added.values()):
        sentence += ". ISTA adds " + ", ".join(
            f"{values:+.1f} points after {minutes:g}"
            if values
            else f"after {minutes:g} {' and '.join(_lacking(by_minutes[minutes]))} is {NOT_RUN}"
            for minutes, values in added.items()
        )
    report.headline(
        sentence + ".",
        [
            Fact(
                label=f"{FAMILIES[best[minutes]].words}, {minutes:g} minutes",
                value=f"{scores[best[minutes]]:.1f} %",
                detail=f"most accurate of {len(scores)}, " * (compared > 1) + scores[best[minutes]].count,
            )
            for minutes, scores in by_minutes.items()
        ],
    )


def _best(scores: Mapping[str, Values], best: str, tested: int) -> str:
    """The most accurate and its accuracy, with those that are not told apart from it."""
    near = [FAMILIES[each].words for each in scores if each != best and not _apart(scores[best], scores[each], tested)]
    beside = f" (of {len(scores)}" + (f"; not told apart: {', '.join(near)}" if near else "") + ")"
    return f"{FAMILIES[best].words} with {scores[best]:.1f} %" + (beside if len(scores) > 1 else "")


def _apart(higher: Values, lower: Values, tested: int) -> bool:
    """Whether accuracies in per cent differ, at 95 %: over seeds where both have several, else over test images."""
    difference = higher - lower
    if (interval := difference.interval()) is not None:
        return interval[0] > 0
    right = higher.mean / 100
    return higher.mean - lower.mean > 100 * 1.96 * math.sqrt(2 * right * (1 - right) / tested)


def _lacking(scores: Mapping[str, Values]) -> list[str]:
    """Which of the two that say what ISTA adds were not run."""
    return [FAMILIES[family].words for family in ("crate", "attention-only") if family not in scores]


def _ista(scores: Mapping[str, Values]) -> Values:
    """What CRATE has more than attention alone, by seed."""
    return scores.get("crate", Values()) - scores.get("attention-only", Values())


def _accuracies(report: Report, config: MinutesConfig, results: Results[Any]) -> None:
    lengths = sorted(config.minutes)
    table = []
    for family in config.families:
        rows = results.of(Scored, family=family)
        table.append(
            [
                FAMILIES[family].words,
                f"{rows.first('parameters'):,}" if rows else NOT_RUN,
                f"{rows.first('flops') / 1e6:.1f}" if rows else NOT_RUN,
                f"{FAMILIES[family].pace:,}",
                *(f"{accuracy(results, family, minutes):.1f}" for minutes in lengths),
            ]
        )
    section = report.section(
        "Accuracy by core-minutes",
        "Per cent of all test images, mean and standard deviation over seeds. Every network begins with the same kind "
        f"of convolutions and is trained by Muon on batches of {BATCH}; minutes are whole epochs at the pace of the "
        "network, one thread in fp32. The summary tells two apart by an interval over seeds where both have several, "
        "else by one over the test images.",
    ).table(
        ["network", "parameters", "MFLOPs", "images a minute", *(f"{minutes:g} min" for minutes in lengths)],
        table,
        caption="MFLOPs of one image's forward pass, two operations a multiply-add."
        + (
            " The pace of the ViT with CCT's pooling is the ViT's times 0.97, their ratio on a Xeon with AMX."
            if "cct" in config.families
            else ""
        ),
    )
    if len(lengths) > 1:
        from unrolled.report import LineChart

        lines = [
            line(FAMILIES[family].words, lengths, [accuracy(results, family, minutes) for minutes in lengths])
            for family in config.families
        ]
        section.figure(
            [LineChart(title="test accuracy, %", x_label="core-minutes", series=lines, log_x=True)],
            name="minutes",
            caption="Bars are one standard deviation over seeds where there are several.",
        )


def _trials(report: Report, config: MinutesConfig, results: Results[Any]) -> None:
    if not results.of(Trial):
        return
    table, ends = [], []
    for family in config.families:
        trials = [results.of(Trial, family=family, rate=rate) for rate in config.rates]
        scores = [_trial(100 * rows.values("accuracy"), done=bool(rows)) for rows in trials]
        chosen = results.of(Scored, family=family).first("rate")
        count = str(passes(config, family))
        table.append([FAMILIES[family].words, count, *scores, f"{chosen:g}" if chosen else NOT_RUN])
        if len(config.rates) > 1 and chosen in (min(config.rates), max(config.rates)):
            ends.append(f"{FAMILIES[family].words} ({chosen:g})")
    took = sorted(trial_minutes(family, config.data, passes(config, family)) for family in config.families)
    between = f"{took[0]:.2g}" if len(took) == 1 else f"{took[0]:.2g} to {took[-1]:.2g}"
    report.section(
        "How the rates were chosen",
        f"Per cent of the {100 * HELD_OUT:g} % of the training images held out, one seed; the best goes on to the "
        f"test. Trials are of as many whole passes over the others as {config.trial:g} core-minutes have over all "
        f"images, to the nearest: {between} core-minutes by the paces above.",
    ).table(
        ["network", "passes", *(f"rate {rate:g}" for rate in config.rates), "chosen"],
        table,
        caption=f"At an end of what was tried, beyond which a better rate may lie: {', '.join(ends)}." * bool(ends),
    )


def _trial(values: Values, *, done: bool) -> str:
    return "diverged" if done and not values else f"{values:.1f}"


def _curves(report: Report, config: MinutesConfig, results: Results[Any]) -> None:
    """Of every length that any network was trained for, the longest first."""
    from unrolled.report import LineChart

    panels = []
    for minutes in sorted(config.minutes, reverse=True):
        lines = []
        for place, family in enumerate(config.families):
            if rows := results.of(Scored, family=family, minutes=minutes):
                epoch = minutes / rows[0].cell.epochs
                x = [epoch * point["epoch"] for point in rows.first("curve")]
                lines.append(rows.curve(FAMILIES[family].words, "curve", "loss", x=x, color=place))
        if lines:
            title = f"training loss of {minutes:g} minutes, nats"
            panels.append(LineChart(title=title, x_label="core-minutes", series=lines))
    if panels:
        report.section("During training").figure(
            panels,
            name="training",
            caption="Mean of the augmented batches since the point before, with smoothed labels.",
        )


def _longer(report: Report, config: MinutesConfig, results: Results[Any]) -> None:
    """Extrapolations where the longer of two lengths was the better one, and what became of them."""
    rows, checked = [], []
    for family in config.families:
        known = sorted(_lengths(config, results, family).items())
        for (before, short), (minutes, long), *after in (known[place:] for place in range(len(known) - 1)):
            if not (short.seen < long.seen and 0 < long.error < short.error):
                continue
            words = FAMILIES[family].words
            lengths = [
                f"{before:.3g} min: {100 * (1 - short.error):.1f}",
                f"{minutes:g} min: {100 * (1 - long.error):.1f}",
            ]
            seen = after[0][1].seen if after else TIMES * long.seen
            expected = [f"{_accuracy(error_after(short, long, seen, stays)):.1f}" for stays in STAYS.values()]
            if not after:
                rows.append([words, *lengths, f"{-exponent(short, long):.2f}", f"{TIMES * minutes:g} min", *expected])
            elif minutes in config.minutes:
                then, measured = after[0]
                checked.append([words, *lengths, f"{then:g} min: {100 * (1 - measured.error):.1f}", *expected])
    floors = [f"floor {words}" for words in STAYS]
    if rows:
        report.section(
            "What longer training would likely change",
            f"This is extrapolated to {TIMES} times the longest training of each network from its two longest lengths "
            "that are known, of which minutes that were not asked for are those of the trial at the rate that was "
            "chosen, on held-out images; the power says how errors fall between them with the images seen. Accuracy in "
            "per cent if that goes on, and if none, half or three quarters of the errors made now stay for good (the "
            "floor).",
        ).table(
            ["network", "shorter", "longer", "power", "after", *floors],
            rows,
            caption="95 % by sampling the scored images alone. Two lengths fix a power and cannot show that the curve "
            "bends; the first column of accuracies is the most that is likely, since the same images come back four "
            "times as often. Another seed, and a rate tuned for the longer run, are in none.",
        )
    if checked:
        report.section(
            "What became of such an extrapolation",
            "The same from two lengths to a third that was trained: what was expected by floor, and what was measured.",
        ).table(
            ["network", "shorter", "longer", "measured", *floors],
            checked,
            caption="Intervals are of what was expected; what was measured has a sampling error of its own.",
        )


def _lengths(config: MinutesConfig, results: Results[Any], family: str) -> dict[float, Length]:
    """The accuracies of a family by minutes: of its trial at the rate that was chosen, and of what was tested."""
    known = {}
    for minutes in config.minutes:
        if tested := results.of(Scored, family=family, minutes=minutes):
            right = tested.values("accuracy")
            known[minutes] = _length(tested.first("images"), right.mean, _TESTED[config.data])  # the same of all seeds
    if known:
        longest = results.of(Scored, family=family, minutes=max(known))
        tried = results.of(Trial, family=family, rate=longest.first("rate"))
        if tried:
            epoch = longest.first("images") / longest[0].cell.epochs
            seen = epoch * (1 - HELD_OUT) * tried[0].cell.epochs
            held_out = _length(seen, tried.first("accuracy"), round(epoch * HELD_OUT))
            if config.trial not in known:  # what was tested after as long says more
                known[trial_minutes(family, config.data, tried[0].cell.epochs)] = held_out
    return known


def _length(images: float, right: float, scored: int) -> Length:
    """A share of right answers on so many images."""
    return Length(images, 1 - right, math.sqrt(right * (1 - right) / scored))


def _accuracy(error: Estimate) -> Estimate:
    """Per cent of right answers."""
    value, high, low = (100 * (1 - each) for each in (error.value, error.low, error.high))
    return Estimate(value, low, high, error.basis)


def _alone(config: MinutesConfig, results: Results[Any]) -> bool:
    """Whether a network of some length has one seed."""
    return any(len(accuracy(results, family, minutes)) == 1 for family in config.families for minutes in config.minutes)


def _sizes(results: Results[Any]) -> str:
    sizes = sorted(row.result["parameters"] for row in results.of(Scored))
    return f"{sizes[0]:,} to {sizes[-1]:,}" if sizes else "few"
