"""Training: one visible loop (`steps.py`), with the helpers it calls beside it.

Importing this package imports nothing heavy: `config` is read by the command line before torch is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "FinetuneConfig": "config",
    "LanguageResult": "language",
    "PretrainConfig": "pretrain_config",
    "Interrupted": "signals",
    "Splits": "run",
    "TrainConfig": "config",
    "TrainResult": "loop",
    "evaluate": "evaluation",
    "finetune": "loop",
    "fit": "loop",
    "fit_text": "language",
    "load_config": "config",
    "pretrain": "pretraining",
    "recipe": "config",
    "recipes": "config",
    "save_config": "config",
}

__all__ = [
    "FinetuneConfig",
    "Interrupted",
    "LanguageResult",
    "PretrainConfig",
    "Splits",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "finetune",
    "fit",
    "fit_text",
    "load_config",
    "pretrain",
    "recipe",
    "recipes",
    "save_config",
]

if TYPE_CHECKING:
    from unrolled.train.config import FinetuneConfig, TrainConfig, load_config, recipe, recipes, save_config
    from unrolled.train.evaluation import evaluate
    from unrolled.train.language import LanguageResult, fit_text
    from unrolled.train.loop import TrainResult, finetune, fit
    from unrolled.train.pretrain_config import PretrainConfig
    from unrolled.train.pretraining import pretrain
    from unrolled.train.run import Splits
    from unrolled.train.signals import Interrupted


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'unrolled.train' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unrolled.train.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
