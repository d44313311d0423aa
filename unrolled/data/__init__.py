"""Data: images, pairs and text behind small interfaces. Names resolve on first use, so importing this costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Batch": "loader",
    "ImageSource": "sources",
    "MaskSource": "masks",
    "Region": "masks",
    "Scene": "masks",
    "dataset_names": "images",
    "eval_loader": "loader",
    "eval_transform": "transforms",
    "index_shards": "shards",
    "model_input": "transforms",
    "open_images": "images",
    "open_masks": "masks",
    "steps_per_epoch": "loader",
    "synthetic_images": "builtin",
    "train_loader": "loader",
    "train_transform": "transforms",
}

__all__ = [
    "Batch",
    "ImageSource",
    "MaskSource",
    "Region",
    "Scene",
    "dataset_names",
    "eval_loader",
    "eval_transform",
    "index_shards",
    "model_input",
    "open_images",
    "open_masks",
    "steps_per_epoch",
    "synthetic_images",
    "train_loader",
    "train_transform",
]

if TYPE_CHECKING:
    from unrolled.data.builtin import synthetic_images
    from unrolled.data.images import dataset_names, open_images
    from unrolled.data.loader import Batch, eval_loader, steps_per_epoch, train_loader
    from unrolled.data.masks import MaskSource, Region, Scene, open_masks
    from unrolled.data.shards import index_shards
    from unrolled.data.sources import ImageSource
    from unrolled.data.transforms import eval_transform, model_input, train_transform


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'unrolled.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unrolled.data.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
