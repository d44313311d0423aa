"""Slow, obviously right twins of the fast models: what tests compare with and benchmarks measure against."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.models import CRATE


class PublishedCRATE(nn.Module):
    """A CRATE's own parameters, evaluated as published: explicit softmax attention, three dictionary products."""

    def __init__(self, model: CRATE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model = self.model
        stem, p = model.patch_embed, model.patch_embed.patch_size[0]
        patches = F.unfold(images, p, stride=p).mT
        z = stem.norm(F.linear(stem.patch_norm(patches), stem.proj.weight.flatten(1), stem.proj.bias))
        z = torch.cat([model.cls_token.expand(len(z), -1, -1), z], 1) + model.pos_embed
        for block in model.blocks:
            attn, ista = block.attn, block.ista
            w = attn.subspaces(block.norm1(z)).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            maps = (w @ w.mT * attn.dim_head**-0.5).softmax(-1)
            z = z + attn.output((maps @ w).transpose(1, 2).flatten(2))
            x, d = block.norm2(z), ista.dictionary
            gradient = F.linear(x, d.mT) - F.linear(F.linear(x, d), d.mT)
            z = torch.relu(x + ista.step_size * gradient - ista.step_size * ista.sparsity)
        return model.head(model.norm(z[:, 0]))
