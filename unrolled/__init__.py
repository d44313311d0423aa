"""`unrolled`: transformer layers that are one step of an optimiser on an objective you can write down.

Importing this package imports nothing heavy: attributes resolve on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from unrolled.timm_names import register_with_timm

__version__ = "0.1.0"

# public name -> module that holds it; the modules themselves are listed with their own name as None
_EXPORTS: dict[str, str | None] = {
    "compare": "unrolled.alignment",
    "create_model": "unrolled.models",
    "edit": "unrolled.instruments.editing",
    "from_pretrained": "unrolled.models",
    "list_models": "unrolled.models",
    "load_published": "unrolled.models",
    "trace": "unrolled.instruments.trace",
    "Trace": "unrolled.instruments.trace",
    "alignment": None,
    "data": None,
    "errors": None,
    "figures": None,
    "instruments": None,
    "layers": None,
    "models": None,
    "ops": None,
    "report": None,
    "studies": None,
    "subjects": None,
    "tasks": None,
    "theory": None,
    "train": None,
}

__all__ = [*_EXPORTS, "__version__"]

if TYPE_CHECKING:
    from unrolled.alignment import compare as compare
    from unrolled.instruments.editing import edit as edit
    from unrolled.instruments.trace import Trace as Trace
    from unrolled.instruments.trace import trace as trace
    from unrolled.models import create_model as create_model
    from unrolled.models import from_pretrained as from_pretrained
    from unrolled.models import list_models as list_models
    from unrolled.models import load_published as load_published


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'unrolled' has no attribute {name!r}")
    home = _EXPORTS[name]
    module = importlib.import_module(home or f"unrolled.{name}")
    value = module if home is None else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_timm()
