"""Attention rollout is the paper's product, and the map reads it where the classifier does."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import unrolled
from unrolled.instruments import attention_map, rollout

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}


def weights(layers: int = 3, n: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, n, n, generator=generator).softmax(-1) for _ in range(layers)]


def vit(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(**SMALL, num_classes=4, **kwargs).eval()


def attention_of(model: nn.Module) -> list[Tensor]:
    with torch.no_grad(), unrolled.trace(model, patterns="block*/attention", attention=True) as t:
        model(IMAGES)
    return list(t.values())


def test_by_hand() -> None:
    """Equation 1 of the paper: A = 0.5 W + 0.5 I; layers from the last to the first, on the left."""
    given = weights()
    expected = torch.eye(5).expand(2, 5, 5)
    for layer in given:
        expected = (0.5 * layer.mean(1) + 0.5 * torch.eye(5)) @ expected
    assert torch.allclose(rollout(given), expected, atol=1e-6)
    assert torch.allclose(rollout(iter(given)).sum(-1), torch.ones(2, 5), atol=1e-6)


def test_the_ends_of_the_settings() -> None:
    given = weights()
    assert torch.equal(rollout(given, residual=1), torch.eye(5).expand(2, 5, 5))
    assert torch.allclose(rollout(given, residual=0), given[2].mean(1) @ given[1].mean(1) @ given[0].mean(1), atol=1e-6)
    largest, smallest = (given[0].amax(1), given[0].amin(1))
    for heads, fused in (("max", largest), ("min", smallest)):
        shares = fused / fused.sum(-1, keepdim=True)
        assert torch.allclose(rollout(given[:1], heads=heads, residual=0), shares, atol=1e-6)


def test_the_smallest_are_discarded_of_each_sample_by_itself() -> None:
    given = weights(1)
    kept = rollout(given, residual=0, discard=0.4)
    assert [int((each == 0).sum()) for each in kept] == [10, 10]
    fused = given[0].mean(1)
    for sample in range(2):
        assert fused[sample][kept[sample] == 0].max() <= fused[sample][kept[sample] > 0].min()
        assert torch.equal(rollout([given[0][sample : sample + 1]], residual=0, discard=0.4)[0], kept[sample])
    assert torch.allclose(kept.sum(-1), torch.ones(2, 5), atol=1e-6)
    alone = rollout([torch.eye(5)[None, None]], residual=0, discard=0.99)  # most rows lose all: they keep themselves
    assert torch.equal(alone[0], torch.eye(5))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_map_is_read_where_the_classifier_reads(pool: str) -> None:
    model = vit(global_pool=pool, reg_tokens=2)
    product = rollout(attention_of(model))
    rows = product[:, 0, 3:] if pool == "token" else product[:, 3:, 3:].mean(1)
    assert torch.allclose(attention_map(model, IMAGES), rows.unflatten(1, (4, 4)), atol=1e-6)


def test_a_model_without_a_class_token_is_read_by_its_patches() -> None:
    model = vit(class_token=False, global_pool="avg")
    found = attention_map(model, IMAGES)
    assert found.shape == (2, 4, 4)
    assert torch.allclose(found.sum((1, 2)), torch.ones(2), atol=1e-5)
    with pytest.raises(ValueError, match="no class token"):
        attention_map(model, IMAGES, pool="token")


def test_crate_and_hugging_face() -> None:
    crate = unrolled.models.CRATE(image_size=32, patch_size=8, num_classes=4, dim=24, depth=3, heads=3).eval()
    assert attention_map(crate, IMAGES, heads="max", discard=0.5).shape == (2, 4, 4)
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, image_size=32, patch_size=8
    )
    theirs = transformers.ViTForImageClassification(config).eval()
    with pytest.raises(ValueError, match="set_attn_implementation"):
        attention_map(theirs, IMAGES)
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = theirs(IMAGES, output_attentions=True).attentions
    expected = rollout(attentions)[:, 0, 1:].unflatten(1, (4, 4))
    assert torch.allclose(attention_map(theirs, IMAGES), expected, atol=1e-6)


def test_attention_with_rotary_positions_is_what_the_layer_computes() -> None:
    """DINOv3 is timm's EVA: its weights times its values are what its output projection reads."""
    model = timm.models.eva.Eva(
        **SMALL, num_classes=4, num_reg_tokens=2, use_rot_pos_emb=True, use_abs_pos_emb=False, rope_type="dinov3"
    ).eval()
    layer = model.blocks[1].attn
    seen: dict[str, Tensor] = {}
    layer.proj.register_forward_pre_hook(lambda _, args: seen.update(merged=args[0]))
    layer.register_forward_pre_hook(lambda _, args, kwargs: seen.update(z=args[0]), with_kwargs=True)
    given = attention_of(model)[1]
    from unrolled.instruments.weights import eva_heads

    values = eva_heads(layer, seen["z"])[2]
    merged = layer.norm((given @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(merged, seen["merged"], atol=1e-5)
    assert attention_map(model, IMAGES).shape == (2, 4, 4)


def test_the_model_is_left_as_it_was() -> None:
    model = vit().train()
    attention_map(model, IMAGES)
    assert model.training
    assert model.blocks[0].attn.fused_attn == vit().blocks[0].attn.fused_attn


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: rollout([]), "holds no layer"),
        (lambda: rollout([torch.ones(2, 5, 5)]), r"must be \[b, h, n, n\]"),
        (lambda: rollout([*weights(1), *weights(1, 4)]), "merge tokens"),
        (lambda: rollout(weights(), residual=1.5), "residual=1.5"),
        (lambda: rollout(weights(), discard=1.0), "discard=1.0"),
        (lambda: rollout(weights(), heads="sum"), "heads='sum'"),  # type: ignore[arg-type]
        (lambda: attention_map(nn.Linear(3, 3), IMAGES, prefix=1), "no transformer blocks"),
        (lambda: attention_map(vit(), IMAGES, grid=(3, 5)), "no grid"),
    ],
)
def test_what_cannot_be_rolled_out_is_said(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()
