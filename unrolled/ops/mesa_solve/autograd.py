"""The mesa solve as one differentiable function with gradients by implicit differentiation.

Forward: x_t = (H_t + diag(ridge_t))^-1 q_t and o_t = G_t x_t. For an error e_t = dL/do_t, one more solve with the same
systems, y_t = (H_t + diag(ridge_t))^-1 G_t^T e_t, gives every gradient (arXiv 2506.05233, appendix D):

    dL/dq_t = y_t,   dL/dridge_t = -x_t * y_t,   dL/dS_t = [e_t; -y_t] x_t^T,

and since S = [G; H] is a decayed sum of gate * [v; k] k^T, the rest is the backward pass of chunked linear attention
with [e; -y] for errors. Stored: the inputs, x, and S once a segment; nothing per step of size d^2. The gradient is that
of the exact solution, whichever method found it.

Legend: n sequences, c chunks, l steps in a chunk, d key width, e value width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unrolled.ops.mesa_solve.cg import Operator, conjugate_gradient
from unrolled.ops.mesa_solve.chunk import (
    MAX_DRIFT,
    SAFE_GROWTH,
    Carry,
    Problem,
    Segment,
    Woodbury,
    certify,
    load,
    segments,
    triton_kernels,
)
from unrolled.ops.mesa_solve.condition import Imprecise, solve_each, trust_each
from unrolled.ops.mesa_solve.recurrent import sherman_morrison, starting_inverse

# numbers in the systems that "dense" forms at once
_DENSE = 2**24


@dataclass(frozen=True)
class Solver:
    """How the systems of a segment are solved.

    Attributes:
        method: "recurrent", "chunk", "cg" or "dense", a factorisation for each step.
        chunk: steps in a chunk.
        per_segment: chunks handled at once; bounds the temporary memory.
        steps: largest number of conjugate-gradient steps.
        tolerance: of conjugate gradients, relative.
        kernel: as in `Problem`.
        guard: raise `Imprecise` rather than return solutions that may mean nothing.
        strict: the guard is for the solutions themselves, as gradients need them, and for what any query would read.
    """

    method: str
    chunk: int
    per_segment: int
    steps: int
    tolerance: float
    kernel: str = "torch"
    guard: bool = True
    strict: bool = False

    def dense(self, n: int, width: int) -> Solver:
        """One factorisation a step for n sequences of keys of this width: the last resort, held to a bounded memory."""
        chunk = max(1, min(self.chunk, _DENSE // (n * width * width)))
        return replace(self, method="dense", chunk=chunk, per_segment=1, kernel="torch")

    def solve(self, segment: Segment, rhs: Tensor, exact: bool) -> Tensor:
        """(H_t + diag(ridge_t))^-1 rhs_t for every step of the segment, [n, c, l, d].

        Raises:
            Imprecise: a solution may mean nothing, and `guard` is set.
        """
        if self.method == "dense":
            return self._solve_each(segment, rhs)
        x, stable = self._solve(segment, rhs, exact)
        if self.guard and not segment.is_safe():
            certify(segment, rhs, x, stable, self.tolerance, self.strict)
        return x

    def _solve_each(self, segment: Segment, rhs: Tensor) -> Tensor:
        systems = segment.systems()
        x = solve_each(systems, rhs)
        if self.guard:
            replaced = None if segment.forgotten is None else segment.forgotten[..., None]
            if not bool(trust_each(systems, segment.ridges, x, self.strict, replaced).all()):
                raise Imprecise
        return x

    def _solve(self, segment: Segment, rhs: Tensor, exact: bool) -> tuple[Tensor, bool]:
        """Solutions, and whether the way to them loses no more digits than the systems themselves."""
        if self.method == "recurrent":
            inverse = starting_inverse(segment)
            update = lambda r: sherman_morrison(segment, r, inverse)[0]  # noqa: E731
            return refine(segment, rhs, update, self.tolerance), False
        if self.method == "chunk" and exact:
            woodbury = Woodbury(segment)
            if woodbury.growth() <= SAFE_GROWTH:
                return woodbury.solve(rhs), True
            return refine(segment, rhs, woodbury.solve, self.tolerance), False
        ridges = segment.ridges
        diagonal = segment.gram_diagonal() + ridges
        if self.kernel == "triton" and self.method == "cg":
            x = triton_kernels().conjugate_gradients(
                rhs,
                segment.keys,
                segment.gram,
                ridges,
                diagonal,
                segment.log_decay,
                segment.gate,
                steps=self.steps,
                tolerance=self.tolerance,
            )
            return x, False
        precondition = _preconditioner(segment, diagonal) if self.method == "chunk" else None
        x = conjugate_gradient(
            lambda x: segment.apply_gram(x).addcmul_(ridges, x),
            rhs,
            rhs / diagonal if precondition is None else precondition(rhs),
            tolerance=self.tolerance,
            steps=self.steps,
            precondition=precondition,
        )
        return x, False


def _preconditioner(segment: Segment, diagonal: Tensor) -> Operator:
    """Block Woodbury in the chunks it suits, the diagonal in those that forget too much for it."""
    assert segment.log_decay is not None
    woodbury = Woodbury(segment)
    suits = segment.log_decay[..., :1] - segment.log_decay[..., -1:] < MAX_DRIFT  # [n, c, 1]
    if bool(suits.all()):
        return woodbury.solve
    return lambda x: torch.where(suits[..., None], woodbury.solve(x), x / diagonal)


def refine(segment: Segment, rhs: Tensor, solve: Operator, tolerance: float) -> Tensor:
    """Solve, then correct by the solution of the residual for as long as that helps, three times at most.

    Updates of an inverse subtract nearly equal terms where the new pairs far outweigh the old statistics (the first
    steps under a small ridge), which costs digits in proportion; every correction wins them back.
    """
    x = solve(rhs)
    goal = tolerance * rhs.norm(dim=-1, keepdim=True)
    before = torch.full_like(goal, torch.inf)
    for _ in range(3):
        error = rhs - segment.apply_gram(x).addcmul_(segment.ridges, x)
        size = error.norm(dim=-1, keepdim=True)
        wanting = (size > goal) & (size < 0.5 * before)
        if not bool(wanting.any()):
            break
        x, before = torch.where(wanting, x + solve(error), x), size
    return x


@dataclass
class Solution:
    """What one pass over a problem leaves behind."""

    outputs: Tensor  # [n, t, e], arithmetic dtype
    solutions: Tensor | None  # [n, t, d]: x
    carry: Carry
    starts: list[Carry]  # the carry before each segment


def run(problem: Problem, queries: Tensor, carry: Carry, solver: Solver, *, keep: bool) -> Solution:
    """Solve every step; `keep` stores what the backward pass and the residual need."""
    n, steps, _ = queries.shape
    dtype = problem.ridge.dtype
    outputs = queries.new_empty(n, steps, problem.values.shape[-1], dtype=dtype)
    solutions = queries.new_empty(queries.shape, dtype=dtype) if keep else None
    starts = []
    for first, count, length in segments(steps, solver.chunk, solver.per_segment):
        starts.append(carry)
        segment, carry = load(problem, carry, first, count, length)
        span = slice(first, first + count * length)
        x = solver.solve(segment, queries[:, span].unflatten(1, (count, length)).to(dtype).contiguous(), problem.exact)
        outputs[:, span] = segment.read(x).flatten(1, 2)
        if solutions is not None:
            solutions[:, span] = x.flatten(1, 2)
    return Solution(outputs, solutions, carry, starts if keep else [])


@torch.no_grad()
def residual(problem: Problem, queries: Tensor, carry: Carry, solutions: Tensor, chunk: int) -> Tensor:
    """Relative residual |q_t - (H_t + diag(ridge_t)) x_t| / |q_t| of every step, [n, t], formed in float64.

    It uses the inputs and the solutions only, not anything the solver computed, and is zero where q_t is zero and x_t
    is too. Devices without float64 form it in the arithmetic dtype.
    """
    wide = problem.ridge.dtype if queries.device.type == "mps" else torch.float64
    problem = replace(problem, ridge=problem.ridge.to(wide), kernel="torch")
    carry = Carry(carry.statistics.to(wide), carry.ridge_scale.to(wide))
    out = queries.new_empty(queries.shape[:2], dtype=wide)
    for first, count, length in segments(queries.shape[1], chunk, 1):
        segment, carry = load(problem, carry, first, count, length)
        span = slice(first, first + count * length)
        rhs, x = (z[:, span].unflatten(1, (count, length)).to(wide) for z in (queries, solutions))
        error = (rhs - segment.apply_gram(x).addcmul_(segment.ridges, x)).norm(dim=-1)
        size = rhs.norm(dim=-1)
        out[:, span] = (error / torch.where(size > 0, size, 1.0)).flatten(1, 2)
    return out


class MesaFunction(torch.autograd.Function):
    """(q, k, v, ridge, decay, gate, statistics, ridge_scale) -> (outputs, statistics, ridge_scale, solutions)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ridge: Tensor,
        decay: Tensor | None,
        gate: Tensor | None,
        statistics: Tensor,
        ridge_scale: Tensor,
        ridge_decays: bool,
        solver: Solver,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shapes as in `Problem` and `Carry`."""
        problem = Problem(k, v, gate, decay, ridge, ridge_decays, solver.kernel)
        done = run(problem, q, Carry(statistics, ridge_scale), solver, keep=True)
        assert done.solutions is not None
        ctx.save_for_backward(
            k,
            v,
            ridge,
            decay,
            gate,
            done.solutions,
            done.carry.ridge_scale,
            *(x for start in done.starts for x in (start.statistics, start.ridge_scale)),
        )
        ctx.ridge_decays, ctx.solver, ctx.query_dtype = ridge_decays, solver, q.dtype
        ctx.mark_non_differentiable(done.solutions)
        last = done.carry
        if last.ridge_scale is ridge_scale:  # an input returned as it came would alias it
            last = Carry(last.statistics, ridge_scale.clone())
        return done.outputs, last.statistics, last.ridge_scale, done.solutions

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the eight tensors.

        Raises:
            RuntimeError: under `create_graph`; `once_differentiable` would let gradients of a linear loss through as
                constants, so that second derivatives lost their part in silence.
        """
        if torch.is_grad_enabled():
            raise RuntimeError('mesa is differentiable once: use method="reference" for second derivatives')
        k, v, ridge, decay, gate, solutions, last_scale, *flat = ctx.saved_tensors
        starts = [Carry(*flat[i : i + 2]) for i in range(0, len(flat), 2)]
        problem = Problem(k, v, gate, decay, ridge, ctx.ridge_decays, ctx.solver.kernel)
        arguments = starts, solutions, last_scale, *grads[:3]
        with torch.autocast(k.device.type, enabled=False):
            try:
                gradients = _backward(problem, ctx.solver, *arguments)
            except Imprecise:
                gradients = _in_float64(problem, ctx.solver, *arguments)
        return (gradients[0].to(ctx.query_dtype), *gradients[1:], None, None)


