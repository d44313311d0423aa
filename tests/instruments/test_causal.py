"""Sweeps, patching, paths and the logit lens: against doing it by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import unrolled
from unrolled.instruments import causal, edits
from unrolled.models.encoder import build_language_model
from unrolled.models.sequence_config import language_config


def make(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    if name == "gpt2":
        config = language_config("gpt2_nano", vocab_size=31, max_length=16)
        model: nn.Module = build_language_model(config)
        x = torch.randint(31, (4, 7), generator=g)
    else:
        model = timm.create_model(name, depth=3)
        x = torch.randn(4, 1, 8, 8, generator=g)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=g)
    return model.eval(), x


def first_logit(out: Tensor, targets: Any = None) -> Tensor:
    return out.reshape(len(out), -1)[:, 0]


@pytest.mark.parametrize("name", ["crate_nano_patch2_8", "vit_nano_patch2_8", "gpt2"])
@torch.no_grad()
def test_a_sweep_is_what_each_ablation_does_by_itself(name: str) -> None:
    model, x = make(name)
    batches = [(x[:3], None), (x[3:], None)]
    fast = causal.ablate(model, batches, first_logit)
    slow = causal.ablate(model, batches, first_logit, reuse=False)
    for one, other in zip(fast, slow, strict=True):
        assert np.array_equal(one.samples, other.samples)
        assert one.control == other.control
    with unrolled.edit(model, {"block01/attn/head2": edits.zero}):
        without = first_logit(model(x)).double()
    by_hand = without - first_logit(model(x)).double()
    torch.testing.assert_close(torch.from_numpy(fast["block01/attn/head2"].samples), by_hand, atol=1e-5, rtol=1e-4)
    row = fast["block01/attn/head2"]
    assert row.low <= row.change <= row.high
    assert "forward" not in vars(model.get_submodule("blocks.0"))


@torch.no_grad()
def test_the_control_is_as_large_as_the_ablation() -> None:
    model, x = make("crate_nano_patch2_8")
    with unrolled.trace(model, heads=True) as plain:
        model(x)
    act = causal._AsLarge(edits.zero, 0).bind("block01/attn/head2")
    with unrolled.edit(model, {"block01/attn/head2": act}), unrolled.trace(model, heads=True) as t:
        model(x)
    old, new = (each["block01/attn/heads"][:, :, 2] for each in (plain, t))
    torch.testing.assert_close((new - old).norm(dim=-1), old.norm(dim=-1))


@torch.no_grad()
def test_patching_all_tokens_of_a_block_brings_everything_back() -> None:
    model, x = make("vit_nano_patch2_8")
    found = causal.patching(model, x, x.flip(0) * 0.5, first_logit)
    assert found["block00"] == pytest.approx(1)
    assert found["block02"] == pytest.approx(1)
    assert found["block00/attn"] != pytest.approx(1)
    with pytest.raises(ValueError, match="nothing to bring back"):
        causal.patching(model, x, x, first_logit)


def test_attribution_is_exact_where_the_score_is_linear() -> None:
    model, x = make("vit_nano_patch2_8")
    outputs: list[Tensor] = []
    model.blocks[2].mlp.register_forward_hook(lambda _, args, out: outputs.append(out))  # type: ignore[index,union-attr]
    found = causal.attribution(model, x, x.flip(0), lambda out: outputs[-1].sum((1, 2)), ["block02/mlp"])
    clean, corrupted = (out.detach().sum((1, 2)) for out in outputs[-2:])
    assert found["block02/mlp"] == pytest.approx(float((clean - corrupted).mean()), abs=1e-4)


@torch.no_grad()
def test_a_path_through_everything_that_reads_the_sender_is_a_patch_of_the_sender() -> None:
    model, x = make("crate_nano_patch2_8")
    clean, corrupted = x, x.flip(0)
    sender = "block02/attn/head1"
    through = causal.path_patching(model, clean, corrupted, first_logit, sender, ["block02/ista"])
    with unrolled.trace(model, heads=True) as source:
        model(clean)
    with unrolled.edit(model, {sender: edits.patch(source)}):
        whole = first_logit(model(corrupted)).mean()
    assert through == pytest.approx(float(whole - first_logit(model(corrupted)).mean()), abs=1e-5)
    with pytest.raises(ValueError, match="does not come after"):
        causal.path_patching(model, clean, corrupted, first_logit, sender, ["block01/ista"])


@pytest.mark.parametrize("name", ["crate_nano_patch2_8", "gpt2"])
@torch.no_grad()
def test_the_lens_ends_in_what_the_model_says(name: str) -> None:
    model, x = make(name)
    found = causal.logit_lens(model, x)
    assert next(iter(found)) == "embed"
    torch.testing.assert_close(list(found.values())[-1], model(x))


def test_effects_are_drawn() -> None:
    model, x = make("crate_nano_patch2_8")
    heads = causal.ablate(model, [(x, None)], first_logit, control=False)
    assert heads.plot().images or heads.plot().collections
    halves = causal.ablate(model, [(x, None)], first_logit, ["block*/attn", "block*/ista"])
    halves.plot()
    assert repr(halves).startswith("Effects(6 places")
    assert [row.name for row in halves][:2] == ["block00/attn", "block00/ista"]


def test_what_cannot_be_swept_is_said() -> None:
    model, x = make("crate_nano_patch2_8")
    with pytest.raises(ValueError, match="nearest are"):
        causal.ablate(model, [(x, None)], first_logit, "block00/atn")
    with pytest.raises(ValueError, match="holds none"):
        causal.ablate(model, [], first_logit)
    with pytest.raises(ValueError, match="one number a sample"):
        causal.ablate(model, [(x, None)], lambda out, targets: out)
