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
from unrolled.instruments import causal
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
