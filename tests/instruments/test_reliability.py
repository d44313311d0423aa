from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unrolled.instruments.readouts.reliability import fit_temperature, reliability


def drawn(seed: int, n: int = 60, classes: int = 5, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=generator)


def calibrated(levels: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Two classes; for each (right, of), `of` samples of confidence right / of, of which `right` are right."""
    rows, labels = [], []
    for right, of in levels:
        p = torch.tensor([right / of, 1 - right / of], dtype=torch.float64).clamp_min(1e-30)
        rows += [p.log()] * of
        labels += [0] * right + [1] * (of - right)
    return torch.stack(rows), torch.tensor(labels)


SEEDS = st.integers(0, 2**31)
LEVELS = st.lists(
    st.integers(1, 12).flatmap(lambda of: st.tuples(st.integers(of // 2 + 1, of), st.just(of))), min_size=1, max_size=6
)


@given(LEVELS, st.integers(1, 40))
def test_a_calibrated_predictor_has_no_error(levels: list[tuple[int, int]], bins: int) -> None:
    logits, labels = calibrated(levels)
    found = reliability(logits, labels, bins=bins)
    assert found.ece == pytest.approx(0, abs=1e-9)
    assert found.adaptive_ece == pytest.approx(0, abs=1e-9)
    assert found.accuracy == pytest.approx(found.confidence)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 30), st.floats(0.01, 20))
def test_ranges(seed: int, bins: int, scale: float) -> None:
    logits, labels = drawn(seed, scale=scale)
    found = reliability(logits, labels, bins=bins)
    assert abs(found.accuracy - found.confidence) - 1e-12 <= found.ece <= 1
    assert abs(found.accuracy - found.confidence) - 1e-12 <= found.adaptive_ece <= 1
    assert 0 <= found.brier <= 2
    assert found.nll >= 0
    assert sum(b.count for b in found.bins) == found.samples == 60
    for b in found.bins:
        assert b.low - 1e-12 <= b.confidence <= b.high + 1e-12


@settings(deadline=None)
@given(SEEDS)
def test_order_names_and_offsets_do_not_matter(seed: int) -> None:
    logits, labels = drawn(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, classes = torch.randperm(60, generator=generator), torch.randperm(5, generator=generator)
    moved = (logits + torch.randn(60, 1, generator=generator))[rows][:, classes]
    renamed = classes.argsort()[labels[rows]]
    one, two = reliability(logits, labels), reliability(moved, renamed)
    for name in ("ece", "adaptive_ece", "nll", "brier", "accuracy"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), abs=1e-9), name


def test_values_by_hand() -> None:
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]], dtype=torch.float64)
    found = reliability(p.log(), torch.tensor([0, 1, 1, 0]), bins=10)
    # right at 0.9 and 0.7, wrong at 0.6 and 0.8, each alone in its bin
    assert found.ece == pytest.approx((0.1 + 0.6 + 0.3 + 0.8) / 4)
    assert found.nll == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.7) + math.log(0.2)) / 4)
    assert found.brier == pytest.approx(2 * (0.01 + 0.36 + 0.09 + 0.64) / 4)
    # two bins of two: (0.6, 0.7) and (0.8, 0.9), one right in each
    halves = reliability(p.log(), torch.tensor([0, 1, 1, 0]), bins=2)
    assert halves.adaptive_ece == pytest.approx((abs(0.5 - 0.65) + abs(0.5 - 0.85)) / 2)


def test_values_of_a_loop_over_samples_and_bins() -> None:
    logits, labels = drawn(5, n=400)
    p = np.exp(logits.double().numpy() / 1.7)
    p /= p.sum(1, keepdims=True)
    truth = labels.numpy()
    error = 0.0
    for b in range(15):
        inside = [i for i in range(400) if b / 15 < p[i].max() <= (b + 1) / 15]
        if inside:
            right = np.mean([p[i].argmax() == truth[i] for i in inside])
            error += len(inside) / 400 * abs(right - np.mean([p[i].max() for i in inside]))
    found = reliability(logits, labels, temperature=1.7)
    assert found.ece == pytest.approx(error, abs=1e-12)
    assert found.nll == pytest.approx(-np.mean([np.log(p[i, truth[i]]) for i in range(400)]), abs=1e-12)
    one_hot = np.eye(p.shape[1])[truth]
    assert found.brier == pytest.approx(((p - one_hot) ** 2).sum(1).mean(), abs=1e-12)


def test_certain_and_wrong_is_as_bad_as_can_be() -> None:
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    found = reliability(logits, torch.tensor([1, 1]))
    assert (found.ece, found.adaptive_ece, found.brier) == (1, 1, 2)
    assert found.nll == 1000


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(0.3, 3.0))
def test_temperature(seed: int, scale: float) -> None:
    logits, _ = drawn(seed, n=80)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    best = fit_temperature(logits, labels)
    # overconfident by a factor: the temperature takes it back
    assert fit_temperature(scale * logits, labels) == pytest.approx(scale * best, rel=1e-3)
    at = [reliability(logits, labels, temperature=best * f).nll for f in (0.95, 1, 1.05)]
    assert at[1] <= min(at[0], at[2])
    assert reliability(logits, labels, temperature=best).accuracy == reliability(logits, labels).accuracy


def test_bad_input_is_named() -> None:
    logits, labels = drawn(0)
    with pytest.raises(ValueError, match="logits"):
        reliability(logits[0], labels)
    with pytest.raises(ValueError, match="labels"):
        reliability(logits, labels[:-1])
    with pytest.raises(ValueError, match="classes"):
        reliability(logits, labels + 3)
    with pytest.raises(ValueError, match="NaN"):
        reliability(logits * float("nan"), labels)
    with pytest.raises(ValueError, match="temperature"):
        reliability(logits, labels, temperature=0.0)
