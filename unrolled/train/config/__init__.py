"""What a training run is: one flat, typed record for each kind of run, put together from blocks of settings.

Nothing heavy is imported, so that `unrolled train --help` is instant.
"""

from unrolled.train.config.images import (
    Augmentation,
    DistillConfig,
    FinetuneConfig,
    ImageConfig,
    MaskedConfig,
    PretrainConfig,
    TrainConfig,
)
from unrolled.train.config.run import HEADINGS, Precision, RunConfig, heading_of, kinds
from unrolled.train.config.text import TextConfig

__all__ = [
    "HEADINGS",
    "Augmentation",
    "DistillConfig",
    "FinetuneConfig",
    "ImageConfig",
    "MaskedConfig",
    "Precision",
    "PretrainConfig",
    "RunConfig",
    "TextConfig",
    "TrainConfig",
    "heading_of",
    "kinds",
]
