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
STAYS: Mapping[str, float] = MappingProxyType({"0": 0.0, "1/2": 0.5, "3/4": 0.75})
"""Floors, by what tables call them: shares of the errors made now that stay for good."""
_DRAWS = 4000


class Length(NamedTuple):
    """A network after some training.

    Attributes:
        seen: of images, bytes or operations.
        error: or loss, above 0.
        spread: its standard error; NaN if it is not known.
        freedom: degrees of freedom of that, one less than the seeds it is estimated from.
    """

    seen: float
    error: float
    spread: float
    freedom: float = math.inf


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
        with the 95 % interval that the standard errors of both leave open, Student's where they are of seeds; nothing
        else is in it.
    """
    random = np.random.default_rng(0)

    def drawn(length: Length) -> np.ndarray:
        freedom = length.freedom
        apart = random.standard_t(freedom, _DRAWS) if math.isfinite(freedom) else random.normal(size=_DRAWS)
        return np.clip(length.error + length.spread * apart, 1e-9, None)

    def after(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        # floor + (last - floor) (seen / long.seen)^-exponent, with a floor of stays * last; what is drawn to rise stays
        times = math.log(seen / long.seen) / math.log(long.seen / short.seen)
        fall = (np.maximum(first / last, 1.0) - stays) / (1 - stays)
        return last * (stays + (1 - stays) * fall**-times)

    low, high = np.quantile(after(drawn(short), drawn(long)), [0.025, 0.975])
    value = after(np.array(short.error), np.array(long.error))
    return Estimate(float(value), float(low), float(high), "the standard errors of both lengths")


def errors_after(short: Length, long: Length) -> list[Estimate]:
    """`error_after` `TIMES` the longer length, for every share of `STAYS`."""
    return [error_after(short, long, TIMES * long.seen, stays) for stays in STAYS.values()]
