"""What is claimed of few-shot prompts, with the reading of the results that page and claims share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from unrolled.studies.claim import AT_LEAST_0, NOBODY, Claim
from unrolled.studies.mesa.few_shot.cells import WAYS, Asked, FewShotConfig, LeastSquares, TwoTasks
from unrolled.studies.results import Estimate, Results, Values

CLEAN, OVERLAPPING = "least squares on clean pairs", "least squares on overlapping pairs"
MARK = 30  # the pair that claims are judged at
_SOURCE = "arXiv 2309.05858, figures 8 and 18; means of the released results"
_UNPUBLISHED = "not in the paper; its best is 0.55 to 0.59"
_RAW = "raw prompts: 0.77"


def rows_of(results: Results[Any], name: str) -> Results[Any]:
    """The rows of a way to be asked, one a seed, or the one of least squares."""
    if name in (CLEAN, OVERLAPPING):
        return results.of(LeastSquares, pairs="clean" if name == CLEAN else "overlapping")
    return results.of(Asked, **asdict(WAYS[name]))


def loss(results: Results[Any], name: str, pair: int = MARK, key: str = "losses") -> Values:
    """At a pair, counted from 1; -1 is the last. Least squares, which has no seed, is one value."""
    unit = "pairs" if name in (CLEAN, OVERLAPPING) else "seed"
    return rows_of(results, name).values(f"{key}.{pair - 1 if pair > 0 else pair}", unit)


def share_left(results: Results[Any], name: str) -> Values:
    """What is left at pair 30 of the same model's loss on raw prompts over the clean floor."""
    floor = loss(results, CLEAN)
    raw = loss(results, f"{WAYS[name].kind}, raw")
    return (loss(results, name) - floor.mean) / (raw - floor.mean) if floor else Values()


def _at_mark(
    name: str,
    detail: Callable[[Results[Any], FewShotConfig], str] = lambda results, config: "",
    **claim: Any,
) -> Claim:
    return Claim(source=_SOURCE, value=lambda results, config: loss(results, name), spec=".2f", detail=detail, **claim)


def _left(statement: str, name: str, **limit: Any) -> Claim:
    return Claim(
        statement=f"{statement}: share left",
        source=_UNPUBLISHED,
        published="no value",
        unjudged=NOBODY,
        value=lambda results, config: share_left(results, name),
        spec=".4f",
        detail=lambda results, config: f"; loss {loss(results, name):.4f}",
        **limit,
    )


def _overlapping(results: Results[Any], config: FewShotConfig) -> Estimate | Values:
    rows = rows_of(results, OVERLAPPING)
    if not rows:
        return Values()
    here, error = (rows.first(f"{key}.{MARK - 1}") for key in ("losses", "standard_errors"))
    return Estimate(here, here - 1.96 * error, here + 1.96 * error, "standard error over prompts")


def _peak(losses: Sequence[float]) -> tuple[int, float]:
    """The pair after the first at which the loss is largest, and the loss."""
    pair = max(range(1, len(losses)), key=losses.__getitem__)
    return pair + 1, losses[pair]


def _rise(results: Results[Any], config: FewShotConfig) -> Values:
    return rows_of(results, "hybrid, raw").values(lambda result: max(result["losses"]) / result["losses"][0])


def _rise_words(results: Results[Any], config: FewShotConfig) -> str:
    rows = rows_of(results, "hybrid, raw")
    pairs = sorted({_peak(row.result["losses"])[0] for row in rows})
    largest = rows.values(lambda result: _peak(result["losses"])[1])
    text = (
        f"; after pair 1 ({loss(results, 'hybrid, raw', 1):.2f}) the largest is {largest:.2f} at pair "
        f"{' and '.join(map(str, pairs))}"
    )
    if theirs := rows_of(results, OVERLAPPING):
        pair, value = _peak(theirs.first("losses"))
        text += f"; of least squares on all neighbouring tokens {value:.2f} at pair {pair}"
    return text


def _norms(results: Results[Any], choose: Callable[..., float]) -> Values:
    """The largest or smallest norm of a tuned EOS token over both models, by seed."""
    norms = [rows_of(results, f"{kind}, EOS").values("eos_norm").by for kind in ("hybrid", "softmax")]
    return Values({seed: choose(norm[seed] for norm in norms) for seed in norms[0] if seed in norms[1]})


