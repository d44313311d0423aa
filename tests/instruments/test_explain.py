"""One logit as a sum: exact for every architecture that is understood, and refused for the others."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from unrolled.instruments.explain import Explanation, explain_logit
from unrolled.instruments.trace import trace
from unrolled.models import CRATE

CRATES: dict[str, dict[str, Any]] = {
    "crate": {},
    "mean": {"pool": "mean"},
    "patches": {"pool": "avg", "fc_norm": False},
    "max": {"pool": "max"},
    "tied": {"output": "tied"},
    "no output": {"heads": 1},
    "alpha": {"sparsifier": "overcomplete", "decoupled": True, "residual": True, "bias": False},
    "overcomplete": {"sparsifier": "overcomplete", "bias": False, "pool": "mean"},
    "attention only": {"sparsifier": "none"},
    "vit frame": {"attention": "mhsa", "sparsifier": "mlp", "residual": True},
    "tost frame": {"attention": "tssa"},
    "orthogonal": {"orthogonal": True, "output": "tied"},
    "registers": {"pool": "mean", "reg_tokens": 2},
    "derived step": {"compression": "derived", "output": "tied"},
    "derived step, output of its own": {"compression": "derived", "pool": "mean"},
    "negated step": {"compression": "negated"},
    "exact step": {"compression": "exact", "eps": 0.5, "output": "tied"},
    "cbt": {"attention": "cbsa", "pool": "mean"},
}
WITHOUT_HEADS = {"exact step"}  # no attention is in it; it is kept whole
WITHOUT_SOURCES = {"tost frame", "cbt", *WITHOUT_HEADS}


def crate(**kwargs: Any) -> CRATE:
    settings: dict[str, Any] = {"dim": 16, "depth": 3, "heads": 4, "num_classes": 5, "image_size": 16, "patch_size": 4}
    return shaken(CRATE(**settings | {"stem": "linear"} | kwargs))


def vit(**kwargs: Any) -> nn.Module:
    settings: dict[str, Any] = {"embed_dim": 16, "depth": 3, "num_heads": 4, "num_classes": 5, "img_size": 16}
    return shaken(timm.create_model("vit_tiny_patch16_224", patch_size=4, **settings | kwargs))


def shaken(model: Any) -> Any:
    """Every parameter away from the ones and zeros at which mistakes cancel."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def picture(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(1, 3, height, width)


def check(model: nn.Module, image: Tensor, found: Explanation) -> None:
    with torch.no_grad():
        logits = model(image)[0]
    torch.testing.assert_close(found.logits.float(), logits, atol=1e-4, rtol=1e-4)
    assert found.logit == pytest.approx(float(logits[found.target]), abs=1e-4)
    assert abs(found.error) < 1e-4
    for half in found.halves:
        assert float(half.tokens.sum()) == pytest.approx(half.total, abs=1e-6)
        if half.heads is not None:
            assert float(half.heads.sum()) + half.bias == pytest.approx(half.total, abs=1e-4)
        if half.sources is not None:
            torch.testing.assert_close(half.sources.sum(-1), half.heads)


@pytest.mark.parametrize("name", CRATES)
def test_parts_of_a_crate_sum_to_the_logit(name: str) -> None:
    model, image = crate(**CRATES[name]), picture()
    found = explain_logit(model, image)
    check(model, image, found)
    attention = [half for half in found.halves if half.kind == "attn"]
    assert [half.layer for half in attention] == [0, 1, 2]
    assert all((half.heads is None) == (name in WITHOUT_HEADS) for half in attention)
    assert all((half.sources is None) == (name in WITHOUT_SOURCES) for half in attention)
    replaced = name not in ("alpha", "attention only", "vit frame")
    assert any(half.replaces for half in found.halves) == replaced


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False, "class_token": False},
        {"init_values": 0.1, "reg_tokens": 2, "qk_norm": True},
        {"scale_attn_norm": True},
    ],
    ids=["class token", "mean", "no class token", "layer scale, registers", "norm inside attention"],
)
def test_parts_of_a_vit_sum_to_the_logit(kwargs: dict[str, Any]) -> None:
    model, image = vit(**kwargs), picture()
    found = explain_logit(model, image, target=3)
    check(model, image, found)
    attention = [half for half in found.halves if half.kind == "attn"]
    assert all(half.heads is not None for half in attention)
    assert all((half.sources is None) == ("scale_attn_norm" in kwargs) for half in attention)
    assert found.prefix == (0 if kwargs.get("class_token") is False else 1 + kwargs.get("reg_tokens", 0))
    assert found.read == ("patches" if kwargs.get("global_pool") and found.prefix else found.read)


