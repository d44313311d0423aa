"""The words, the table and the page of `unrolled brain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from unrolled.terminal import table

if TYPE_CHECKING:
    from unrolled.alignment import BesidePeople
    from unrolled.commands.brain.places import Place
    from unrolled.report import LineChart, Report, Scatter

Results = Mapping[str, "BesidePeople"]
Places = Mapping[str, "Place"]
_WIDTH = 100  # letters of a line of words
_COLUMNS = ("beside", "best layer", "n", "Spearman", "95 % interval", "untrained", "held out", "ceiling", "chance", "p")
_LIMITS = (
    "A score is of dissimilarities alone: a model may tell the same stimuli apart for other reasons than a brain. 92 "
    "photographs and four people are few, so intervals are wide. The best layer is chosen on the stimuli it is scored "
    "on; p corrects for that, the interval does not, and the held-out score avoids it. A ceiling of groups of people "
    "is higher than one of single people, and one record, as of the monkeys, has none. Places are by score alone: of "
    "models whose intervals overlap neither is ahead for certain."
)


def in_words(model: str, weights: str, results: Results, places: Places) -> str:
    """What came out, before any number stands in a table; a paragraph for each target."""
    random = [f"{model} has random weights: nothing here was learned."] if weights == "random" else []
    paragraphs = [" ".join([*results[key].sentences(), places[key].sentence()]) for key in results]
    return "\n\n".join(fill(each, _WIDTH) for each in [*random, *paragraphs])


def rows_of(results: Results, places: Places) -> list[list[str]]:
    """A row for each target."""
    rows = []
    for key, each in results.items():
        low, high = each.interval
        ceiling = "-" if each.ceiling is None else f"{each.ceiling[0]:.3f} to {each.ceiling[1]:.3f}"
        twins = "-" if each.untrained is None else f"{sum(each.untrained.scores) / len(each.untrained.scores):.3f}"
        rows.append([
            each.what, each.best, str(each.n), f"{each.score:.3f}", f"{low:.2f} to {high:.2f}", twins,
            f"{each.held_out.score:.3f}", ceiling, f"{each.chance:.3f}", f"{each.p:.3f}",
            f"{places[key].rank} of {places[key].of}" if places[key].of > 1 else "-",
        ])  # fmt: skip
    return rows


def table_of(results: Results, places: Places) -> str:
    """Of a terminal: a line for each target."""
    return table([*_COLUMNS, "place"], rows_of(results, places), left=2)


def brain_report(
    model: str, weights: str, results: Results, places: Places, notes: Sequence[str], *, draws: int
) -> Report:
    """The page.

    Args:
        model: by its string.
        weights: where they are from; "random" if they were drawn.
        results: key of a target -> what came out.
        places: the same keys.
        notes: on what was left out.
        draws: resamplings and shufflings.
    """
    from unrolled.report import Fact, Report

    report = Report(f"{model} beside brains and people", question="Does it find alike what they find alike?")
    random = ["This model has random weights: nothing here was learned."] if weights == "random" else []
    report.headline(
        " ".join([*random, *(_lead(each, places[key]) for key, each in results.items())]),
        [
            Fact(
                label=each.what, value=f"{each.score:.3f}",
                detail=f"{each.best}; " + ("no ceiling" if each.ceiling is None
                                          else f"ceiling {each.ceiling[0]:.2f} to {each.ceiling[1]:.2f}"),
            )
            for each in results.values()
        ],
    )  # fmt: skip
    for key, each in results.items():
        _target(report, each, places[key], key)
    columns = [*_COLUMNS, "place"]
    report.section("All of it").table(
        columns, rows_of(results, places),
        caption="Spearman: correlation of all pairs' dissimilarities, mean over people (one minus the correlation of "
        f"features for the model). Interval: 95 %, {draws} resamplings of stimuli and people. Untrained: mean of the "
        "best layers of twins with fresh weights. Held out: the layer is chosen on one half of the stimuli, judged on "
        f"the other. Ceiling: bounds of a perfect model. Chance and p: {draws} shufflings of the stimuli, each with "
        "its own best layer. Place: by score, among the trained models that this project's studies measured."
        + "".join(f" Note: {note}." for note in notes),
    )  # fmt: skip
    report.section("What this does not show", _LIMITS)
    return report


def _lead(each: BesidePeople, place: Place) -> str:
    """One sentence for the top of the page."""
    beside = [f"{max(0.0, each.score) / each.ceiling[0]:.0%} of the ceiling's lower bound"] if each.ceiling else []
    beside += [f"untrained {sum(each.untrained.scores) / len(each.untrained.scores):.3f}"] if each.untrained else []
    beside += [f"place {place.rank} of {place.of}"] if place.of > 1 else []
    return f"{each.best} agrees most with {each.what}: {each.score:.3f} ({'; '.join(beside) or f'p = {each.p:.3f}'})."


def _target(report: Report, each: BesidePeople, place: Place, key: str) -> None:
    section = report.section(f"Beside {each.what}", " ".join([*each.sentences(), place.sentence()]))
    panels: list[LineChart | Scatter] = [each.panel()] if len(each.layers) > 1 else []
    panels += [_others(each, key)] if place.of > 1 else []
    bounds = "The dashed bounds are what a perfect model could reach. " if each.ceiling else ""
    columns = "A column a kind of model measured here, each by its best layer." if place.of > 1 else ""
    if panels:
        bars = "Bars: 95 % intervals of this model, one standard deviation of the twins. "
        section.figure(panels, name=key, caption=f"{bars}{bounds}{columns}")
    rows = [
        [row["layer"], f"{row['score']:.3f}", f"{row['low']:.2f} to {row['high']:.2f}",
         f"{row['untrained']:.3f}" if "untrained" in row else "-"]
        for row in each.records()
    ]  # fmt: skip
    left_out = f"Left out, as they tell no {each.stimuli} apart: {', '.join(each.constant)}." if each.constant else ""
    section.table(["layer", "Spearman", "95 % interval", "untrained"], rows, caption=left_out)


def _others(each: BesidePeople, key: str) -> Scatter:
    """All models of the table, a column a kind, and this one before them."""
    from unrolled.commands.brain.places import measured
    from unrolled.report import Scatter

    others = [(other.group.split(" ")[0], other.score, other.name) for other in measured()[key]]
    kinds = list(dict.fromkeys(kind for kind, *_ in others))  # the best first
    low, high = each.interval
    points = [("this model", each.score, "this model"), *sorted(others, key=lambda point: kinds.index(point[0]))]
    return Scatter(
        title=f"Spearman with {each.what}, every model",
        x_label="kind of model, in the order beside; 0: this model",
        x=[0.0, *(kinds.index(kind) + 1.0 for kind, *_ in points[1:])],
        y=[score for _, score, _ in points],
        names=[name for *_, name in points],
        groups=[kind for kind, *_ in points],
        error=[(high - low) / 2, *(float("nan") for _ in points[1:])],
    )
