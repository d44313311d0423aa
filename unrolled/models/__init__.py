"""Models: stacks of layers, registered with timm. Importing this module registers them."""

from unrolled.catalogue import ModelInfo
from unrolled.layers.blocks import CRATEBlock, CRATEDecoderBlock, ToSTBlock
from unrolled.models.crate import CRATE
from unrolled.models.masked import Completion, MaskedAutoencoder
from unrolled.models.published import LoadReport, load_published
from unrolled.models.registry import list_models
from unrolled.models.resolve import create_model, from_pretrained
from unrolled.models.sequence import LanguageConfig, LanguageModel, RegressorConfig, SequenceRegressor, language_config
from unrolled.models.tost import ToST
from unrolled.models.transfer import load_weights

__all__ = [
    "CRATE",
    "CRATEBlock",
    "CRATEDecoderBlock",
    "Completion",
    "LanguageConfig",
    "LanguageModel",
    "LoadReport",
    "MaskedAutoencoder",
    "ModelInfo",
    "RegressorConfig",
    "SequenceRegressor",
    "ToST",
    "ToSTBlock",
    "create_model",
    "from_pretrained",
    "language_config",
    "list_models",
    "load_published",
    "load_weights",
]
