"""What a trace names means the same on every architecture: Hugging Face's, timm's and our own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unrolled
from tests.instruments.architectures import ALL, build
from unrolled.instruments import edits, head_subspaces, layerwise, trace_report
from unrolled.instruments.anatomy import descendant, find_stacks, value_reader
from unrolled.theory import coding_rate, normalize_tokens, subspace_coding_rate

STACKS = {
    **{name: ["encoder/", "decoder/"] for name in ("t5", "bart")},
    **{name: ["text_model/", "vision_model/"] for name in ("clip", "siglip")},
}


def halves(model: nn.Module) -> list[tuple[str, str]]:
    """Names of the first two blocks of every stack, with what comes before each."""
    found = []
    for stack in find_stacks(model):
        found += [(f"{stack.prefix}embed", stack.name(0)), (stack.name(0), stack.name(1))]
    return found


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_names_mean_the_same_everywhere(name: str) -> None:
    model, inputs = build(name)
    with unrolled.trace(model, heads=True) as t:
        model(**inputs)
    assert [stack.prefix for stack in t.stacks] == STACKS.get(name, [""])
    between = {f"{block}/half" for _, block in halves(model)}
    assert {each for each in t.names if each not in t} == (between & set(t.names) if ALL[name].parallel else set())
    assert ALL[name].parallel != (between <= set(t))
    for before, block in halves(model):
        z, added = t[before], t[f"{block}/attn"]
        assert t[f"{block}/attn/heads"].dim() == 4
        second = "ista" if f"{block}/ista" in t.names else "mlp"
        assert f"{block}/{second}" in t
        if ALL[name].parallel:
            torch.testing.assert_close(z + added + t[f"{block}/mlp"], t[block])
        if ALL[name].parallel or ALL[name].post:
            continue
        half = t[f"{block}/half"].reshape(z.shape)
        torch.testing.assert_close(z + added.reshape(z.shape), half)
        if second == "mlp":
            last = t[f"{block}/mlp"].reshape(z.shape)
            read = half + t[f"{block}/cross"] if f"{block}/cross" in t else half
            torch.testing.assert_close(read + last, t[block].reshape(z.shape))


@pytest.mark.parametrize("name", [each for each, kind in ALL.items() if kind.takes in ("ids", "pairs")])
@torch.no_grad()
def test_subspaces_of_heads_are_what_their_values_read(name: str) -> None:
    """A single token attends to itself alone: a head computes its value, U^T z, and with grouped queries shares it."""
    if name in ("our-crate_gpt", "our-crate_bert", "our-tost_gpt", "our-mesanet"):
        pytest.skip("its heads do not average values")
    model, inputs = build(name)
    seen: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.setdefault(module, args[0] if args else kwargs["hidden_states"])

    stacks = find_stacks(model)
    layers = {stack.name(0): value_reader(stack.blocks[0][1]) for stack in stacks}
    for layer in layers.values():
        layer.register_forward_pre_hook(keep, with_kwargs=True)
    with unrolled.trace(model, heads=True) as t:
        model(**{key: value[:, :1] for key, value in inputs.items()})
    for stack in stacks:
        u = head_subspaces(stack.blocks[0][1])
        x = seen[layers[stack.name(0)]].flatten(0, -2)
        heads = t[f"{stack.name(0)}/attn/heads"].flatten(0, 1)
        values = torch.einsum("bd,hdp->bhp", x[0:1] - x[1:2], u)
        values = values.repeat_interleave(heads.shape[1] // len(u), dim=1)
        torch.testing.assert_close(heads[0:1] - heads[1:2], values, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_every_head_can_be_removed_and_the_identity_changes_nothing(name: str) -> None:
    model, inputs = build(name)
    places = [f"{stack.prefix}block*/attn/head*" for stack in find_stacks(model)]
    with unrolled.trace(model) as plain:
        model(**inputs)
    with unrolled.edit(model, dict.fromkeys(places, lambda value: value.clone())), unrolled.trace(model) as same:
        model(**inputs)
    assert all(torch.equal(same[each], plain[each]) for each in plain)
    with unrolled.edit(model, dict.fromkeys(places, edits.zero)), unrolled.trace(model) as without:
        model(**inputs)
    for _, block in halves(model):
        added = without[f"{block}/attn"].flatten(0, -2)
        torch.testing.assert_close(added, added[:1].expand_as(added))  # the bias alone, or a norm of it
        assert not torch.equal(without[block], plain[block])


@torch.no_grad()
def test_a_decoder_names_what_it_reads_of_the_encoder() -> None:
    for name in ("t5", "bart"):
        model, inputs = build(name)
        with unrolled.trace(model) as t:
            model(**inputs)
        assert [each for each in t if each.endswith("/cross")] == ["decoder/block00/cross", "decoder/block01/cross"]
    model, inputs = build("t5")
    with unrolled.trace(model) as t:
        model(**inputs)
    found = t["decoder/block00/half"] + t["decoder/block00/cross"] + t["decoder/block00/mlp"]
    torch.testing.assert_close(found, t["decoder/block00"])
    with unrolled.edit(model, {"decoder/block00/cross": edits.zero}), unrolled.trace(model) as cut:
        model(**inputs)
    torch.testing.assert_close(cut["decoder/block00/half"] + cut["decoder/block00/mlp"], cut["decoder/block00"])


@torch.no_grad()
def test_prefill_and_steps_with_a_cache_are_traced_as_one_pass() -> None:
    for name in ("gpt2", "llama", "gemma2"):
        model, inputs = build(name)
        ids = inputs["input_ids"]
        with unrolled.trace(model, patterns=["block01", "block01/attn"]) as whole:
            model(ids)
        steps = unrolled.trace(model, patterns=["block01", "block01/attn"], reduce=lambda _, value: value.clone())
        with steps:
            cache = model(ids[:, :4], use_cache=True).past_key_values
            for at in range(4, ids.shape[1]):
                cache = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True).past_key_values
        for each in whole:
            torch.testing.assert_close(torch.cat(steps[each], 1), whole[each], atol=1e-5, rtol=1e-4)


def test_an_attention_layer_of_unknown_habit_has_no_subspaces() -> None:
    block = nn.ModuleDict({"attn": nn.ModuleDict({"mix": nn.Linear(4, 4)})})
    assert descendant(block, ("attn",)) is not None
    with pytest.raises(ValueError, match="cannot tell its heads' subspaces"):
        head_subspaces(block)


def ways(name: str, inputs: dict[str, Tensor]) -> Any:
    """What `layerwise` is given: a tensor of images or ids where that is all, else the arguments by name."""
    return inputs if len(inputs) > 1 else next(iter(inputs.values()))


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_layers_are_measured_as_the_theory_says(name: str) -> None:
    model, inputs = build(name)
    with unrolled.trace(model) as t:
        model(**inputs)
    for stack in find_stacks(model):
        rows = layerwise(model, ways(name, inputs), eps=0.5, stack=stack.prefix.rstrip("/"))
        assert len(rows) == len(stack.blocks)
        for row, (_, block), layer in zip(rows, stack.blocks, range(9), strict=False):
            entered = stack.name(layer - 1) if layer else f"{stack.prefix}embed"
            half = t[entered if ALL[name].parallel else f"{stack.name(layer)}/half"].flatten(1, -2)
            u = normalize_tokens(half)
            assert row["rate"] == pytest.approx(float(coding_rate(u, 0.5).mean()), rel=1e-4)
            want = float(subspace_coding_rate(u, head_subspaces(block), 0.5).mean())
            assert row["subspace_rate"] == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
@torch.no_grad()
def test_padding_on_either_side_is_not_measured(name: str) -> None:
    model, inputs = build(name)
    ids = inputs["input_ids"]
    short = ids[:1, :4]
    alone = {"input_ids": short, **({"decoder_input_ids": short} if name == "t5" else {})}
    for side in ("right", "left") if name in ("llama", "t5") else ("right",):
        # absolute positions count from the padding on; GPT-2 and BERT are padded on the right
        padding = torch.zeros(1, 3, dtype=torch.int64)
        order = (short, padding) if side == "right" else (padding, short)
        padded = torch.cat(order, 1)
        mask = torch.cat([torch.ones_like(each) if each is short else each for each in order], 1)
        given = {"input_ids": torch.cat([padded, ids]), "attention_mask": torch.cat([mask, torch.ones_like(ids)])}
        if name == "t5":
            given |= {"decoder_input_ids": given["input_ids"], "decoder_attention_mask": given["attention_mask"]}
        whole = {"input_ids": ids, **({"decoder_input_ids": ids} if name == "t5" else {})}
        stack = "encoder" if name == "t5" else None
        parts = [layerwise(model, each, stack=stack) for each in (alone, whole)]
        for row, first, rest in zip(layerwise(model, given, stack=stack), *parts, strict=True):
            assert row["sequences"] == 3
            for key in ("rate", "subspace_rate", "effective_rank", "nonzero", "l1"):
                assert row[key] == pytest.approx((first[key] + 2 * rest[key]) / 3, rel=1e-4)


@torch.no_grad()
def test_positions_are_prefixes_and_short_texts_do_not_reach_the_late_ones() -> None:
    model, inputs = build("llama")
    ids = inputs["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    rows = layerwise(model, {"input_ids": ids, "attention_mask": mask}, positions=(3, 7, 9))
    assert [(row["layer"], row["position"], row["sequences"]) for row in rows.positions] == [
        (layer, position, count) for layer in (0, 1) for position, count in ((3, 2), (7, 1))
    ]
    apart = layerwise(model, [ids[:1, :4], ids[1:]], positions=(3, 7, 9))
    for row, other in zip(rows.positions, apart.positions, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    prefix = layerwise(model, ids[:, :3])  # a causal model does not see what follows
    assert rows.positions[0]["rate"] == pytest.approx(prefix[0]["rate"], rel=1e-5)
    assert rows.positions[0]["subspace_rate"] == pytest.approx(prefix[0]["subspace_rate"], rel=1e-5)
    assert rows.positions[0]["l1"] == pytest.approx(prefix[0]["l1"], rel=1e-5)
    with unrolled.trace(model) as t:
        model(ids)
    late = float(t["block01"][1, 3:7].abs().mean())
    assert rows.positions[3]["l1"] == pytest.approx(late, rel=1e-5)


@pytest.mark.parametrize("name", ["neox", "gptj"])
@torch.no_grad()
def test_of_halves_in_parallel_both_read_z(name: str) -> None:
    model, inputs = build(name)
    report = trace_report(model, ways(name, inputs), positions=(3, 7), control=False)
    assert report["parallel"] == 2
    assert report["tokens"] == inputs["input_ids"].numel()
    for row in report["layers"]:
        assert row["rate_half"] == row["rate_z"] == row["rate"]
        assert row["subspace_rate_half"] == row["subspace_rate_z"] == row["subspace_rate"]
    assert report["layers"][1]["rate_z"] == report["layers"][0]["rate_next"]
    whole = {row["layer"]: row["subspace_rate"] for row in report["positions"] if row["position"] == 7}
    assert whole == pytest.approx({row["layer"]: row["subspace_rate"] for row in report["layers"]})
    assert "parallel" not in trace_report(*build("llama"), control=False)


@torch.no_grad()
def test_a_report_of_texts_has_a_control_and_names_its_stack() -> None:
    model, inputs = build("t5")
    report = trace_report(model, inputs, stack="decoder", positions=(2, 7), eps=0.5)
    assert (report["stack"], report["sequences"], report["tokens"]) == ("decoder", 2, 14)
    assert len(report["positions"]) == len(report["positions_control"]) == 4
    assert report["control"][0]["rate"] != report["layers"][0]["rate"]
    model, inputs = build("clip")
    assert trace_report(model, inputs, control=False)["stack"] == "text_model"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"input_ids": torch.zeros(2, 0, dtype=torch.int64)}, "with a token"),
        ("llama", {"input_ids": torch.rand(2, 3)}, "whole numbers"),
        ("llama", {"attention_mask": torch.ones(2, 3)}, "must be 0 and 1 of shape"),
        ("llama", {"attention_mask": torch.zeros(2, 7)}, "without a token"),
        ("llama", {"stack": "decoder"}, "has the stacks ''"),
        ("t5", {"stack": "decodr"}, "has the stacks 'encoder', 'decoder'"),
        ("llama", {"positions": (0,)}, "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_said(name: str, changes: dict[str, Any], message: str) -> None:
    model, inputs = build(name)
    options = {key: changes[key] for key in ("stack", "positions") if key in changes}
    given = {**inputs, **{key: value for key, value in changes.items() if key not in options}}
    with pytest.raises(ValueError, match=message):
        layerwise(model, given, **options)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
