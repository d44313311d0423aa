"""The plain least-squares functions agree with each other and with autograd."""

from __future__ import annotations

import torch

from unrolled.theory.in_context import (
    chebyshev_inputs,
    context_weights,
    gradient_descent_predictions,
    gradient_step,
    in_context_loss,
    least_squares,
    least_squares_predictions,
    ridge_regression,
)


def test_gradient_step_is_the_gradient() -> None:
    k, v = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    v = v[..., :2]
    phi = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    importance, ridge = torch.rand(3, 7, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(least_squares(phi, k, v, ridge, importance).sum(), phi)
    torch.testing.assert_close(gradient_step(phi, k, v, 0.1, ridge, importance), phi - 0.1 * gradient)
    best = ridge_regression(k, v, ridge, importance)
    torch.testing.assert_close(gradient_step(best, k, v, 1.0, ridge, importance), best)


def test_in_context_loss_is_least_squares_on_the_pairs_seen() -> None:
    s, phi = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    losses = in_context_loss(phi, s)
    assert (losses[:, 0] == 0).all()
    torch.testing.assert_close(losses[:, 4], least_squares(phi, s[:, :4], s[:, 1:5]))


def test_predictions_from_the_objective() -> None:
    s = torch.randn(3, 6, 4, dtype=torch.float64)
    for t in range(6):
        k, v = s[:, :t], s[:, 1 : t + 1]
        step = gradient_step(torch.zeros(3, 4, 4, dtype=torch.float64), k, v, 0.1)
        best = ridge_regression(k, v, 0.3)
        initial = torch.randn(4, 4, dtype=torch.float64)
        for phi, predicted in (
            (step, gradient_descent_predictions(s, 0.1)),
            (gradient_step(initial, k, v, 0.1), gradient_descent_predictions(s, 0.1, initial)),
            (best, least_squares_predictions(s, 0.3)),
        ):
            torch.testing.assert_close(predicted[:, t], (phi @ s[:, t, :, None])[..., 0])
    late = least_squares_predictions(s, 0.3, include_newest=False)[:, 5]
    phi = ridge_regression(s[:, :4], s[:, 1:5], 0.3)
    torch.testing.assert_close(late, (phi @ s[:, 5, :, None])[..., 0])


def test_chebyshev_reaches_the_preconditioned_input() -> None:
    s = torch.randn(3, 6, 4, dtype=torch.float64)
    iterates = chebyshev_inputs(s, 0.5, 200)
    for t in range(6):
        gram = s[:, :t].mT @ s[:, :t] + 0.5 * torch.eye(4, dtype=torch.float64)
        torch.testing.assert_close(iterates[-1][:, t], torch.linalg.solve(gram, s[:, t]))
    few = chebyshev_inputs(s, 0.5, 6, largest=20.0)
    assert (few[-1] - iterates[-1]).norm() < (chebyshev_inputs(s, 0.5, 6)[-1] - iterates[-1]).norm()


def test_context_weights_are_products_of_decays() -> None:
    decay, gate = torch.rand(2, 5, dtype=torch.float64) + 0.1, torch.rand(2, 5, dtype=torch.float64)
    weights = context_weights(decay, gate, 5, decay)
    torch.testing.assert_close(weights[:, 4, 1], gate[:, 1] * decay[:, 2:].prod(-1))
    assert (weights.triu(1) == 0).all()
    torch.testing.assert_close(context_weights(None, None, 3, decay), torch.ones(3, 3, dtype=torch.float64).tril())
