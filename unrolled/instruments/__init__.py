"""Instruments: activations in, records out. They know the objectives of `theory`, never a model class.

Nothing is imported until it is used. `trace` itself lives in `unrolled.instruments.trace` and at `unrolled.trace`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# public name -> module of this package that holds it
_EXPORTS = {
    "Trace": "trace",
    "head_subspaces": "anatomy",
    "incoherence": "rates",
    "layerwise": "rates",
    "trace_report": "rates",
    "untrained_control": "control",
    "Patches": "patches",
    "read_patches": "patches",
    "maskcut": "spectral",
    "normalized_cut": "spectral",
    "cluster_tokens": "spectral",
}

__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from unrolled.instruments.anatomy import head_subspaces as head_subspaces
    from unrolled.instruments.control import untrained_control as untrained_control
    from unrolled.instruments.patches import Patches as Patches
    from unrolled.instruments.patches import read_patches as read_patches
    from unrolled.instruments.rates import incoherence as incoherence
    from unrolled.instruments.rates import layerwise as layerwise
    from unrolled.instruments.rates import trace_report as trace_report
    from unrolled.instruments.spectral import cluster_tokens as cluster_tokens
    from unrolled.instruments.spectral import maskcut as maskcut
    from unrolled.instruments.spectral import normalized_cut as normalized_cut
    from unrolled.instruments.trace import Trace as Trace


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'unrolled.instruments' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unrolled.instruments.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
