"""How wide a head is, in every attention layer."""

from __future__ import annotations


def head_width(dim: int, heads: int, dim_head: int | None) -> int:
    """`dim_head`, or an equal share of the width.

    Raises:
        ValueError: a number below 1, or heads that do not divide the width.
    """
    if dim < 1 or heads < 1 or (dim_head is not None and dim_head < 1):
        raise ValueError(f"dim={dim}, heads={heads}, dim_head={dim_head}: each must be at least 1")
    if dim_head is None and dim % heads:
        raise ValueError(f"heads={heads} does not divide dim={dim}: change one of them, or give dim_head")
    return dim_head or dim // heads
