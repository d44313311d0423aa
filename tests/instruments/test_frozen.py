from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from unrolled.instruments.readouts.frozen import LOGISTIC_PENALTIES, accuracy_interval, logistic, neighbours, ridge

METHODS = [logistic, ridge, neighbours, partial(neighbours, temperature=None)]


def clusters(n: int, d: int = 6, classes: int = 3, spread: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(classes, d)
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


HELD = torch.arange(48, 60)


@pytest.mark.parametrize("method", METHODS)
def test_classes_that_lie_apart_are_told_apart(method) -> None:  # type: ignore[no-untyped-def]
    x, y = clusters(60)
    queries, truth = clusters(30, seed=1)
    found = method(x, 5 * y + 2, HELD, queries)  # class numbers need not be 0, 1, ...
    assert (found.predicted == 5 * truth + 2).double().mean() > 0.9
    assert found.held_out > 0.8
    assert found.converged


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_not_learned(method) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(3)
    x, queries = torch.randn(300, 4, generator=generator), torch.randn(300, 4, generator=generator)
    y = torch.randint(3, (300,), generator=generator)
    truth = torch.randint(3, (300,), generator=generator)
    found = method(x, y, torch.arange(240, 300), queries)
    assert abs(float((found.predicted == truth).double().mean()) - 1 / 3) < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_the_choice_is_made_on_the_held_out_samples_alone(method) -> None:  # type: ignore[no-untyped-def]
    x, y = clusters(60, spread=1.0)
    one, two = (method(x, y, HELD, clusters(8, seed=seed)[0]) for seed in (1, 2))
    assert (one.held_out, one.setting, one.tried) == (two.held_out, two.setting, two.tried)
    wrong = y.clone()
    wrong[HELD] = (y[HELD] + 1) % 3
    assert method(x, wrong, HELD, x[:3]).held_out < 0.7


def test_ridge_is_the_solution_of_its_normal_equations() -> None:
    x, y = clusters(40, spread=0.8)
    queries, _ = clusters(20, spread=0.8, seed=4)
    found = ridge(x, y, torch.arange(30, 40), queries, penalties=(0.01,))
    centred, want = x.double() - x.double().mean(0), torch.nn.functional.one_hot(y).double()
    gram = centred.T @ centred
    penalty = 0.01 * torch.linalg.eigvalsh(gram).mean()
    weight = torch.linalg.solve(gram + penalty * torch.eye(6).double(), centred.T @ (want - want.mean(0)))
    expected = ((queries.double() - x.double().mean(0)) @ weight + want.mean(0)).argmax(1)
    assert torch.equal(found.predicted, expected)


def test_logistic_is_at_the_minimum_it_names() -> None:
    x, y = clusters(60, spread=0.6)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    weight, bias = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    steps = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        steps.zero_grad()
        value = torch.nn.functional.cross_entropy(z @ weight.T + bias, y) + 0.05 * weight.square().sum()
        value.backward()
        return value

    steps.step(loss)
    queries, _ = clusters(50, spread=1.0, seed=5)
    asked = ((queries - x.mean(0)) / x.std(0, correction=0)).double()
    expected = (asked @ weight.T + bias).argmax(1)
    found = logistic(x, y, HELD, queries, penalties=(0.1,))
    assert (found.predicted == expected).double().mean() >= 0.98


def test_the_choice_of_the_penalty_is_that_of_converged_fits_that_never_saw_the_held_out_samples() -> None:
    generator = torch.Generator().manual_seed(7)
    x, y = clusters(180, d=24, spread=0.9)
    x = x * (1 + 3 * torch.rand(24, generator=generator)) + torch.randn(24, generator=generator)
    held = torch.arange(120, 180)
    x[held[0]] *= 50  # would widen the scale of every feature
    tried = logistic(x, y, held, x[:3]).tried
    for penalty in LOGISTIC_PENALTIES:
        assert tried[f"penalty {penalty:g}"] == pytest.approx(_converged(x, y, held, penalty), abs=1e-9), penalty


def _converged(x: Tensor, y: Tensor, held: Tensor, penalty: float) -> float:
    """Held-out accuracy at the minimum of mean cross-entropy + penalty / 2 |weights|^2, in float64."""
    fit = torch.ones(len(x), dtype=torch.bool)
    fit[held] = False
    z = (x.double() - x[fit].double().mean(0)) / x[fit].double().std(0, correction=0)
    z = torch.cat([z, torch.ones(len(z), 1)], 1)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = torch.from_numpy(flat).view(3, -1).clone().requires_grad_()
        value = (
            torch.nn.functional.cross_entropy(z[fit] @ weight.T, y[fit]) + penalty / 2 * weight[:, :-1].square().sum()
        )
        (gradient,) = torch.autograd.grad(value, weight)
        return float(value.detach()), gradient.flatten().numpy()

    found = minimize(loss, np.zeros(3 * z.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": 5000})
    assert found.success
    return float(((z[held] @ torch.from_numpy(found.x).view(3, -1).T).argmax(1) == y[held]).double().mean())


def test_votes_are_weighed_by_the_cosine() -> None:
    # one close neighbour of class 0, two far ones of class 1; the last sample is only there to be held out
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.1, 1.0], [1.0, 0.1]])
    y = torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[2.0, 0.5]])
    ask = partial(neighbours, x[[0, 1, 2, 1]], y, torch.tensor([3]), query)
    assert int(ask(k=4, temperature=0.07).predicted) == 0
    assert int(ask(k=4, temperature=None).predicted) == 1
    assert int(ask(k=1, temperature=None).predicted) == 0
    # a tie of one vote each goes to the nearer
    tied = neighbours(x[[1, 0, 0]], torch.tensor([1, 0, 0]), torch.tensor([2]), query, k=2, temperature=None)
    assert int(tied.predicted) == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 50.0))
def test_neighbours_do_not_see_length_or_rotation(seed: int, scale: float) -> None:
    x, y = clusters(30, spread=0.7, seed=seed)
    queries, _ = clusters(12, spread=0.7, seed=seed + 1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)))[0]
    held = torch.arange(20, 30)
    before = neighbours(x, y, held, queries).predicted
    after = neighbours(x @ turn * scale, y, held, queries @ turn).predicted
    assert torch.equal(before, after)


@given(st.integers(1, 400), st.floats(0, 1))
def test_interval_holds_the_accuracy(count: int, share: float) -> None:
    right = round(share * count)
    low, high = accuracy_interval(right, count)
    assert 0 <= low <= right / count <= high <= 1


def test_interval_is_that_of_the_bootstrap() -> None:
    from unrolled.instruments import bootstrap_interval

    drawn = bootstrap_interval(np.arange(200) < 60, draws=20_000)
    assert accuracy_interval(60, 200) == pytest.approx(drawn, abs=0.006)


def test_bad_input_is_named() -> None:
    x, y = clusters(20)
    held = torch.arange(5)
    with pytest.raises(ValueError, match="queries"):
        ridge(x, y, held, x[:, :2])
    with pytest.raises(ValueError, match="labels"):
        neighbours(x, y.double(), held, x)
    with pytest.raises(ValueError, match="held"):
        ridge(x, y, torch.arange(20), x)
    with pytest.raises(ValueError, match="penalties"):
        logistic(x, y, held, x, penalties=(0.0,))
    with pytest.raises(ValueError, match="k=0"):
        neighbours(x, y, held, x, k=0)
    with pytest.raises(ValueError, match="one class"):
        logistic(x, torch.zeros(20, dtype=torch.long), held, x)
