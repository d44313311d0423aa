"""What timm's own tests ask of every model, asked of the smallest model of every family here."""

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor

from unrolled.models import CRATE, MaskedAutoencoder, create_model, list_models
from unrolled.models.registry import MASKED

NANO = [info.name for info in list_models("*_nano_patch4_32")]
CLASSIFIERS = [name for name in NANO if name not in MASKED]
OURS = [name for name in CLASSIFIERS if not name.startswith("vit")]
SMALL = {"depth": 3}


def build(name: str, **kwargs) -> torch.nn.Module:
    return timm.create_model(name, **{**SMALL, **kwargs}).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32)


def features(model: torch.nn.Module, x: Tensor) -> Tensor:
    """What leaves the model: of a masked autoencoder, which completes images, what its encoder's head says of them."""
    if isinstance(model, MaskedAutoencoder):
        return model.forward_head(model.forward_features(x))
    return model(x)


def test_every_family_is_here():
    assert {name.split("_nano")[0] for name in NANO} == {
        "crate", "crate_alpha", "crate_mae", "aot", "cbt", "tost", "vit", "vit_mae"
    }  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_forward_and_backward_reach_every_parameter(name):
    model = build(name, num_classes=42).train()
    out = model(images())
    assert out.shape == (2, 42)
    assert out.isfinite().all()
    out.square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", OURS)
def test_images_may_have_other_sizes_and_channels(name):
    model = build(name, num_classes=7, in_chans=1, drop_path_rate=0.1)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert model(torch.randn(1, 1, 40, 24)).shape == (1, 7)


@torch.no_grad()
@pytest.mark.parametrize("name", OURS)
def test_saved_models_come_back_bit_for_bit(name, tmp_path):
    model, x = build(name, num_classes=4), images()
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).eval()(x), model(x))
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))
    for folder in (str(tmp_path), f"local:{tmp_path}"):  # a folder comes with its weights, unless told otherwise
        assert torch.equal(create_model(folder).eval()(x), model(x))
        assert not torch.equal(create_model(folder, pretrained=False).eval()(x), model(x))
    assert type(model).from_pretrained(tmp_path, num_classes=9)(x).shape == (2, 9)


@torch.no_grad()
@pytest.mark.parametrize("name", OURS)
def test_compiled_models_agree(name):  # and exported ones in test_export
    model, x = build(name, depth=1), images()
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_gradient_checkpointing_changes_nothing(name):
    model, x = build(name).train(), images()
    expected = model(x)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", NANO)
def test_classifiers_are_taken_off_and_put_on(name):
    model, x = build(name), images()
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 65, model.num_features)
    torch.testing.assert_close(features(model, x), model.forward_head(tokens))
    assert model.forward_head(tokens, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.get_classifier() is model.head
    model.reset_classifier(0)
    assert features(model, x).shape == (2, model.num_features)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    model.reset_classifier(7, "avg")
    assert (features(model, x).shape, model.num_classes) == ((2, 7), 7)
    model.reset_classifier(0, "")
    assert features(model, x).shape == tokens.shape
    bare = build(name, num_classes=0, global_pool="")
    assert features(bare, x).shape == tokens.shape
    assert bare.num_classes == 0


@torch.no_grad()
@pytest.mark.parametrize("name", NANO)
def test_intermediates_are_those_that_lead_to_the_features(name):
    model, x = build(name), images()
    final, found = model.forward_intermediates(x, indices=[0, 2])
    torch.testing.assert_close(final, model.forward_features(x))
    assert [list(z.shape) for z in found] == [[2, 96, 8, 8]] * 2
    (alone,) = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(alone, found[0])
    assert model.prune_intermediate_layers([0, 1], prune_head=True) == [0, 1]
    assert len(model.blocks) == 2


@torch.no_grad()
@pytest.mark.parametrize("name", NANO)
def test_features_only(name):
    model = build(name, features_only=True)
    found = model(images())
    assert [z.shape[1] for z in found] == model.feature_info.channels()
    assert [32 // z.shape[-1] for z in found] == model.feature_info.reduction()
    assert all(z.isfinite().all() for z in found)


@pytest.mark.parametrize("name", [info.name for info in list_models()])
def test_descriptions_name_what_is_there(name):
    with torch.device("meta"):
        model = timm.create_model(name, **SMALL)
    state, described = model.state_dict(), model.default_cfg
    assert described["architecture"] == name
    if described["num_classes"]:
        assert state[f"{described['classifier']}.weight"].shape[0] == described["num_classes"]
    assert state[f"{described['first_conv']}.weight"].shape[1] == described["input_size"][0]
    assert model.no_weight_decay() <= {"cls_token", "pos_embed", "reg_token", "dist_token", "pos_embed.*"}
    assert model.num_classes == described["num_classes"]


@pytest.mark.parametrize("name", NANO)
def test_parameters_fall_into_groups_by_depth(name):
    model = build(name)
    groups = group_parameters(model, model.group_matcher())
    assert sorted(key for group in groups.values() for key in group) == sorted(dict(model.named_parameters()))


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in timm.list_pretrained("crate*") if ".cifar10" in n])
def test_weights_that_ship_start_other_heads_channels_and_poolings(name):
    whole = timm.create_model(name, pretrained=True)
    for more in ({}, {"in_chans": 1}, {"global_pool": "avg"}, {"img_size": 48}):
        model = timm.create_model(name, pretrained=True, num_classes=5, **more).eval()
        assert type(model) is CRATE
        assert torch.equal(model.blocks[5].ista.dictionary, whole.blocks[5].ista.dictionary)
        side = more.get("img_size", 32)
        assert model(torch.randn(2, more.get("in_chans", 3), side, side)).shape == (2, 5)
        described = timm.data.resolve_data_config({}, model=model)
        assert [described[key] for key in ("mean", "std")] == [whole.default_cfg[key] for key in ("mean", "std")]
    assert timm.create_model(name, pretrained=True, features_only=True)(images())[0].shape == (2, 96, 8, 8)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(set(NANO) & MASKED))
def test_a_masked_autoencoder_with_classes_is_its_encoder_with_a_head(name, tmp_path):
    masked, x = build(name), images()
    masked.save_pretrained(tmp_path)
    for model in (
        build(name, num_classes=5),
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5),
    ):
        assert type(model) is CRATE
        assert model.eval()(x).shape == (2, 5)
        assert model.get_classifier().out_features == model.num_classes == 5
    torch.testing.assert_close(model.forward_features(x), masked.forward_features(x))
    again = CRATE.from_pretrained(model.save_pretrained(tmp_path / "classifier")).eval()
    assert torch.equal(again(x), model(x))


def test_a_decoder_of_other_channels_is_not_made_up():
    with pytest.raises(ValueError, match="in_chans: the decoder"):
        timm.create_model("crate_mae_nano_patch4_32.cifar10", pretrained=True, in_chans=1)
