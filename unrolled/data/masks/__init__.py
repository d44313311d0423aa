"""Annotated images: COCO, VOC, BSDS, ADE20K, folders of masks and packed files behind one interface."""

from unrolled.data.masks.base import MaskSource, Region, Scene
from unrolled.data.masks.open import open_masks

__all__ = ["MaskSource", "Region", "Scene", "open_masks"]