def _in_float64(
    problem: Problem, solver: Solver, starts: list[Carry], solutions: Tensor, *rest: Tensor
) -> tuple[Any, ...]:
    """`_backward` with one factorisation a step in float64, statistics included.

    Raises:
        ValueError: that is not enough either.
    """
    try:
        if problem.keys.device.type == "mps":  # which has no float64
            raise Imprecise
        wide: dict[str, Any] = {name: x.double() for name, x in vars(problem).items() if isinstance(x, Tensor)}
        widened, solver = replace(problem, kernel="torch", **wide), solver.dense(*problem.keys.shape[::2])
        carry = Carry(starts[0].statistics.double(), starts[0].ridge_scale.double())
        starts = []
        for first, count, length in segments(widened.keys.shape[1], solver.chunk, solver.per_segment):
            starts.append(carry)
            carry = load(widened, carry, first, count, length)[1]
        gradients = _backward(widened, solver, starts, *(x.double() for x in (solutions, *rest)))
    except Imprecise as error:
        raise ValueError("ridge is too small for the gradient: some system is singular to working precision") from error
    return tuple(None if x is None else x.to(problem.ridge.dtype) for x in gradients)


def _backward(
    problem: Problem,
    solver: Solver,
    starts: list[Carry],
    solutions: Tensor,
    last_scale: Tensor,
    d_outputs: Tensor,
    d_statistics: Tensor,
    d_scale: Tensor,
) -> tuple[Any, ...]:
    """Gradients of (q, k, v, ridge, decay, gate, statistics, ridge_scale)."""
    k, v, ridge, decay, gate = problem.keys, problem.values, problem.ridge, problem.decay, problem.gate
    d_q = torch.empty_like(solutions)
    d_k, d_v = torch.empty_like(k), torch.empty_like(v)
    d_decay = None if decay is None else torch.empty_like(decay)
    d_gate = None if gate is None else torch.empty_like(gate)
    d_ridge = torch.zeros_like(ridge)
    adjoint = d_statistics
    # dL/d log(ridge_scale): from later steps, and from the returned state
    tail = d_scale * last_scale
    spans = list(segments(k.shape[1], solver.chunk, solver.per_segment))
    for (first, count, length), start in zip(reversed(spans), reversed(starts), strict=True):
        span = slice(first, first + count * length)
        segment = load(problem, start, first, count, length)[0]
        errors, x = (z[:, span].unflatten(1, (count, length)).contiguous() for z in (d_outputs, solutions))
        y = solver.solve(segment, segment.apply_transposed(errors), problem.exact)
        errors = torch.cat([errors, -y], dim=-1)  # [n, c, l, e + d]
        ends, adjoint = _adjoints(segment, errors, x, adjoint)
        d_paired, d_keys, d_log_decay = _pair_gradients(segment, errors, x, ends)
        shrink = x * y
        rows = (shrink * segment.ridges).sum(-1)
        d_ridge -= _ridge_sum(segment, shrink)
        if decay is not None and d_decay is not None and d_log_decay is not None:
            d_log_decay = d_log_decay.flatten(1, 2)
            if problem.ridge_decays:
                d_log_decay = d_log_decay + tail[:, None] - _from_here_on(rows.flatten(1, 2))
            d_decay[:, span] = d_log_decay / decay[:, span]
        tail = tail - rows.sum((-2, -1))
        if d_gate is not None and segment.gate is not None:
            d_gate[:, span] = (d_paired * segment.paired).sum(-1).flatten(1, 2)
            d_paired, d_keys = d_paired * segment.gate[..., None], d_keys * segment.gate[..., None]
        d_q[:, span] = y.flatten(1, 2)
        d_v[:, span] = d_paired[..., : segment.width].flatten(1, 2)
        d_k[:, span] = (d_keys + d_paired[..., segment.width :]).flatten(1, 2)
    return d_q, d_k, d_v, d_ridge, d_decay, d_gate, adjoint, tail / starts[0].ridge_scale


