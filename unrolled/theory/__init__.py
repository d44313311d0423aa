"""The objectives, in their plainest form. Everything else in the package is tested against these functions."""

from unrolled.theory.coding_rate import (
    coding_rate,
    lasso,
    normalize_tokens,
    proximal_step,
    rate_reduction,
    sparse_rate_reduction,
    subspace_coding_rate,
    subspace_coding_rate_gradient,
)
from unrolled.theory.token_statistics import (
    membership_coding_rate,
    representative_coding_rate,
    variational_coding_rate,
)

__all__ = [
    "coding_rate",
    "lasso",
    "membership_coding_rate",
    "normalize_tokens",
    "proximal_step",
    "rate_reduction",
    "representative_coding_rate",
    "sparse_rate_reduction",
    "subspace_coding_rate",
    "subspace_coding_rate_gradient",
    "variational_coding_rate",
]
