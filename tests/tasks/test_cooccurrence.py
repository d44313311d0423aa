"""The world of co-occurring events: exact distributions, samples that follow them, and channels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.tasks import (
    CooccurrenceWorld,
    bijective,
    bits_lost,
    count_pairs,
    lossy,
    noisy,
    observe,
    observed_joint,
)
from unrolled.theory import pointwise_mutual_information

worlds = st.builds(
    CooccurrenceWorld,
    events=st.sampled_from([4, 9, 16]),
    layout=st.sampled_from(["ring", "grid", "clusters"]),
    width=st.floats(0.3, 3),
    background=st.floats(0.001, 0.5),
    skew=st.floats(0, 1),
    window=st.integers(1, 4),
    with_itself=st.booleans(),
    world_seed=st.integers(0, 99),
)


@given(world=worlds)
@settings(max_examples=40, deadline=None)
def test_the_distributions_are_those_of_a_stationary_reversible_walk(world: CooccurrenceWorld) -> None:
    step, frequencies, joint = world.transition(), world.frequencies(), world.joint()
    assert torch.allclose(step.sum(1), torch.ones(world.events, dtype=torch.float64))
    assert torch.allclose(frequencies @ step, frequencies)
    flow = frequencies[:, None] * step
    assert torch.allclose(flow, flow.mT)
    assert joint.dtype == torch.float64
    assert float(joint.sum()) == pytest.approx(1)
    assert torch.allclose(joint, joint.mT)
    assert torch.allclose(joint.sum(1), frequencies)
    assert bool((joint > 0).all())


@given(world=worlds, seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_bijective_observation_keeps_every_pmi(world: CooccurrenceWorld, seed: int) -> None:
    channel = bijective(world.events, seed=seed)
    seen = pointwise_mutual_information(observed_joint(world.joint(), channel))
    assert torch.allclose(channel @ seen @ channel.mT, pointwise_mutual_information(world.joint()), atol=1e-9)
    assert bits_lost(world.frequencies(), channel) == pytest.approx(0, abs=1e-9)


@given(symbols=st.integers(1, 16), rate=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_channels_are_distributions_and_lose_what_they_should(symbols: int, rate: float, seed: int) -> None:
    world = CooccurrenceWorld(events=16, skew=0.0)
    channel = lossy(16, symbols, seed=seed)
    blurred = noisy(channel, rate)
    for one in (channel, blurred):
        assert torch.allclose(one.sum(1), torch.ones(16, dtype=torch.float64))
        assert float(observed_joint(world.joint(), one).sum()) == pytest.approx(1)
    counts = channel.sum(0)
    assert float(counts.max() - counts.min()) <= 1
    uniform = torch.full((16,), 1 / 16, dtype=torch.float64)
    assert bits_lost(uniform, channel) == pytest.approx(float((counts * counts.log2()).sum()) / 16, abs=1e-9)
    assert bits_lost(uniform, channel) <= bits_lost(uniform, blurred) + 1e-9 <= 4 + 1e-6


def test_samples_follow_the_distributions() -> None:
    world = CooccurrenceWorld(events=9, layout="grid", window=2)
    first, second = world.pairs(200_000, seed=0)
    counts = torch.bincount(first * 9 + second, minlength=81).reshape(9, 9) / 200_000
    assert float((counts - world.joint()).abs().max()) < 5e-3
    walks = world.walk(60, walks=2000, seed=1)
    counted = count_pairs(walks, 9, 2)
    assert torch.equal(counted, counted.mT)
    assert float((counted / counted.sum() - world.joint()).abs().max()) < 5e-3
    seen = observe(walks, noisy(lossy(9, 3, seed=0), 0.1), generator=torch.Generator().manual_seed(0))
    assert seen.shape == walks.shape
    assert int(seen.max()) == 2


def test_samples_are_a_function_of_the_seed_alone() -> None:
    world = CooccurrenceWorld()
    before = torch.random.get_rng_state()
    assert torch.equal(world.walk(20, seed=3), world.walk(20, seed=3))
    assert not torch.equal(world.walk(20, seed=3), world.walk(20, seed=4))
    assert torch.equal(world.pairs(20, seed=3)[0], world.pairs(20, seed=3)[0])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_world_lives_on_the_device_asked_for() -> None:
    world = CooccurrenceWorld()
    assert world.walk(5, seed=0, device="cuda").is_cuda
    assert torch.allclose(world.joint("cuda").cpu(), world.joint())


def test_bad_settings_are_refused_by_name() -> None:
    bad: tuple[tuple[dict[str, Any], str], ...] = (
        ({"layout": "line"}, "layout"),
        ({"events": 1}, "events"),
        ({"layout": "grid", "events": 10}, "square"),
        ({"background": 0.0}, "background"),
        ({"window": 0}, "window"),
    )
    for given_, match in bad:
        with pytest.raises(ValueError, match=match):
            CooccurrenceWorld(**given_)
    for call, match in (
        (lambda: lossy(4, 5, seed=0), "symbols"),
        (lambda: noisy(torch.eye(2), 1.5), "rate"),
        (lambda: CooccurrenceWorld().walk(0, seed=0), "steps"),
        (lambda: CooccurrenceWorld().pairs(0, seed=0), "count"),
        (lambda: count_pairs(torch.zeros(1, 2, dtype=torch.int64), 2, 2), "window|apart"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    assert math.isclose(bits_lost(torch.full((4,), 0.25, dtype=torch.float64), torch.ones(4, 1)), 2)
