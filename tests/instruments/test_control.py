from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import nn

from unrolled.catalogue import catalogue
from unrolled.instruments import untrained_control
from unrolled.models import CRATE, create_model
from unrolled.models.encoder import build_language_model
from unrolled.models.sequence import SequenceRegressor
from unrolled.models.sequence_config import ENCODERS, LANGUAGE_MODELS, LAYERS, RegressorConfig, language_config


def crate() -> nn.Module:
    return CRATE(image_size=32, patch_size=8, num_classes=10, dim=24, depth=2, heads=3).eval()


def vit() -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=10, init_values=1e-3
    ).eval()


def of_text(name: str, **changes: Any) -> Callable[[], nn.Module]:
    size: Any = {"vocab_size": 40, "dim": 32, "heads": 2, "dim_head": 8, "depth": 2, "max_length": 12, **changes}
    return lambda: build_language_model(language_config(name, **size)).eval()


def regressor(layer: str, **arguments: Any) -> Callable[[], nn.Module]:
    args = {layer: arguments} if arguments else {}
    return lambda: SequenceRegressor(
        RegressorConfig(layers=(layer,) * 2, dim=32, heads=2, input_dim=4, init_std=None, layer_args=args)
    ).eval()


IMAGES = {name: partial(create_model, name) for name in catalogue() if "nano_" in name and "patch" in name}
IMAGES["tost, layer scale"] = partial(create_model, "tost_nano_patch4_32", layer_scale=0.25)
SEQUENCES = {
    **{name: of_text(name) for name in (*LANGUAGE_MODELS, *ENCODERS) if "nano" in name},
    "layer scale": of_text("tost_gpt_nano", layer_scale=0.25),
    **{layer: regressor(layer) for layer in LAYERS},
    "mesa, forgetful": regressor("mesa", forgetful=True, ridge=2.0, init_std=0.05),
    "linear, narrow": regressor("linear", init_std=0.01),
}


def trained(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(3.0)
    return model


@pytest.mark.parametrize(
    "make",
    [crate, vit, lambda: timm.create_model("resnet18", num_classes=3), *IMAGES.values(), *SEQUENCES.values()],
    ids=["crate", "vit", "resnet18", *IMAGES, *SEQUENCES],
)
def test_control_is_fresh_and_reproducible(make) -> None:
    model = trained(make())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    control = untrained_control(model, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    again = dict(untrained_control(model, seed=1).named_parameters())
    other = dict(untrained_control(model, seed=2).named_parameters())
    fresh = make()
    for name, parameter in control.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert torch.equal(parameter, again[name]), name
        ours, theirs = parameter.detach(), dict(fresh.named_parameters())[name].detach()
        assert ours.shape == theirs.shape
        if ours.numel() > 500:  # drawn from the same distribution as a new model's
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.25, abs=1e-6), name
        elif ours.numel() > 1 and ours.std() == 0:
            assert torch.equal(ours, theirs), name
    assert any(not torch.equal(p, other[n]) for n, p in control.named_parameters())
    assert control.training == model.training


def test_hugging_face_and_plain_modules() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32)
    model = trained(transformers.ViTModel(config)).to(torch.bfloat16).eval()
    control = untrained_control(model)
    assert control.dtype == torch.bfloat16
    assert not control.training
    assert float(control.layernorm.weight.detach().float().mean()) == 1
    same = untrained_control(model)
    assert all(torch.equal(a, b) for a, b in zip(control.parameters(), same.parameters(), strict=True))
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    encoder.requires_grad_(False)
    control = untrained_control(encoder)
    assert not any(p.requires_grad for p in control.parameters())


def test_a_parameter_nobody_initialises_is_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.gain = nn.Parameter(torch.ones(2))

    with pytest.raises(ValueError, match=r"initialises 1\.gain"):
        untrained_control(nn.Sequential(nn.Linear(2, 2), Scaled()))


def test_parts_that_a_model_was_built_without_stay_out() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=20), add_pooling_layer=False)
    control = untrained_control(model, seed=3)
    assert [name for name, _ in control.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert not torch.equal(control.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight)


def test_a_hugging_face_model_inside_another_module_has_its_own_initial_weights() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=60))
            self.head = nn.Linear(24, 3)

    model = trained(Classifier()).eval()
    control = untrained_control(model, seed=1)
    assert float(control.body.embeddings.word_embeddings.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert float(control.body.encoder.layer[0].attention.self.query.weight.detach().std()) == pytest.approx(
        0.02, rel=0.2
    )
    assert not any(module.training for module in control.modules())
    same = untrained_control(model, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(control.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnetx_002", "repvgg_a0", "pvt_v2_b0"])
def test_convnets_of_timm_are_initialised_as_timm_does(name: str) -> None:
    model = timm.create_model(name, num_classes=10)
    fresh = dict(timm.create_model(name, num_classes=10).named_parameters())
    for path, parameter in untrained_control(model).named_parameters():
        if parameter.numel() > 500:
            assert parameter.std().item() == pytest.approx(fresh[path].std().item(), rel=0.25, abs=1e-6), path


def test_weights_that_a_constructor_alone_sets_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="DenseNet has no init_weights"):
        untrained_control(timm.create_model("densenet121", growth_rate=4, block_config=(1, 1), num_classes=3))
