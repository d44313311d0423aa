from __future__ import annotations

import gc
import json
import math
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from unrolled.instruments import head_subspaces, incoherence, layerwise, trace_report
from unrolled.instruments.meter import spectral
from unrolled.instruments.trace import trace
from unrolled.models import CRATE, load_published
from unrolled.theory import coding_rate, normalize_tokens, subspace_coding_rate

IMAGES = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
QUANTITIES = ("rate", "subspace_rate", "nonzero", "l1", "effective_rank")


def crate() -> nn.Module:
    torch.manual_seed(0)
    return CRATE(image_size=32, patch_size=8, num_classes=10, dim=24, depth=3, heads=3).eval()


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=10
    ).eval()


def test_published_protocol_reproduces_the_published_hook(shared: Path) -> None:
    golden = shared / "golden"
    if not (golden / "crate_cls.json").is_file():
        pytest.skip("no golden files")
    want = json.loads((golden / "crate_cls.json").read_text())
    model = load_published(golden / "crate_cls.pth.tar", heads=want["config"]["heads"])
    rows = layerwise(model, load_file(golden / "crate_cls.safetensors")["input"], protocol="published")
    for row, (mean, std), zeros in zip(
        rows, want["coding_rate_mean_std_per_layer"], want["zero_fraction_per_layer"], strict=True
    ):
        assert row["subspace_rate"] == pytest.approx(mean, abs=1e-4)
        assert row["subspace_rate_std"] == pytest.approx(std, abs=1e-4)
        assert row["nonzero"] == pytest.approx(1 - zeros, abs=1e-6)


def test_paper_protocol_is_the_theory_at_every_point() -> None:
    for model in (crate(), vit()):
        with torch.no_grad(), trace(model) as t:
            model(IMAGES)
        rows = layerwise(model, IMAGES, eps=0.3)
        assert len(rows) == 3
        for layer, row in enumerate(rows):
            assert all(type(value) is float and math.isfinite(value) for value in row.values())
            assert row["layer"] == layer
            assert row["images"] == len(IMAGES)
            subspaces = head_subspaces(model.blocks[layer])
            names = {"z": f"block{layer - 1:02d}" if layer else "embed", "half": f"block{layer:02d}/half"}
            for point, name in {**names, "next": f"block{layer:02d}"}.items():
                z = t[name]
                u = normalize_tokens(z)
                rate = coding_rate(u, 0.3)
                assert row[f"rate_{point}"] == pytest.approx(rate.mean().item(), rel=1e-5)
                assert row[f"rate_{point}_std"] == pytest.approx(rate.std().item(), abs=1e-4)
                assert row[f"rate_{point}_se"] == pytest.approx(rate.std().item() / 7**0.5, abs=1e-4)
                compressed = subspace_coding_rate(u, subspaces, 0.3).mean().item()
                assert row[f"subspace_rate_{point}"] == pytest.approx(compressed, rel=1e-5)
                assert row[f"nonzero_{point}"] == pytest.approx((z != 0).float().mean().item())
                assert row[f"l1_{point}"] == pytest.approx(z.abs().mean().item(), rel=1e-5)
                singular = torch.linalg.svdvals(u.double())
                p = singular / singular.sum(-1, keepdim=True)
                assert row[f"effective_rank_{point}"] == pytest.approx(
                    torch.special.entr(p).sum(-1).exp().mean().item(), rel=1e-3
                )
            assert row["rate"] == row["rate_half"]
            assert row["subspace_rate"] == row["subspace_rate_half"]
            assert row["nonzero"] == row["nonzero_next"]
            assert row["l1_next"] == row["l1"]


def test_vit_is_dense_and_its_subspaces_are_its_value_projections() -> None:
    model = vit()
    assert all(row["nonzero"] > 0.99 for row in layerwise(model, IMAGES))
    assert layerwise(crate(), IMAGES)[-1]["nonzero"] < 0.9
    attn = model.blocks[1].attn
    subspaces = head_subspaces(model.blocks[1])
    z = torch.randn(5, 24)
    v = (attn.qkv(z) - attn.qkv.bias)[:, 48:].unflatten(-1, (3, 8))
    assert torch.allclose(torch.einsum("nd,hdp->nhp", z, subspaces), v, atol=1e-5)
    rows = layerwise(model, IMAGES, protocol="published")
    with torch.no_grad():
        z = model.norm_pre(model._pos_embed(model.patch_embed(IMAGES)))
        w = torch.einsum("bnd,hdp->bhnp", model.blocks[0].norm1(z), head_subspaces(model.blocks[0]))
    want = coding_rate(normalize_tokens(w), 0.1).sum(-1).mean().item()
    assert rows[0]["subspace_rate"] == pytest.approx(want, rel=1e-5)


