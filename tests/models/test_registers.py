"""Registers: more learned tokens, which layers see and pooling does not, and which weights without them accept."""

from functools import partial

import pytest
import torch

from unrolled.instruments.trace import trace
from unrolled.models import CRATE, MaskedAutoencoder, create_model
from unrolled.models.transfer import load_weights

small = partial(CRATE, image_size=16, patch_size=4, num_classes=5, dim=24, depth=2, heads=4)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_registers_are_tokens_with_positions_that_layers_see():
    model = small(reg_tokens=3).eval()
    assert model.reg_token.shape == (1, 3, 24)
    assert model.pos_embed.shape == (1, 1 + 3 + 16, 24)
    with trace(model) as t:
        out = model(IMAGES)
    assert t["block01"].shape == (2, 1 + 3 + 16, 24)
    with torch.no_grad():
        model.reg_token[:, 2] = torch.randn(24)
        assert not torch.allclose(model(IMAGES), out)


def test_they_start_at_the_variance_of_the_class_token_and_learn():
    torch.manual_seed(0)
    model = small(reg_tokens=40)
    assert float(model.reg_token.detach().std()) == pytest.approx(1, abs=0.1)
    assert float(small(reg_tokens=4, sparsifier="overcomplete", residual=True).reg_token.detach().std()) < 1e-5
    model(IMAGES).square().sum().backward()
    assert float(model.reg_token.grad.abs().sum()) > 0
    assert "reg_token" in model.no_weight_decay()


@pytest.mark.parametrize("pool", ["mean", "avg", "max", "cls"])
def test_no_pooling_reads_them(pool):
    model = small(reg_tokens=3, pool=pool).eval()
    tokens = torch.randn(2, 20, 24)
    other = tokens.clone()
    other[:, 1:4] += 9
    torch.testing.assert_close(model.pool(tokens), model.pool(other))
    kept = torch.cat([tokens[:, :1], tokens[:, 4:]], 1)
    expected = {"mean": kept.mean(1), "avg": tokens[:, 4:].mean(1), "max": tokens[:, 4:].amax(1), "cls": tokens[:, 0]}
    torch.testing.assert_close(model.pool(tokens), expected[pool])


@pytest.mark.parametrize("size", [(24, 24), (16, 32)])
def test_other_sizes_resample_the_patches_positions_only(size):
    model = small(reg_tokens=3).eval()
    prefix = model.pos_embed[:, :4].clone()
    images = torch.randn(1, 3, *size)
    expected = model(images)
    model.set_input_size(size)
    assert torch.equal(model.pos_embed[:, :4], prefix)
    torch.testing.assert_close(model(images), expected)
    assert model.forward_intermediates(images, intermediates_only=True)[0].shape == (1, 24, size[0] // 4, size[1] // 4)


def test_contract_and_broadcast_attention_pools_the_patches_only():
    model = small(reg_tokens=3, attention="cbsa", stem="conv").eval()
    assert model.blocks[0].attn.prefix_tokens == 4
    assert model(torch.randn(1, 3, 8, 24)).shape == (1, 5)


def test_saved_models_come_back_and_weights_without_registers_accept_them(tmp_path):
    model = small(reg_tokens=3, pool="mean").eval()
    model.save_pretrained(tmp_path / "with")
    again = CRATE.from_pretrained(tmp_path / "with").eval()
    assert torch.equal(again(IMAGES), model(IMAGES))

    plain = small().eval()
    plain.save_pretrained(tmp_path / "without")
    grown = CRATE.from_pretrained(tmp_path / "without", reg_tokens=3)
    loaded = small(reg_tokens=3)
    before = loaded.reg_token.clone()
    report = load_weights(loaded, tmp_path / "without")
    assert "no registers" in report.reshaped["reg_token"]
    assert torch.equal(loaded.reg_token, before)
    for one in (grown, loaded):
        assert torch.equal(one.pos_embed[:, 4:], plain.pos_embed[:, 1:])
        assert torch.equal(one.blocks[1].ista.dictionary, plain.blocks[1].ista.dictionary)
        assert one(IMAGES).isfinite().all()


def test_masked_autoencoders_have_none_but_their_classifiers_may():
    with pytest.raises(ValueError, match="reg_tokens"):
        MaskedAutoencoder(image_size=16, patch_size=4, dim=24, depth=1, heads=4, reg_tokens=2)
    masked = MaskedAutoencoder(image_size=16, patch_size=4, dim=24, depth=1, heads=4)
    model = masked.classifier(3, reg_tokens=2)
    assert torch.equal(model.pos_embed[:, 3:], masked.pos_embed[:, 1:])
    assert model(IMAGES).shape == (2, 3)


def test_names_take_them_and_bad_counts_are_named():
    assert create_model("crate_nano_patch4_32", reg_tokens=2).num_prefix_tokens == 3
    with pytest.raises(ValueError, match="reg_tokens=-1"):
        small(reg_tokens=-1)
