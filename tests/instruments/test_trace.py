from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import unrolled
from tests.instruments.architectures import build
from unrolled.instruments.trace import trace

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def crate() -> nn.Module:
    return unrolled.models.CRATE(
        image_size=32, patch_size=8, num_classes=10, dim=24, depth=3, heads=3, drop_path_rate=0.5
    ).eval()


def vit(**kwargs: Any) -> nn.Module:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 10}
    return timm.models.VisionTransformer(**{**args, **kwargs}).eval()


def expected(second: str, end: tuple[str, ...] = ("norm", "head"), depth: int = 3) -> list[str]:
    blocks = [f"block{i:02d}" for i in range(depth)]
    return ["embed", *(n for b in blocks for n in (f"{b}/attn", f"{b}/half", f"{b}/{second}", b)), *end]


def test_crate_and_vit_share_their_names() -> None:
    for model, second in ((crate(), "ista"), (vit(), "mlp"), (vit(init_values=0.1, drop_path_rate=0.5), "mlp")):
        with torch.no_grad(), trace(model) as t:
            logits = model(IMAGES)
        assert list(t) == t.names == expected(second)
        assert torch.equal(t["head"], logits)
        assert torch.allclose(t["embed"] + t["block00/attn"], t["block00/half"], atol=1e-6)
        assert torch.allclose(t["block01"] + t["block02/attn"], t["block02/half"], atol=1e-6)
        written = t["block02/ista"] if second == "ista" else t["block02/half"] + t["block02/mlp"]
        assert torch.allclose(written, t["block02"], atol=1e-6)


@pytest.mark.parametrize("name", ["hf-vit", "gpt2", "llama"])
def test_hugging_face_names_mean_the_same(name: str) -> None:
    model, inputs = build(name)
    with torch.no_grad(), trace(model) as t:
        logits = model(**inputs).logits
    assert list(t) == expected("mlp", depth=2)
    assert torch.equal(t["head"], logits)
    assert torch.allclose(t["block01/half"] + t["block01/mlp"], t["block01"], atol=1e-6)


def test_bert_normalises_after_each_half() -> None:
    model, inputs = build("bert")
    with torch.no_grad(), trace(model) as t:
        model(**inputs)
    assert list(t) == expected("mlp", ("head",), depth=2)
    layer = model.bert.encoder.layer[1]
    half = layer.attention.output.LayerNorm(t["block00"] + t["block01/attn"])
    assert torch.allclose(half, t["block01/half"], atol=1e-6)
    assert torch.allclose(layer.output.LayerNorm(half + t["block01/mlp"]), t["block01"], atol=1e-6)


def test_torch_encoder_and_second_stacks() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    both = nn.ModuleDict(
        {part: nn.TransformerEncoder(layer, 2, enable_nested_tensor=False) for part in ("encoder", "decoder")}
    ).eval()
    z = torch.randn(1, 4, 8)
    with torch.no_grad(), trace(both) as t:
        both["decoder"](both["encoder"](z))
    assert torch.allclose(t["encoder/embed"] + t["encoder/block00/attn"], t["encoder/block00/half"], atol=1e-6)
    assert "decoder/block01/half" in t


def test_other_modules_are_named_by_path_and_not_hit_by_in_place_operations() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4096, 2))
    with torch.no_grad(), trace(model) as t:
        logits = model(IMAGES)
    assert list(t) == ["0", "1", "2", "3"]
    assert torch.equal(t["0"], model[0](IMAGES))
    assert t["0"].min() < 0
    assert torch.equal(t["3"], logits)


def test_tracing_changes_nothing() -> None:
    for model in (crate(), vit()):
        before = copy.deepcopy(model.state_dict())
        plain = model(IMAGES)
        with trace(model, attention=True):
            traced = model(IMAGES)
        assert torch.equal(plain, traced)
        assert torch.equal(plain, model(IMAGES))
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert hooks(model) == 0


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_go_after_exceptions() -> None:
    model = vit()
    t = trace(model)
    with pytest.raises(AssertionError, match="Input height"), t:
        model(torch.randn(2, 3, 31, 31))
    assert hooks(model) == 0

    def broken(name: str, tensor: torch.Tensor) -> None:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="embed"), trace(model, reduce=broken):
        model(IMAGES)
    assert hooks(model) == 0
    with t:  # and the trace can be used again
        model(IMAGES)
    assert "head" in t


def test_reduce_bounds_memory() -> None:
    model, kept = crate(), 0
    with torch.no_grad(), trace(model, reduce=lambda name, z: z.mean((-2, -1)) if z.dim() == 3 else None) as t:
        for _ in range(4):
            model(IMAGES)
    for name in t:
        assert len(t[name]) == 4
        kept += sum(value.numel() for value in t[name])
    assert "head" not in t
    assert kept == 4 * len(IMAGES) * (len(t.names) - 1)

    alive = []
    with torch.no_grad(), trace(model, reduce=lambda name, z: alive.append(z.untyped_storage().size())) as t:
        model(IMAGES)
    assert len(alive) == len(t.names)
    assert len(t) == 0


