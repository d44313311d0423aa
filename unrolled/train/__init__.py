"""Training: one visible loop (`steps.py`), with the helpers it calls beside it.

Importing this package imports nothing heavy: `config` is read by the command line before torch is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "DistillConfig": "config",
    "FinetuneConfig": "config",
    "Interrupted": "signals",
    "MaskedConfig": "config",
    "Splits": "run",
    "TextConfig": "config",
    "TrainConfig": "config",
    "TrainResult": "fitting",
    "evaluate": "evaluation",
    "fit": "fitting",
    "load_config": "config_files",
    "recipe": "config_files",
    "recipes": "config_files",
    "save_config": "config_files",
}
_GONE = {
    "LanguageResult": "TrainResult",
    "PretrainConfig": "MaskedConfig(...) or DistillConfig(...)",
    "finetune": "fit(FinetuneConfig(...))",
    "fit_text": "fit(TextConfig(...))",
    "pretrain": "fit(MaskedConfig(...)) or fit(DistillConfig(...))",
}

__all__ = [
    "DistillConfig",
    "FinetuneConfig",
    "Interrupted",
    "MaskedConfig",
    "Splits",
    "TextConfig",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "fit",
    "load_config",
    "recipe",
    "recipes",
    "save_config",
]

if TYPE_CHECKING:
    from unrolled.train.config import DistillConfig, FinetuneConfig, MaskedConfig, TextConfig, TrainConfig
    from unrolled.train.config_files import load_config, recipe, recipes, save_config
    from unrolled.train.evaluation import evaluate
    from unrolled.train.fitting import TrainResult, fit
    from unrolled.train.run import Splits
    from unrolled.train.signals import Interrupted


def __getattr__(name: str) -> Any:
    if name in _GONE:  # as an AttributeError, `from unrolled.train import ...` would not show it
        raise ImportError(f"unrolled.train.{name} is gone; use {_GONE[name]}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'unrolled.train' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unrolled.train.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