def _switched(results: Results[Any], config: FewShotConfig) -> Values:
    return results.of(TwoTasks, kind="hybrid").values(lambda result: result["losses"][result["switch"] - 1])


def _before_switch(results: Results[Any], config: FewShotConfig) -> Values:
    return results.of(TwoTasks, kind="hybrid").values(lambda result: result["losses"][result["switch"] - 2])


def _after_switch(results: Results[Any], config: FewShotConfig) -> str:
    rows = results.of(TwoTasks, kind="hybrid")
    later = len(rows.first("losses")) - rows.first("switch") + 1
    return f", then {rows.values('losses.-1'):.2f} at pair {later} after it"


CLAIMS = (
    Claim(
        statement="Least squares on all neighbouring tokens, the spurious pairs included: loss at pair 30",
        source=_SOURCE,
        published="0.68",
        value=_overlapping,
        low=0.62,
        high=0.74,
        outside="least squares on the pairs that mean something: below 0.01",
        spec=".2f",
    ),
    _at_mark(
        "hybrid, raw",
        lambda results, config: f", from {loss(results, 'hybrid, raw', 1):.2f} at pair 1",
        statement="Trained on dynamics alone, the hybrid learns regression from raw prompts: loss at pair 30",
        published="0.77, from 2.14 at pair 1",
        low=0.6,
        high=0.95,
        outside="a model that learns nothing from the prompt, as at pair 1: 2 and more",
    ),
    Claim(
        statement="Early ascent: largest loss over that at pair 1, raw prompts, hybrid",
        source=_SOURCE,
        published="2.51 / 2.14 = 1.17, at pairs 4 to 6",
        value=_rise,
        low=1.05,
        outside="a loss that is largest at pair 1: 1",
        spec=".2f",
        detail=_rise_words,
    ),
    _at_mark(
        "hybrid, EOS",
        statement="A tuned EOS token between pairs: loss at pair 30, hybrid",
        published="0.59",
        low=0.45,
        high=0.73,
        outside=_RAW,
        control=lambda results, config: loss(results, "hybrid, raw"),
    ),
    _at_mark(
        "hybrid, EOS + prefix",
        statement="EOS and a tuned prefix of 20 tokens: loss at pair 30, hybrid",
        published="0.61",
        low=0.45,
        high=0.75,
        outside=_RAW,
        control=lambda results, config: loss(results, "hybrid, raw"),
    ),
    Claim(
        statement="The tuned EOS token is about the zero vector (its norm; x and y have 1.8, it started near 1)",
        source=_SOURCE,
        published="< 0.01",
        value=lambda results, config: _norms(results, max),
        high=0.01,
        within=AT_LEAST_0,
        outside="the token before it is tuned: about 1",
        detail=lambda results, config: f", the larger of both models' (the smaller {_norms(results, min):.3f})",
    ),
    Claim(
        statement="EOS helps the softmax model too: its loss at pair 30 over that of raw prompts",
        source=_SOURCE,
        published="0.72 / 0.92 = 0.78",
        value=lambda results, config: loss(results, "softmax, EOS") / loss(results, "softmax, raw"),
        high=0.95,
        outside="a token that does not help: 1",
        spec=".2f",
    ),
    Claim(
        statement="Two tasks in one prompt: loss at the first pair after the switch, hybrid",
        source=_SOURCE,
        published="about 2.1, decaying to about 1.0",
        value=_switched,
        low=1.8,
        high=2.6,
        outside="the prediction of zero, 1.67, the last pair before the switch, or the last of the prompt",
        control=_before_switch,
        spec=".2f",
        detail=_after_switch,
    ),
    _left(
        "Leaving out every second pair by hand (raw prompts, hybrid) removes at least 95 % of what pair 30 loses over "
        "the clean floor",
        "hybrid, raw, gated by hand",
        high=0.05,
    ),
    _left(
        "So does a learned gate by position, with the ridge tuned too",
        "hybrid, raw, gate by position and ridge",
        high=0.05,
    ),
    _left(
        "And a gate that reads the tokens and their squares, tuned together with EOS",
        "hybrid, EOS, gate by squares",
    ),
)
