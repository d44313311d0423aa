"""Least squares in context: the objectives that linear-attention and mesa layers descend.

A sequence of keys and values (for a dynamics task: states s_t and their successors s_{t+1}) defines, at every step, a
weighted least-squares problem over linear maps Phi from keys to values,

    L_t(Phi) = 1/2 sum_{s <= t} w_{t,s} |v_s - Phi k_s|^2 + 1/2 sum_j ridge_j |Phi_{:,j}|^2,

with w_{t,s} = input_gate_s * prod_{s < r <= t} decay_r. "Uncovering mesa-optimization algorithms in Transformers"
(arXiv 2309.05858) reads one linear self-attention layer as one gradient step on L_t and defines the mesa layer as its
exact minimiser; MesaNet (arXiv 2506.05233) adds the decay and the gate. Everything here is plain, differentiable and
works in float64: it is what the fast code is tested against.

Shapes: leading dimensions `...` are free; t steps, d key width, e value width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def context_weights(decay: Tensor | None, input_gate: Tensor | None, steps: int, like: Tensor) -> Tensor:
    """Weights w_{t,s} of every pair (s) in the objective of every step (t): [..., t, t], zero for s > t.

    Args:
        decay: [..., t] in (0, 1], or None for no forgetting.
        input_gate: [..., t], or None for ones.
        steps: t.
        like: gives dtype and device when both are None.
    """
    causal = torch.ones(steps, steps, dtype=like.dtype, device=like.device).tril()
    weights = causal
    if decay is not None:
        total = decay.log().cumsum(-1)
        weights = (total[..., :, None] - total[..., None, :]).masked_fill(causal == 0, -torch.inf).exp()
    return weights if input_gate is None else weights * input_gate[..., None, :]


def least_squares(
    weights: Tensor, keys: Tensor, values: Tensor, ridge: Tensor | float = 0.0, importance: Tensor | None = None
) -> Tensor:
    """The objective L(Phi) of one context.

    Args:
        weights: Phi, [..., e, d].
        keys: [..., t, d].
        values: [..., t, e].
        ridge: scalar or [..., d], penalty on the columns of Phi.
        importance: w_s, [..., t]; ones if None.

    Returns:
        [...] the value of the objective.
    """
    error = (values - keys @ weights.mT).square().sum(-1)  # [..., t]
    fit = error.sum(-1) if importance is None else (error * importance).sum(-1)
    return 0.5 * fit + 0.5 * (weights.square().sum(-2) * ridge).sum(-1)


def gradient_step(
    weights: Tensor,
    keys: Tensor,
    values: Tensor,
    step_size: float,
    ridge: Tensor | float = 0.0,
    importance: Tensor | None = None,
) -> Tensor:
    """Phi - step_size * dL/dPhi, written out; arguments as in `least_squares`."""
    error = values - keys @ weights.mT
    if importance is not None:
        error = error * importance[..., None]
    return weights + step_size * (error.mT @ keys - weights * _columns(ridge))


def ridge_regression(keys: Tensor, values: Tensor, ridge: Tensor | float, importance: Tensor | None = None) -> Tensor:
    """The minimiser of `least_squares`: V^T W K (K^T W K + diag(ridge))^-1, [..., e, d].

    >>> import torch
    >>> keys = torch.eye(3)
    >>> ridge_regression(keys, 2 * keys, ridge=0.0)[0]
    tensor([2., 0., 0.])
    """
    weighted = keys if importance is None else keys * importance[..., None]
    gram = weighted.mT @ keys + _diagonal(ridge, keys)
    solution: Tensor = torch.linalg.solve(gram, weighted.mT @ values)
    return solution.mT


def in_context_loss(weights: Tensor, states: Tensor) -> Tensor:
    """The mesa-objective of a dynamics sequence at every step: L_t(Phi) = 1/2 sum_{t' < t} |s_{t'+1} - Phi s_{t'}|^2.

    Args:
        weights: Phi, [..., d, d].
        states: [..., t, d].

    Returns:
        [..., t]; entry 0 is zero, since one state says nothing about its successor.
    """
    error = (states[..., 1:, :] - states[..., :-1, :] @ weights.mT).square().sum(-1)
    return 0.5 * torch.nn.functional.pad(error.cumsum(-1), (1, 0))


def gradient_descent_predictions(states: Tensor, step_size: float, initial: Tensor | None = None) -> Tensor:
    """s_{t+1} predicted by Phi_t = one gradient step from Phi_0 on the mesa-objective of s_0..s_t: [..., t, d].

    Phi_t s_t = Phi_0 s_t + step_size * sum_{t' < t} (s_{t'+1} - Phi_0 s_{t'}) (s_{t'} . s_t): what the linear attention
    of Proposition 1 (arXiv 2309.05858) computes, on tokens that hold Phi_0 s_t as well. The paper compares a trained
    layer with the step whose size and initial weights (Phi_0; W_0 in its first version) are learned too.

    Args:
        states: [..., t, d].
        step_size: of the gradient step.
        initial: Phi_0, [..., d, d]; zero if None.
    """
    before, after = states[..., :-1, :], states[..., 1:, :]
    scores = (states @ before.mT).tril(-1)  # [..., t, t-1]: pair t' may be used from step t'+1 on
    if initial is None:
        return step_size * (scores @ after)
    return states @ initial.mT + step_size * (scores @ (after - before @ initial.mT))


def least_squares_predictions(states: Tensor, ridge: float, *, include_newest: bool = True) -> Tensor:
    """s_{t+1} predicted by the ridge minimiser of the mesa-objective of s_0..s_t: [..., t, d].

    Args:
        states: [..., t, d].
        ridge: penalty, > 0 (it keeps the first steps solvable).
        include_newest: use the pair (s_{t-1}, s_t), as the objective says. False reproduces the control released with
            the paper, which leaves that pair out and so looks worse than least squares is.
    """
    count = states.shape[-2]
    before = torch.nn.functional.pad(states[..., :-1, :], (0, 0, 1, 0))  # s_{t-1}, and zero for t = 0
    after = torch.cat([torch.zeros_like(states[..., :1, :]), states[..., 1:, :]], dim=-2)
    out = []
    for t in range(count):
        last = t + 1 if include_newest else max(t, 1)
        weights = ridge_regression(before[..., :last, :], after[..., :last, :], ridge)
        out.append((weights @ states[..., t, :, None])[..., 0])
    return torch.stack(out, dim=-2)


def chebyshev_inputs(states: Tensor, ridge: float, steps: int, largest: Tensor | float | None = None) -> list[Tensor]:
    """Proposition 2: Chebyshev iterates of (S_{t-1} S_{t-1}^T + ridge I) x_t = s_t, one linear-attention layer each.

    Each iterate needs only causal products with s_{t'}, t' < t, plus momentum.

    Args:
        states: [..., t, d].
        ridge: > 0.
        steps: number of iterations.
        largest: upper end of the spectrum the iteration is tuned for; None takes the safe bound ridge + trace of the
            longest context of each sequence. A smaller, truer value converges faster.

    Returns:
        `steps + 1` tensors [..., t, d]: x^(0) = 0, ..., x^(steps).
    """
    before = torch.nn.functional.pad(states[..., :-1, :], (0, 0, 1, 0))
    bound = ridge + states.square().sum((-2, -1), keepdim=True)
    largest = bound if largest is None else torch.zeros_like(bound) + largest
    centre, radius = (largest + ridge) / 2, (largest - ridge) / 2
    x, step, previous_size = torch.zeros_like(states), torch.zeros_like(states), torch.zeros_like(centre)
    iterates = [x]
    for i in range(steps):
        residual = states - ridge * x - (x @ before.mT).tril() @ before
        momentum = torch.zeros_like(centre)
        if i > 0:
            momentum = (radius * previous_size / 2).square() * (2.0 if i == 1 else 1.0)
        size = 1 / (centre - momentum / previous_size) if i > 0 else 1 / centre
        step = size * residual + (size * momentum / previous_size * step if i > 0 else 0.0)
        x, previous_size = x + step, size
        iterates.append(x)
    return iterates


def _columns(ridge: Tensor | float) -> Tensor | float:
    return ridge[..., None, :] if isinstance(ridge, Tensor) and ridge.ndim else ridge


def _diagonal(ridge: Tensor | float, like: Tensor) -> Tensor:
    ridge = torch.as_tensor(ridge, dtype=like.dtype, device=like.device)
    return torch.diag_embed(ridge.expand(*ridge.shape[:-1], like.shape[-1]))
