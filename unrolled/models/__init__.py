"""Models: stacks of layers, registered with timm. Importing this module registers them."""

from unrolled.models.crate import CRATE, CRATEBlock
from unrolled.models.registry import ModelInfo, create_model, list_models

__all__ = ["CRATE", "CRATEBlock", "ModelInfo", "create_model", "list_models"]