def _adjoints(segment: Segment, errors: Tensor, x: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dS just after each chunk, [n, c, e + d, d], and before the segment's first step, [n, e + d, d]."""
    from_start = segment.from_start
    growth = errors.mT @ (x if from_start is None else x * from_start[..., None])
    ends = torch.empty_like(growth)
    for i in reversed(range(growth.shape[1])):
        ends[:, i] = carried
        carried = growth[:, i] + (carried if from_start is None else carried * from_start[:, i, -1, None, None])
    return ends, carried


def _pair_gradients(segment: Segment, errors: Tensor, x: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of sum_t [e; -y]_t^T S_t x_t in the two factors paired_s and k_s of each pair (per unit of gate) and in
    log(decay_s), [n, c, l]."""
    to_end = segment.to_end
    scores = x @ segment.keys.mT  # [n, c, l (step), l (pair)]
    matches = segment.weigh(errors @ segment.paired.mT, gated=False)
    joined = None if segment.log_decay is None else matches * scores
    reads = segment.weigh(scores, gated=False)
    late_keys = segment.keys if to_end is None else segment.keys * to_end[..., None]
    late_paired = segment.paired if to_end is None else segment.paired * to_end[..., None]
    from_later = late_keys @ ends.mT
    d_paired = from_later + reads.mT @ errors
    d_keys = late_paired @ ends + matches.mT @ x
    if joined is None:
        return d_paired, d_keys, None
    return d_paired, d_keys, _log_decay_gradient(segment, errors, x, ends, joined, from_later)


def _log_decay_gradient(
    segment: Segment, errors: Tensor, x: Tensor, ends: Tensor, joined: Tensor, from_later: Tensor
) -> Tensor:
    """dL/dlog(decay_s): everything that steps t >= s read from pairs r < s, each term of which contains decay_s.

    Summing just those terms, rather than differences of running totals, keeps the gradient of a small decay accurate.
    """
    from_start = segment.from_start
    assert from_start is not None
    passed_on = (segment.paired * from_later).sum(-1)  # from pair r to the steps after the chunk
    if segment.gate is not None:
        joined, passed_on = joined * segment.gate[..., None, :], passed_on * segment.gate
    inside = _before(joined).tril().sum(-2)
    inherited = from_start * (errors * (x @ segment.statistics.mT)).sum(-1)
    through = from_start[..., -1:] * (ends * segment.statistics).sum((-2, -1))[..., None]
    return inside + _from_here_on(inherited) + _before(passed_on) + through


def _before(x: Tensor) -> Tensor:
    """sum_{r < s} x_r along the last dimension."""
    return torch.nn.functional.pad(x[..., :-1].cumsum(-1), (1, 0))


def _from_here_on(x: Tensor) -> Tensor:
    """sum_{t >= s} x_t along the last dimension."""
    return x.flip(-1).cumsum(-1).flip(-1)


def _ridge_sum(segment: Segment, shrink: Tensor) -> Tensor:
    """sum over the segment of ridge_scale_t * shrink_t, [n, d]."""
    scale = segment.ridge_scale[..., None]
    if segment.ridge_decays and segment.log_decay is not None:
        scale = scale * segment.log_decay.exp()
    return (shrink * scale[..., None]).sum((1, 2))
