"""Large seeds have streams of their own, and what must not be seen in training is not."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from unrolled.seeds import seeded
from unrolled.studies.mesa.held_out import LOOK_SEED, TEST_SEED, TUNE_SEED
from unrolled.tasks import LinearDynamics, PartialDynamics


def test_seeds_of_32_bits_are_those_of_pytorch() -> None:
    for seed in (0, 1, 2**32 - 1):
        expected = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.randn(4, generator=seeded(seed)), expected)


def test_every_bit_of_a_seed_counts() -> None:
    draws = {tuple(torch.randn(4, generator=seeded(seed)).tolist()) for seed in (0, *(2**bit for bit in range(64)))}
    assert len(draws) == 65  # PyTorch's generator has 33 streams for these


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"seed=-1: must not be negative"):
        seeded(-1)


def test_tests_tuning_looks_and_training_share_no_sequence() -> None:
    world = LinearDynamics(dim=3, steps=4)
    seeds = (TEST_SEED, TUNE_SEED, LOOK_SEED, 0)  # a training of seed 0 begins with sequences of seed 0
    samples = [world.sample(8, seed=seed) for seed in seeds]
    for one, other in combinations(samples, 2):
        assert not torch.isclose(one.transition[:, None], other.transition[None]).all(-1).all(-1).any()


def test_a_projection_is_drawn_apart_from_the_hidden_states() -> None:
    world = PartialDynamics(hidden=4, dim=4, steps=3, noise=0.0)
    # with the stream of the hidden states, the first projection was the matrix that the first transition is made of
    sample = world.sample(1, seed=0)
    raw = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    hidden = LinearDynamics(dim=4, steps=3, noise=0.0).sample(1, seed=0)
    assert not torch.allclose(sample.inputs, hidden.inputs @ (0.5 * raw).mT, atol=1e-4)
