"""What a longer training would likely give: a power law through two lengths, and what two lengths cannot know."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from unrolled.studies.results import Estimate

_DRAWS = 4000


class Length(NamedTuple):
    """A network after some images: how many it saw, the share of its wrong answers, and of how many it is."""

    images: float
    error: float
    scored: int


def exponent(short: Length, long: Length, floor: float = 0.0) -> float:
    """By which power of the images seen the error above `floor` falls between two lengths."""
    return math.log((short.error - floor) / (long.error - floor)) / math.log(long.images / short.images)


def accuracy_after(short: Length, long: Length, images: float, stays: float) -> Estimate:
    """Accuracy after `images`, per cent, if the error above a floor goes on to fall by the same power.

    Args:
        short: the shorter length.
        long: the longer one.
        images: seen, more than either.
        stays: the floor, as a share of the longer one's error, 0 to below 1.

    Returns:
        with the 95 % interval of what sampling the scored images leaves open of either error; nothing else is in it.
    """
    random = np.random.default_rng(0)

    def after(first: Length, last: Length) -> float:
        floor = stays * last.error
        error = floor + (last.error - floor) * (images / last.images) ** -exponent(first, last, floor)
        return 100 * (1 - error)

    def drawn(length: Length) -> Length:
        wrong = length.error * length.scored
        return length._replace(error=float(random.beta(wrong + 0.5, length.scored - wrong + 0.5)))

    draws = [after(drawn(short), drawn(long)) for _ in range(_DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(after(short, long), float(low), float(high), "the sampling of the scored images")
