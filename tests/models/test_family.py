"""The family: every variant is a configuration of the same frame, of the published size, and behaves as timm's do."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from unrolled.instruments import layerwise
from unrolled.layers import ISTA, MSSA, OvercompleteISTA
from unrolled.models import CRATE, ToST, create_model, list_models

NANO = [
    "crate_alpha_nano_patch4_32",
    "aot_nano_patch4_32",
    "cbt_nano_patch4_32",
    "tost_nano_patch4_32",
]
# millions, as published for a head of 1000 classes
PUBLISHED = {
    "crate_alpha_tiny_patch16_224": 4.8,
    "crate_alpha_small_patch16_224": 41.0,
    "crate_alpha_base_patch32_224": 74.0,
    "crate_alpha_base_patch16_224": 72.3,
    "crate_alpha_base_patch8_224": 72.3,
    "crate_alpha_large_patch32_224": 256.0,
    "crate_alpha_large_patch14_224": 253.7,
    "crate_alpha_large_patch8_224": 253.8,
    "crate_alpha_huge_patch14_224": 526.8,
    "cbt_tiny_patch16_224": 1.8,
    "cbt_small_patch16_224": 6.7,
    "cbt_base_patch16_224": 25.7,
    "cbt_large_patch16_224": 83.1,
    "tost_tiny_patch16_224": 5.8,
    "tost_small_patch16_224": 22.6,
}


def test_parameter_counts_are_the_published_ones():
    counts = {info.name: info.parameters for info in list_models() if info.name in PUBLISHED}
    assert {name: round(count / 1e6, 1) for name, count in counts.items()} == PUBLISHED


def test_alpha_is_the_published_block():
    block = create_model("crate_alpha_nano_patch4_32", sparsity=0.5).blocks[1].eval()
    assert block.attn.output.bias is None
    assert block.norm1.eps == 1e-6
    z = torch.randn(2, 9, 96)
    half = z + block.attn(block.norm1(z))
    x, d, hat = block.norm2(half), block.ista.dictionary, block.ista.decoder
    first = torch.relu(0.1 * x @ d - 0.05)
    second = torch.relu(first - 0.1 * (first @ d.T - x) @ d - 0.05)
    torch.testing.assert_close(block(z), half + second @ hat.T, rtol=1e-4, atol=1e-5)


def test_the_three_changes_of_alpha_are_switches():
    plain = create_model("crate_nano_patch4_32").blocks[0]
    assert isinstance(plain.ista, ISTA)
    assert not plain.residual
    build = {"sparsifier": "overcomplete", "decoupled": False, "residual": False}
    steps = [
        create_model("crate_alpha_nano_patch4_32", **{**build, **change}).blocks[0]
        for change in ({}, {"decoupled": True}, {"decoupled": True, "residual": True})
    ]
    z = torch.randn(1, 4, 96)
    for block, decoupled, residual in zip(steps, (False, True, True), (False, False, True), strict=True):
        assert isinstance(block.ista, OvercompleteISTA)
        assert (block.ista.decoder is not None) == decoupled
        half = z + block.attn(block.norm1(z))
        second = block.ista(block.norm2(half))
        torch.testing.assert_close(block(z), half + second if residual else second)


def test_attention_only_has_no_second_half_and_swaps_reach_the_block():
    block = create_model("aot_nano_patch4_32").blocks[0]
    z = torch.randn(1, 4, 96)
    torch.testing.assert_close(block(z), z + block.attn(block.norm1(z)))
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"attn", "norm1"}
    swapped = create_model("crate_nano_patch4_32", attention="mhsa", sparsifier="ista").blocks[0]
    assert type(swapped.attn).__module__.startswith("timm.")
    mlp = create_model("crate_nano_patch4_32", sparsifier="mlp", residual=True)
    assert isinstance(mlp.blocks[0].attn, MSSA)
    assert mlp(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_a_vit_block_by_configuration_is_timms():
    ours = CRATE(
        image_size=16, patch_size=4, num_classes=5, dim=24, depth=2, heads=4, stem="linear", attention="mhsa",
        sparsifier="mlp", residual=True, norm_eps=1e-6, head_norm_eps=1e-6,
    ).eval()  # fmt: skip
    vit = timm.models.VisionTransformer(
        img_size=16, patch_size=4, num_classes=5, embed_dim=24, depth=2, num_heads=4
    ).eval()
    vit.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(images), vit(images), rtol=1e-4, atol=1e-5)


def test_cbt_uses_the_grid_of_the_image():
    model = create_model("cbt_nano_patch4_32").eval()
    model(torch.randn(1, 3, 48, 32))
    assert model.blocks[0].attn.grid == (12, 8)


def test_tost_costs_the_same_for_each_token():
    model = create_model("tost_nano_patch4_32").eval()
    block = model.blocks[0]
    z = torch.randn(1, 64, 96)
    twice = block.attn(torch.cat([z, z], 1))
    torch.testing.assert_close(twice[:, :64], twice[:, 64:])
    assert isinstance(model, ToST)


def test_initialisation_with_a_residual_is_that_of_a_vit_and_resets():
    model = create_model("crate_alpha_nano_patch4_32")
    before = copy.deepcopy(model.state_dict())
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert float(model.blocks[0].attn.subspaces.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.blocks[0].ista.dictionary.std()) == pytest.approx((2 / 96) ** 0.5, rel=0.05)
    model.init_weights()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {"pos_embed", "blocks.3.ista.decoder", "patch_embed.proj.weight", "head.weight"} <= changed


@pytest.mark.parametrize("name", ["crate_alpha_nano_patch4_32", "cbt_nano_patch4_32", "tost_nano_patch4_32"])
def test_a_few_steps_of_training_lower_the_loss(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=2, depth=2)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 2
    images += (labels * 2 - 1)[:, None, None, None] * 0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        losses.append(F.cross_entropy(model(images), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"attention": "linear"}, "attention='linear'"),
        ({"sparsifier": "l0"}, "sparsifier='l0'"),
        ({"decoupled": True}, "decoupled"),
        ({"sparsifier": "none", "step_size": 0.2}, "step_size"),
        ({"stem": "conv", "patch_size": 3, "image_size": 9}, "patch_size=3"),
        ({"attention": "mhsa", "output": "tied"}, "mhsa"),
        ({"sparsifier": "overcomplete", "expansion": 0}, "expansion=0"),
    ],
)
def test_bad_arguments_are_named(arguments, names):
    with pytest.raises(ValueError, match=names):
        CRATE(**{"image_size": 8, "patch_size": 4, "num_classes": 5, "dim": 24, "depth": 1, "heads": 4, **arguments})


def test_bad_arguments_of_tost_are_named():
    for arguments, names in (({"heads": 5}, "heads=5"), ({"patch_size": 12, "image_size": 24}, "patch_size=12")):
        with pytest.raises(ValueError, match=names):
            ToST(**{"image_size": 32, "patch_size": 4, "dim": 24, "depth": 1, "heads": 4, **arguments})
    with pytest.raises(ValueError, match="not divisible by the patch"):
        create_model("tost_nano_patch4_32")(torch.randn(1, 3, 30, 32))
    assert isinstance(create_model("tost_nano_patch4_32", num_classes=0).head, nn.Identity)


@pytest.mark.parametrize("name", [*NANO, "crate_mae_nano_patch4_32", "vit_mae_nano_patch4_32"])
def test_every_layer_can_be_traced_and_measured(name):
    layers = layerwise(create_model(name, depth=2).eval(), torch.randn(2, 3, 32, 32))
    assert len(layers) == 2
    assert all(layer["subspace_rate"] > 0 and layer["rate"] > 0 for layer in layers)
