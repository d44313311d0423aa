"""A very small ViT under a name of its own."""

from timm.models.vision_transformer import VisionTransformer

from unrolled.models.registry import register

ARCH = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 1}
register("example_nano_patch4_32", VisionTransformer, ARCH, source="an example")
