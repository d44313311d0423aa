"""The world of the second tab: its layers are gradient descent, its mesa layer and ridge regression agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.explorer.worlds import GRID, World, descend, legendre, mesa_prediction, run
from unrolled.theory.in_context import gradient_step, ridge_regression


def context(seed: int, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n + 5, generator=generator, dtype=torch.float64) * 2 - 1
    phi = legendre(x, d)
    return phi[:n], torch.randn(n, generator=generator, dtype=torch.float64), phi[n:]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), d=st.integers(1, 8), layers=st.integers(1, 8))
def test_every_layer_is_one_gradient_step(seed: int, n: int, d: int, layers: int) -> None:
    phi, y, queries = context(seed, n, d)
    eta = 0.5 / float(torch.linalg.eigvalsh(phi.mT @ phi)[-1])
    out = descend(phi, y, queries, eta, layers)
    weights = torch.zeros(1, d, dtype=torch.float64)
    for layer in range(layers + 1):
        torch.testing.assert_close(out[layer], (queries @ weights.mT)[:, 0], rtol=1e-10, atol=1e-10)
        weights = gradient_step(weights, phi, y[:, None], eta)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), d=st.integers(1, 8), ridge=st.floats(1e-4, 10))
def test_one_mesa_layer_is_the_exact_answer(seed: int, n: int, d: int, ridge: float) -> None:
    phi, y, queries = context(seed, n, d)
    exact = queries @ ridge_regression(phi, y[:, None], ridge)[0]
    torch.testing.assert_close(mesa_prediction(phi, y, queries, ridge), exact, rtol=1e-6, atol=1e-8)


def test_features_are_orthonormal() -> None:
    x, weight = np.polynomial.legendre.leggauss(12)
    phi = legendre(torch.from_numpy(x), 8).numpy()
    np.testing.assert_allclose((phi * weight[:, None]).T @ phi / 2, np.eye(8), atol=1e-12)


def test_layers_come_nearer_and_too_long_steps_diverge() -> None:
    gap = run(World(layers=30, noise=0.0))["gap"]
    assert gap[30] < gap[5] < gap[0]
    far = run(World(step=2.4, layers=40, noise=0.0))
    assert far["gap"][40] > 1e3 * far["gap"][0], "and nothing is capped"
    assert far["average"]["layers"][40] > 1e6 * far["average"]["layers"][0]
    assert max(map(abs, far["layers"][40])) > 1e3


def test_without_noise_enough_examples_give_the_truth() -> None:
    found = run(World(features=4, examples=20, noise=0.0))
    np.testing.assert_allclose(found["mesa"], found["truth"], atol=1e-3)
    assert found["average"]["ridge"] < 1e-6


def test_with_noise_the_best_ridge_beats_others_on_average() -> None:
    base = {"features": 6, "examples": 12, "noise": 0.5}
    best = run(World(**base))["average"]["ridge"]
    for factor in (0.05, 20.0):
        assert best < run(World(**base, ridge=0.25 * 6 * factor))["average"]["ridge"]


@pytest.mark.parametrize("points", [(), ((0.0, 1.0),), ((0.5, 1.0),) * 3, ((-1.0, 10.0), (1.0, -10.0))])
def test_worlds_drawn_by_hand(points: tuple[tuple[float, float], ...]) -> None:
    found = run(World(points=points, layers=3))
    assert found["truth"] is None
    assert len(found["points"]) == len(points)
    lines = np.array([*found["layers"], found["mesa"], found["ridge_line"]])
    assert lines.shape == (6, GRID)
    assert np.isfinite(lines).all()


def test_a_seed_is_a_world() -> None:
    assert run(World(seed=4)) == run(World(seed=4))
    assert run(World(seed=4))["points"] != run(World(seed=5))["points"]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"features": 0}, "features"),
        ({"features": 2.0}, "features"),
        ({"layers": 41}, "layers"),
        ({"examples": True}, "examples"),
        ({"noise": -0.1}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"step": "1"}, "step"),
        ({"ridge": 0}, "ridge"),
        ({"points": [[2, 0]]}, "points"),
        ({"points": [[0]]}, "points"),
        ({"points": [["a", 0]]}, "points"),
        ({"points": [[0, 0]] * 101}, "points"),
        ({"colour": 1}, "colour"),
        ([], "world"),
    ],
)
def test_bad_settings_are_named(bad: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        World.from_request(bad)
