"""Differentiable forms of alignment, to be minimised: 0 when two batches of features agree.

Each takes paired features x [b, d_x] and y [b, d_y] and returns a 0-d tensor with gradients to both; detach one side to
pull the other towards it. Half precision is computed in float32. Values on a batch are not values on a data set:
neighbourhoods and biased kernels depend on b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unrolled.ops.gram import gram, hsic, triangle


def cka_loss(x: Tensor, y: Tensor, *, unbiased: bool = True) -> Tensor:
    """1 - linear CKA. The unbiased form (default) does not reward small batches."""
    k, l = (gram(side - side.mean(0)) for side in _pair(x, y, 4 if unbiased else 2))
    own = hsic(k, k, unbiased=unbiased) * hsic(l, l, unbiased=unbiased)
    return 1 - hsic(k, l, unbiased=unbiased) / own.clamp_min(_tiny(own)).sqrt()


def procrustes_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - |x'y|_* of centred features of unit norm: half the squared Procrustes distance."""
    x, y = (side - side.mean(0) for side in _pair(x, y, 2))
    x, y = (side / side.norm().clamp_min(_tiny(side)) for side in (x, y))
    overlap: Tensor = torch.linalg.matrix_norm(x.T @ y, ord="nuc")
    return 1 - overlap


def rsa_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - Pearson correlation of the cosine dissimilarities of all pairs (Spearman has no gradient)."""
    pairs = [triangle(gram(torch.nn.functional.normalize(side, dim=1))) for side in _pair(x, y, 3)]
    u, v = (p - p.mean() for p in pairs)
    correlation: Tensor = u @ v / (u.norm() * v.norm()).clamp_min(_tiny(u))
    return 1 - correlation


def soft_knn_loss(x: Tensor, y: Tensor, *, temperature: float = 0.1) -> Tensor:
    """1 - mean over samples of the cosine between soft neighbourhoods, softmax(cosine / temperature) without self.

    The smooth counterpart of mutual k-NN, where neighbourhoods are 0 or 1.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    soft = []
    for side in _pair(x, y, 3):
        cosine = gram(torch.nn.functional.normalize(side, dim=1))
        own = torch.eye(len(side), dtype=torch.bool, device=side.device)
        soft.append(torch.softmax((cosine / temperature).masked_fill(own, -torch.inf), dim=1))
    return 1 - torch.nn.functional.cosine_similarity(soft[0], soft[1], dim=1).mean()


def _pair(x: Tensor, y: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must be [b, d] with the same b, got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.shape[0] < fewest:
        raise ValueError(f"x and y have {x.shape[0]} samples: this loss needs at least {fewest}")
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    return x.to(dtype), y.to(dtype)


def _tiny(x: Tensor) -> float:
    return float(torch.finfo(x.dtype).tiny)