def test_a_token_that_agrees_with_the_one_that_attends_gives_a_derived_step_nothing() -> None:
    """Its sources are differences from the reading token's own coordinates, so equal patches are no evidence."""
    model = crate(compression="derived", pool="mean", depth=1)
    model, image = model.double(), torch.ones(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        model.pos_embed.zero_()
        with trace(model) as values:
            model(image)
        model.cls_token.copy_(values["embed"][:, 1:2])
    found = explain_logit(model, image)
    attention = found.halves[0]
    assert attention.sources is not None
    torch.testing.assert_close(attention.sources, torch.zeros_like(attention.sources), rtol=0, atol=1e-9)


def test_the_difference_of_two_logits() -> None:
    model, image = crate(), picture()
    one, other = explain_logit(model, image, target=1), explain_logit(model, image, target=4)
    both = explain_logit(model, image, target=1, against=4)
    assert both.logit == pytest.approx(one.logit - other.logit)
    for a, b, c in zip(both.halves, one.halves, other.halves, strict=True):
        assert a.total == pytest.approx(b.total - c.total)


def test_the_frozen_model_is_what_is_summed() -> None:
    """A source's term is what the logit loses when its value is removed from the last layer and nothing else moves."""
    model, image = vit(), picture()
    found = explain_logit(model, image, target=2)
    last = next(half for half in found.halves if half.kind == "attn" and half.layer == 2)
    model = model.double()
    block, layer, head, source = model.blocks[2], model.blocks[2].attn, 1, 7
    kept: dict[str, Tensor] = {}
    block.norm1.register_forward_hook(lambda _, args, out: kept.__setitem__("read", out))
    block.mlp.register_forward_hook(lambda _, args, out: kept.setdefault("mlp", out))
    model.norm.register_forward_hook(lambda _, args, out: kept.setdefault("z", args[0]))
    with torch.no_grad():
        model(image.double())
        q, k, v = layer.qkv(kept["read"]).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        weight = (q @ k.mT * layer.scale).softmax(-1)[0, head, 0, source]
        y = torch.zeros(16, dtype=torch.float64)
        y[head * 4 : head * 4 + 4] = weight * v[0, head, source]
        z = kept["z"][0, 0]
        scale = (z.var(unbiased=False) + model.norm.eps).rsqrt()
        step = layer.proj.weight @ y
        change = (step - step.mean()) * scale * model.norm.weight
        expected = model.head.weight[2] @ change
    assert last.sources is not None
    assert float(last.sources[head, source]) == pytest.approx(float(expected), abs=1e-9)


def test_ista_is_passed_with_its_active_set() -> None:
    """The terms of a CRATE follow the piecewise linear model: a small step at the embedding moves the logit so."""
    model, image = crate(depth=1, pool="mean", heads=1, dim=8, attention="mssa"), picture()
    with torch.no_grad():
        model.blocks[0].attn.subspaces.weight.zero_()  # uniform attention to nothing: what remains is ISTA
        found = explain_logit(model, image, target=0)
        attention, ista = found.halves
        assert attention.total == pytest.approx(attention.bias)
        assert ista.replaces
        assert found.constant + float(found.embed.sum()) + ista.total + attention.total == pytest.approx(found.logit)
        # without a threshold and without the norms' offsets ISTA is linear and has no term
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.bias.zero_()
        model.blocks[0].ista.sparsity = 0.0
        model.blocks[0].ista.refold()
        assert explain_logit(model, image, target=0).halves[1].total == pytest.approx(0, abs=1e-9)


def test_evidence_on_patches() -> None:
    model, image = crate(pool="mean"), picture(8, 24)
    found = explain_logit(model, image)
    assert found.grid == (2, 6)
    assert found.read == "all tokens"
    every = found.evidence()
    assert every.shape == (2, 6)
    parts = sum((found.evidence(layer) for layer in range(3)), found.embed[1:].reshape(2, 6))
    torch.testing.assert_close(every, parts)


def test_the_model_is_left_as_it_was() -> None:
    model, image = crate(), picture()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain_logit(model, image)
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_refusals() -> None:
    image = picture()
    with pytest.raises(ValueError, match="no class head"):
        explain_logit(crate(num_classes=0), image)
    for bad in (5, -1):
        with pytest.raises(ValueError, match=f"target={bad}: the model has 5 classes"):
            explain_logit(crate(), image, target=bad)
    with pytest.raises(ValueError, match="against=7"):
        explain_logit(crate(), image, target=0, against=7)
    with pytest.raises(ValueError, match="is the explained class itself"):
        explain_logit(crate(), image, target=0, against=0)
    with pytest.raises(ValueError, match="one preprocessed image"):
        explain_logit(crate(), torch.cat([image, image]))
    with pytest.raises(ValueError, match="NaN"):
        explain_logit(crate(), image * float("nan"))
    with pytest.raises(ValueError, match="no transformer blocks"):
        explain_logit(timm.create_model("test_resnet"), image)
    with pytest.raises(ValueError, match="no exact sum"):
        explain_logit(vit(global_pool="map"), image)
    with pytest.raises(ValueError, match="neither add to the tokens nor replace"):
        explain_logit(crate(sparsifier="mlp"), image)
    with pytest.raises(ValueError, match="no exact sum"):
        explain_logit(timm.create_model("tost_nano_patch4_32"), picture(32, 32))
