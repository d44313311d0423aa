"""Optimal transport between equal weights: every way gives the value of the linear program, solved whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from unrolled.ops import transport
from unrolled.ops.transport import GAP, Array, best_transport, largest_transport, transport_bound


def whole_program(scores: Array) -> float:
    p, q = scores.shape
    rows = np.kron(np.eye(p), np.ones(q))
    columns = np.kron(np.ones(p), np.eye(q))
    sums = np.repeat([1 / p, 1 / q], [p, q])
    return -optimize.linprog(-scores.ravel(), A_eq=np.vstack([rows, columns]), b_eq=sums).fun


def draw(p: int, q: int, seed: int) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, (p, q))


@settings(max_examples=15, deadline=None)
@given(p=st.integers(1, 9), q=st.integers(1, 9), seed=st.integers(0, 999))
def test_the_best_transport_is_that_of_the_whole_program(p: int, q: int, seed: int) -> None:
    scores = draw(p, q, seed)
    value = best_transport(scores)
    assert value == pytest.approx(whole_program(scores), abs=1e-8)
    assert value == pytest.approx(best_transport(scores.T), abs=2 * GAP)
    assert scores.mean() - GAP <= value <= scores.max() + GAP  # sharing all out evenly is a transport


@pytest.mark.parametrize("width", [1, 2, 5, 7])
def test_of_equal_widths_it_is_the_best_permutation(width: int) -> None:
    scores = draw(width, width, width)
    everyone = itertools.permutations(range(width))
    assert best_transport(scores) == pytest.approx(max(scores[range(width), order].mean() for order in everyone))


@pytest.mark.parametrize("shape", [(13, 11), (11, 13), (1, 5), (24, 16), (31, 47)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_program_gives_what_copies_give(
    shape: tuple[int, int], ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = draw(*shape, seed=3)
    if ties:
        scores = scores.round(0)
    monkeypatch.setattr(transport, "_COPIES", 10**6)
    copied = best_transport(scores)
    monkeypatch.setattr(transport, "_COPIES", 0)
    assert best_transport(scores) == pytest.approx(copied, abs=2 * GAP)


@pytest.mark.parametrize("scores", [np.zeros((3, 5)), np.ones((5, 3)), np.full((4, 7), -1.0)])
def test_equal_scores_are_kept(scores: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_COPIES", 0)
    assert best_transport(scores) == pytest.approx(scores[0, 0])


@settings(max_examples=25, deadline=None)
@given(p=st.integers(1, 9), q=st.integers(1, 9), seed=st.integers(0, 999), size=st.sampled_from([1e-3, 1.0]))
def test_no_transport_is_above_its_bound(p: int, q: int, seed: int, size: float) -> None:
    scores = size * draw(p, q, seed)
    assert best_transport(scores) <= transport_bound(scores) + GAP
    assert transport_bound(scores) <= scores.max() + GAP


def test_the_largest_of_several_is_solved_and_those_that_may_be_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    # by chance alone, as after a relabelling: sixteen pairs of layers whose values are near each other
    several = [draw(31, 47, seed) / (1 + 0.02 * seed) for seed in range(16)] + [draw(9, 9, 0) / 9]
    values, solved = [best_transport(scores) for scores in several], []

    def counted(scores: Array) -> float:
        solved.append(scores)
        return best_transport(scores)

    monkeypatch.setattr(transport, "best_transport", counted)
    assert largest_transport(several) == max(values)
    assert 2 <= len(solved) < 8
    assert largest_transport([-scores for scores in several]) == pytest.approx(
        max(best_transport(-scores) for scores in several), abs=GAP
    )
