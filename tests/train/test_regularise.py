"""The regulariser is the theory's number on the traced tokens, and adding it raises the sparse rate reduction."""

import pytest
import torch
from torch.nn import functional as F

from unrolled import theory
from unrolled.instruments.trace import trace
from unrolled.models import CRATE, create_model
from unrolled.train.regularise import orthogonality_loss, srr_loss

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def small(**options) -> CRATE:
    torch.manual_seed(0)
    return CRATE(image_size=8, patch_size=2, num_classes=3, dim=16, depth=2, heads=4, stem="linear", **options)


def traced(model: torch.nn.Module, **options) -> tuple[torch.Tensor, object]:
    with trace(model, grad=True, **options) as t:
        logits = model(IMAGES)
    return logits, t


@pytest.mark.parametrize(("point", "suffix"), [("next", ""), ("half", "/half")])
def test_it_is_minus_the_theory_per_token_and_layer(point, suffix):
    model = small()
    _, t = traced(model)
    expected = 0.0
    for layer in (0, 1):
        z = theory.normalize_tokens(t[f"block0{layer}{suffix}"])
        bases = model.blocks[layer].attn.bases()
        expected -= theory.sparse_rate_reduction(z, bases, 0.5, 0.2, "l1").mean() / 17 / 2
    torch.testing.assert_close(srr_loss(model, t, eps=0.5, sparsity=0.2, point=point), expected)
    last = srr_loss(model, t, eps=0.5, layers=[-1])
    torch.testing.assert_close(last, srr_loss(model, t, eps=0.5, layers=[1]))


@pytest.mark.parametrize("options", [{}, {"orthogonal": True}])
def test_gradients_reach_the_subspaces_and_training_with_it_raises_the_reduction(options):
    reached = {}
    for weight in (0.0, 5.0):
        model = small(**options)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(25):
            optimizer.zero_grad()
            logits, t = traced(model, patterns="block*")
            (F.cross_entropy(logits, LABELS) + weight * srr_loss(model, t, eps=0.5, sparsity=0.01)).backward()
            optimizer.step()
        with torch.no_grad():
            reached[weight] = float(srr_loss(model, traced(model)[1], eps=0.5, sparsity=0.01))
        assert float(F.cross_entropy(logits.detach(), LABELS)) < 0.7
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.blocks[0].attn.parameters())
    assert reached[5.0] < reached[0.0] - 0.05


def test_a_plain_transformer_is_measured_by_its_value_projections():
    model = create_model("vit_nano_patch2_8", depth=1)
    with trace(model, grad=True) as t:
        model(torch.randn(2, 1, 8, 8))
    srr_loss(model, t, eps=0.5).backward()
    assert model.patch_embed.proj.weight.grad.isfinite().all()


def test_faults_are_named():
    model = small()
    _, t = traced(model, patterns="block00")
    for arguments, name in (
        ({}, "block01"),
        ({"layers": [2]}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": [0], "point": "z"}, "point"),
        ({"layers": [0], "sparsity": -1.0}, "sparsity"),
    ):
        with pytest.raises(ValueError, match=name):
            srr_loss(model, t, eps=0.5, **arguments)
    with trace(model) as plain:
        model(IMAGES)
    with pytest.raises(ValueError, match="grad=True"):
        srr_loss(model, plain, eps=0.5)


def test_the_flag_adds_the_term_to_training(config, splits, tmp_path):
    from unrolled.train import fit

    reached = {}
    for weight in (0.0, 5.0):
        chosen = config(
            model="crate_nano_patch2_8", srr_weight=weight, srr_layers=(-1,), accumulate=2, out=tmp_path / str(weight)
        )
        result = fit(chosen, data=splits)
        images = torch.stack([torch.from_numpy(splits.train.load(i)[0]).float().permute(2, 0, 1) for i in range(16)])
        with torch.no_grad(), trace(result.model) as t:
            result.model(images / images.max())
            reached[weight] = -float(srr_loss(result.model, t, eps=0.5, layers=[-1]))
        train = [record for record in result.metrics if record["split"] == "train"]
        assert all(("srr" in record) == bool(weight) for record in train)
    assert reached[5.0] > reached[0.0] + 0.02
    assert train[-1]["srr"] > train[0]["srr"]


def test_the_flag_names_layers_and_settings_it_cannot_have(config, splits):
    from unrolled.train import fit

    with pytest.raises(ValueError, match=r"srr_layers=\[7\].*2 layers"):
        fit(config(model="crate_nano_patch2_8", srr_weight=0.1, srr_layers=(7,)), data=splits)
    with pytest.raises(ValueError, match=r"srr_weight.*compile"):
        fit(config(model="crate_nano_patch2_8", srr_weight=0.1, compile=True), data=splits)


def test_a_price_on_overlap_keeps_subspaces_apart(config, splits, tmp_path):
    from unrolled.train import fit

    ends = {}
    for weight in (0.0, 0.1):
        run = config(model="crate_nano_patch2_8", orthogonality_weight=weight, out=tmp_path / str(weight))
        ends[weight] = float(orthogonality_loss(fit(run, data=splits).model))
    assert ends[0.1] < ends[0.0] - 0.3  # after a few steps


def test_a_price_on_overlap_needs_free_subspaces():
    with pytest.raises(ValueError, match="no subspaces"):
        orthogonality_loss(create_model("vit_nano_patch2_8", depth=1))
    with pytest.raises(ValueError, match="orthogonal as it is"):
        orthogonality_loss(create_model("crate_nano_patch2_8", depth=1, orthogonal=True))
