"""Measure how far two representations agree, and whether that is more than chance.

This module gathers the public names of `unrolled.instruments.alignment` (metrics) and
`unrolled.instruments.calibration` (nulls, intervals, corrections), so that `unrolled.alignment.cka(x, y)` works.
"""

from unrolled.instruments import alignment as _metrics
from unrolled.instruments.alignment import *  # noqa: F403

__all__ = [*_metrics.__all__]
