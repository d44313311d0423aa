"""Layers: each is one step of an optimiser on an objective of `unrolled.theory`."""

from unrolled.layers.cbsa import CBSA
from unrolled.layers.ista import ISTA
from unrolled.layers.mssa import MSSA
from unrolled.layers.overcomplete import OvercompleteISTA
from unrolled.layers.tssa import TSSA, CausalTSSA, TokenStatistics

__all__ = ["CBSA", "ISTA", "MSSA", "TSSA", "CausalTSSA", "OvercompleteISTA", "TokenStatistics"]
