from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from unrolled.instruments.explain import explain_logit
from unrolled.instruments.readouts.faithfulness import all_logits_without, faithfulness, logits_without
from unrolled.models import create_model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model("crate_nano_patch2_8", num_classes=4).eval()


def test_removing_patches_is_running_the_model_without_them(model: nn.Module) -> None:
    image = torch.randn(1, model.patch_embed.proj.in_channels, 8, 8)  # type: ignore[union-attr]
    found = explain_logit(model, image, target=2, against=0)
    removed = torch.zeros(3, 16, dtype=torch.bool)
    removed[1, 5] = True
    removed[2] = True
    logits = logits_without(model, image, removed, found)
    other = image.clone()
    other[..., 2:4, 2:4] = 0
    with torch.no_grad():
        expected = [model(x)[0].double() for x in (image, other, torch.zeros_like(image))]
    for value, row in zip(logits, expected, strict=True):
        assert float(value) == pytest.approx(float(row[2] - row[0]), abs=1e-5)


def test_a_model_in_training_mode_is_asked_in_eval_mode_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = timm.models.VisionTransformer(**size, num_classes=4, proj_drop_rate=0.3, drop_path_rate=0.5)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    images = [torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))]
    found = faithfulness(model, images, draws=2)
    assert [module.training for module in model.modules()] == modes
    assert found == faithfulness(model.eval(), images, draws=2)


def test_patches_must_divide_the_image(model: nn.Module) -> None:
    removed = torch.zeros(1, 9, dtype=torch.bool)
    channels = model.patch_embed.proj.in_channels  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"grid=\(3, 3\): an image of \(8, 8\) pixels"):
        all_logits_without(model, torch.randn(1, channels, 8, 8), removed, (3, 3))


def test_rows_are_paired_with_random_patches_and_repeat(model: nn.Module) -> None:
    channels = model.patch_embed.proj.in_channels  # type: ignore[union-attr]
    images = [torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    rows = faithfulness(model, images, shares=(0.25, 1.0), draws=3)
    assert [(row["what"], row["share"]) for row in rows] == [
        ("removed", 0.25), ("removed", 1.0), ("kept", 0.25), ("kept", 1.0),
    ]  # fmt: skip
    everything = rows[1]
    assert everything["evidence"] == pytest.approx(everything["random"], abs=1e-6), "all patches are all patches"
    assert rows[3]["evidence"] == pytest.approx(0, abs=1e-5), "nothing was removed"
    for row in rows:
        assert row["images"] == 6
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["difference"] == pytest.approx(row["evidence"] - row["random"])
    again = faithfulness(model, iter(images), shares=(0.25, 1.0), draws=3)
    assert again == rows
    assert faithfulness(model, images, shares=(0.25,), draws=3, seed=1)[0]["random"] != rows[0]["random"]
    with pytest.raises(ValueError, match="images: there is not one"):
        faithfulness(model, [])
