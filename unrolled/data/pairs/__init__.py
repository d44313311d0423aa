"""Paired data: images with their texts, or texts with texts, behind one interface."""

from unrolled.data.pairs.base import PairSource
from unrolled.data.pairs.open import open_pairs, pair_names

__all__ = ["PairSource", "open_pairs", "pair_names"]
