"""The mesa solve: at every step, the prediction of the ridge regression over all steps so far.

    H_t = decay_t H_{t-1} + gate_t k_t k_t^T,   G_t = decay_t G_{t-1} + gate_t v_t k_t^T,
    o_t = G_t (H_t + diag(ridge))^-1 q_t

This is the mesa layer of arXiv 2309.05858 (equations 4-8, whose lambda is 1 / ridge) and the MesaNet layer of
arXiv 2506.05233. Methods:

    reference   a dense solve per step, under plain autograd: the truth, O(t d^3) time and O(t d^2) memory
    recurrent   rank-one updates of the inverse (recursive least squares), also the O(d^2) decode step
    chunk       block Woodbury: two Cholesky factorisations a chunk, exact where nothing decays or the ridge decays
                with the statistics; with a fixed ridge and decay the same factors precondition conjugate gradients
    cg          plain conjugate gradients from the Jacobi guess
    fla         the kernel of flash-linear-attention, where that is installed, for comparison; never chosen by "auto"
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unrolled.ops.mesa_solve.autograd import MesaFunction, Solver, residual, run
from unrolled.ops.mesa_solve.chunk import MAX_REACH, Carry, Problem
from unrolled.ops.mesa_solve.condition import Imprecise
from unrolled.ops.mesa_solve.fla import fla_mesa
from unrolled.ops.mesa_solve.inputs import Inputs, MesaState, check, check_finite, check_output, check_size, widened
from unrolled.ops.mesa_solve.packed import solve_packed
from unrolled.ops.mesa_solve.predict import predict
from unrolled.ops.mesa_solve.recorded import recorded
from unrolled.ops.mesa_solve.recurrent import decode_step, reference
from unrolled.ops.recording import is_recording

__all__ = ["METHODS", "MesaPlan", "MesaState", "mesa", "mesa_plan"]

METHODS = ("auto", "reference", "recurrent", "chunk", "cg", "fla")

# floats in one segment's [n, c, l, d] tensors: small enough for a CPU's cache, large enough to fill a GPU
_SEGMENT_CPU, _SEGMENT_GPU = 2**17, 2**24
# mean of -log(decay) above which a chunk forgets too much for its factors to pay as a preconditioner
_FORGETFUL = 0.2


# relative residual at which conjugate gradients stop by default
_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


class MesaPlan(NamedTuple):
    """What `method="auto"` does, and why."""

    method: str
    chunk_size: int
    reason: str
    kernel: str = "torch"


def mesa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor | float,
    decay: Tensor | None = None,
    input_gate: Tensor | None = None,
    *,
    method: str = "auto",
    chunk_size: int | None = None,
    ridge_decays: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    state: MesaState | None = None,
    return_state: bool = False,
    return_residual: bool = False,
    steps: int | None = None,
    tolerance: float | None = None,
    kernel: str = "torch",
) -> Any:
    """Causal ridge regression from keys to values, evaluated at the queries.

    Statistics are kept in float32 (float64 for float64 inputs) whatever the dtype of the inputs; outputs have the dtype
    of `q`, saturated to its range. Gradients reach q, k, v, ridge, decay, input_gate and the state by implicit
    differentiation, in O(t) memory; they are those of the exact solution.

    Errors grow with the condition number of H + ridge, (largest eigenvalue of H + ridge) / (smallest, at least the
    ridge), about as 1e-7 times it in float32. Where it may exceed 8e3, and the query does not lie among the keys well
    enough to do without, all is done again in float64, and then by one factorisation a step in float64, which costs 2
    to 10 times as much. A returned state is float64 then, so that later steps go on in it. Where float64 does not hold
    a system either (condition numbers beyond 3e11, scaled to a unit diagonal or not) there is no answer but an error,
    unless the residual is asked for, which shows how far off it is. Gradients, and states in float32, depend on more
    than one query and are held to the condition number alone. All this is in norm, in the units in which the condition
    number is small: of a query with one channel far above the others there, an output thousands of times smaller than
    such queries can read may be percents of itself off. Whoever sets `steps` asked for an approximation and gets
    it. See `mesa_solve.condition`.

    In a graph (`torch.export`, `torch.jit.trace`, FX) nothing can be decided by values: there the solve is `steps`
    conjugate gradients, as many as the keys are wide for None, without a certificate.

    The study `mesa-stability` (512 steps, width 32, keys of unit norm, no decay) finds, as the largest error over the
    root mean square of the outputs:

        condition     18        390       6.9e4     1.2e7
        chunk, auto   3.6e-6    2.0e-5    4.0e-7    5.1e-7
        recurrent     2.4e-6    2.2e-5    4.0e-7    5.1e-7
        cg            4.8e-6    1.9e-5    4.0e-7    5.1e-7
        reference     2.8e-6    4.2e-5    4.0e-7    5.1e-7

    Args:
        q: queries, [b, h, t, dk].
        k: keys, [b, h, t, dk].
        v: values, [b, h, t, dv].
        ridge: positive, float, [h] or [h, dk]; added to the diagonal of H.
        decay: forgetting, [b, h, t] in (0, 1]; None for none. A step forgets before it adds its own pair.
        input_gate: weight of each pair, [b, h, t], >= 0; None for ones.
        method: "auto", "reference", "recurrent", "chunk", "cg" or "fla"; see the module.
        chunk_size: steps in a chunk, at most; None chooses by size and decay.
        ridge_decays: the ridge is multiplied by every decay too, as if it were the first key's trace. "recurrent" needs
            this whenever there is a decay.
        lengths: [b] integers in 0..t, valid steps of each (right-padded) sequence. Padding changes nothing, whatever it
            holds, and its outputs are zero; the returned state is the one after the last valid step.
        cu_seqlens: [s + 1] integers rising from 0 to t: the batch of one holds s sequences end to end, and statistics
            start anew at each boundary. States are then those of the s sequences, [s, h, ...].
        state: of earlier steps, from `return_state`; a float64 one makes the arithmetic float64.
        return_state: also return the `MesaState` after the last step.
        return_residual: also return |q - (H + ridge) x| / |q| of every step, [b, h, t], formed from the inputs in
            float64: a bound on the error that trusts nothing the solver did. The output errs by at most the residual
            times |q| and the largest singular value of G (H + ridge)^-1, besides the rounding of G x.
        steps: largest number of conjugate-gradient steps; None iterates until the tolerance or rounding is met. With 0,
            "cg" is gated linear attention on q / diag(H + ridge).
        kernel: "torch", or "triton" for the products of each chunk and, with "cg", its whole iteration in one launch (a
            single run, without restarts from the true residual); float32 arithmetic, widths to 128. It has been tested
            in Triton's interpreter only and never measured, so nothing chooses it unasked.
        tolerance: relative residual at which conjugate gradients stop; None is 1e-6 (1e-13 in float64).

    Returns:
        [b, h, t, dv]; with `return_state` or `return_residual` a tuple of that, then the state, then the residual.

    Raises:
        ValueError: shapes that do not fit, a value out of range, a method that cannot serve the arguments, inputs that
            are not finite or overflow the statistics, or a ridge too small even for float64 (for float32 on devices
            without it).
        MissingExtra: method "fla" without that package.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if kernel not in ("torch", "triton"):
        raise ValueError(f"kernel must be torch or triton, not {kernel!r}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    if steps is not None and steps < 0:
        raise ValueError(f"steps must be 0 or more, not {steps}")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, not {tolerance}")
    if state is not None and not isinstance(state, MesaState):
        raise ValueError(
            f"state must be a MesaState, as return_state=True gives after the earlier steps, not {type(state).__name__}"
        )
    if is_recording(q):
        asked = {
            "lengths": lengths is not None,
            "cu_seqlens": cu_seqlens is not None,
            "state": state is not None,
            "return_state": return_state,
            "return_residual": return_residual,
        }
        if left := [name for name, given in asked.items() if given]:
            raise ValueError(f"{', '.join(left)}: a graph solves whole sequences of equal length, without a state")
        width = q.shape[-1] if steps is None else steps
        return recorded(q, k, v, ridge, decay, input_gate, ridge_decays=ridge_decays, steps=width)
    if cu_seqlens is not None:
        if lengths is not None:
            raise ValueError("pass lengths for a padded batch or cu_seqlens for a packed one, not both")

        def solve(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, input_gate: Tensor | None, **rest: Any) -> Any:
            return mesa(
                q,
                k,
                v,
                ridge,
                decay,
                input_gate,
                method=method,
                chunk_size=chunk_size,
                ridge_decays=ridge_decays,
                return_state=return_state,
                return_residual=return_residual,
                steps=steps,
                tolerance=tolerance,
                kernel=kernel,
                **rest,
            )

        return solve_packed(solve, cu_seqlens, (q, k, v, decay, input_gate), state, return_state, return_residual)
    inputs = check(q, k, v, ridge, decay, input_gate, lengths, state)
    if kernel == "triton":
        _check_triton(method, inputs)
    if method == "fla":
        asked = {
            "state": state is not None,
            "return_state": return_state,
            "return_residual": return_residual,
            "ridge_decays": ridge_decays and decay is not None,
            "chunk_size": chunk_size is not None,
            "tolerance": tolerance is not None,
        }
        return fla_mesa(inputs, dtype=q.dtype, steps=steps, asked=asked)
    if method == "recurrent" and decay is not None and not ridge_decays:
        raise ValueError(
            'method "recurrent" cannot hold the ridge fixed while the statistics decay: use method="chunk", '
            "or ridge_decays=True"
        )
    if method == "auto":
        plan = mesa_plan(
            inputs.q,
            inputs.v,
            inputs.decay,
            chunk_size=chunk_size,
            ridge_decays=ridge_decays,
            state=state,
            return_state=return_state,
            kernel=kernel,
        )
        method, chunk_size = plan.method, plan.chunk_size
    solver = _solver(method, chunk_size, inputs, ridge_decays, steps, tolerance, kernel)
    with torch.autocast(q.device.type, enabled=False):
        return _certified(inputs, solver, ridge_decays, return_state, return_residual, q.dtype)


def _certified(
    inputs: Inputs, solver: Solver, ridge_decays: bool, return_state: bool, return_residual: bool, dtype: torch.dtype
) -> Any:
    """`_solve`, then in float64, then by dense solves in float64: the first that certifies its solutions.

    Raises:
        ValueError: none does, and no residual was asked for.
    """
    try:
        return _solve(inputs, solver, ridge_decays, return_state, return_residual, dtype)
    except Imprecise:
        check_finite(inputs)
    attempts, widest = [], inputs
    if inputs.q.device.type != "mps":  # which has no float64
        widest = widened(inputs)
        tolerance = _TOLERANCE[widest.dtype] if solver.tolerance == _TOLERANCE[inputs.dtype] else solver.tolerance
        again = replace(solver, kernel="torch", tolerance=tolerance)
        dense = again if solver.method == "reference" else again.dense(*widest.k.shape[::2])
        attempts = [again] * (inputs.dtype != widest.dtype) + [dense] * (dense is not again)
        solver = dense
    if return_residual:
        attempts.append(replace(solver, guard=False))
    for attempt in attempts:
        try:
            return _solve(widest, attempt, ridge_decays, return_state, return_residual, dtype)
        except Imprecise:
            pass
    check_size(widest)
    left = " or what the decays leave of it," if ridge_decays and inputs.decay is not None else ""
    raise ValueError(
        f"ridge, {float(inputs.ridge.detach().min()):.2g} at its smallest,{left} is too small for these keys, even in "
        f"{widest.dtype}: some system is singular to working precision; raise it, or see with return_residual=True how "
        "far off the answer is"
    )


def mesa_plan(
    q: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    *,
    chunk_size: int | None = None,
    ridge_decays: bool = False,
    state: MesaState | None = None,
    return_state: bool = False,
    kernel: str = "torch",
) -> MesaPlan:
    """The method and chunk size that `mesa(..., method="auto")` takes for these arguments, and the reason."""
    steps, width = q.shape[-2], q.shape[-1]
    exact = decay is None or ridge_decays
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, v, decay))
    one_step = steps == 1 and exact and (state is not None or return_state) and kernel == "torch"
    if one_step and not differentiable:
        return MesaPlan("recurrent", 1, "one step with a carried state: a rank-one update costs O(d^2)")
    forgetting = 0.0 if decay is None else float(-decay.detach().float().log().mean())
    if not exact and steps > 1 and forgetting > _FORGETFUL:
        size = chunk_size or _even(steps, min(width, 32))
        return MesaPlan(
            "cg", size, f"a fixed ridge under strong decay (mean -log decay {forgetting:.2g}): few steps", kernel
        )
    if exact:
        why = "the systems of a chunk differ by low-rank terms: block Woodbury is exact"
        return MesaPlan("chunk", chunk_size or _even(steps, max(16, min(width, 64))), why, kernel)
    size = chunk_size or _even(steps, int(min(max(16, 0.6 / max(forgetting, 1e-9)), max(16, width // 2), 64)))
    why = f"a fixed ridge under mild decay (mean -log decay {forgetting:.2g}): preconditioned"
    return MesaPlan("chunk", size, why, kernel)


def _even(steps: int, target: int) -> int:
    """The chunk length near `target` that cuts `steps` most evenly."""
    return -(-steps // max(1, round(steps / target)))


def _solver(
    method: str,
    chunk_size: int | None,
    inputs: Inputs,
    ridge_decays: bool,
    steps: int | None,
    tolerance: float | None,
    kernel: str,
) -> Solver:
    count, length, width = inputs.q.shape
    if chunk_size is None:
        chunk_size = mesa_plan(inputs.q, inputs.v, inputs.decay, ridge_decays=ridge_decays).chunk_size
    chunk = min(chunk_size, length)
    if method == "chunk" and ridge_decays and inputs.decay is not None:
        chunk = _limit_reach(inputs.decay.detach(), chunk)
    target = _SEGMENT_CPU if inputs.q.device.type == "cpu" else _SEGMENT_GPU
    per_segment = 1 if method == "recurrent" else max(1, target // (count * chunk * width))
    if tolerance is None:
        tolerance = _TOLERANCE[inputs.dtype]
    # whoever limits the steps asked for an approximation
    guard = steps is None or method in ("reference", "recurrent")
    most = 4 * width + 16 if steps is None else steps
    return Solver(method, chunk, per_segment, most, tolerance, kernel, guard)


def _check_triton(method: str, inputs: Inputs) -> None:
    if method not in ("auto", "chunk", "cg"):
        raise ValueError(f'kernel "triton" serves the methods auto, chunk and cg, not {method!r}')
    if inputs.dtype != torch.float32:
        raise ValueError('kernel "triton" computes in float32: pass float32 or shorter inputs, or kernel="torch"')
    if inputs.q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError('kernel "triton" needs a GPU, and q is on the CPU: use kernel="torch"')


def _block(chunk: int, inputs: Inputs) -> int:
    """Chunks that `predict` handles at once: its temporary tensors are a few times one chunk's keys."""
    target = _SEGMENT_CPU // 2 if inputs.q.device.type == "cpu" else _SEGMENT_GPU
    return max(1, target // (chunk * inputs.q.shape[-1]))


def _limit_reach(decay: Tensor, chunk: int) -> int:
    """The largest halving of `chunk` in which decays multiply to no less than what one exponent range can hold."""
    forgetting = -decay.log()
    while chunk > 1:
        padded = torch.nn.functional.pad(forgetting, (0, -forgetting.shape[-1] % chunk))
        if float(padded.unflatten(-1, (-1, chunk)).sum(-1).amax()) <= MAX_REACH:
            break
        chunk = (chunk + 1) // 2
    return chunk


def _solve(
    inputs: Inputs,
    solver: Solver,
    ridge_decays: bool,
    return_state: bool,
    return_residual: bool,
    dtype: torch.dtype,
) -> Any:
    problem = Problem(inputs.k, inputs.v, inputs.gate, inputs.decay, inputs.ridge, ridge_decays, solver.kernel)
    carry = Carry(inputs.statistics, inputs.ridge_scale)
    tensors = (inputs.q, inputs.k, inputs.v, inputs.ridge, inputs.decay, inputs.gate, *_fields(carry))
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    # gradients need the solutions themselves, and queries yet to come all that float32 statistics should hold
    solver = replace(solver, strict=differentiable or (return_state and inputs.dtype == torch.float32))
    inverse: Tensor | None = None
    solutions: Tensor | None
    if solver.method == "reference":
        outputs, solutions, *last = reference(problem, inputs.q, carry, solver.guard, solver.strict)
    elif differentiable:
        outputs, *last, solutions = MesaFunction.apply(*tensors, ridge_decays, solver)
    elif solver.method == "recurrent" and inputs.q.shape[1] == 1:
        outputs, solutions, after, inverse = decode_step(problem, inputs.q, carry, inputs.inverse)
        last = _fields(after)
    else:
        predicted = None
        plain = problem.decay is None and solver.kernel == "torch"
        if solver.method == "chunk" and plain and not return_residual:
            predicted = predict(problem, inputs.q, carry, solver.chunk, _block(solver.chunk, inputs))
        if predicted is not None:
            outputs, solutions, last = predicted[0], None, _fields(predicted[1])
        else:
            done = run(problem, inputs.q, carry, solver, keep=return_residual)
            outputs, solutions, last = done.outputs, done.solutions, _fields(done.carry)
    if solver.guard or solver.method not in ("reference", "dense"):  # else the residual says how far off it is
        check_output(outputs.detach(), inputs)
    result = [_saturate(outputs, dtype).unflatten(0, inputs.shape)]
    if return_state:
        result.append(_state(last[0], last[1], inverse, inputs))
    if return_residual:
        assert solutions is not None
        error = residual(problem, inputs.q, carry, solutions, solver.chunk)
        result.append(error.unflatten(0, inputs.shape))
    return result[0] if len(result) == 1 else tuple(result)


def _fields(carry: Carry) -> list[Tensor]:
    return [carry.statistics, carry.ridge_scale]


def _state(statistics: Tensor, ridge_scale: Tensor, inverse: Tensor | None, inputs: Inputs) -> MesaState:
    cross, gram = statistics.unflatten(0, inputs.shape).split([inputs.v.shape[-1], inputs.k.shape[-1]], dim=-2)
    inverse = None if inverse is None else inverse.unflatten(0, inputs.shape)
    return MesaState(gram, cross, ridge_scale.unflatten(0, inputs.shape), inverse)


def _saturate(outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast, with values beyond a 16-bit dtype's range at its ends rather than infinite."""
    if outputs.dtype == dtype:
        return outputs
    limit = torch.finfo(dtype).max
    return outputs.clamp(-limit, limit).to(dtype)
