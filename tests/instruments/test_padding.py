"""Padding never counts, on whichever side it is."""

from __future__ import annotations

import pytest
import torch

from unrolled.instruments.features.pooling import POOLINGS, Tokens


@pytest.mark.parametrize("pooling", ["mean", "max", "last"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_on_any_side_is_left_out(pooling: str, side: str) -> None:
    words = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    before, after = {"left": (2, 0), "right": (0, 2), "both": (1, 1)}[side]
    padded = torch.nn.functional.pad(words, (0, 0, before, after), value=100.0)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[:, before : before + 4] = True
    plain = POOLINGS[pooling](Tokens("x", words, 0, False, None, None))
    assert torch.allclose(POOLINGS[pooling](Tokens("x", padded, 0, False, None, mask)), plain)
