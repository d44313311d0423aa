"""Sweeps leave out what comes before a place, on every architecture, and change no bit of what comes out."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import unrolled
from tests.instruments.architectures import ALL, build
from unrolled.instruments import causal, edits
from unrolled.instruments.editing import places_of
from unrolled.instruments.sites import first_tensor


def score(output: Any, _: Any) -> Tensor:
    value = first_tensor(output)
    assert value is not None
    return value.double().flatten(1).cos().sum(1)


@pytest.mark.parametrize("name", ALL)
def test_nothing_that_is_left_out_is_missed(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = build(name)
    model.eval()
    known = [each for each in places_of(model) if re.fullmatch(r"(.*/)?(block\d+|embed)(/.*)?", each)]
    places = [each for each in known if not re.search(r"head[2-9]|head\d\d|atom([2-9]|\d\d)", each)]
    if ALL[name].post or name == "bart":  # a norm stands before `half`, which an edit refuses
        places = [each for each in places if not each.endswith("/half")]
    assert any("/head1" in each for each in places)
    other = {key: value.roll(1, 0) for key, value in inputs.items()}
    with torch.no_grad(), unrolled.trace(model, heads=True) as t:  # of two towers one may not run
        model(**inputs)
    ran = {each.rsplit("/", 1)[0] if "/attn/heads" in each else each for each in t}
    places = [each for each in places if re.sub(r"/(head|atom)\d+$", "", each) in ran]
    found = {
        reuse: (
            causal.ablate(model, [(inputs, None)], score, places, reuse=reuse),
            causal.patching(model, [(inputs, other, None)], score, places, reuse=reuse, control=False),
        )
        for reuse in (True, False)
    }
    for fast, slow in zip(found[True], found[False], strict=True):
        assert len(slow) == len(places)
        assert any(row.change for row in slow)
        for one, same in zip(fast, slow, strict=True):
            assert np.array_equal(one.samples, same.samples), one.name
            assert one.control == same.control or np.isnan(one.control)


@torch.no_grad()
def test_a_path_from_encoder_to_decoder_holds_all_halves_in_between() -> None:
    model, clean = build("t5")
    corrupted = {**clean, "input_ids": clean["input_ids"].roll(1, 0)}
    targets = torch.tensor([5, 9])
    sender, receiver = "encoder/block00/attn", "decoder/block00/cross"
    (row,) = causal.path_patching(model, [(clean, corrupted, targets)], causal.scores.logit, sender, receiver)
    with unrolled.trace(model) as source:
        model(**clean)
    with unrolled.trace(model) as t:
        plain = causal.scores.logit(model(**corrupted), targets)
    ends = ("/attn", "/mlp", "/cross")
    held = {name: edits.patch(t) for name in t if name.endswith(ends) and name not in (sender, receiver)}
    with unrolled.edit(model, {**held, sender: edits.patch(source)}), unrolled.trace(model) as through:
        model(**corrupted)
    with unrolled.edit(model, {receiver: edits.patch(through)}):
        expected = causal.scores.logit(model(**corrupted), targets) - plain
    torch.testing.assert_close(torch.as_tensor(row.samples), expected, atol=1e-6, rtol=1e-4)
    assert float(expected.abs().max()) > 0
    late = causal.path_patching(
        model, [(clean, corrupted, targets)], causal.scores.logit, "encoder/block01/attn", "decoder/block*/cross"
    )
    assert [each.name for each in late] == ["decoder/block00/cross", "decoder/block01/cross"]
    with pytest.raises(ValueError, match="does not come after"):
        causal.path_patching(
            model, [(clean, corrupted, targets)], causal.scores.logit, "decoder/block00/cross", "encoder/block01/mlp"
        )


@torch.no_grad()
def test_scores_of_answers_read_no_padding() -> None:
    model, inputs = build("llama")
    ids, targets = inputs["input_ids"], torch.tensor([5, 9])
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    right = {"input_ids": ids, "attention_mask": mask}
    left = {"input_ids": ids, "attention_mask": mask.flip(1)}
    score = causal.scores.loss
    for sweep in (
        lambda given: causal.ablate(model, [(given, targets)], score, "block01/attn", control=False),
        lambda given: causal.patching(model, [(given, given, targets)], score, "block01/attn", control=False),
        lambda given: causal.attribution(model, [(given, given, targets)], score, "block01/attn"),
        lambda given: causal.path_patching(model, [(given, given, targets)], score, "block00/attn", "block01/mlp"),
    ):
        with pytest.raises(ValueError, match=r"attention_mask says that some texts end in padding.*on the left"):
            sweep(right)
        sweep(left)
    own = causal.ablate(model, [(right, targets)], lambda out, _: out.logits[:, 3, 0], "block01/attn", control=False)
    assert own, "a score of one's own knows where it reads"