def test_streaming_equals_one_batch() -> None:
    labels = torch.zeros(7)
    ways = [
        {"images": IMAGES, "batch_size": 2},
        {"images": [IMAGES[:4], IMAGES[4:5], IMAGES[5:]]},
        {"images": ((IMAGES[i : i + 3], labels[i : i + 3]) for i in (0, 3, 6))},
        {"images": [types.SimpleNamespace(images=IMAGES)], "batch_size": 3},
        {"images": [{"images": IMAGES[:5]}, {"pixel_values": IMAGES[5:]}]},
    ]
    model = crate().double()
    whole = layerwise(model, IMAGES)
    for way in ways:
        for row, want in zip(layerwise(model, **way), whole, strict=True):
            assert row == pytest.approx(want, rel=1e-6, abs=1e-9)
    for row, want in zip(layerwise(crate(), IMAGES, batch_size=2), layerwise(crate(), IMAGES), strict=True):
        assert all(row[k] == pytest.approx(want[k], rel=1e-6) for k in want if not k.endswith(("_std", "_se")))


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    def peak(batches: int) -> int:
        tensors: list[int] = []

        def stream() -> Iterator[torch.Tensor]:
            for _ in range(batches):
                yield torch.randn(2, 3, 32, 32)
                gc.collect()  # what other tests left behind is not ours
                tensors.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))

        layerwise(model, stream())
        return max(tensors)

    model = crate()
    gc.collect()
    gc.freeze()  # or every collection would go through all that other tests imported
    peak(1)
    assert peak(8) <= peak(2)


def test_zero_tokens_and_rank_deficiency_are_finite() -> None:
    model = crate()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for protocol in ("paper", "published"):
        for row in layerwise(model, IMAGES, protocol=protocol):
            assert all(math.isfinite(value) for value in row.values())
            assert row["rate"] == row["subspace_rate"] == row["nonzero"] == row["effective_rank"] == 0
            assert row["incoherence"] == 1
    model = crate()
    with torch.no_grad():  # every token the same: rank one
        for parameter in (model.pos_embed, model.cls_token):
            parameter.zero_()
        model.cls_token += model.patch_embed(torch.zeros(1, 3, 32, 32)).flatten(1, -2)[:, :1]
    row = layerwise(model, torch.zeros(1, 3, 32, 32))[0]
    assert row["effective_rank_z"] == pytest.approx(1, abs=1e-3)
    assert row["rate_z"] == pytest.approx(0.5 * math.log1p(24 / 0.01), rel=1e-4)
    assert row["rate_std"] == row["rate_se"] == 0


def test_half_precision_is_measured_in_float32() -> None:
    for model in (crate(), vit()):
        want = layerwise(model, IMAGES)
        rows = layerwise(model.to(torch.bfloat16), IMAGES)
        for row, full in zip(rows, want, strict=True):
            assert row["rate"] == pytest.approx(full["rate"], rel=0.02)
            assert row["subspace_rate"] == pytest.approx(full["subspace_rate"], rel=0.02)


def test_model_is_left_as_it_was() -> None:
    model = vit().train()
    model.blocks[1].eval()
    layerwise(model, IMAGES, device="cpu")
    assert model.training
    assert model.blocks[0].attn.training
    assert not model.blocks[1].attn.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p.grad is not None for p in model.parameters())


