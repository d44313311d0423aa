"""Layers: each is one step of an optimiser on an objective of `unrolled.theory`. Blocks put two after one another.

A constructor takes the width of the tokens, and of attention the number of heads, by position; the rest by keyword.
Nothing is imported until it is used, timm by blocks with parts of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# public name -> module of this package that holds it
_EXPORTS = {
    "CBSA": "cbsa",
    "CRATEBlock": "blocks",
    "CRATEDecoderBlock": "blocks",
    "CausalTSSA": "tssa",
    "DeltaLayer": "delta",
    "ISTA": "ista",
    "LinearSelfAttention": "linear_attention",
    "MSSA": "mssa",
    "MesaLayer": "mesa",
    "MesaNetBlock": "mesa",
    "MesaNetLayer": "mesa",
    "OvercompleteISTA": "overcomplete",
    "SoftmaxSelfAttention": "linear_attention",
    "TSSA": "tssa",
    "ToSTBlock": "blocks",
    "TokenStatistics": "tssa",
}

__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from unrolled.layers.blocks import CRATEBlock as CRATEBlock
    from unrolled.layers.blocks import CRATEDecoderBlock as CRATEDecoderBlock
    from unrolled.layers.blocks import ToSTBlock as ToSTBlock
    from unrolled.layers.cbsa import CBSA as CBSA
    from unrolled.layers.delta import DeltaLayer as DeltaLayer
    from unrolled.layers.ista import ISTA as ISTA
    from unrolled.layers.linear_attention import LinearSelfAttention as LinearSelfAttention
    from unrolled.layers.linear_attention import SoftmaxSelfAttention as SoftmaxSelfAttention
    from unrolled.layers.mesa import MesaLayer as MesaLayer
    from unrolled.layers.mesa import MesaNetBlock as MesaNetBlock
    from unrolled.layers.mesa import MesaNetLayer as MesaNetLayer
    from unrolled.layers.mssa import MSSA as MSSA
    from unrolled.layers.overcomplete import OvercompleteISTA as OvercompleteISTA
    from unrolled.layers.tssa import TSSA as TSSA
    from unrolled.layers.tssa import CausalTSSA as CausalTSSA
    from unrolled.layers.tssa import TokenStatistics as TokenStatistics


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'unrolled.layers' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unrolled.layers.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
