"""What trace and edit say of models and edits they cannot serve; quantised and wrapped ones they can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import unrolled
from unrolled.instruments import attention_map, causal, edits, layerwise

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "crate":
        model = unrolled.models.CRATE(image_size=32, patch_size=8, num_classes=4, dim=24, depth=2, heads=3)
    else:
        model = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=4
        )
    return model.eval()


def compiled(name: str) -> dict[str, nn.Module]:
    """All ways to compile a model or a part of it; nothing is compiled before it runs."""
    whole, block, inplace, inside, forward = (make(name) for _ in range(5))
    block.blocks[1] = torch.compile(block.blocks[1], backend="eager")  # type: ignore[index, operator]
    inplace.compile(backend="eager")
    inside.blocks[1].compile(backend="eager")  # type: ignore[index, union-attr]
    forward.forward = torch.compile(forward.forward, backend="eager")  # type: ignore[method-assign]
    whole = torch.compile(whole, backend="eager")  # type: ignore[assignment]
    return {"whole": whole, "a block": block, "in place": inplace, "a block in place": inside, "forward": forward}


@pytest.mark.parametrize("name", ["crate", "vit"])
def test_compiled_code_skips_hooks_so_it_is_refused(name: str) -> None:
    for how, model in compiled(name).items():
        where = r"blocks\.1" if "block" in how else "it"
        for use in (unrolled.trace, lambda m: unrolled.edit(m, {"block00": edits.zero})):
            with pytest.raises(ValueError, match=f"model: {where} is compiled"):
                use(model)


def test_a_function_kept_out_of_compilation_is_not_compiled() -> None:
    model = make("crate")
    model.forward = torch._dynamo.disable(model.forward)  # type: ignore[method-assign]
    with torch.no_grad(), unrolled.trace(model) as t:
        model(IMAGES)
    assert "block01/attn" in t


def test_scripted_models_and_what_is_no_model_are_refused() -> None:
    scripted = torch.jit.trace(make("vit"), IMAGES, check_trace=False)
    with pytest.raises(ValueError, match="model: it is scripted"):
        unrolled.trace(scripted)
    for wrong in (None, "crate_nano_patch4_32"):
        with pytest.raises(ValueError, match=r"must be a torch module, not .*unrolled\.create_model"):
            unrolled.trace(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must be a torch module"):
            unrolled.edit(wrong, {"block00": edits.zero})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["crate", "vit"])
def test_the_meta_device_has_shapes_to_trace_and_no_values_to_change(name: str) -> None:
    with torch.device("meta"):
        model = make(name)
    with torch.no_grad(), unrolled.trace(model) as t:
        model(IMAGES.to("meta"))
    assert t["block01"].shape == (2, 17, 24)
    for use in (
        lambda: unrolled.edit(model, {"block00": edits.zero}),
        lambda: layerwise(model, IMAGES),
        lambda: attention_map(model, IMAGES),
        lambda: causal.ablate(model, [(IMAGES, None)], lambda out, _: out[:, 0]),
    ):
        with pytest.raises(ValueError, match="model: is on the meta device"):
            use()


def wrong_edits() -> Iterator[tuple[str, Any, str]]:
    yield "no such name", {"block3/atn": edits.zero}, "the nearest are block0"
    yield "no such head", {"block00/attn/head9": edits.zero}, "the nearest are block00/attn/head2"
    yield "a number", {3: edits.zero}, "edits: must map names to functions"
    yield "a list", [("block00", edits.zero)], "edits: must map names to functions"
    yield "fewer tokens", {"block00": lambda x: x[:, 1:]}, r"changed the shape from \[2, 17, 24\] to \[2, 16, 24\]"
    yield "another type", {"block00": lambda x: x.double()}, "changed the dtype"
    yield "nothing", {"block00": lambda x: None}, "returned a NoneType"
    yield "written into", {"block00": lambda x: x.zero_()}, "block00 wrote into its tensor"
    yield "a head written into", {"block00/attn/head1": lambda x: x.zero_()}, "head1 wrote into its tensor"


@pytest.mark.parametrize(("wrong", "message"), [pytest.param(w, m, id=name) for name, w, m in wrong_edits()])
def test_edits_that_cannot_be_are_named(wrong: Any, message: str) -> None:
    model = make("crate")
    before = model(IMAGES)
    with pytest.raises(ValueError, match=message), torch.no_grad(), unrolled.edit(model, wrong):
        model(IMAGES)
    assert torch.equal(model(IMAGES), before)  # hooks are gone


def test_patterns_are_words() -> None:
    with pytest.raises(ValueError, match="patterns: must be names"):
        unrolled.trace(make("vit"), patterns=[3])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["crate", "vit"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_models_are_traced_edited_and_measured(name: str) -> None:
    model = make(name)
    quantised = torch.ao.quantization.quantize_dynamic(make(name), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad(), unrolled.trace(model, heads=True) as t:
        model(IMAGES)
    with torch.no_grad(), unrolled.trace(quantised, heads=True, attention=True) as q:
        before = quantised(IMAGES)
    assert set(t) < set(q)  # and attention too
    assert all(q[key].shape == t[key].shape for key in t)
    zeros: dict[str, Tensor] = {}
    with torch.no_grad(), unrolled.edit(quantised, {"block00/attn/head1": edits.zero}):
        with unrolled.trace(quantised, patterns="block00/attn/heads", heads=True) as z:
            after = quantised(IMAGES)
        zeros |= z
    assert not torch.equal(before, after)
    assert float(zeros["block00/attn/heads"][..., 1, :].abs().max()) == 0
    rates, plain = layerwise(quantised, IMAGES), layerwise(model, IMAGES)
    assert rates[1]["subspace_rate"] == pytest.approx(plain[1]["subspace_rate"], rel=0.05)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_a_model_of_distributed_training_is_traced_and_edited(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        model = make("crate")
        wrapped = nn.parallel.DistributedDataParallel(model)
        with torch.no_grad(), unrolled.trace(wrapped) as t, unrolled.edit(wrapped, {"block01/attn": edits.zero}):
            found = wrapped(IMAGES)
        with torch.no_grad(), unrolled.edit(model, {"block01/attn": edits.zero}):
            assert torch.equal(found, model(IMAGES))
        assert float(t["block01/attn"].abs().max()) == 0
    finally:
        torch.distributed.destroy_process_group()
        os.environ.pop("MASTER_ADDR", None)
