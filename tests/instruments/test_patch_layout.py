"""Which tokens are patches, where they stand, and which are padding: what a model does, not what its numbers allow."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unrolled
from unrolled.commands.probe import default_pools
from unrolled.instruments import attention_map, read_patches
from unrolled.instruments.features.extraction import extract
from unrolled.instruments.features.pooling import prefix_tokens

_WIDE = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24}
_PICTURE = {"image_size": 8, "patch_size": 2, "num_channels": 1}
_TEXT = {"vocab_size": 31, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}


def hugging_face(name: str, **settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    cls: Any = getattr(transformers, name)
    model: nn.Module = cls(cls.config_class(**settings))
    return model.eval()


def of_timm(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **settings)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return model.eval()


def vit(height: int = 32, width: int = 32, **settings: Any) -> nn.Module:
    size = {"img_size": (height, width), "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 4}
    return of_timm("vit_tiny_patch16_224", **{**size, **settings})


def images(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def ids(length: int) -> Tensor:
    return torch.randint(3, 31, (2, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def activation(model: nn.Module, name: str, *args: Any, **inputs: Any) -> Tensor:
    with unrolled.trace(model) as t:
        model(*args, **inputs)
    return t[name]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cait_xxs24_224", {"depth": 2, "embed_dim": 48}),
        ("xcit_nano_12_p16_224", {"depth": 2, "embed_dim": 24, "num_heads": 3}),
        ("convit_tiny", {"depth": 2, "embed_dim": 12, "num_heads": 3, "local_up_to_layer": 1}),
    ],
)
def test_a_class_token_that_joins_late_is_not_looked_for_before(name: str, settings: Any) -> None:
    model, x = of_timm(name, img_size=64, **settings), images(64, 64)
    z = activation(model, "block00", x)
    assert z.shape[1] == 16, "patches alone"
    torch.testing.assert_close(extract(model, x, layers="block00")["block00"], z.mean(1))
    with pytest.raises(ValueError, match="block00 has no class token"):
        extract(model, x, layers="block00", pooling="cls")
    assert default_pools(model) == ("mean",)
    late = activation(model, "norm", x)
    assert late.shape[1] == 17
    torch.testing.assert_close(extract(model, x, layers="norm", pooling="cls")["norm"], late[:, 0])


def test_registers_are_no_class_token() -> None:
    model = of_timm("vit_medium_patch16_rope_reg1_gap_256", img_size=64, depth=2, embed_dim=48, num_heads=4)
    x = images(64, 64)
    assert prefix_tokens(model, None) == (1, False)
    assert read_patches(model, x).query == "mean of patch tokens"
    with pytest.raises(ValueError, match="no class token"):
        extract(model, x, pooling="cls")
    with pytest.raises(ValueError, match="no class token"):
        attention_map(model, x, pool="token")


def test_a_distillation_token_is_no_patch() -> None:
    model, x = hugging_face("DeiTModel", **_WIDE, **_PICTURE), images(8, 8, 1)
    assert prefix_tokens(model, None) == (2, True)
    z = activation(model, "block01", x)
    torch.testing.assert_close(extract(model, x, layers="block01")["block01"], z[:, 2:].mean(1))
    assert read_patches(model, x).grid == (4, 4)


def test_tokens_that_are_neither_patches_nor_before_them_are_refused() -> None:
    model = hugging_face("YolosModel", **_WIDE, **_PICTURE | {"image_size": [8, 8]}, num_detection_tokens=9)
    x = images(8, 8, 1)
    with pytest.raises(ValueError, match=r"of YolosModel has 26 tokens: 16 patches, 1 before them, and 9 .*prefix="):
        extract(model, x)
    with pytest.raises(ValueError, match=r"25 patch tokens .*not 4 x 4"):  # they would make a grid of 5 x 5
        read_patches(model, x, facets=("token",), attention=False)
    assert extract(model, x, prefix=1)["block01"].shape == (2, 16)


def test_a_text_beside_images_has_no_class_token_of_theirs() -> None:
    text = {**_WIDE, **_TEXT}
    model = hugging_face("CLIPModel", text_config=text, vision_config=_WIDE | _PICTURE, projection_dim=8)
    words = ids(20)
    words[:, -1] = 2
    batch = {"input_ids": words, "pixel_values": images(8, 8, 1), "attention_mask": torch.ones_like(words)}
    found = extract(model, [batch], layers="*/block01")
    for name, first in (("text_model/block01", 0), ("vision_model/block01", 1)):
        torch.testing.assert_close(found[name], activation(model, name, **batch)[:, first:].mean(1))


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (32, 32)])
def test_channels_last_maps_of_any_image(height: int, width: int) -> None:
    made = {"window_size": 4, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 8}
    model = of_timm("swin_tiny_patch4_window7_224", img_size=(height, width), **made)
    found = extract(model, images(height, width))
    assert [value.shape[1] for value in found.values()] == [8, 8, 16, 16]
    z = activation(model, "block01", images(height, width))
    torch.testing.assert_close(found["block01"], z.mean((1, 2)))


def test_channels_first_maps_of_any_image() -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1 = nn.Conv2d(3, 16, 4, stride=4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer1(x)
            return out

    model, x = Stages(), images(64, 32)
    z = model(x).detach()
    assert z.shape[1] == z.shape[2] != z.shape[3], "as many channels as rows"
    torch.testing.assert_close(extract(model, x, layers="layer1")["layer1"], z.mean((2, 3)))
    assert extract(model, images(64, 64), layers="layer1")["layer1"].shape == (2, 16), "channels, rows and columns"


def test_what_is_no_map_of_the_image_is_refused() -> None:
    made: dict[str, Any] = {"num_levels": 2, "embed_dims": (12, 24), "num_heads": (3, 6), "depths": (1, 1)}
    model = timm.models.nest.Nest(img_size=64, **made)
    with pytest.raises(ValueError, match=r"\(2, 4, 64, 12\), which is no map of 64 x 64 images"):
        extract(model, images(64, 64), layers="block00")


def test_a_grid_has_the_shape_of_the_image() -> None:
    model, x = vit(32, 128), images(32, 128)
    patches = activation(model, "block01", x)[:, 1:]
    expected = F.adaptive_avg_pool2d(patches.mT.unflatten(2, (2, 8)), 4).flatten(2).mT.flatten(1)
    torch.testing.assert_close(extract(model, x, layers="block01", pooling="grid")["block01"], expected)
    text = hugging_face("BertModel", **_WIDE, **_TEXT)
    with pytest.raises(ValueError, match="form no grid"):  # 16 words are no square
        extract(text, [{"input_ids": ids(16)}], pooling="grid")


def test_patches_that_were_left_out_are_no_smaller_grid() -> None:
    class Quarter(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z[:, :5]

    model = vit(64, 64)
    model.norm_pre = Quarter()
    with pytest.raises(ValueError, match="4 patch tokens of a 64 x 64 image form no grid, not 4 x 4"):
        read_patches(model, images(64, 64))
    with pytest.raises(ValueError, match="form no grid"):
        extract(model, images(64, 64), pooling="grid")
    assert read_patches(model, images(64, 64), grid=(2, 2)).grid == (2, 2)


def test_a_masked_autoencoder_that_draws_its_patches_is_refused() -> None:
    model, x = hugging_face("ViTMAEModel", **_WIDE, **_PICTURE), images(8, 8, 1)
    for use in (extract, read_patches, attention_map):
        with pytest.raises(ValueError, match=r"ViTMAEModel draws the patches .*ViTModel"):
            use(model, x)
    batch = {"pixel_values": x, "noise": torch.arange(16.0).expand(2, -1)}
    one, two = (extract(model, [batch])["block01"] for _ in range(2))
    assert torch.equal(one, two)
    ours = unrolled.models.create_model("crate_mae_nano_patch4_32", depth=1, embed_dim=16, num_heads=2)
    with pytest.raises(ValueError, match=r"draws the patches .*\.classifier\(\)"):
        extract(ours, images(32, 32))
    assert extract(ours.classifier(0), images(32, 32)).samples == 2


def test_tokens_in_windows_are_averaged_and_have_no_grid() -> None:
    made = {"stages": (1, 1), "embed_dim": 24, "num_heads": 1, "img_size": (64, 64), "q_pool": 1, "num_classes": 3}
    model, x = of_timm("hiera_tiny_224", **made), images(64, 64)
    torch.testing.assert_close(extract(model, x)["block00"], activation(model, "block00", x).mean(1))
    with pytest.raises(ValueError, match="form no grid"):
        extract(model, x, pooling="grid")
    with pytest.raises(ValueError, match="Hiera keeps its patches window by window"):
        read_patches(model, x, facets=("token",), attention=False, prefix=0, layers=[0])


# --- padding


@pytest.mark.parametrize("name", ["LongformerModel", "LEDModel"])
@pytest.mark.parametrize("masked", [True, False])
def test_padding_that_a_model_adds_does_not_count(name: str, masked: bool) -> None:
    led = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))
    }
    led |= {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_encoder_position_embeddings": 64}
    made = led if name == "LEDModel" else {**_WIDE, "max_position_embeddings": 64}
    model = hugging_face(name, **{**_TEXT, **made, "attention_window": 8})
    layer = "encoder/block01" if name == "LEDModel" else "block01"
    batch = {"input_ids": ids(10)} | ({"attention_mask": torch.ones(2, 10, dtype=torch.int64)} if masked else {})
    z = activation(model, layer, **batch)
    assert z.shape[1] == 16
    for pooling, expected in (("mean", z[:, :10].mean(1)), ("last", z[:, 9])):
        found = extract(model, [batch], layers=layer, pooling=pooling)[layer]
        torch.testing.assert_close(found, expected)


def test_padding_among_tokens_that_became_fewer_is_refused() -> None:
    class Halving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(31, 8)
            self.pairs = nn.Identity()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.pairs(self.table(input_ids).unflatten(1, (-1, 2)).mean(2))
            return out

    mask = torch.ones(2, 10, dtype=torch.int64)
    batch = {"input_ids": ids(10), "attention_mask": mask}
    assert extract(Halving(), [batch], layers="pairs").samples == 2, "nothing is padding"
    mask[0, 4:] = 0
    with pytest.raises(ValueError, match=r"pairs has 5 tokens and attention_mask marks padding among 10.*one length"):
        extract(Halving(), [batch], layers="pairs")


def test_a_decoder_has_a_mask_of_its_own() -> None:
    t5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    model = hugging_face("T5Model", **{**t5, **_TEXT})
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[0, 2:] = 0
    batch = {"input_ids": ids(6), "attention_mask": mask, "decoder_input_ids": ids(6)}
    layer = "decoder/block01"
    z = activation(model, layer, **batch)
    torch.testing.assert_close(extract(model, [batch], layers=layer)[layer], z.mean(1))
    found = extract(model, [{**batch, "decoder_attention_mask": mask.flip(0)}], layers=layer, pooling="last")[layer]
    masked = activation(model, layer, **{**batch, "decoder_attention_mask": mask.flip(0)})
    torch.testing.assert_close(found, torch.stack([masked[0, 5], masked[1, 1]]))
