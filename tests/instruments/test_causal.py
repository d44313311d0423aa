"""Sweeps, patching, paths and the logit lens: against doing it by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import unrolled
from unrolled.instruments import causal, edits
from unrolled.instruments.causal import scores
from unrolled.instruments.causal.effects import FEWEST
from unrolled.instruments.causal.spots import spots_of
from unrolled.instruments.causal.sweeps import AsLarge, values_at
from unrolled.instruments.editing import places_of
from unrolled.instruments.explain import explain_logit
from unrolled.instruments.regions.overlap import jaccard
from unrolled.instruments.regions.patches import read_patches
from unrolled.instruments.regions.segmentation import threshold_attention
from unrolled.instruments.sequences.bits_per_byte import bits_per_byte
from unrolled.instruments.sequences.losses import token_nats
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
    assert "forward" not in vars(model.get_submodule("blocks.0"))


@torch.no_grad()
def test_the_control_is_as_large_as_the_ablation() -> None:
    model, x = make("crate_nano_patch2_8")
    with unrolled.trace(model, heads=True) as plain:
        model(x)
    act = AsLarge(edits.zero, 0)
    with unrolled.edit(model, {"block01/attn/head2": act}), unrolled.trace(model, heads=True) as t:
        model(x)
    old, new = (each["block01/attn/heads"][:, :, 2] for each in (plain, t))
    torch.testing.assert_close((new - old).norm(dim=-1), old.norm(dim=-1))


@torch.no_grad()
def test_patching_all_tokens_of_a_block_brings_everything_back() -> None:
    model, x = make("vit_nano_patch2_8")
    pairs = [(x[:3], x.flip(0)[:3] * 0.5, None), (x[3:], x.flip(0)[3:] * 0.5, None)]
    found = causal.patching(model, pairs, first_logit)
    assert found["block00"].share == pytest.approx(1)
    assert found["block02"].share == pytest.approx(1)
    assert found["block00/attn"].share != pytest.approx(1)
    assert found.goal == pytest.approx(float(first_logit(model(x)).mean()))
    assert found.score == pytest.approx(float(first_logit(model(x.flip(0) * 0.5)).mean()))
    slow = causal.patching(model, pairs, first_logit, reuse=False)
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(found, slow, strict=True))
    same = causal.patching(model, [(x, x, None)], first_logit)
    assert np.isnan(same["block00"].share)
    assert same["block01/attn"].change == 0
    with pytest.raises(ValueError, match="in the source"):
        causal.patching(model, [(x[:2], x[:3], None)], first_logit)


@torch.no_grad()
def test_a_random_patch_moves_as_far_as_the_patch() -> None:
    model, x = make("vit_nano_patch2_8")
    known = places_of(model)
    (spot,) = spots_of(model, known, "block01/attn/head1")
    source = values_at(model, known, [spot.place], x)[1]
    here = torch.randn(4, 17, 24)
    moved = edits.patch(source).bind(spot.place)(here) - here
    random = AsLarge(spot.change(edits.patch(source)), 0)(here) - here
    torch.testing.assert_close(random.norm(dim=-1), moved.norm(dim=-1))
    assert torch.nn.functional.cosine_similarity(random.flatten(), moved.flatten(), dim=0).abs() < 0.2


def test_attribution_is_exact_where_the_score_is_linear() -> None:
    model, x = make("vit_nano_patch2_8")
    wrote: list[Tensor] = []
    left: list[Tensor] = []
    model.blocks[2].mlp.register_forward_hook(lambda _, args, out: wrote.append(out.detach()))  # type: ignore[index,union-attr]
    model.blocks[2].register_forward_hook(lambda _, args, out: left.append(out))  # type: ignore[index]
    found = causal.attribution(model, [(x, x.flip(0), None)], lambda out, _: left[-1].sum((1, 2)), ["block02/mlp"])
    clean, corrupted = (out.sum((1, 2)) for out in wrote)
    np.testing.assert_allclose(found["block02/mlp"].samples, (clean - corrupted).double().numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["crate_nano_patch2_8", "vit_nano_patch2_8"])
def test_attribution_is_patching_of_a_small_difference(name: str) -> None:
    model, x = make(name)
    model.double()
    pairs = [(x.double(), x.double() + 1e-5 * x.flip(0), None)]
    places = ["embed", "block0?", "block*/attn", "block*/attn/head?", "block01/half", "block02/subspace1"]
    places += ["block*/ista", "block01/ista/atom3"] if "crate" in name else ["block*/mlp"]
    exact = causal.patching(model, pairs, first_logit, places, control=False)
    linear = causal.attribution(model, pairs, first_logit, places)
    for one, other in zip(exact, linear, strict=True):
        assert one.name == other.name
        np.testing.assert_allclose(other.samples, one.samples, rtol=1e-2, atol=1e-9)
    assert 0.9 < exact.agreement(linear)[0] <= 1
    by_token = causal.attribution(model, pairs, first_logit, ["block01"], positions="each")
    assert sum(row.change for row in by_token) == pytest.approx(linear["block01"].change)
    with pytest.raises(ValueError, match="no gradient"):
        causal.attribution(model, pairs, lambda out, _: (out.argmax(-1) == 0).double(), "block00")


@torch.no_grad()
def test_a_path_through_everything_that_reads_the_sender_is_a_patch_of_the_sender() -> None:
    model, x = make("crate_nano_patch2_8")
    clean, corrupted = x, x.flip(0)
    sender = "block02/attn/head1"
    pairs = [(clean, corrupted, None)]
    through = causal.path_patching(model, pairs, first_logit, sender, ["block02/ista"])
    with unrolled.trace(model, heads=True) as source:
        model(clean)
    with unrolled.edit(model, {sender: edits.patch(source)}):
        by_hand = first_logit(model(corrupted))
    expected = by_hand - first_logit(model(corrupted))
    np.testing.assert_allclose(through["block02/ista"].samples, expected.double().numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="does not come after"):
        causal.path_patching(model, pairs, first_logit, sender, ["block01/ista"])
    early = causal.path_patching(model, pairs, first_logit, "block00/attn/head1", ["block*/attn", "block*/ista"])
    assert [row.name for row in early] == [
        "block00/ista",
        "block01/attn",
        "block01/ista",
        "block02/attn",
        "block02/ista",
    ]
    both = causal.path_patching(
        model, pairs, first_logit, "block00/attn/head1", ["block00/ista", "block01/attn"], together=True
    )
    assert [row.name for row in both] == ["block00/ista + block01/attn"]


@torch.no_grad()
def test_a_path_goes_through_what_replaces_the_tokens() -> None:
    model, x = make("crate_nano_patch2_8")
    clean, corrupted = x, x.flip(0)
    sender, receiver = "block00/attn/head1", "block02/attn"
    (row,) = causal.path_patching(model, [(clean, corrupted, None)], first_logit, sender, receiver)
    with unrolled.trace(model, heads=True) as source:
        model(clean)
    with unrolled.trace(model) as t:
        plain = first_logit(model(corrupted))
    held = {sender: edits.patch(source), "block01/attn": edits.patch(t)}
    with unrolled.edit(model, held), unrolled.trace(model) as through:
        model(corrupted)
    with unrolled.edit(model, {receiver: edits.patch(through)}):
        expected = first_logit(model(corrupted)) - plain
    np.testing.assert_allclose(row.samples, expected.double().numpy(), atol=1e-6)
    assert abs(row.samples).max() > 1e-4


@torch.no_grad()
def test_a_subspace_is_projected_out_of_what_enters_its_block() -> None:
    model, x = make("crate_nano_patch2_8")
    found = causal.ablate(model, [(x, None)], first_logit, ["block00/subspace1", "block02/subspace*"], control=False)
    assert [row.name for row in found][:2] == ["block00/subspace1", "block02/subspace0"]
    for name, entering in (("block00/subspace1", "embed"), ("block02/subspace3", "block01")):
        block, head = name.split("/subspace")
        with unrolled.edit(model, {entering: edits.project_out(edits.subspace(model, block, int(head)))}):
            by_hand = first_logit(model(x))
        expected = (by_hand - first_logit(model(x))).double().numpy()
        np.testing.assert_allclose(found[name].samples, expected, atol=1e-5)
    with pytest.raises(ValueError, match="block00/subspace0"):
        causal.ablate(model, [(x, None)], first_logit, "block00/subspace9")


@pytest.mark.parametrize("name", ["vit_nano_patch2_8", "gpt2"])
@torch.no_grad()
def test_positions_are_changed_one_at_a_time(name: str) -> None:
    model, x = make(name)
    found = causal.ablate(model, [(x, None)], first_logit, "block01", positions=[0, -1])
    assert [row.name for row in found] == ["block01@0", "block01@-1"]
    with unrolled.edit(model, {"block01": edits.at(edits.zero, [0])}):
        by_hand = (first_logit(model(x)) - 0).double()
    expected = by_hand - first_logit(model(x)).double()
    torch.testing.assert_close(torch.from_numpy(found["block01@0"].samples), expected, atol=1e-5, rtol=1e-4)
    each = causal.ablate(model, [(x, None)], first_logit, ["embed", "block01"], positions="each", control=False)
    tokens = 7 if name == "gpt2" else 17
    assert len(each) == 2 * tokens
    assert each.panel().values.shape == (2, tokens)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=f"no token {tokens} among {tokens}"):
        causal.ablate(model, [(x, None)], first_logit, "block01", positions=[tokens])


@torch.no_grad()
def test_no_module_before_a_place_runs_twice() -> None:
    model, x = make("vit_nano_patch2_8")
    ran: dict[str, int] = {}
    for path in ("patch_embed.proj", "blocks.0.mlp", "blocks.1.attn.qkv", "blocks.1.mlp", "blocks.2.norm1"):
        module = model.get_submodule(path)
        forward = module.forward

        def counted(*args: Any, path: str = path, forward: Any = forward) -> Any:
            ran[path] = ran.get(path, 0) + 1
            return forward(*args)

        module.forward = counted  # type: ignore[method-assign]
    causal.ablate(model, [(x, None)], first_logit, "block01/attn/head*", control=False)
    # what somebody replaced is not replaced again, and so runs, but for what is inside what stands in for it
    heads = 4
    assert ran["blocks.1.mlp"] == 1 + heads
    assert ran["blocks.2.norm1"] == 1 + heads
    assert ran["blocks.0.mlp"] == 1
    assert ran["patch_embed.proj"] == 1


class _WritesInto(nn.Module):
    """A block whose second half writes into what the first gave it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(4, 4)
        self.mlp = nn.Linear(4, 4)

    def forward(self, z: Tensor) -> Tensor:
        added = self.attn(z)
        added += z
        return added.add_(self.mlp(added))


