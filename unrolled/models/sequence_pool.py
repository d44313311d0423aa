"""A ViT without a class token, as compact convolutional transformers have it."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unrolled.models.stem import stem_named


class SequencePool(nn.Module):
    """A weighted mean of tokens, the weights a softmax over scores that each token is given (arXiv 2104.05704).

    `z = softmax(g(x)^T) x`, SeqPool there, with

    | symbol | attribute | shape    |
    |--------|-----------|----------|
    | g      | `score`   | `[1, d]` |

    Tokens `[b, n, d]`, normalised before; result `[b, d]`, of their dtype. Departure: `g` begins at 0, so that training
    begins with a plain mean.
    """

    def __init__(self, dim: int) -> None:
        """For tokens of `dim` entries."""
        super().__init__()
        self.score = nn.Linear(dim, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        return (self.score(x).softmax(1) * x).sum(1)


def vit_with_sequence_pool(*, stem: str = "conv", global_pool: str = "map", **kwargs: Any) -> VisionTransformer:
    """A ViT of timm's without a class token, with convolutions before and `SequencePool` behind.

    Args:
        stem: as `stem_named` has it.
        global_pool: timm's; "map" is `SequencePool` here.
        kwargs: of timm's `VisionTransformer`.
    """
    model = VisionTransformer(embed_layer=stem_named(stem), class_token=False, global_pool=global_pool, **kwargs)
    if global_pool == "map":
        model.attn_pool = SequencePool(model.embed_dim)
    return model
