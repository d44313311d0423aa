"""CRATE as timm users expect it: names, sizes, options, saving; and errors that say what to do."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn

import unrolled
from tests.oracles import PublishedCRATE
from unrolled.models import CRATE, create_model, list_models

PUBLISHED_PARAMETERS = {
    "crate_tiny_patch16_224": 6_090_856,
    "crate_small_patch16_224": 13_116_328,
    "crate_base_patch16_224": 22_796_008,
    "crate_large_patch16_224": 77_641_192,
}
small = partial(CRATE, image_size=16, patch_size=4, num_classes=5, dim=24, depth=3, heads=4)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_output_and_gradients_equal_the_published_form(mode):
    model = getattr(small(), mode)()
    slow = copy.deepcopy(model)
    images = torch.randn(3, 3, 16, 16)
    out, reference = model(images), PublishedCRATE(slow)(images)
    torch.testing.assert_close(out, reference, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference, rtol=1e-5, atol=1e-5)
    out.square().sum().backward()
    reference.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED_PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(name, parameters):
    (info,) = list_models(name)
    assert info.parameters == parameters
    assert "2306.01129" in info.source


def test_every_name_is_registered_with_timm_and_runs():
    for info in list_models():
        assert timm.is_model(info.name)
    model = timm.create_model("crate_nano_patch2_8")
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert {"crate_nano_patch4_32", "vit_nano_patch4_32", "crate_base_patch8_224"} <= {m.name for m in list_models()}
    assert [m.name for m in list_models("crate_tiny_patch1*")] == ["crate_tiny_patch16_224"]


def test_timm_keyword_arguments():
    model = create_model("crate_nano_patch4_32", num_classes=7, in_chans=1, img_size=16, drop_path_rate=0.1)
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 7)
    assert model.pos_embed.shape[1] == 17
    features = create_model("crate_nano_patch4_32", features_only=True, out_indices=(1, 4))
    assert [f.shape for f in features(torch.randn(1, 3, 32, 32))] == [(1, 96, 8, 8)] * 2
    final, intermediates = create_model("crate_nano_patch4_32").forward_intermediates(torch.randn(1, 3, 32, 32))
    assert final.shape == (1, 65, 96)
    assert len(intermediates) == 6
    assert create_model("crate_nano_patch4_32", num_classes=0)(torch.randn(1, 3, 32, 32)).shape == (1, 96)


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (40, 40), (8, 20)])
def test_any_size_the_patch_divides_is_accepted_and_uses_interpolated_positions(size):
    model = small().eval()
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        resized = copy.deepcopy(model)
        resized.set_input_size(size)
        torch.testing.assert_close(model(image), resized(image), rtol=1e-4, atol=1e-5)
        assert model(image).shape == (1, 5)


def test_a_rectangular_native_size_keeps_its_own_positions():
    model = small(image_size=(8, 24)).eval()
    images = torch.randn(2, 3, 8, 24)
    torch.testing.assert_close(model(images), PublishedCRATE(model)(images), rtol=1e-4, atol=1e-5)


def test_pool_mean_averages_the_class_token_too_and_timm_avg_does_not():
    images = torch.randn(2, 3, 16, 16)
    mean = small(pool="mean").eval()
    tokens = mean.forward_features(images)
    torch.testing.assert_close(mean(images), mean.head(mean.fc_norm(tokens.mean(1))))
    avg = small(pool="avg").eval()
    tokens = avg.forward_features(images)
    torch.testing.assert_close(avg(images), avg.head(avg.fc_norm(tokens[:, 1:].mean(1))))


def test_options_reach_the_layers():
    model = small(step_size=0.2, sparsity=0.3, learn_step_size=True, output="tied", dim_head=5, drop_path_rate=0.2)
    block = model.blocks[2]
    assert isinstance(block.ista.step_size, nn.Parameter)
    assert block.ista.sparsity == 0.3
    assert block.attn.output is None
    assert block.attn.bases().shape == (4, 24, 5)
    assert block.drop_path.drop_prob == pytest.approx(0.2)
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 5)


def test_initialisation_is_the_documented_one():
    torch.manual_seed(0)
    model = create_model("crate_nano_patch4_32")
    assert float(model.pos_embed.std()) == pytest.approx(1, abs=0.05)
    assert float(model.blocks[0].ista.dictionary.std()) == pytest.approx((2 / 96) ** 0.5, rel=0.05)
    assert float(model.blocks[0].attn.subspaces.weight.std()) == pytest.approx((3 * 96) ** -0.5, rel=0.05)
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {"pos_embed", "cls_token", "head.weight", "blocks.3.ista.dictionary", "patch_embed.proj.bias"} <= changed
    with pytest.raises(ValueError, match="weight_init"):
        model.init_weights("jax")


@pytest.mark.parametrize("how", ["folder", "timm"])
def test_saved_models_come_back_bit_for_bit(tmp_path, how):
    model = small(image_size=(16, 8), pool="mean", dim_head=7, sparsity=0.2, learn_sparsity=True).eval()
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "config.json", "SHA256SUMS"}
    if how == "folder":
        again = CRATE.from_pretrained(tmp_path)
    else:
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    images = torch.randn(2, 3, 16, 8)
    assert torch.equal(again.eval()(images), model(images))


def test_saving_after_changes_keeps_them(tmp_path):
    model = create_model("crate_nano_patch4_32", num_classes=10)
    model.reset_classifier(3, "mean")
    model.set_input_size(48)
    model.save_pretrained(tmp_path)
    again = CRATE.from_pretrained(tmp_path)
    assert again.pool_include_prefix
    assert again.head.out_features == 3
    assert again.pos_embed.shape[1] == 145
    other = CRATE.from_pretrained(tmp_path, num_classes=8)
    assert other.head.out_features == 8
    assert torch.equal(other.blocks[0].ista.dictionary, again.blocks[0].ista.dictionary)


def test_from_pretrained_refuses_another_kind_of_model(tmp_path):
    vit = create_model("vit_nano_patch2_8")
    timm.models.save_for_hf(vit, tmp_path, safe_serialization=True)
    with pytest.raises(ValueError, match="not a CRATE"):
        CRATE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"image_size": 30}, "image_size=30 x 30 is not divisible by patch_size=4"),
        ({"heads": 5}, "heads=5 does not divide dim=24"),
        ({"pool": "first"}, "pool='first'"),
        ({"stem": "wavelet"}, "stem='wavelet'"),
        ({"depth": 0}, "depth=0"),
        ({"step_size": -1.0}, "step_size"),
    ],
)
def test_bad_arguments_are_named(arguments, names):
    with pytest.raises(ValueError, match=names):
        small(**arguments)


@pytest.mark.parametrize("stem", ["layernorm", "linear"])
def test_bad_images_are_named(stem):
    model = small(stem=stem)
    with pytest.raises(ValueError, match=r"need \[batch, 3, height, width\]"):
        model(torch.randn(1, 1, 16, 16))
    with pytest.raises(ValueError, match="18 x 16 pixels are not divisible by the patch of 4 x 4"):
        model(torch.randn(1, 3, 18, 16))
    with pytest.raises(ValueError, match="set in_chans"):
        model(torch.randn(3, 16, 16))


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="did you mean crate_tiny_patch16_224"):
        unrolled.create_model("crate_tinny_patch16_224")
