"""The schedule of the learning rate, of training runs and of what studies train."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup: int, total: int, minimum: float = 0.0) -> float:
    """The rate of 0-based `step`: a line up to `peak` over `warmup` steps, then a cosine to `minimum` at `total`.

    The last step is `total - 1`, so its rate is still above `minimum`, and no step is spent on a rate of 0.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))
