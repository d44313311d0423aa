"""What the weights of a linear layer on constructed tokens say, whatever basis its heads work in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unrolled.layers.linear_attention import LinearSelfAttention


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What the weights of one linear layer compute, gauge-free, beside Proposition 1.

    A layer maps a query token, and a context token as key and as value, to an update by the trilinear map
    sum_h (P_h W_v,h) x (W_q,h^T W_k,h). On constructed tokens only its restriction to (s_t, s_{t-1}) acts, since two
    channels are equal and one is zero; its output is read off the first channel.

    Attributes:
        step_size: the multiple of Proposition 1's map closest to the layer's.
        cosine: between the two maps; 1 for one gradient step of any step size.
        cosine_with_initial: between the layer's map and that of a gradient step from initial weights Phi_0 of its own,
            those that are closest: 1 also for a step from other weights than zero.
        initial: size of that Phi_0, its Frobenius norm over sqrt(d): 1 for a rotation.
        query_key_on_diagonals: share of the squared entries of all W_q,h^T W_k,h on the diagonals of their d x d
            blocks; 1 / d for random weights.
        output_value_on_diagonals: the same for the rows of P_h W_v,h that are read off.
        nonzero: share of entries of both products that are not exactly zero.
        above_tenth: share of entries above a tenth of the largest of their product.
        for_90_percent: smallest share of entries holding 90 % of the squared weight, products scaled alike.
    """

    step_size: float
    cosine: float
    cosine_with_initial: float
    initial: float
    query_key_on_diagonals: float
    output_value_on_diagonals: float
    nonzero: float
    above_tenth: float
    for_90_percent: float


@torch.no_grad()
def structure(layer: LinearSelfAttention, state_dim: int) -> Structure:
    """Read `Structure` off the weights of a layer on tokens of four channels of width `state_dim`.

    Raises:
        ValueError: the layer is not four channels wide.
    """
    if layer.dim != 4 * state_dim:
        raise ValueError(f"layer: tokens must have 4 channels of {state_dim}, not width {layer.dim}")
    query_key, output_value = products(layer)
    d = state_dim
    eye = torch.eye(d, dtype=torch.float64)
    scores, values = (matrices.flatten(1) for matrices in folded(query_key, output_value))
    target_value = torch.cat([eye, 0 * eye], dim=1).flatten()
    target_score = torch.cat([torch.cat([0 * eye, eye], 1), torch.zeros(d, 2 * d, dtype=torch.float64)]).flatten()
    along = float(((values @ target_value) * (scores @ target_score)).sum())
    length = float(((values @ values.mT) * (scores @ scores.mT)).sum()) ** 0.5
    # what is multiplied with the scores of Proposition 1: (step I, -step Phi_0) of a gradient step from Phi_0
    multiplied = ((scores @ target_score)[:, None, None] * values.unflatten(1, (d, 2 * d))).sum(0) / d
    size, moved = float(multiplied[:, :d].trace()) / d, float(multiplied[:, d:].norm())
    entries = [query_key.flatten(), output_value.flatten()]
    scaled = torch.cat([x.square() / x.square().sum().clamp_min(1e-300) for x in entries]).sort(descending=True).values
    total = scaled.numel()
    return Structure(
        # Proposition 1's map is I x I, of squared norm d^2
        step_size=along / d**2,
        cosine=along / (d * length) if length else 0.0,
        cosine_with_initial=d**0.5 * (d * size**2 + moved**2) ** 0.5 / length if length else 0.0,
        initial=moved / (abs(size) * d**0.5) if size else 0.0,
        query_key_on_diagonals=_on_diagonals(query_key, d),
        output_value_on_diagonals=_on_diagonals(output_value[:, :d], d),
        nonzero=sum(int((x != 0).sum()) for x in entries) / total,
        above_tenth=sum(int((x.abs() > 0.1 * x.abs().max()).sum()) for x in entries) / total,
        for_90_percent=(int((scaled.cumsum(0) < 0.9 * scaled.sum()).sum()) + 1) / total,
    )


@torch.no_grad()
def products(layer: LinearSelfAttention) -> tuple[Tensor, Tensor]:
    """W_q,h^T W_k,h and P_h W_v,h of every head, float64 [h, dim, dim] each: what a layer's weights do, gauge apart."""

    def heads_of(weight: Any) -> Tensor:
        split: Tensor = weight.detach().double().cpu().unflatten(0, (layer.heads, -1))
        return split

    query_key = heads_of(layer.query.weight).mT @ heads_of(layer.key.weight)
    output_value = heads_of(layer.output.weight.mT).mT @ heads_of(layer.value.weight)
    return query_key, output_value


def folded(query_key: Tensor, output_value: Tensor) -> tuple[Tensor, Tensor]:
    """`products` as they act on (s_t, s_{t-1}), [h, 2 d, 2 d]; of the second the rows that are read off, [h, d, 2 d].

    On tokens [0, s_t, s_t, s_{t-1}] the two copies of s_t act alike and are added up.
    """
    d = query_key.shape[-1] // 4
    fold = torch.zeros(4 * d, 2 * d, dtype=query_key.dtype)
    fold[d : 2 * d, :d] = fold[2 * d : 3 * d, :d] = fold[3 * d :, d:] = torch.eye(d, dtype=query_key.dtype)
    return fold.mT @ query_key @ fold, output_value[:, :d] @ fold


def _on_diagonals(products: Tensor, width: int) -> float:
    """Share of the squared entries on the diagonals of the width x width blocks of [h, rows, columns]."""
    blocks = products.unflatten(-1, (-1, width)).unflatten(-3, (-1, width))  # [h, i, width, j, width]
    diagonal = blocks.diagonal(dim1=-3, dim2=-1)
    return float(diagonal.square().sum() / products.square().sum().clamp_min(1e-300))
