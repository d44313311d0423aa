"""Masked autoencoding: what is removed, what is predicted, both encoders, any size, and back to a classifier."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unrolled.instruments import untrained_control
from unrolled.models import CRATE, CRATEDecoderBlock, MaskedAutoencoder, create_model, list_models
from unrolled.models.masked import removed_patches, sincos_positions, whole_images

# millions of the published models, and the parameters of theirs that do nothing: a second table, a square map
PUBLISHED = {"tiny": (384, 11.56), "small": (576, 25.41), "base": (768, 44.64), "large": (1024, 154.27)}


def small(**kwargs):
    arguments = {"image_size": 16, "patch_size": 4, "dim": 24, "depth": 2, "heads": 4, **kwargs}
    return MaskedAutoencoder(**arguments)


@pytest.mark.parametrize(("size", "expected"), PUBLISHED.items())
def test_parameters_are_the_published_ones_without_the_dead(size, expected):
    (info,) = list_models(f"crate_mae_{size}_patch16_224")
    d, millions = expected
    assert round((info.parameters + 197 * d + d * d + d) / 1e6, 2) == millions


def test_the_baseline_has_the_published_parameters_of_a_vit_mae():
    (info,) = list_models("vit_mae_base_patch16_224")
    assert round((info.parameters + 197 * 768 + 768 * 768 + 768) / 1e6, 1) == 143.8


@pytest.mark.parametrize("encoder", ["full", "visible"])
@pytest.mark.parametrize("size", [(16, 16), (24, 16), (8, 40)])
def test_shapes_masks_and_loss(encoder, size):
    model = small(encoder=encoder)
    images = torch.randn(3, 3, *size)
    n = size[0] * size[1] // 16
    noise = torch.rand(3, n)
    loss, prediction, mask = model(images, mask_ratio=0.6, noise=noise)
    assert prediction.shape == (3, n, 48)
    kept = {16: 6, 24: 10, 20: 8}[n]
    assert ((mask == 0).sum(1) == kept).all()
    assert (noise[mask == 0].view(3, -1).max(1)[0] < noise[mask == 1].view(3, -1).min(1)[0]).all()
    error = (prediction - model.patchify(images)).square().mean(-1)
    torch.testing.assert_close(loss, error[mask == 1].mean())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not model.pos_embed.requires_grad


@pytest.mark.parametrize("encoder", ["full", "visible"])
def test_removed_pixels_are_not_seen(encoder):
    model = small(encoder=encoder).eval()
    images, noise = torch.randn(1, 3, 16, 16), torch.rand(1, 16)
    _, prediction, mask = model(images, noise=noise)
    hidden = model.unpatchify(mask.unsqueeze(-1).expand(-1, -1, 48))
    changed = images + 5 * hidden
    _, again, _ = model(changed, noise=noise)
    torch.testing.assert_close(again, prediction, rtol=0, atol=0)
    _, other, _ = model(images + 5 * (1 - hidden), noise=noise)
    assert not torch.allclose(other, prediction)


def test_patches_are_in_the_published_order():
    model = small()
    images = torch.arange(3 * 16 * 16).float().view(1, 3, 16, 16)
    patches = model.patchify(images)
    assert torch.equal(patches[0, 1].view(4, 4, 3), images[0, :, :4, 4:8].permute(1, 2, 0))
    assert torch.equal(model.unpatchify(patches), images)
    with pytest.raises(ValueError, match="do not tile"):
        model.unpatchify(patches, (16, 12))


def test_completion_keeps_what_was_visible_and_fills_the_rest():
    for norm in (False, True):
        model = small(norm_pix_loss=norm).eval()
        images, noise = torch.randn(2, 3, 8, 24), torch.rand(2, 12)
        filled, mask = model.complete(images, noise=noise)
        assert filled.shape == images.shape
        assert mask.shape == (2, 1, 8, 24)
        assert torch.equal(filled * (1 - mask), images * (1 - mask))
        assert not torch.isclose(filled, images)[mask.expand_as(images) > 0].all()


def test_norm_pix_loss_is_on_normalised_patches():
    model = small(norm_pix_loss=True)
    images, noise = torch.randn(2, 3, 16, 16) * 3 + 1, torch.rand(2, 16)
    loss, prediction, mask = model(images, noise=noise)
    target = model.patchify(images)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(loss, (prediction - target).square().mean(-1)[mask == 1].mean())


def test_the_decoder_reverses_the_steps_of_the_encoder():
    block = small().decoder_blocks[1]
    assert isinstance(block, CRATEDecoderBlock)
    y = torch.randn(2, 5, 24)
    half = block.norm1(y) @ block.linear.weight.T
    torch.testing.assert_close(block(y), half - block.attn(block.norm2(half)))


@pytest.mark.parametrize("pool", ["cls", "mean", "avg"])
def test_a_classifier_starts_from_the_encoder(pool):
    model = small(channels=1).eval()
    classifier = model.classifier(7, pool=pool, drop_path_rate=0.1)
    images = torch.randn(2, 1, 16, 16)
    assert isinstance(classifier, CRATE)
    assert classifier(images).shape == (2, 7)
    assert classifier.blocks[0].ista.sparsity == 0.5
    assert classifier.pos_embed.requires_grad
    tokens = classifier.norm(classifier.forward_features(images))
    if pool != "cls":
        tokens = classifier.fc_norm(tokens)
    torch.testing.assert_close(
        tokens if pool != "cls" else classifier.forward_features(images), model.forward_features(images)
    )


@pytest.mark.parametrize("kwargs", [{"encoder": "visible", "norm_pix_loss": True, "decoder_depth": 1}, {"channels": 1}])
def test_saved_models_come_back_bit_for_bit(tmp_path, kwargs):
    model = small(image_size=(16, 8), **kwargs).eval()
    model.save_pretrained(tmp_path)
    again = MaskedAutoencoder.from_pretrained(tmp_path).eval()
    images, noise = torch.randn(2, kwargs.get("channels", 3), 16, 8), torch.rand(2, 8)
    for a, b in zip(again(images, noise=noise), model(images, noise=noise), strict=True):
        assert torch.equal(a, b)
    assert not again.pos_embed.requires_grad


def test_names_and_the_vit_baseline():
    images = torch.randn(2, 3, 32, 32)
    for name in ("crate_mae_nano_patch4_32", "vit_mae_nano_patch4_32"):
        model = create_model(name, encoder="visible")
        loss, prediction, _ = model(images)
        assert prediction.shape == (2, 64, 48)
        loss.backward()
    assert model.decoder_blocks[0].mlp.fc1.out_features == 384
    assert create_model("crate_mae_nano_patch4_32", in_chans=1, img_size=16)(torch.randn(1, 1, 16, 16))[1].shape == (
        1,
        16,
        16,
    )


def test_positions_are_sines_and_cosines():
    table = sincos_positions(2, 3, 8)
    assert table.shape == (1, 7, 8)
    assert (table[0, 0] == 0).all()
    expected = torch.tensor([2.0, 0.02]).sin(), torch.tensor([2.0, 0.02]).cos(), torch.tensor([1.0, 0.01]).sin()
    torch.testing.assert_close(table[0, 6, :6], torch.cat(expected))


@given(st.integers(2, 400), st.integers(1, 99))
def test_the_share_of_removed_patches_is_the_nearest_there_is(n: int, percent: int) -> None:
    ratio = percent / 100
    removed = removed_patches(n, ratio)
    assert abs(100 * removed - n * percent) <= 50
    if n * percent % 400 == 0 and ratio in (0.25, 0.5, 0.75):
        assert n - removed == int(n * (1 - ratio)), "the published rule, where it is exact"


def test_a_fifth_of_a_hundred_patches_is_twenty() -> None:
    _, _, mask = small(image_size=40)(torch.randn(1, 3, 40, 40), mask_ratio=0.8)
    assert int(mask.sum()) == 80, "int(100 * (1 - 0.8)) is 19"


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, 0.99, float("nan")])
def test_ratios_that_leave_nothing_to_do_are_refused(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio={ratio}"):
        small()(torch.randn(1, 3, 16, 16), mask_ratio=ratio)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"noise: .* \[2, 16\]"):
        small()(torch.randn(2, 3, 16, 16), noise=torch.rand(2, 17))
    with pytest.raises(ValueError, match="not divisible"):
        small()(torch.randn(2, 3, 18, 16))
    with pytest.raises(ValueError, match="encoder='sparse'"):
        small(encoder="sparse")
    with pytest.raises(ValueError, match="classifier"):
        small(num_classes=10)
    with pytest.raises(ValueError, match="multiple of 4"):
        small(dim=18, heads=3)


def test_a_network_of_whole_images_shares_weights_and_leaves_the_autoencoder_as_it_was():
    model, images = small().eval(), torch.randn(2, 3, 16, 16)
    whole = whole_images(model)
    torch.testing.assert_close(whole(images), model.forward_features(images))
    assert [id(p) for p in whole.parameters()] == [id(p) for p in model.parameters()]
    assert type(model) is MaskedAutoencoder
    assert len(model(images)) == 3
    control = untrained_control(whole, seed=1)
    assert control(images).shape == whole(images).shape
    assert not torch.equal(control(images), whole(images))
    plain = nn.Linear(2, 2)
    assert whole_images(plain) is plain
