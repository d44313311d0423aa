"""Pooling over the sequence, and the ViT that ends with it."""

from __future__ import annotations

from typing import Any

import torch

from unrolled.models import create_model
from unrolled.models.sequence_pool import SequencePool


def test_tokens_are_averaged_by_a_softmax_over_their_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    pool = SequencePool(7).double()
    torch.testing.assert_close(pool(x), x.mean(1))  # as it begins
    torch.nn.init.normal_(pool.score.weight, generator=generator)
    weights = torch.stack([torch.softmax(tokens @ pool.score.weight[0], 0) for tokens in x])
    torch.testing.assert_close(pool(x), torch.einsum("bn,bnd->bd", weights, x))


def test_the_network_is_its_vit_without_a_class_token() -> None:
    model: Any = create_model("vit_nano_conv_seqpool_patch4_32", num_classes=10).eval()
    vit: Any = create_model("vit_nano_conv_patch4_32", num_classes=10)
    more = set(model.state_dict()) - set(vit.state_dict())
    less = set(vit.state_dict()) - set(model.state_dict())
    assert (more, less) == ({"attn_pool.score.weight", "attn_pool.score.bias"}, {"cls_token"})
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 64, 56)
    torch.testing.assert_close(model(x), model.head(tokens.mean(1)))
    assert model(torch.zeros(1, 3, 64, 48)).shape == (1, 10)
    plain: Any = create_model("vit_nano_conv_seqpool_patch4_32", global_pool="avg")
    assert plain.attn_pool is None
