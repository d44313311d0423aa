"""Layers: each is one step of an optimiser on an objective of `unrolled.theory`."""

from unrolled.layers.cbsa import CBSA
from unrolled.layers.delta import DeltaLayer
from unrolled.layers.ista import ISTA
from unrolled.layers.linear_attention import LinearSelfAttention, SoftmaxSelfAttention
from unrolled.layers.mesa import MesaLayer, MesaNetBlock, MesaNetLayer
from unrolled.layers.mssa import MSSA
from unrolled.layers.overcomplete import OvercompleteISTA
from unrolled.layers.tssa import TSSA, CausalTSSA, TokenStatistics

__all__ = [
    "CBSA",
    "ISTA",
    "MSSA",
    "TSSA",
    "CausalTSSA",
    "DeltaLayer",
    "LinearSelfAttention",
    "MesaLayer",
    "MesaNetBlock",
    "MesaNetLayer",
    "OvercompleteISTA",
    "SoftmaxSelfAttention",
    "TokenStatistics",
]
