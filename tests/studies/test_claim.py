"""Claims: what must be said of one, what decides, and that reports say what today's rule says of what they measured."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests import study_docs
from unrolled import studies
from unrolled.studies.claim import AT_MOST_1, CORRELATION, SHARE, Claim
from unrolled.studies.results import Estimate, Results, Values
from unrolled.studies.statistics import PValue
from unrolled.studies.study import Config

LEVEL, APART = Values({0: 1.0, 1: 1.1, 2: 1.05}), Values({0: -1.0, 1: -1.1, 2: -1.05})
WIDE = Values({0: 1.0, 1: -0.9, 2: 0.1})


def claim(value: Any, low: float = 0.0, high: float = math.inf, *, budget: str = "cpu", **more: Any) -> Any:
    more = {"outside": "less than nothing"} | more if "unjudged" not in more else more
    made = Claim(statement="s", source="p", published="1", value=lambda r, c: value, low=low, high=high, **more)
    return made.judge(Results([]), Config.of_budget(budget))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "verdict", "measured", "why"),
    [
        (LEVEL, "reproduced", "1.050 ± 0.050", ""),
        (APART, "not reproduced", "-1.050 ± 0.050", ""),
        (WIDE, "undecided", "0.067 ± 0.950", "over 3 seeds"),
        (Values({0: 1.0}), "undecided", "1.000", "one seed decides nothing"),
        (Values({"a": 1.0}, "image network"), "undecided", "1.000", "one image network decides nothing"),
        (Values({0: 1.0, 1: math.inf}), "undecided", "inf", "a value that is not finite decides nothing"),
        (Values(), "not run", "not run", ""),
        (Estimate(1.0, 0.5, 1.5, "bootstrap over 98 photos"), "reproduced", "1.000 [0.500, 1.500]", ""),
        (Estimate(1.0, -0.5, 1.5, "bootstrap over 98 photos"), "undecided", "1.000", "over 98 photos"),
        (Estimate(1.0, math.nan, math.nan, "3 kinds"), "undecided", "1.000 (no interval)", "3 kinds"),
        (Estimate(math.nan, math.nan, math.nan, "5 kinds"), "undecided", "undefined", "5 kinds"),
        (1.0, "undecided", "1.000", "a number without an interval decides nothing"),
        (math.nan, "not run", "not run", ""),
    ],
)
def test_a_verdict_needs_an_interval_inside_or_outside_the_range(
    value: Any, verdict: str, measured: str, why: str
) -> None:
    judged = claim(value)
    assert judged.verdict == verdict
    assert measured in judged.measured
    assert why in judged.why
    assert bool(why) == bool(judged.why)
    assert judged.reproduced is {"reproduced": True, "not reproduced": False}.get(verdict)


NEAR_1 = Values({0: -0.99, 1: -0.9, 2: -0.98})  # whose interval by Student ends at -1.08


@pytest.mark.parametrize("value", [NEAR_1, Estimate(NEAR_1.mean, -1.08, -0.83, "standard error")])
def test_intervals_are_cut_to_what_a_quantity_can_be(value: Any) -> None:
    judged = claim(value, low=-1.0, high=-0.7, within=CORRELATION, control=lambda results, config: value)
    for interval in (judged.interval, judged.control):
        assert interval is not None
        assert interval[0] == -1 < interval[1] < -0.8
    assert "-1.08" not in judged.measured
    assert judged.verdict == "controls do the same"  # and not undecided, for what lies beyond -1
    before = {"verdict": "undecided", "interval": [-1.08, -0.83], "control": None, "over": "over 3"}
    made = Claim(statement="s", source="p", published="1", value=lambda r, c: value, low=-1, outside="0",
                 within=CORRELATION)  # fmt: skip
    again = made.judged_again(before)
    assert (again["verdict"], again["interval"], again["control"]) == ("reproduced", [-1, -0.83], None)


def test_a_plain_number_is_judged_where_nothing_is_drawn() -> None:
    assert claim(1.0, point=True).verdict == "reproduced"
    assert claim(-1.0, point=True).verdict == "not reproduced"


def test_a_large_p_value_contradicts_nothing() -> None:
    assert claim(PValue(0.01), low=-math.inf, high=0.05).verdict == "reproduced"
    large = claim(PValue(0.4), low=-math.inf, high=0.05)
    assert (large.verdict, large.measured) == ("undecided", "0.400")


@pytest.mark.parametrize(("p", "verdict"), [(0.4, "reproduced"), (0.001, "controls do the same")])
def test_a_control_with_a_large_p_value_does_not_do_the_same(p: float, verdict: str) -> None:
    beside = {"control": lambda results, config: PValue(p)}
    assert claim(PValue(0.01), low=-math.inf, high=0.05, **beside).verdict == verdict


@pytest.mark.parametrize(
    ("control", "verdict", "why"),
    [
        (APART, "reproduced", ""),
        (LEVEL, "controls do the same", "0.926 to 1.174"),
        (WIDE, "undecided", "a control has -2.294 to 2.428"),
        (Values({0: 1.0}), "controls do the same", "1.000"),  # of one seed a point
        (Values({0: -1.0}), "reproduced", ""),
        (Values(), "reproduced", ""),
        (math.nan, "reproduced", ""),
    ],
)
def test_what_a_control_does_as_well_is_not_reproduced(control: Any, verdict: str, why: str) -> None:
    beside = {"control": lambda results, config: control}
    judged = claim(LEVEL, **beside)
    assert (judged.verdict, judged.why, judged.reproduced) == (verdict, why, True if verdict == "reproduced" else None)
    assert claim(APART, **beside).verdict == "not reproduced"
    assert claim(Values(), **beside).verdict == "not run"


def test_what_nobody_else_published_is_measured_and_not_judged() -> None:
    assert claim(LEVEL, unjudged="ours").why == "ours; as expected"
    assert claim(APART, unjudged="ours").why == "ours; not as expected"
    assert claim(WIDE, unjudged="ours").why == "ours; whether it is as expected is undecided"
    assert claim(LEVEL, low=-math.inf, unjudged="ours").why == "ours"
    assert {claim(value, unjudged="ours").verdict for value in (LEVEL, APART, WIDE)} == {"not judged"}


def test_at_quick_nothing_is_judged_and_what_cannot_be_is_not_read() -> None:
    assert claim(LEVEL, budget="quick").verdict == "not judged"
    without = claim(LEVEL, unless=lambda config: "not run on CIFAR-10")
    assert (without.measured, without.verdict) == ("not run on CIFAR-10", "not run")


@pytest.mark.parametrize(
    ("said", "argument"),
    [({}, "outside"), ({"outside": "0", "unjudged": "ours", "low": 1.0}, "outside"), ({"outside": "0"}, "low")],
)
def test_a_claim_says_what_is_outside_or_why_it_is_not_judged(said: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}:"):
        Claim(statement="s", source="p", published="1", value=lambda r, c: 1.0, **said)


EVERY = [(name, claim) for name in studies.STUDIES for claim in studies.load(name).claims]
NO_SOURCE = re.compile(
    r"^(none|-$|not (found|measured|reported|in the paper)|no (value|such control)).*$|this package|of ours"
)
CITED = re.compile(r"arXiv \d{4}\.\d{5}|\b(19|20)\d\d\b|\bbook\b")


@pytest.mark.parametrize(
    "made", [claim for _, claim in EVERY if claim.outside and claim.control is None], ids=lambda made: made.statement
)
def test_a_judged_claim_has_a_control_or_says_the_value_of_what_must_not_have_it(made: Claim) -> None:
    numbers = re.findall(r"(?<![\w-])-?\d[\d,]*(?:\.\d+)?", made.outside)
    values = [float(number.replace(",", "")) for number in numbers]
    # an end of the range is not inside it, since an interval about that value reaches beyond
    assert any(value <= made.low or value >= made.high for value in values), made.outside


@pytest.mark.parametrize(("name", "claim"), EVERY, ids=[f"{name}-{place}" for place, (name, _) in enumerate(EVERY)])
def test_a_judged_claim_is_somebody_elses(name: str, claim: Claim) -> None:
    assert NO_SOURCE.search(claim.published) is None or claim.unjudged, claim.statement
    assert (CITED.search(claim.source) and not NO_SOURCE.search(claim.source)) or claim.unjudged, claim.source
    statements = [each.statement for each in studies.load(name).claims]
    assert statements.count(claim.statement) == 1


REPORTS = sorted(study_docs.STUDIES.glob("*/report.json"))


@pytest.mark.parametrize("path", REPORTS, ids=[path.parent.name for path in REPORTS])
def test_committed_reports_have_the_verdicts_of_todays_rule(path: Path) -> None:
    claims = json.loads(path.read_text(encoding="utf-8"))["claims"]
    again = study_docs.judged_again(path.parent.name, claims)
    assert claims == again, "run: python -m tests.study_docs"


BOUNDED = {
    re.compile(r"(rank correlation|cosine|unbiased CKA)(?! of| above)"): CORRELATION,
    re.compile(r"R\^2|share of variance"): AT_MOST_1,
    re.compile(r"\((share of(?! variance)|top-1)|^Share of"): SHARE,
}


@pytest.mark.parametrize("path", REPORTS, ids=[path.parent.name for path in REPORTS])
def test_no_committed_interval_holds_what_cannot_be(path: Path) -> None:
    for each in json.loads(path.read_text())["claims"]:
        if re.search(r"difference|less|gain|above|points|mean over splits", each["statement"]):
            continue
        for what, (low, high) in BOUNDED.items():
            for interval in (each["interval"], each["control"]):
                if what.search(each["statement"]) and interval is not None:
                    assert low <= interval[0] <= interval[1] <= high, each["statement"]


@pytest.mark.parametrize("n", [4, 7, 30])
def test_a_perfect_order_of_few_models_is_not_certain(n: int) -> None:
    perfect, reversed_order = (Estimate.of_ranks(rho, n, "models") for rho in (1.0, -1.0))
    assert perfect.value == perfect.high == 1
    assert perfect.low < Estimate.of_ranks(1.0, n + 1, "models").low < 1
    assert (reversed_order.low, reversed_order.high) == (-1, -perfect.low)
    assert Estimate.of_ranks(0.5, n, "models").low < perfect.low


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 7), (12, 12)])
def test_a_share_of_few_things_has_the_exact_interval(hits: int, n: int) -> None:
    from scipy.stats import binomtest

    share, exact = Estimate.of_share(hits / n, n, "networks"), binomtest(hits, n).proportion_ci()
    assert (share.low, share.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_an_interval_reaches_as_far_as_either_of_two() -> None:
    narrow, wide = Estimate(1.0, 1.0, 1.0, "draws"), Estimate(1.0, 0.7, 1.0, "theory")
    assert narrow.reaching(wide) == wide
    unknown = Estimate(0.5, math.nan, math.nan, "draws")
    assert (unknown.reaching(wide).low, unknown.reaching(wide).value) == (0.7, 0.5)
    assert math.isnan(unknown.reaching(unknown).high)
