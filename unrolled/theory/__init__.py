"""The objectives, in their plainest form. Everything else in the package is tested against these functions."""

from unrolled.theory.coding_rate import (
    coding_rate,
    lasso,
    normalize_tokens,
    orthogonality_penalty,
    proximal_step,
    rate_reduction,
    sparse_rate_reduction,
    subspace_coding_rate,
    subspace_coding_rate_gradient,
)
from unrolled.theory.cooccurrence import (
    Exactness,
    binary_nce_loss,
    exactness,
    infonce_loss,
    mutual_information,
    nce_offset,
    normalized_joint,
    offset_and_error,
    pointwise_mutual_information,
    smallest_eigenvalue,
    smallest_offset,
)
from unrolled.theory.token_statistics import (
    membership_coding_rate,
    representative_coding_rate,
    variational_coding_rate,
)

__all__ = [
    "Exactness",
    "binary_nce_loss",
    "coding_rate",
    "exactness",
    "infonce_loss",
    "lasso",
    "membership_coding_rate",
    "mutual_information",
    "nce_offset",
    "normalize_tokens",
    "normalized_joint",
    "offset_and_error",
    "orthogonality_penalty",
    "pointwise_mutual_information",
    "proximal_step",
    "rate_reduction",
    "representative_coding_rate",
    "smallest_eigenvalue",
    "smallest_offset",
    "sparse_rate_reduction",
    "subspace_coding_rate",
    "subspace_coding_rate_gradient",
    "variational_coding_rate",
]
