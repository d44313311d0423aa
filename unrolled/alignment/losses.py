"""Differentiable forms of alignment, to be minimised: 0 when two batches of features agree.

Each takes paired features x [b, d_x] and y [b, d_y] and returns a 0-d tensor with gradients to both; detach one side to
pull the other towards it. Half precision is computed in float32. Values on a batch are not values on a data set:
neighbourhoods and biased kernels depend on b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unrolled.ops.gram import center_gram, gram, triangle, u_center
from unrolled.ops.rows import check_devices, check_kind, moderate, unit_rows


def cosine_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - mean cosine of paired rows, of one width: what a learned map of one side to the other is trained by."""
    x, y = _pair(x, y, 1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y have {x.shape[1]} and {y.shape[1]} features; map one to the width of the other")
    return 1 - (unit_rows(x) * unit_rows(y)).sum(1).mean()


def cka_loss(x: Tensor, y: Tensor, *, unbiased: bool = True) -> Tensor:
    """1 - linear CKA. The unbiased form (default) does not reward small batches."""
    kernels = (gram(_centred(side)) for side in _pair(x, y, 4 if unbiased else 2))
    # at unit norm the inner product of centred kernels is HSIC over the roots of both sides' own
    # of features of unit norm, a kernel's is at least 1 / sqrt(b); anything less is the rounding of a constant batch
    k, l = (_unit(u_center(k) if unbiased else center_gram(k), k.norm().clamp_min(len(k) ** -0.5)) for k in kernels)
    return 1 - k @ l


def procrustes_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - |x'y|_* of centred features of unit norm: half the squared Procrustes distance."""
    x, y = (_centred(side) for side in _pair(x, y, 2))
    overlap: Tensor = torch.linalg.matrix_norm(x.T @ y, ord="nuc")
    return 1 - overlap


def rsa_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - Pearson correlation of the cosine dissimilarities of all pairs (Spearman has no gradient)."""
    pairs = [triangle(gram(unit_rows(side))) for side in _pair(x, y, 3)]
    u, v = (_unit(p - p.mean(), p.new_tensor(float(len(p)) ** 0.5)) for p in pairs)
    return 1 - u @ v


def soft_knn_loss(x: Tensor, y: Tensor, *, temperature: float = 0.1) -> Tensor:
    """1 - mean over samples of the cosine between soft neighbourhoods, softmax(cosine / temperature) without self.

    The smooth counterpart of mutual k-NN, where neighbourhoods are 0 or 1.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    soft = []
    for side in _pair(x, y, 3):
        cosine = gram(unit_rows(side))
        diagonal = torch.eye(len(side), dtype=torch.bool, device=side.device)
        soft.append(torch.softmax((cosine / temperature).masked_fill(diagonal, -torch.inf), dim=1))
    return 1 - torch.nn.functional.cosine_similarity(soft[0], soft[1], dim=1).mean()


def _pair(x: Tensor, y: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    for name, side in (("x", x), ("y", y)):
        check_kind(side, name)
        if not isinstance(side, Tensor):
            raise ValueError(f"{name} is a {type(side).__name__}: losses need tensors, for their gradients")
    check_devices(x, y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must be [b, d] with the same b, got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.shape[0] < fewest:
        raise ValueError(f"x and y have {x.shape[0]} samples: this loss needs at least {fewest}")
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    return x.to(dtype), y.to(dtype)


def _centred(x: Tensor) -> Tensor:
    """`x` [b, d], whatever its scale, centred and of unit norm."""
    scaled = moderate(x)[0]
    return _unit(scaled - scaled.mean(0), scaled.norm()).unflatten(0, x.shape)


def _unit(x: Tensor, size: Tensor) -> Tensor:
    """`x`, flattened, over its norm; as it is where that is the rounding of `size`, the norm of what was centred.

    A batch without structure then has a loss of 1 and a finite gradient, instead of what rounding makes of it.
    """
    flat, norm = x.flatten(), x.norm()
    return flat / torch.where(norm > 4 * torch.finfo(x.dtype).eps * size.detach(), norm, 1)
