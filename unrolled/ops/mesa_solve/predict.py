"""The mesa layer's outputs alone, without the solutions x_t: the chunkwise form of Gaussian-process prediction.

Where nothing decays, with A = H + diag(ridge) = L L^T before a chunk, U its keys and T its values (both weighed by the
root of the gate), Q its queries and U_t the keys up to step t, the Woodbury identity gives

    G_t A_t^-1 q = Phi q + (T - U Phi^T)_t^T M_t^-1 U_t A^-1 q,    Phi = G A^-1,   M = I + U A^-1 U^T .

The first term is what the statistics before the chunk predict; the second corrects it by the errors of that prediction
on the chunk's own pairs. With W = U L^-T, P = Q L^-T, Gamma = G L^-T and M = R R^T, whose leading blocks factor every
M_t, a chunk is

    O = P Gamma^T + tril(P W^T R^-T) (R^-1 (T - W Gamma^T)) .

Beside the two factorisations, A^-1 is applied once where solving for x_t and reading G_t x_t applies it twice, and the
statistics inside the chunk are read once. Forward only: gradients and residuals need x_t. `flops` counts the work.

Legend: n sequences, c chunks, l steps in a chunk, d key width, e value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unrolled.ops.mesa_solve.chunk import SAFE_GROWTH, Carry, Problem, cholesky, segments
from unrolled.ops.mesa_solve.condition import conditioned, norm_of_inverse

# chunks whose running sums are one product with a triangle of ones; beyond, a cumulative sum
_SHORT_SUM = 32


class _Scratch:
    """Named buffers used again for every block: fresh ones would be paged in anew each time."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.flat = like, dict[str, Tensor]()

    def get(self, name: str, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if name not in self.flat or self.flat[name].numel() < size:
            self.flat[name] = self.like.new_empty(size)
        return self.flat[name][:size].view(shape)


def flops(steps: int, chunk: int, width: int, value_width: int) -> float:
    """Floating-point operations of `predict` on one sequence (a multiply-add is two), triangular halves not counted."""
    l, d, e = chunk, width, value_width
    sums = 2 * l * d * (d + e)
    factors = (d**3 + l**3) / 3
    solves = (2 * l + e) * d**2 + (l + e) * l**2
    products = 2 * l * d * (2 * l + e) + 2 * l * e * (d + l)
    return steps / chunk * (sums + factors + solves + products)


@torch.no_grad()
def predict(
    problem: Problem, queries: Tensor, carry: Carry, chunk: int, per_segment: int
) -> tuple[Tensor, Carry] | None:
    """Outputs [n, t, e] and the carry after the last step; None where refined solutions are needed for the accuracy.

    Args:
        problem: without decay.
        queries: [n, t, d].
        carry: before the first step.
        chunk: steps in a chunk.
        per_segment: chunks, of one or several sequences, handled at once.
    """
    assert problem.decay is None
    n, steps, _ = queries.shape
    dtype = problem.ridge.dtype
    ridge = problem.ridge * carry.ridge_scale[:, None]
    outputs = queries.new_empty(n, steps, problem.values.shape[-1], dtype=dtype)
    statistics = torch.empty_like(carry.statistics)
    scratch = _Scratch(outputs)
    passed: list[tuple[slice, Tensor, Tensor]] = []  # heads, statistics before a block, and after it
    block = max(1, per_segment // max(1, steps // chunk))
    for top in range(0, n, block):
        heads = slice(top, top + block)
        state = carry.statistics[heads]
        for first, count, length in segments(steps, chunk, per_segment):
            span = slice(first, first + count * length)
            q, k, v = (
                z[heads, span].to(dtype).unflatten(1, (count, length)).flatten(0, 1)
                for z in (queries, problem.keys, problem.values)
            )
            if problem.gate is not None:
                root = problem.gate[heads, span].reshape(-1, length, 1).sqrt()
                k, v = k * root, v * root
            before = state
            state, starts = _running_sums(k, v, state, scratch)
            passed.append((heads, before, state))
            out = _block(q, k, v, starts, ridge[heads], scratch)
            if out is None:
                return None
            outputs[heads, span] = out.view(-1, count * length, out.shape[-1])
        statistics[heads] = state
    width = ridge.shape[-1]
    least, largest = ridge.aminmax(dim=-1)
    if not conditioned(statistics[:, -width:], largest, 1 / least):  # nothing decays: the last systems are the largest
        for heads, start, end in passed:
            inverse = norm_of_inverse(start[:, -width:] + torch.diag_embed(ridge[heads]))
            if not conditioned(end[:, -width:], largest[heads], inverse):
                return None
    return outputs, Carry(statistics, carry.ridge_scale)


def _running_sums(k: Tensor, v: Tensor, state: Tensor, scratch: _Scratch) -> tuple[Tensor, Tensor]:
    """Statistics [G; H] after the block, [n, e + d, d], and before each of its chunks, [n, c, e + d, d]."""
    n, wide, width = state.shape
    count, e = k.shape[0] // n, v.shape[-1]
    growth = scratch.get("growth", n * count, wide, width)
    torch.bmm(v.mT, k, out=growth[:, :e])
    torch.bmm(k.mT, k, out=growth[:, e:])
    growth = growth.view(n, count, -1)
    sums = scratch.get("sums", n, count + 1, wide * width)
    sums[:, 0] = state.flatten(1)
    if count <= _SHORT_SUM:
        ones = growth.new_ones(count, count).tril().expand(n, count, count)
        torch.baddbmm(sums[:, :1], ones, growth, out=sums[:, 1:])
    else:
        torch.add(sums[:, :1], growth.cumsum(1), out=sums[:, 1:])
    sums = sums.view(n, count + 1, wide, width)
    return sums[:, -1].clone(), sums[:, :-1]


def _block(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, ridge: Tensor, scratch: _Scratch) -> Tensor | None:
    """Outputs of independent chunks, [n c, l, e]; `starts` is overwritten. None if the chunks grow too much."""
    length, e = v.shape[-2:]
    gram = starts[..., e:, :]
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    # as in Woodbury: a ridge below the rounding error of the statistics cannot be told from zero
    diagonal.add_(torch.maximum(ridge[:, None], torch.finfo(gram.dtype).eps * diagonal))
    upper = cholesky(gram.flatten(0, 1)).mT
    keys, reads, cross = (
        torch.linalg.solve_triangular(upper, z, upper=True, left=False)
        for z in (k, q, starts[..., :e, :].flatten(0, 1))
    )
    table = scratch.get("table", k.shape[0], length, 2 * length + e)  # [M, (P W^T)^T, T - W Gamma^T]
    inner, seen, errors = table.split([length, length, e], dim=-1)
    torch.bmm(keys, keys.mT, out=inner)
    torch.bmm(keys, reads.mT, out=seen)
    torch.bmm(keys, cross.mT, out=errors)
    diag = inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
    # M is positive definite, so its trace bounds its norm, which is dearer; ~(<=) also stops what is not finite
    trace = diag.sum(-1)
    large = ~(trace <= SAFE_GROWTH)
    if bool(large.any()) and not float(inner[large].abs().sum(-1).amax()) <= SAFE_GROWTH:
        return None
    torch.sub(v, errors, out=errors)
    white = torch.linalg.solve_triangular(
        cholesky(inner).mT, table[..., length:].mT, upper=True, left=False
    ).mT  # R^-1 of both
    weights = white[..., :length].triu_()
    out = torch.bmm(reads, cross.mT)
    return out.baddbmm_(weights.mT, white[..., length:])
