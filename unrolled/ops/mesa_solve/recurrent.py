"""Step by step: the plain reference, and recursive least squares with the inverse carried along."""

from __future__ import annotations

import torch
from torch import Tensor

from unrolled.ops.mesa_solve.chunk import Carry, Problem, Segment, cholesky, load
from unrolled.ops.mesa_solve.condition import Imprecise, conditioned, solve_each, trust_each


def reference(
    problem: Problem, queries: Tensor, carry: Carry, guard: bool, strict: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One dense solve per step, differentiated by autograd in O(t d^2) memory: what every other method must equal.

    Returns:
        outputs [n, t, e], solutions [n, t, d], and the last statistics and ridge scale.

    Raises:
        Imprecise: a solution may mean nothing (see `trust_each`), and `guard` is set. A pivot that is zero
            on one machine is not on another, so none is looked at.
    """
    dtype = problem.ridge.dtype
    q, k, v = queries.to(dtype), problem.keys.to(dtype), problem.values.to(dtype)
    statistics, ridge_scale = carry.statistics, carry.ridge_scale
    outputs, solutions = [], []
    trusted = torch.ones_like(ridge_scale, dtype=torch.bool)
    for t in range(q.shape[1]):
        if problem.decay is not None:
            decay = problem.decay[:, t]
            statistics = statistics * decay[:, None, None]
            ridge_scale = ridge_scale * decay if problem.ridge_decays else ridge_scale
        pair = torch.cat([v[:, t], k[:, t]], dim=-1)[:, :, None] * k[:, t, None, :]
        statistics = statistics + (pair if problem.gate is None else pair * problem.gate[:, t, None, None])
        cross, gram = statistics.split([v.shape[-1], k.shape[-1]], dim=1)
        ridges = ridge_scale[:, None] * problem.ridge
        system = gram + torch.diag_embed(ridges)
        solution = solve_each(system, q[:, t])
        if guard:
            trusted &= trust_each(system, ridges, solution, strict)
        solutions.append(solution)
        outputs.append((cross @ solution[..., None])[..., 0])
    if not bool(trusted.all()):
        raise Imprecise
    return torch.stack(outputs, 1), torch.stack(solutions, 1), statistics, ridge_scale


def starting_inverse(segment: Segment) -> Tensor:
    """(H + diag(ridge))^-1 before the segment's first step, [n, d, d]."""
    ridge = segment.ridge_scale[:, :1] * segment.ridge[:, 0]
    return torch.cholesky_inverse(cholesky(segment.gram[:, 0] + torch.diag_embed(ridge)))


def sherman_morrison(segment: Segment, rhs: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the systems of one chunk in order by rank-one updates of the inverse.

        R_t = (R_{t-1} - g R_{t-1} k k^T R_{t-1} / (decay + g k^T R_{t-1} k)) / decay

    Args:
        segment: of one chunk (c = 1).
        rhs: [n, 1, l, d].
        inverse: R before the first step, [n, d, d].

    Returns:
        solutions [n, 1, l, d], and R after the last step.
    """
    keys = segment.keys[:, 0]
    both = torch.stack([keys, rhs[:, 0]], dim=-1)  # [n, l, d, 2]
    decay = None if segment.between is None else _single_decays(segment)
    out = torch.empty_like(rhs[:, 0])
    for t in range(keys.shape[1]):
        image = inverse @ both[:, t]  # [n, d, 2]: R k and R q
        towards_k, towards_q = image.unbind(-1)
        products = keys[:, t, None, :] @ image  # [n, 1, 2]: k R k and k R q
        gate = 1.0 if segment.gate is None else segment.gate[:, 0, t, None]
        forget = 1.0 if decay is None else decay[:, t, None]
        gain = gate * towards_k / (forget + gate * products[..., 0])
        inverse = torch.baddbmm(inverse, gain[..., None], towards_k[:, None], alpha=-1)
        solution = towards_q - gain * products[..., 1]
        if decay is not None:
            inverse, solution = inverse / decay[:, t, None, None], solution / forget
        out[:, t] = solution
    return out[:, None], inverse


def decode_step(
    problem: Problem, queries: Tensor, carry: Carry, inverse: Tensor | None
) -> tuple[Tensor, Tensor, Carry, Tensor]:
    """One step (t = 1) in O(d^2), given the inverse that the step before left.

    One step of iterative refinement against H itself squares the relative error of the carried inverse, and where that
    error shows (rounding over very many steps, or another ridge than before) the inverse is built afresh.

    Returns:
        outputs [n, 1, e], solutions [n, 1, d], the carry and the inverse [n, d, d] after the step.

    Raises:
        Imprecise: a fresh inverse errs as much, or the solution may mean nothing (see `condition`).
    """
    segment, after = load(problem, carry, 0, 1, 1)
    rhs = queries[:, None].to(problem.ridge.dtype)
    size = torch.linalg.vector_norm(rhs, dim=-1)
    fresh = inverse is None
    before = starting_inverse(segment) if inverse is None else inverse
    while True:
        x, inverse = sherman_morrison(segment, rhs, before)
        error = rhs - segment.apply_gram(x) - segment.ridges * x
        wrong = torch.linalg.vector_norm(error, dim=-1)
        if float((1e3 * wrong - size).amax()) <= 0:  # which NaN is not
            break
        if fresh:
            raise Imprecise
        before, fresh = starting_inverse(segment), True
    x = x + error @ inverse[:, None]
    if not _is_conditioned(segment, after, inverse):
        if rhs.dtype != torch.float64:
            raise Imprecise  # in float64 the next steps are cheap again
        systems = segment.systems()
        replaced = None if segment.forgotten is None else segment.forgotten[..., None]
        if not bool(trust_each(systems, segment.ridges, x, False, replaced).all()):
            raise Imprecise
    return segment.read(x)[:, 0], x[:, 0], after, inverse


def _is_conditioned(segment: Segment, after: Carry, inverse: Tensor) -> bool:
    """Whether the system after the only step of a segment is no closer to singular than its precision holds."""
    gram = after.statistics[:, segment.width :]
    least, largest = segment.ridge[:, 0].aminmax(dim=-1)
    least, largest = after.ridge_scale * least, after.ridge_scale * largest
    if segment.forgotten is not None:  # where it was kept from decaying further, what is left of it must not matter
        largest = largest + segment.forgotten[:, 0] * largest / torch.finfo(largest.dtype).eps
    return conditioned(gram, largest, 1 / least) or conditioned(gram, largest, inverse.abs().sum(-1).amax(-1))


def _single_decays(segment: Segment) -> Tensor:
    assert segment.log_decay is not None
    return segment.log_decay[:, 0].diff(dim=-1, prepend=torch.zeros_like(segment.log_decay[:, 0, :1])).exp()
