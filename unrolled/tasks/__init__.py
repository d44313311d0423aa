"""Synthetic sequence worlds in which there is something to learn in context."""

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
    "FewShotRegression",
    "LinearDynamics",
    "NonlinearDynamics",
    "PartialDynamics",
    "RegressionSequences",
    "Sequences",
    "constructed_tokens",
    "random_orthogonal",
    "sequence_loss",
]
