"""Edits act on the names of a trace: the identity is a no-op, a patch makes one run another, and hooks go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import unrolled
from tests.instruments import architectures
from unrolled.instruments import edits
from unrolled.instruments.anatomy import find_stacks
from unrolled.models import CRATE
from unrolled.models.encoder import build_language_model
from unrolled.models.sequence_config import language_config


def image_model(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, depth=2)


def tied() -> nn.Module:
    sizes = {"image_size": 8, "patch_size": 2, "channels": 1, "num_classes": 10}
    return CRATE(**sizes, dim=16, depth=2, heads=2, output="tied")


def text_model(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return build_language_model(language_config(name, vocab_size=31, max_length=16))

    return build


def architecture(name: str) -> Callable[[], nn.Module]:
    return lambda: architectures.build(name)[0]


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "crate": image_model("crate_nano_patch2_8"),
    "vit": image_model("vit_nano_patch2_8"),
    "tied": tied,
    "hf-vit": architecture("hf-vit"),
}
LARGER = {
    "alpha": image_model("crate_alpha_nano_patch4_32"),
    "cbt": image_model("cbt_nano_patch4_32"),
    "tost": image_model("tost_nano_patch4_32"),
}
TEXTS = {
    **{name: text_model(f"{name}_nano") for name in ("crate_gpt", "gpt2", "mesanet")},
    **{f"hf-{kind}": architecture(kind) for kind in ("gpt2", "llama", "qwen2", "gemma2", "bert")},
}
MODELS = {**IMAGES, **LARGER, **TEXTS}


def make(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # so that nothing is zero at the start
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    if name in TEXTS:
        return model, torch.randint(31, (2, 7), generator=generator)
    shape = (2, 3, 32, 32) if name in LARGER else (2, 1, 8, 8)
    return model, torch.randn(shape, generator=generator)


def logits(out: Any) -> Tensor:
    found: Tensor = out if isinstance(out, Tensor) else out.logits
    return found


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_identity_changes_nothing_to_the_bit(name: str) -> None:
    model, x = make(name)
    before = logits(model(x))
    stack = find_stacks(model)[0]
    block = stack.name(0)
    names = [block, f"{block}/attn", f"{block}/attn/head*", stack.prefix + "embed"]
    with unrolled.edit(model, dict.fromkeys(names, lambda value: value)):
        assert torch.equal(logits(model(x)), before)
    with unrolled.edit(model, dict.fromkeys(names, lambda value: value.clone())):
        assert torch.equal(logits(model(x)), before)
    assert torch.equal(logits(model(x)), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_patch_of_all_tokens_makes_one_run_the_other(name: str) -> None:
    model, x = make(name)
    y = x.flip(0)
    with unrolled.trace(model) as other:
        expected = logits(model(y))
    last = [each for each in other.names if each.split("/")[-1].startswith("block")][-1]
    with unrolled.edit(model, {last: edits.patch(other)}):
        assert torch.equal(logits(model(x)), expected)
    with unrolled.edit(model, {last: edits.patch(other[last][:1])}):
        one, two = logits(model(x))
        torch.testing.assert_close(one, two)  # rows of one batch may be rounded unlike each other


@pytest.mark.parametrize("name", [*IMAGES, *LARGER, "crate_gpt", "hf-gpt2", "hf-llama", "hf-gemma2"])
@torch.no_grad()
def test_attention_without_any_head_is_what_its_output_adds_by_itself(name: str) -> None:
    model, x = make(name)
    stack = find_stacks(model)[0]
    block = stack.name(0)
    with unrolled.edit(model, {f"{block}/attn/head*": edits.zero}), unrolled.trace(model) as t:
        model(x)
    added = t[f"{block}/attn"]
    constant = added.reshape(-1, added.shape[-1])[0].expand_as(added)
    torch.testing.assert_close(added, constant)  # the bias alone, or a norm of it
    with unrolled.edit(model, {f"{block}/attn/head0": edits.zero}):
        one = logits(model(x))
    assert not torch.equal(one, logits(model(x)))


@pytest.mark.parametrize("name", ["crate", "vit", "alpha", "cbt", "hf-vit", "crate_gpt", "hf-llama"])
@torch.no_grad()
def test_tokens_between_the_halves_are_replaced(name: str) -> None:
    model, x = make(name)
    block = find_stacks(model)[0].name(1)
    with unrolled.trace(model) as other:
        expected = logits(model(x.flip(0)))
    with unrolled.edit(model, {f"{block}/half": edits.patch(other)}):
        torch.testing.assert_close(logits(model(x)), expected)


@torch.no_grad()
def test_tokens_between_halves_that_do_not_add_are_refused() -> None:
    model, x = make("hf-bert")
    with (
        pytest.raises(ValueError, match=r"half cannot be changed|matches no name"),
        unrolled.edit(model, {"*block00/half": edits.zero}),
    ):
        model(x)


@pytest.mark.parametrize("name", ["crate", "alpha"])
@torch.no_grad()
def test_atoms_are_removed_one_by_one(name: str) -> None:
    model, x = make(name)
    layer = model.blocks[1].ista
    with unrolled.edit(model, {"block01/ista/atom3": edits.zero, "block01/ista/atom4": edits.zero}):
        without = model(x)
    if name == "crate":
        handle = layer.register_forward_hook(lambda _, args, out: out.index_fill(-1, torch.tensor([3, 4]), 0.0))
        expected = model(x)
        handle.remove()
    else:
        codes = layer.codes
        layer.codes = lambda z: codes(z).index_fill(-1, torch.tensor([3, 4]), 0.0)
        expected = model(x)
        del layer.codes
    assert torch.equal(without, expected)
    assert "codes" not in vars(layer)


@torch.no_grad()
def test_a_trace_sees_what_an_edit_leaves_whichever_began_first() -> None:
    model, x = make("crate")
    with unrolled.trace(model) as outer, unrolled.edit(model, {"block00/attn": edits.zero}):
        model(x)
    with unrolled.edit(model, {"block00/attn": edits.zero}), unrolled.trace(model) as inner:
        model(x)
    assert float(outer["block00/attn"].abs().max()) == 0
    for each in inner:
        assert torch.equal(inner[each], outer[each])


@torch.no_grad()
def test_heads_are_traced_and_patched_one_by_one() -> None:
    model, x = make("crate")
    with unrolled.trace(model, heads=True) as other:
        model(x.flip(0))
    assert other["block00/attn/heads"].shape == (2, 17, 4, 24)
    with unrolled.edit(model, {"block00/attn/head1": edits.patch(other)}), unrolled.trace(model, heads=True) as t:
        model(x)
    assert torch.equal(t["block00/attn/heads"][:, :, 1], other["block00/attn/heads"][:, :, 1])
    assert not torch.equal(t["block00/attn/heads"][:, :, 0], other["block00/attn/heads"][:, :, 0])


def test_gradients_flow_through_an_edit() -> None:
    model, x = make("crate")
    direction = torch.zeros(96, requires_grad=True)
    with unrolled.edit(model, {"block00": edits.steer(direction, 2.0)}):
        model(x).square().sum().backward()
    assert direction.grad is not None
    assert float(direction.grad.abs().max()) > 0


@torch.no_grad()
def test_a_subspace_is_projected_out_at_some_tokens() -> None:
    model, x = make("crate")
    u = edits.subspace(model, "block01", 2)
    without = edits.project_out(u)
    with unrolled.edit(model, {"block00": edits.at(without, [0, 3])}), unrolled.trace(model) as t:
        model(x)
    with unrolled.trace(model) as plain:
        model(x)
    assert float((t["block00"][:, [0, 3]] @ u).abs().max()) < 1e-5
    assert torch.equal(t["block00"][:, 1:3], plain["block00"][:, 1:3])
    torch.testing.assert_close(without(without(plain["block00"])), without(plain["block00"]))


def test_means_and_resamples() -> None:
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(edits.mean(x)[2, 1], x.mean((0, 1)))
    other = edits.resample(3)(x)
    assert not any(torch.equal(a, b) for a, b in zip(other, x, strict=True))
    assert {float(row.sum()) for row in other} == {float(row.sum()) for row in x}
    with pytest.raises(ValueError, match="two samples"):
        edits.resample()(x[:1])
    assert torch.equal(edits.constant(torch.ones(4))(x), torch.ones_like(x))


def never(model: nn.Module) -> dict[str, Any]:
    model.register_module("unused", nn.Linear(2, 2))
    return {"unused": edits.zero}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m: {}, "is empty"),
        (lambda m: {"block00/atn": edits.zero}, "nearest are block00/attn"),
        (lambda m: {"block00": 3}, "must be a function"),
        (lambda m: {"block00": edits.zero, "block0?": edits.zero}, "name it once"),
        (lambda m: {"block00/attention": edits.zero}, "traced but not changed"),
        (lambda m: {"block00": lambda x: x[:, 1:]}, "changed the shape"),
        (lambda m: {"block00": lambda x: x.double()}, "changed the dtype"),
        (lambda m: {"block00": lambda x: None}, "return a tensor"),
        (never, "unused was never reached"),
        (lambda m: {"block00": edits.patch({"block01": torch.zeros(1)})}, "holds no block00"),
        (lambda m: {"block00": edits.patch(torch.zeros(1, 2, 96))}, r"is \[2, 17, 96\] here"),
        (lambda m: {"block00/attn/head1": edits.patch({})}, "trace with heads=True"),
    ],
)
def test_what_cannot_be_done_is_said(wrong: Any, message: str) -> None:
    model, x = make("crate")
    before = model(x)
    given = wrong(model)
    with pytest.raises(ValueError, match=message), unrolled.edit(model, given):
        model(x)
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_one_name_is_changed_by_one_edit_at_a_time() -> None:
    model, x = make("crate")
    with unrolled.edit(model, {"block00": edits.zero}):
        with pytest.raises(ValueError, match="being changed already"), unrolled.edit(model, {"block00": edits.mean}):
            pass
        with unrolled.edit(model, {"block01": edits.zero}):
            model(x)
    with unrolled.edit(model, {"block00": edits.mean}):
        model(x)


def test_models_without_values_or_hooks_are_refused() -> None:
    model, _ = make("crate")
    with pytest.raises(ValueError, match="compiled"):
        unrolled.edit(torch.compile(model), {"block00": edits.zero})  # type: ignore[arg-type]
    model.blocks[0] = torch.compile(model.blocks[0])  # type: ignore[index,operator]
    with pytest.raises(ValueError, match=r"blocks\.0 is compiled"):
        unrolled.edit(model, {"block00": edits.zero})
    with torch.device("meta"):
        empty = timm.create_model("crate_nano_patch2_8")
    with pytest.raises(ValueError, match="meta"):
        unrolled.edit(empty, {"block00": edits.zero})


def test_a_model_in_a_data_parallel_wrapper_is_edited() -> None:
    model, x = make("vit")
    wrapped = nn.DataParallel(model)
    with unrolled.edit(wrapped, {"block0?": edits.zero}), unrolled.trace(wrapped) as t:
        wrapped(x)
    assert float(t["block01"].abs().max()) == 0
