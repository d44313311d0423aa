"""A claim: what a source says, how it is read off the results, and what must be so for a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from unrolled.reading import Json
from unrolled.studies.results import NOT_RUN, Estimate, Results, Values

if TYPE_CHECKING:
    from unrolled import report as reports

Verdict = Literal["reproduced", "not reproduced", "undecided", "controls do the same", "not run", "not judged"]
Place = Literal["inside", "outside", "undecided"]
"""Where an interval lies beside a range; `undecided` across an end of it, or where there is no interval."""
Interval = tuple[float, float] | None
Measured = Values | Estimate | float

# what a quantity can be, for `Claim.within`
CORRELATION = (-1.0, 1.0)
SHARE = (0.0, 1.0)
AT_LEAST_0 = (0.0, math.inf)
AT_MOST_1 = (-math.inf, 1.0)

# why a claim is not judged
NOBODY = "nobody published it"
CONTROL = "a control of this package"
TARGET = "a target of this package"
EARLIER = "this project's own earlier number"
_EXPECTED: dict[Place, str] = {
    "inside": "as expected",
    "outside": "not as expected",
    "undecided": "whether it is as expected is undecided",
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published statement, how its value is read off the results, and the range that counts as reproducing it.

    It is judged if its value could have come out outside the range, if somebody else published it, and if the 95 %
    interval lies inside the range (reproduced) or outside it (not reproduced); across an end of it is undecided. The
    interval is over what `value` gives `Values` of, mostly seeds, or the one that an `Estimate` brings; one seed has
    none and decides nothing. One of several trends that are looked at has an interval for all of them, by `of` of
    `statistics.over_models`. What a control does as well is not reproduced: the controls do the same.

    Attributes:
        statement: what is claimed, with the quantity and its unit.
        source: citation with the figure, table or section.
        published: the source's value, as a reader wants to see it.
        value: what was measured, from the results and the configuration; no `Values` at all mean `not run`.
        low, high: the range, ends included.
        within: what the quantity can be, such as `CORRELATION`; intervals, which by Student or a standard error may
            reach beyond it, are cut to it, and hold the value as often as before.
        outside: what has or would have a value outside the range, and which, unless `control` measures it; a claim
            without it is not judged.
        unjudged: why nothing is judged, instead; a range then says what was expected before.
        point: judge a plain number, which has no interval: a count, or what nothing random enters.
        control: the same quantity of what must not have it, such as an untrained network. Of one seed, a point.
        spec: how the value is written.
        detail: words after the value.
        unless: why a configuration cannot judge it, such as other data than the claim names; "" if it can.
        asked: whether a configuration asks it at all; a claim that is not asked is not on the page.

    Raises:
        ValueError: neither `outside` nor `unjudged` is said, or both, or a judged claim has no range.
    """

    statement: str
    source: str
    published: str
    value: Callable[[Results[Any], Any], Measured]
    low: float = -math.inf
    high: float = math.inf
    within: tuple[float, float] = (-math.inf, math.inf)
    outside: str = ""
    unjudged: str = ""
    point: bool = False
    control: Callable[[Results[Any], Any], Measured] | None = None
    spec: str = ".3f"
    detail: Callable[[Results[Any], Any], str] = lambda results, config: ""
    unless: Callable[[Any], str] = lambda config: ""
    asked: Callable[[Any], bool] = lambda config: True

    def __post_init__(self) -> None:
        if bool(self.outside) == bool(self.unjudged):
            raise ValueError(f"outside: say of {self.statement!r} what has such a value, or `unjudged`, why no verdict")
        if self.outside and not self.ranged:
            raise ValueError(f"low: {self.statement!r} is judged, so it needs a range")

    @property
    def ranged(self) -> bool:
        """Whether there is a range."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    def judge(self, results: Results[Any], config: Any) -> reports.Claim:
        """The claim beside what was measured."""
        from unrolled import report as reports

        reason = self.unless(config)
        value = Values() if reason else self.value(results, config)
        if type(value) is Estimate and (cut := self._cut((value.low, value.high))) is not None:
            value = Estimate(value.value, *cut, value.basis)
        interval, over = self._interval(value)
        control: Interval = None
        verdict: Verdict
        if not _measured(value):
            verdict, why, measured = "not run", "", reason or NOT_RUN
        else:
            measured = f"{value:{self.spec}}{self.detail(results, config)}"
            control = self._control(results, config)
            verdict, why = ("not judged", "") if config.budget == "quick" else self.verdict(interval, over, control)
        return reports.Claim(
            statement=self.statement,
            source=self.source,
            published=self.published,
            measured=measured,
            reproduced=_reproduced(verdict),
            verdict=verdict,
            why=why,
            interval=interval,
            over=over,
            control=control,
        )

    def judged_again(self, record: Mapping[str, Any]) -> Json:
        """A claim of a report that was written before, by today's range and rule, from the intervals kept in it."""
        if record["verdict"] == "not run":
            return dict(record)
        ends = {key: self._cut(record[key]) for key in ("interval", "control")}
        verdict, why = self.verdict(ends["interval"], record["over"], ends["control"])
        words = {"source": self.source, "published": self.published, "verdict": verdict, "why": why}
        lists = {key: None if interval is None else list(interval) for key, interval in ends.items()}
        return {**record, **words, **lists, "reproduced": _reproduced(verdict)}

    def verdict(self, interval: Interval, over: str, control: Interval) -> tuple[Verdict, str]:
        """The verdict on a value's interval and the control's, and why it is none of the two that decide.

        Args:
            interval: of the value.
            over: what it is over, in words; without an interval, what there was one of.
            control: interval of the control.
        """
        place = self.place(interval)
        if self.unjudged:
            return "not judged", f"{self.unjudged}; {_EXPECTED[place]}" if self.ranged else self.unjudged
        if place == "outside":
            return "not reproduced", ""
        if place == "undecided":
            return "undecided", f"interval {self._ends(interval)}, {over}" if interval else f"{over} decides nothing"
        if control is None or (beside := self.place(control)) == "outside":
            return "reproduced", ""
        if beside == "inside":
            return "controls do the same", self._ends(control)
        return "undecided", f"a control has {self._ends(control)}"

    def came_out(self, results: Results[Any], config: Any) -> Place | Literal["not run", "not judged"]:
        """Where the value lies beside the range, whoever said what was expected; `not judged` at the quick budget."""
        value = Values() if self.unless(config) else self.value(results, config)
        if not _measured(value):
            return "not run"
        return "not judged" if config.budget == "quick" else self.place(self._interval(value)[0])

    def place(self, interval: Interval) -> Place:
        """Where an interval lies beside the range."""
        if interval is None:
            return "undecided"
        if self.low <= interval[0] and interval[1] <= self.high:
            return "inside"
        return "outside" if interval[1] < self.low or interval[0] > self.high else "undecided"

    def _interval(self, value: Measured) -> tuple[Interval, str]:
        """The interval, and what it is over or would have been."""
        if isinstance(value, Values):
            if (ends := value.interval()) is None:
                return None, f"one {value.unit}"
            known = _finite(self._cut(ends))
            return known, "a value that is not finite" if known is None else f"over {value.count}"
        if isinstance(value, Estimate):
            return _finite(self._cut((value.low, value.high))), value.basis
        return (_finite((value, value)), "") if self.point else (None, "a number without an interval")

    def _cut(self, interval: Sequence[float] | None) -> Interval:
        """An interval without what the quantity cannot be."""
        if interval is None:
            return None
        low, high = (min(max(end, self.within[0]), self.within[1]) for end in interval)
        return low, high

    def _control(self, results: Results[Any], config: Any) -> Interval:
        from unrolled.studies.statistics import PValue

        value = None if self.control is None else self.control(results, config)
        if value is None or not _measured(value):
            return None
        if isinstance(value, PValue):  # never outside a range: nothing could be reproduced beside it
            value = value.value
        mean = value.mean if isinstance(value, Values) else value.value if isinstance(value, Estimate) else value
        return self._interval(value)[0] or _finite((mean, mean))

    def _ends(self, interval: Interval) -> str:
        if interval is None:
            return ""
        low, high = (f"{end:{self.spec}}" for end in interval)
        return low if low == high else f"{low} to {high}"


def _measured(value: Measured) -> bool:
    return not ((isinstance(value, Values) and not value) or (isinstance(value, float) and math.isnan(value)))


def _finite(interval: Interval) -> Interval:
    return interval if interval is not None and all(map(math.isfinite, interval)) else None


def _reproduced(verdict: Verdict) -> bool | None:
    return {"reproduced": True, "not reproduced": False}.get(verdict)