@torch.no_grad()
def test_what_was_written_into_is_computed_again() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*(_WritesInto() for _ in range(3))))
    x = torch.randn(2, 5, 4)
    places = ["block*/mlp", "block??"]
    fast = causal.ablate(model, [(x, None)], first_logit, places)
    slow = causal.ablate(model, [(x, None)], first_logit, places, reuse=False)
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(fast, slow, strict=True))
    assert len({row.change for row in slow}) > 3


def test_scores_are_what_they_say() -> None:
    logits = torch.tensor([[1.0, 3.0, 0.0], [2.0, 0.0, 1.0]])
    right = torch.tensor([1, 2])
    assert scores.accuracy(logits, right).tolist() == [1, 0]
    assert scores.logit_difference(logits, right).tolist() == [2, -1]
    assert scores.logit_difference(logits, torch.tensor([[1, 2], [2, 1]])).tolist() == [3, 1]
    torch.testing.assert_close(scores.probability(logits, right), logits.double().softmax(-1)[[0, 1], right])
    torch.testing.assert_close(scores.loss(logits, right).exp(), 1 / scores.probability(logits, right))
    texts = logits[:, None].expand(2, 4, 3)
    assert scores.logit(texts, right).tolist() == [3, 1]


def test_bits_per_byte_of_a_sweep_are_those_of_the_corpus() -> None:
    model, _ = make("gpt2")
    text = "".join(chr(97 + int(i)) for i in torch.randint(26, (48,), generator=torch.Generator().manual_seed(0)))

    def encode(text: str) -> Tensor:
        return torch.tensor([ord(c) - 97 for c in text])

    rows = encode(text).reshape(3, 16)
    factor = scores.per_unit([15, 15, 15], bits=True)
    batches = [(part, (part, factor)) for part in rows.split(2)]
    found = causal.ablate(model, batches, scores.of_tokens, "block00/attn", control=False)
    wanted = sum(
        bits_per_byte(model, text[i : i + 16], encode_with_bytes(encode), length=16)["bits"] for i in (0, 16, 32)
    )
    assert found.score == pytest.approx(wanted / 45, rel=1e-5)


