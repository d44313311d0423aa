"""Layers: each is one step of an optimiser on an objective of `unrolled.theory`."""

from unrolled.layers.ista import ISTA
from unrolled.layers.linear_attention import LinearSelfAttention, SoftmaxSelfAttention
from unrolled.layers.mesa import MesaLayer, MesaNetBlock, MesaNetLayer
from unrolled.layers.mssa import MSSA

__all__ = [
    "ISTA",
    "MSSA",
    "LinearSelfAttention",
    "MesaLayer",
    "MesaNetBlock",
    "MesaNetLayer",
    "SoftmaxSelfAttention",
]
