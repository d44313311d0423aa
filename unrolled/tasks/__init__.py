"""Synthetic worlds: sequences with something to learn in context, and events that co-occur."""

from unrolled.tasks.cooccurrence import (
    CooccurrenceWorld,
    bijective,
    bits_lost,
    count_pairs,
    draw_pairs,
    lossy,
    noisy,
    observe,
    observed_joint,
)
from unrolled.tasks.dynamics import (
    LinearDynamics,
    NonlinearDynamics,
    PartialDynamics,
    Sequences,
    constructed_tokens,
    random_orthogonal,
    sequence_loss,
)
from unrolled.tasks.regression import FewShotRegression, RegressionSequences

__all__ = [
    "CooccurrenceWorld",
    "FewShotRegression",
    "LinearDynamics",
    "NonlinearDynamics",
    "PartialDynamics",
    "RegressionSequences",
    "Sequences",
    "bijective",
    "bits_lost",
    "constructed_tokens",
    "count_pairs",
    "draw_pairs",
    "lossy",
    "noisy",
    "observe",
    "observed_joint",
    "random_orthogonal",
    "sequence_loss",
]