def encode_with_bytes(encode: Any) -> Any:
    class Letters:
        def encode(self, text: str) -> Tensor:
            return encode(text)

        def bytes_of(self, token: int) -> int:
            return 1

    return Letters()


def test_losses_of_tokens_never_copy_the_logits() -> None:
    logits = torch.randn(3, 1500, 9).bfloat16()
    ids = torch.randint(9, (3, 1500))
    ids[0, :7] = -100
    whole = torch.nn.functional.cross_entropy(logits.float().mT, ids, reduction="none")
    torch.testing.assert_close(token_nats(logits, ids), whole)
    largest = 0

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr():
                largest = max(largest, out.numel())
            return out

    with Watch():
        token_nats(logits, ids)
    assert largest <= 2048 * 9


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


class _Linear(nn.Module):
    """A transformer whose attention and head are linear and whose blocks only add: terms are what is lost."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 2
            self.mix = nn.Linear(8, 8)
            self.proj = nn.Linear(8, 8)

        def forward(self, z: Tensor) -> Tensor:
            out: Tensor = self.proj(self.mix(z))
            return out

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = _Linear.Attention()

        def forward(self, z: Tensor) -> Tensor:
            out: Tensor = z + self.attn(z)
            return out

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, 8, 2, 2)
        self.blocks = nn.Sequential(_Linear.Block(), _Linear.Block())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.blocks(self.patch_embed(x).flatten(2).mT)
        out: Tensor = self.head(z.mean(1))
        return out


def test_what_a_head_of_the_last_layer_adds_is_what_is_lost_without_it() -> None:
    torch.manual_seed(0)
    model = _Linear().eval()
    image = torch.randn(1, 1, 8, 8)
    explanation = explain_logit(model, image, target=1, against=2, prefix=0)
    found = causal.removed(model, image, explanation)
    assert found is not None
    last = [i for i, (layer, head) in enumerate(zip(found.layer, found.head, strict=True)) if layer == 1]
    np.testing.assert_allclose(found.term[last], found.lost[last], atol=1e-5)
    first = [i for i, (layer, head) in enumerate(zip(found.layer, found.head, strict=True)) if layer == 0]
    assert np.abs(found.term[first] - found.lost[first]).max() > 1e-3  # the second layer reads the first
    assert found.head == (0, 1, None, 0, 1, None)
    assert set(found.agreement()) == {"rank_correlation", "random", "same_sign"}


@torch.no_grad()
def test_jaccard_of_the_attention_without_a_head() -> None:
    model, x = make("crate_nano_patch2_8")
    things = torch.zeros(16, 16, dtype=torch.bool)
    things[:8] = True
    attending = causal.Attending(model)
    batches = [((x[i : i + 1], (4, 4)), causal.marked((4, 4), things)) for i in range(4)]
    found = causal.ablate(attending, batches, scores.SCORES["jaccard"].score, ["block00/attn", "block02/attn/head*"])
    maps = read_patches(model, x, layers=[1]).attention
    assert maps is not None
    masks = threshold_attention(maps[0].mean(1), by="mass").reshape(4, 1, 4, 4).float()
    large = torch.nn.functional.interpolate(masks, (16, 16)).bool()
    by_hand = [float(jaccard(large[i], things[None])) for i in range(4)]
    assert found.score == pytest.approx(sum(by_hand) / 4)
    assert found["block00/attn"].samples.any()
    assert not found["block02/attn/head1"].samples.any()  # it comes after the attention that is looked at
    with unrolled.edit(model, {"block00/attn": edits.zero}):
        changed = read_patches(model, x, layers=[1]).attention
    assert changed is not None
    assert not torch.equal(changed, maps)


@torch.no_grad()
def test_few_samples_have_no_interval() -> None:
    model, x = make("gpt2")
    x = x[torch.arange(FEWEST) % len(x)]
    for count in (1, FEWEST - 1):
        few = causal.ablate(model, [(x[:count], None)], first_logit, "block*")
        assert len(few) > 3
        assert all(np.isnan(row.low) and np.isnan(row.high) and np.isfinite(row.change) for row in few)
        rho, low, high = few.agreement(few)
        assert (rho, np.isnan(low), np.isnan(high)) == (pytest.approx(1), True, True)
    enough = causal.ablate(model, [(x, None)], first_logit, "block*")
    assert all(row.low <= row.change <= row.high for row in enough)
    rho, low, high = enough.agreement(enough)
    assert low <= rho <= high + 1e-12


@torch.no_grad()
def test_a_row_that_is_not_there_is_said_with_the_nearest() -> None:
    model, x = make("gpt2")
    effects = causal.ablate(model, [(x, None)], first_logit, "block0?")
    with pytest.raises(KeyError, match="'block0' matches no name; the nearest are block0"):
        effects["block0"]
