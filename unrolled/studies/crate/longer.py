"""What a longer training would likely give: a power law through two lengths, and what two lengths cannot know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from unrolled.studies.results import Estimate

TIMES = 4
"""How many times the longest training a page extrapolates to."""
STAYS: Mapping[str, float] = MappingProxyType({"nothing": 0.0, "half": 0.5, "three quarters": 0.75})
"""Shares of the errors made now that may stay for good, in words."""
_DRAWS = 4000


class Length(NamedTuple):
    """A network after some training: how much it saw, its error or loss, and the standard error of that."""

    seen: float
    error: float
    spread: float


def exponent(short: Length, long: Length, floor: float = 0.0) -> float:
    """By which power of what was seen the error above `floor` falls between two lengths."""
    return math.log((short.error - floor) / (long.error - floor)) / math.log(long.seen / short.seen)


def error_after(short: Length, long: Length, seen: float, stays: float) -> Estimate:
    """The error after a longer training, if what of it is above a floor goes on to fall by the same power.

    Args:
        short: the shorter length.
        long: the longer one, of no higher error.
        seen: more than in either.
        stays: the floor, as a share of the longer one's error, 0 to below 1.

    Returns:
        with the 95 % interval that the standard errors of both leave open; nothing else is in it.
    """
    random = np.random.default_rng(0)
    drawn = {each: np.clip(random.normal(each.error, each.spread, _DRAWS), 1e-9, None) for each in (short, long)}

    def after(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        # floor + (last - floor) (seen / long.seen)^-exponent, with a floor of stays * last; what is drawn to rise stays
        times = math.log(seen / long.seen) / math.log(long.seen / short.seen)
        fall = (np.maximum(first / last, 1.0) - stays) / (1 - stays)
        return last * (stays + (1 - stays) * fall**-times)

    low, high = np.quantile(after(drawn[short], drawn[long]), [0.025, 0.975])
    value = after(np.array(short.error), np.array(long.error))
    return Estimate(float(value), float(low), float(high), "the standard errors of both lengths")


def errors_after(short: Length, long: Length) -> list[Estimate]:
    """`error_after` `TIMES` the longer length, for every share of `STAYS`."""
    return [error_after(short, long, TIMES * long.seen, stays) for stays in STAYS.values()]
