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

__all__ = [
    "coding_rate",
    "lasso",
    "normalize_tokens",
    "proximal_step",
    "rate_reduction",
    "sparse_rate_reduction",
    "subspace_coding_rate",
    "subspace_coding_rate_gradient",
]
