"""The family's layers as their authors' code evaluates them, in plain operations on our modules' parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def subspace_attention(attn: Any, z: Tensor) -> Tensor:
    """MSSA by an explicit softmax: `[b, n, d]` to `[b, n, d]`."""
    w = attn.subspaces(z).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    weights = (torch.matmul(w, w.transpose(-1, -2)) * attn.dim_head**-0.5).softmax(-1)
    out = torch.matmul(weights, w).transpose(1, 2).flatten(2)
    return out if attn.output is None else attn.output(out)


def ista(layer: Any, x: Tensor) -> Tensor:
    """ISTA by three products with the dictionary."""
    d, eta = layer.dictionary, layer.step_size
    gradient = F.linear(x, d.mT) - F.linear(F.linear(x, d), d.mT)
    return torch.relu(x + eta * gradient - eta * layer.sparsity)


def overcomplete(layer: Any, x: Tensor) -> Tensor:
    """Two proximal steps of CRATE-alpha from zero, one formula a line."""
    d, eta, threshold = layer.dictionary, layer.step_size, layer.step_size * layer.sparsity
    first = torch.relu(eta * torch.einsum("pd,nlp->nld", d, x) - threshold)
    gradient = torch.einsum("pd,nlp->nld", d, torch.einsum("dp,nlp->nld", d, first) - x)
    second = torch.relu(first - eta * gradient - threshold)
    return torch.einsum("dp,nlp->nld", d if layer.decoder is None else layer.decoder, second)


def alpha_block(block: Any, z: Tensor) -> Tensor:
    """One layer of CRATE-alpha."""
    z = subspace_attention(block.attn, block.norm1(z)) + z
    return overcomplete(block.ista, block.norm2(z)) + z


def token_statistics(attn: Any, z: Tensor) -> Tensor:
    """TSSA as published: heads apart, tokens normalised, then moments."""
    w = attn.subspaces(z).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    energy = torch.sum(F.normalize(w, dim=-2) ** 2, dim=-1) * attn.temperature[:, None]
    pi = energy.softmax(1)
    moments = torch.matmul((pi / (pi.sum(-1, keepdim=True) + 1e-8)).unsqueeze(-2), w**2)
    out = -torch.mul(w.mul(pi.unsqueeze(-1)), 1.0 / (1 + moments))
    return attn.merge(out.transpose(1, 2).flatten(2))


def contract_and_broadcast(attn: Any, z: Tensor) -> Tensor:
    """CBSA with explicit softmaxes on a square grid behind `prefix_tokens`; pooled as ours, without the class token."""
    w = attn.subspaces(z)
    side = int((z.shape[1] - attn.prefix_tokens) ** 0.5)
    grid = w[:, attn.prefix_tokens :].transpose(1, 2).unflatten(-1, (side, side))
    pooled = F.adaptive_avg_pool2d(grid, min(attn.representatives, side)).flatten(2).transpose(1, 2)
    w, pooled = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (w, pooled))
    weights = (pooled @ w.transpose(-1, -2) * attn.dim_head**-0.5).softmax(-1)
    pooled = pooled + attn.step_representative[:, None, None] * (weights @ w)
    own = (pooled @ pooled.transpose(-1, -2) * attn.dim_head**-0.5).softmax(-1)
    out = weights.transpose(-1, -2) @ (attn.step_token[:, None, None] * (own @ pooled))
    return attn.merge(out.transpose(1, 2).flatten(2))


def masked_tokens(model: Any, images: Tensor, noise: Tensor, mask_ratio: float = 0.75) -> tuple[Tensor, Tensor]:
    """What enters CRATE-MAE's encoder, `[b, 1 + n, d]`, and which tokens are kept, `[b, kept]`, lowest noise first."""
    x = model.patch_embed(images).flatten(1, 2)
    kept = noise.argsort(1)[:, : int(x.shape[1] * (1 - mask_ratio))]
    visible = torch.zeros_like(noise, dtype=torch.bool).scatter(1, kept, True).unsqueeze(-1)
    x = torch.where(visible, x, model.mask_token)
    return torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1) + model.pos_embed, kept


def encoder(model: Any, z: Tensor) -> Tensor:
    """CRATE blocks and the final norm on tokens `[b, n, d]`."""
    for block in model.blocks:
        z = z + subspace_attention(block.attn, block.norm1(z))
        z = ista(block.ista, block.norm2(z))
    return model.norm(z)