def test_several_calls_concatenate_and_clear_forgets() -> None:
    model = vit()
    with torch.no_grad(), trace(model, patterns="block??") as t:
        model(IMAGES[:1])
        model(IMAGES[1:])
        parts = t["block01"]
        t.clear()
        assert len(t) == 0
        model(IMAGES)
    assert torch.allclose(parts, t["block01"], atol=1e-5)
    with torch.no_grad(), trace(vit(dynamic_img_size=True), patterns="block??") as t:
        model = t.stacks[0].blocks[0][1]
        model(torch.randn(1, 4, 24))
        model(torch.randn(1, 5, 24))
    with pytest.raises(ValueError, match="reduce="):
        t["block00"]


def test_grad_keeps_the_graph() -> None:
    model = crate()
    with trace(model, patterns=["embed", "block*"], grad=True) as t:
        loss = model(IMAGES).logsumexp(-1).sum()
    gradient = torch.autograd.grad(loss, t["block01"])[0]
    assert gradient.shape == t["block01"].shape
    assert gradient.abs().sum() > 0
    with trace(model) as t:
        model(IMAGES)
    assert not t["block01"].requires_grad


def test_checkpointed_blocks_are_recorded_once() -> None:
    model = vit().train()
    model.set_grad_checkpointing()
    with trace(model, patterns="block??") as t:
        model(IMAGES).sum().backward()
    assert t["block01"].shape == (2, 17, 24)


def test_patterns() -> None:
    model = vit()
    assert trace(model, patterns="block*/half").names == [f"block0{i}/half" for i in range(3)]
    assert trace(model, patterns=["block??", "embed"]).names == ["embed", "block00", "block01", "block02"]
    with torch.no_grad(), trace(model, patterns=["blocks.1.mlp.fc1", "blocks.1.mlp.*"]) as t:
        model(IMAGES)
    assert t["blocks.1.mlp.fc1"].shape == (2, 17, 96)  # once, though two patterns match
    with pytest.raises(ValueError, match="'block01/hlaf' matches no name; the nearest are block01/half"):
        trace(model, patterns=["embed", "block01/hlaf"])
    with pytest.raises(ValueError, match="attention=True"):
        trace(model, patterns="block01/attention")
    with pytest.raises(ValueError, match="patterns"):
        trace(model, patterns=[])
    with pytest.raises(KeyError, match="nearest are block01"):
        trace(model)["block1"]
    with pytest.raises(KeyError, match="no forward call"):
        trace(model)["block01"]


def test_attention_of_crate() -> None:
    model = crate()
    with (
        torch.no_grad(),
        trace(model, attention=True, patterns=["block01*", "block00", "blocks.1.attn.subspaces"]) as t,
    ):
        model(IMAGES)
    block = model.blocks[1]
    weights = t["block01/attention"]
    assert weights.shape == (2, 3, 17, 17)
    assert torch.equal(weights, block.attn.attention(block.norm1(t["block00"])))
    assert len(t["blocks.1.attn.subspaces"]) == 2  # reading the weights is not recorded as a call


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_of_vit_is_what_it_computes(qk_norm: bool) -> None:
    model = vit(qk_norm=qk_norm)
    with torch.no_grad(), trace(model, attention=True, patterns=["block02*", "block01", "blocks.2.attn.qkv"]) as t:
        model(IMAGES)
    attn = model.blocks[2].attn
    v = t["blocks.2.attn.qkv"].unflatten(-1, (3, 3, 8))[:, :, 2].transpose(1, 2)
    output = attn.proj((t["block02/attention"] @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(output, t["block02/attn"], atol=1e-5)
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    with torch.no_grad(), trace(model, attention=True, patterns="*/attention") as masked:
        model(IMAGES, attn_mask=mask)
    assert masked["block02/attention"][..., 0, 1:].abs().max() == 0


def test_attention_elsewhere() -> None:
    with pytest.raises(ValueError, match="eager"):
        trace(build("gpt2")[0], attention=True)
    model, inputs = build("gpt2")
    model.set_attn_implementation("eager")
    with torch.no_grad(), trace(model, attention=True) as t:
        model(**inputs)
    assert t["block01/attention"].shape == (2, 4, 7, 7)
    assert torch.allclose(t["block01/attention"].sum(-1), torch.ones(2, 4, 7), atol=1e-5)


def test_wrapped_and_compiled_models() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x)

    model = Wrapper(crate())
    with torch.no_grad(), trace(model) as t:
        model(IMAGES)
    assert list(t) == expected("ista")
    with pytest.raises(ValueError, match="compile"):
        trace(torch.compile(crate()))


def test_lazy_names() -> None:
    assert unrolled.trace is trace
    assert callable(unrolled.instruments.layerwise)
    assert callable(unrolled.instruments.trace_report)
    assert callable(unrolled.instruments.layerwise)  # still a function after its module is imported
    with pytest.raises(AttributeError):
        _ = unrolled.instruments.nothing


@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_d2se"])
def test_a_convnet_with_a_slot_called_attn_is_recorded_by_module_path(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    with trace(model, patterns="stages.0.0") as t:
        model(torch.zeros(1, 3, 32, 32))
    assert list(t) == ["stages.0.0"]
    assert "embed" not in trace(model).names


def test_attention_that_returns_no_weights_is_said_when_it_runs() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DebertaV2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=20,
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.DebertaV2Model(config).eval()
    with pytest.raises(ValueError, match="returns no attention weights"), trace(model, attention=True):
        model(torch.arange(6)[None])
