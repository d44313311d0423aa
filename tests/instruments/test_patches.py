from __future__ import annotations

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import nn

from unrolled.instruments import read_patches
from unrolled.instruments.regions.patches import of_one_colour
from unrolled.instruments.trace import trace
from unrolled.models import CRATE, create_model

IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def crate() -> nn.Module:
    torch.manual_seed(0)
    return CRATE(image_size=(32, 48), patch_size=8, num_classes=10, dim=24, depth=3, heads=3).eval()


def vit(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 10}
    return timm.models.VisionTransformer(**size, **kwargs).eval()


@pytest.mark.parametrize("model", [crate(), vit(), vit(reg_tokens=2, qk_norm=True)], ids=["crate", "vit", "registers"])
def test_one_query_is_the_first_row_of_the_whole_map(model: nn.Module) -> None:
    prefix = model.num_prefix_tokens
    with torch.no_grad(), trace(model, attention=True) as t:
        model(IMAGES)
    got = read_patches(model, IMAGES, layers=[0, -1], facets=["key", "token"])
    assert got.layers == (0, 2)
    assert got.grid == (4, 6)
    assert got.query == "class token"
    assert got.attention is not None
    assert got.attention.shape == (2, 2, 3, 24)
    for row, layer in enumerate(got.layers):
        whole = t[f"block{layer:02d}/attention"][:, :, 0, prefix:]
        torch.testing.assert_close(got.attention[row], whole / whole.sum(-1, keepdim=True))
        torch.testing.assert_close(got.features["token"][row], t[f"block{layer:02d}"][:, prefix:])
    assert got.features["key"].shape == (2, 2, 24, 24)


def test_hugging_face_keys_and_attention() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8, num_register_tokens=2
    )
    config._attn_implementation = "eager"
    model = transformers.Dinov2WithRegistersModel(config).eval()
    with torch.no_grad():
        whole = model(IMAGES, output_attentions=True).attentions[1][:, :, 0, 3:]
    got = read_patches(model, IMAGES, layers=[1], facets=["key"])
    assert got.attention is not None
    assert got.grid == (4, 6)
    torch.testing.assert_close(got.attention[0], whole / whole.sum(-1, keepdim=True))


def test_a_model_without_class_token_says_what_is_used_instead() -> None:
    model = vit(class_token=False, global_pool="avg")
    got = read_patches(model, IMAGES)
    assert got.query == "mean of patch tokens"
    assert got.attention is not None
    assert got.attention.shape == (3, 2, 3, 24)
    torch.testing.assert_close(got.attention.sum(-1), torch.ones(3, 2, 3))


def test_the_model_is_left_as_it_was() -> None:
    model = crate().train()
    read_patches(model, IMAGES)
    assert model.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_images_of_one_colour_are_marked() -> None:
    images = torch.stack([IMAGES[0], torch.ones(3, 32, 48) * torch.tensor([0.1, -2.0, 3.0])[:, None, None]])
    assert read_patches(crate(), images).blank.tolist() == [False, True]
    assert of_one_colour(images[1]), "channels may differ"


def test_only_features() -> None:
    got = read_patches(crate(), IMAGES, facets=["value"], attention=False)
    assert got.attention is None
    assert got.features["value"].shape == (3, 2, 24, 24)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="layers"):
        read_patches(crate(), IMAGES, layers=[3])
    with pytest.raises(ValueError, match="facets"):
        read_patches(crate(), IMAGES, facets=["keys"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="NaN"):
        read_patches(crate(), IMAGES * float("nan"))
    with pytest.raises(ValueError, match="grid"):
        read_patches(vit(), IMAGES, prefix=2)
    with pytest.raises(ValueError, match="no transformer blocks"):
        read_patches(nn.Conv2d(3, 4, 3), IMAGES)
    with pytest.raises(ValueError, match="attention weights are not known"):
        read_patches(timm.create_model("xcit_nano_12_p8_224", img_size=64), torch.randn(1, 3, 64, 64))


def test_features_of_some_layers_only() -> None:
    torch.manual_seed(0)
    model = create_model("crate_nano_patch4_32").eval()
    images = torch.randn(2, 3, 32, 32)
    every = read_patches(model, images, facets=["key", "token"])
    some = read_patches(model, images, facets=["key", "token"], facet_layers=[-2, 1])
    assert (some.layers, some.feature_layers) == (tuple(range(6)), (4, 1))
    assert every.attention is not None
    assert some.attention is not None
    assert torch.equal(some.attention, every.attention)
    for facet in ("key", "token"):
        assert torch.equal(some.features[facet], every.features[facet][[4, 1]])
    with pytest.raises(ValueError, match="facet_layers"):
        read_patches(model, images, layers=[0], facets=["key"], facet_layers=[3])


@pytest.mark.parametrize("options", [{}, {"qkv_fused": False}, {"qkv_bias": False, "qk_norm": True}])
def test_rotary_attention_is_the_one_that_is_computed(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = Eva(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, use_rot_pos_emb=True,
                num_reg_tokens=2, **options).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.randn(1, 3, 32, 32)
    found = read_patches(model, images, facets=["value"])
    layer = model.blocks[1].attn
    layer.fused_attn, seen = False, {}
    handle = layer.attn_drop.register_forward_hook(lambda _, args, out: seen.update(weights=out))
    model(images)
    handle.remove()
    row = seen["weights"][0, :, 0, 3:]  # of the class token, over the patches alone
    assert found.attention is not None
    torch.testing.assert_close(found.attention[1, 0], row / row.sum(-1, keepdim=True))
    assert found.grid == (4, 4)
    assert found.features["value"].shape == (2, 1, 16, 32)


def test_a_published_model_without_a_class_token_gives_every_token_to_the_patches() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    got = read_patches(transformers.SiglipVisionModel(config).eval(), IMAGES[:, :, :, :32], facets=["token"])
    assert got.grid == (4, 4)
    assert got.query == "mean of patch tokens"


def test_a_model_that_says_nothing_of_its_tokens_must_be_told() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = vit(class_token=False, global_pool="avg").blocks

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.blocks(images.flatten(1)[:, : 16 * 24].reshape(-1, 16, 24))

    with pytest.raises(ValueError, match="prefix: Silent does not say"):
        read_patches(Silent().eval(), IMAGES)
