"""Features the alignment tests share."""

from __future__ import annotations

import torch


def pair(
    n: int = 40, dx: int = 6, dy: int = 5, *, shared: float = 0.7, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two representations of the same samples, [n, dx] and [n, dy], with a common part."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, max(dx, dy), generator=generator, dtype=torch.float64)
    x = shared * common[:, :dx] + torch.randn(n, dx, generator=generator, dtype=torch.float64)
    return x, shared * common[:, :dy] + torch.randn(n, dy, generator=generator, dtype=torch.float64)


def changed(x: torch.Tensor, how: str, seed: int) -> torch.Tensor:
    """`x` after a transformation that some metrics do not notice."""
    generator = torch.Generator().manual_seed(seed)
    d = x.shape[1]
    if how == "rotation":
        return x @ torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=x.dtype))[0]
    if how == "scale":
        return x * 3e-4
    if how == "row_scale":
        return x * (torch.rand(len(x), 1, generator=generator, dtype=x.dtype) + 0.1)
    if how == "offset":
        return x + torch.randn(d, generator=generator, dtype=x.dtype) * 5
    if how == "permutation":
        return x[:, torch.randperm(d, generator=generator)]
    return x @ (torch.randn(d, d, generator=generator, dtype=x.dtype) + 3 * torch.eye(d, dtype=x.dtype))