def test_incoherence() -> None:
    orthogonal = torch.linalg.qr(torch.randn(12, 12)).Q.unflatten(1, (3, 4)).transpose(0, 1)
    assert incoherence(orthogonal) == pytest.approx(1, abs=1e-5)
    assert incoherence(orthogonal[:1] @ torch.randn(5, 4, 4)) == pytest.approx(0, abs=1e-4)
    assert incoherence(torch.randn(8, 400, 16)) == pytest.approx(1 - 0.2, abs=0.02)
    assert incoherence(orthogonal[:1]) == 1
    assert incoherence(torch.zeros(3, 4, 2)) == 1
    scaled = orthogonal * torch.tensor([1.0, 100.0, 1e-3])[:, None, None]
    assert incoherence(scaled) == pytest.approx(1, abs=1e-5)


def test_hugging_face_vit() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, image_size=32, patch_size=8
    )
    model = transformers.ViTModel(config).eval()
    for protocol in ("paper", "published"):
        rows = layerwise(model, IMAGES, protocol=protocol)
        assert len(rows) == 2
        assert all(row["subspace_rate"] > 0 for row in rows)


def test_report_puts_the_control_beside_the_model() -> None:
    model = crate()
    report = trace_report(model, (IMAGES[i : i + 1] for i in range(7)), seed=3)  # a generator serves both
    assert report["images"] == 7
    assert report["seed"] == 3
    assert [r.keys() for r in report["layers"]] == [r.keys() for r in report["control"]]
    assert report["layers"] == layerwise(model, IMAGES, batch_size=1)
    assert report["layers"] != report["control"]
    assert report["control"][-1]["nonzero"] < 0.9  # an untrained CRATE already sparsifies
    again = trace_report(model, IMAGES, seed=3, batch_size=1)
    assert again["control"] == report["control"]
    assert trace_report(model, IMAGES, control=False)["control"] is None
    json.dumps(report)


def test_bad_input() -> None:
    model = crate()
    spoilt = IMAGES.clone()
    spoilt[3, 0, 0, 0] = float("nan")
    for images, message in (
        (IMAGES[:0], "none"),
        ([], "none"),
        (IMAGES[0], "b, c, h, w"),
        ((IMAGES * 100).byte(), "floating"),
        (["a.png"], "str"),
        (spoilt, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            layerwise(model, images)
    with pytest.raises(ValueError, match="protocol"):
        layerwise(model, IMAGES, protocol="neurips")
    with pytest.raises(ValueError, match="eps"):
        layerwise(model, IMAGES, eps=0.0)
    with pytest.raises(ValueError, match="batch_size"):
        layerwise(model, IMAGES, batch_size=0)
    with pytest.raises(ValueError, match="no transformer blocks"):
        layerwise(nn.Conv2d(3, 3, 1), IMAGES)
    with torch.no_grad():
        model.blocks[1].attn.output.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="block01/half are not finite"):
        layerwise(model, IMAGES)


def test_pytorchs_own_attention_has_subspaces_too() -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    value = layer.self_attn.in_proj_weight[32:]
    torch.testing.assert_close(head_subspaces(layer), value.unflatten(0, (4, 4)).mT)


def test_small_singular_values_count_in_the_effective_rank() -> None:
    # a smooth picture's tokens: singular values fall over five decades, which a float32 Gram matrix does not hold
    model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
    ramp = torch.linspace(0, 1, 224)
    images = torch.stack([ramp * k + ramp[:, None].square() * (1 - k) for k in (0.2, 0.9)])[:, None].expand(
        -1, 3, -1, -1
    )
    with torch.no_grad(), trace(model) as t:
        model(images)
    row = layerwise(model, images)[0]
    for point, name in {"z": "embed", "half": "block00/half", "next": "block00"}.items():
        singular = torch.linalg.svdvals(normalize_tokens(t[name]).double())
        want = torch.special.entr(singular / singular.sum(-1, keepdim=True)).sum(-1).exp().mean()
        assert row[f"effective_rank_{point}"] == pytest.approx(float(want), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_adds_no_rank(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 197, 3, generator=g, dtype=dtype) @ torch.randn(3, 192, generator=g, dtype=dtype)
    found = spectral(normalize_tokens(tokens), 0.1)["effective_rank"]
    singular = torch.linalg.svdvals(normalize_tokens(tokens).double())[:, :3]
    assert float(found) == pytest.approx(float(torch.special.entr(singular / singular.sum()).sum().exp()), rel=1e-4)
