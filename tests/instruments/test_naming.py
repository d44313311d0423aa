"""Names are handed on to other tools: modules and sides hold what a trace records, hooks are named both ways."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import unrolled
from unrolled.instruments import from_transformer_lens, module_places, to_transformer_lens

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
NAMES = ["embed", "norm", "head", "block03", *(f"block11/{each}" for each in ("attn", "half", "mlp", "attention"))]


def model_of(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    if name == "crate":
        return unrolled.models.CRATE(image_size=32, patch_size=8, num_classes=4, dim=24, depth=3, heads=3), IMAGES
    if name == "vit":
        return timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, init_values=0.1
        ), IMAGES
    if name == "convolutions":
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), IMAGES
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 24, "n_layer": 3, "n_head": 3, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)), torch.randint(3, 50, (2, 7))


@pytest.mark.parametrize("name", ["crate", "vit", "gpt2", "convolutions"])
def test_a_place_holds_what_the_trace_records(name: str) -> None:
    model, inputs = model_of(name)
    places = module_places(model.eval())
    seen: dict[str, Tensor] = {}

    def keep(key: str, value: Any) -> None:
        while not isinstance(value, Tensor):
            value = value[0]
        seen[key] = value.clone()

    for key, place in places.items():
        module = model.get_submodule(place.path)
        if place.side == "input":
            module.register_forward_pre_hook(
                lambda _, args, kwargs, key=key: keep(key, args or list(kwargs.values())), with_kwargs=True
            )
        else:
            module.register_forward_hook(lambda _, args, out, key=key: keep(key, out))
    with torch.no_grad(), unrolled.trace(model, heads=True) as t:
        model(inputs)
    assert list(places) == t.names
    for key in t:
        assert torch.equal(seen[key], t[key].flatten(-2) if key.endswith("/heads") else t[key]), key
    assert len({place: key for key, place in places.items()}) == len(places)  # the other way round


def test_captum_finds_the_same_tensors() -> None:
    attr = pytest.importorskip("captum.attr")
    model, inputs = model_of("vit")
    places = module_places(model.eval())
    with torch.no_grad(), unrolled.trace(model) as t:
        model(inputs)
    for name in ("embed", "block01/attn", "block01/half", "block01"):
        place = places[name]
        layer = attr.LayerActivation(model, model.get_submodule(place.path))
        found = layer.attribute(inputs, attribute_to_layer_input=place.side == "input")
        assert torch.equal(found, t[name]), name


@pytest.mark.parametrize("name", [*NAMES, "block11/attn/heads"])
def test_hooks_of_transformer_lens_go_there_and_back(name: str) -> None:
    assert from_transformer_lens(to_transformer_lens(name)) == name


def test_hooks_that_are_one_tensor_have_one_name() -> None:
    assert from_transformer_lens("blocks.4.hook_resid_pre") == "block03"
    assert from_transformer_lens("blocks.0.hook_resid_pre") == "embed"
    assert from_transformer_lens("ln_final.hook_normalized") == "norm"


@pytest.mark.parametrize(
    ("function", "name", "message"),
    [
        (to_transformer_lens, "block03/ista", "no hook in TransformerLens; .* block03/half"),
        (to_transformer_lens, "decoder/block03", "no hook in TransformerLens"),
        (from_transformer_lens, "blocks.3.hook_attn_outs", "the nearest are blocks.3.hook_attn_out"),
        (from_transformer_lens, "blocks.3.attn.hook_q", "the nearest are blocks.3.attn.hook_"),
    ],
)
def test_what_has_no_other_name_is_said(function: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(name)
