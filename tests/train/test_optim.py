from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unrolled.models import create_model
from unrolled.train import TrainConfig
from unrolled.train.optim import Mixing, MovingAverage, build_optimizer, seed_step
from unrolled.train.schedule import learning_rate


@given(
    peak=st.floats(1e-6, 1.0),
    warmup=st.integers(0, 50),
    extra=st.integers(1, 200),
    share=st.floats(0, 1),
)
def test_the_schedule_rises_to_the_peak_then_falls_to_the_minimum(peak, warmup, extra, share):
    total, minimum = warmup + extra, share * peak
    rates = [learning_rate(s, peak=peak, warmup=warmup, total=total, minimum=minimum) for s in range(total + 1)]
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert rates[max(0, warmup - 1)] == pytest.approx(peak)
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[warmup:]))
    assert rates[total] == pytest.approx(minimum, abs=1e-12)


def test_the_last_step_is_one_short_of_the_minimum():
    last, after = (learning_rate(step, peak=1.0, warmup=2, total=10, minimum=0.1) for step in (9, 10))
    assert after == pytest.approx(0.1)
    assert last == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2)
    assert last > after


def test_the_warmup_is_not_a_minimum_of_ramp_and_cosine():
    # the published schedule takes the smaller of the two, per epoch, so its peak is never reached
    rates = [learning_rate(step, peak=1.0, warmup=20, total=90) for step in range(90)]
    assert max(rates) == 1.0
    assert rates.index(1.0) == 19


@pytest.mark.parametrize("name", ["crate_nano_patch2_8", "vit_nano_patch2_8"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_only_matrices_decay(name, optimizer):
    model = create_model(name, depth=1)
    model.scale = nn.Parameter(torch.ones(()))
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    groups = build_optimizer(model, TrainConfig(optimizer=optimizer, weight_decay=0.3)).param_groups
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    kept = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert decayed | kept == set(names.values())
    assert {"pos_embed", "cls_token", "scale", "norm.weight", "head.bias"} <= kept
    assert {"head.weight", "patch_embed.proj.weight"} <= decayed
    assert all(
        parameter.ndim <= 1 or key in ("pos_embed", "cls_token")
        for key, parameter in model.named_parameters()
        if key in kept
    )


def test_a_seeded_step_repeats_every_generator():
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    seed_step(0, 3)
    first = draw()
    draw()
    seed_step(0, 3)
    assert draw() == first
    others = []
    for arguments in ((0, 4), (1, 3), (0, 3, 1)):
        seed_step(*arguments)
        others.append(draw())
    assert first not in others
    assert len(set(others)) == 3


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_mixing_keeps_its_input_and_makes_distributions(count):
    mixing = Mixing(TrainConfig(mixup=0.5, cutmix=0.5, label_smoothing=0.1), classes=5)
    images, labels = torch.randn(count, 1, 8, 8), torch.arange(count) % 5
    before = images.clone()
    for step in range(6):
        seed_step(0, step)
        mixed, targets = mixing(images, labels)
        assert torch.equal(images, before)
        assert mixed.shape == images.shape
        assert targets.shape == (count, 5)
        torch.testing.assert_close(targets.sum(1), torch.ones(count))
    if count == 8:
        assert not torch.equal(mixed, images)


def test_mixup_is_one_share_of_a_batch_and_of_its_reverse():
    mixing = Mixing(TrainConfig(mixup=0.4, label_smoothing=0.1), classes=6)
    images, labels = torch.randn(6, 3, 4, 4), torch.arange(6)
    seed_step(3, 1)
    mixed, targets = mixing(images, labels)
    smooth = torch.full((6, 6), 0.1 / 6)
    on, off = 0.9 + 0.1 / 6, 0.1 / 6
    share = float((targets[0, 0] - off) / (on - off))
    assert 0 < share < 1
    one_hot = smooth + 0.9 * torch.eye(6)
    torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0))
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))


def test_steps_are_those_of_adamw_written_out():
    torch.manual_seed(1)
    model = nn.Linear(3, 2).double()
    config = TrainConfig(lr=0.05, weight_decay=0.1, betas=(0.8, 0.95))
    optimizer = build_optimizer(model, config)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    for step in range(1, 5):
        rate = learning_rate(step - 1, peak=0.05, warmup=2, total=4)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        for name, p in model.named_parameters():
            first[name] = 0.8 * first[name] + 0.2 * p.grad
            second[name] = 0.95 * second[name] + 0.05 * p.grad**2
            decayed = expected[name] * (1 - rate * 0.1 * (p.ndim > 1))  # biases do not decay
            root = (second[name] / (1 - 0.95**step)).sqrt() + 1e-8
            expected[name] = decayed - rate * first[name] / (1 - 0.8**step) / root
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])


def test_the_moving_average_is_the_recurrence_it_claims():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = MovingAverage(model, 0.9)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(1, 4):
        model(torch.randn(8, 2)).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            floating = tensor.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * tensor if floating else tensor.clone()
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, expected[name])
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied(model):
        assert all(torch.equal(tensor, average.tensors[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_an_average_reaches_the_folded_matrix_of_a_crate():
    """ISTA caches a folded matrix in eval: swapping weights in and out must not leave a stale one behind."""
    model = create_model("crate_nano_patch2_8", depth=1).eval()
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        own = model(images)
        average = MovingAverage(model, 0.9)
        for tensor in average.tensors.values():
            if tensor.is_floating_point():
                tensor.mul_(1.5)
        with average.applied(model):
            scaled = model(images)
            fresh = create_model("crate_nano_patch2_8", depth=1).eval()
            fresh.load_state_dict(average.tensors)
            torch.testing.assert_close(scaled, fresh(images))
        assert torch.equal(model(images), own)
