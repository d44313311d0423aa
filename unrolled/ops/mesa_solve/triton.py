"""Triton kernels for the chunkwise products of the mesa solve, and for conjugate gradients over them in one launch.

One program holds one chunk: its keys and the statistics before it are read once, and every product with all the H_t or
G_t of the chunk is three matrix products on tiles that stay on the chip. The forward and the backward pass are built on
the same products, so both use them. Arithmetic is float32 whatever the inputs, without TF32.

The tests hold these kernels against plain torch in Triton's interpreter, and at width 64 the compiler took the products
and the undecayed conjugate gradients for compute capability 9.0. They have never run on a GPU and their speed is
unknown: `mesa` takes them only where `kernel="triton"` asks for them.

Legend: n chunks of all sequences, l steps in a chunk, d width of what is read with, e width of what is read.
"""

# Triton has no types
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def,no-any-return"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# widest tile: 128 x 128 float32 statistics are 64 KiB of shared memory
WIDEST = 128


@triton.jit
def _tile(pointer, chunk, per_chunk, row, rows: tl.constexpr, columns: tl.constexpr, height, width, column):
    """[rows, columns] of one chunk in float32, zero beyond [height, width]."""
    i, j = tl.arange(0, rows)[:, None], tl.arange(0, columns)[None, :]
    inside = (i < height) & (j < width)
    return tl.load(pointer + chunk * per_chunk + i * row + j * column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _weights(log_decay, gate, chunk, length, ROWS: tl.constexpr, DECAYS: tl.constexpr, GATED: tl.constexpr):
    """Decay from pair to step times gate, [step, pair], zero for later pairs; and decay since the start, [step]."""
    t = tl.arange(0, ROWS)
    causal = t[:, None] >= t[None, :]
    if DECAYS:
        total = tl.load(log_decay + chunk * length + t, mask=t < length, other=0.0)
        between = tl.exp(tl.where(causal, total[:, None] - total[None, :], -float("inf")))
        since = tl.exp(total)
    else:
        between = tl.where(causal, 1.0, 0.0)
        since = tl.full([ROWS], 1.0, tl.float32)
    if GATED:
        between = between * tl.load(gate + chunk * length + t, mask=t < length, other=0.0)[None, :]
    return between, since


@triton.jit
def _product(x, keys, values, statistics, between, since):
    """since * x S^T + (x K^T * between) V for [l, d], [l, d], [l, e], S^T as [d, e]."""
    inherited = tl.dot(x, statistics, input_precision="ieee") * since[:, None]
    scores = tl.dot(x, tl.trans(keys), input_precision="ieee") * between
    return inherited + tl.dot(scores, values, input_precision="ieee")


@triton.jit
def _apply_kernel(
    x, keys, values, statistics, log_decay, gate, out,
    length, width, value_width, key_row, value_row, s_chunk, s_row, s_column,
    L: tl.constexpr, D: tl.constexpr, E: tl.constexpr, DECAYS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    between, since = _weights(log_decay, gate, chunk, length, L, DECAYS, GATED)
    tile = _product(
        _tile(x, chunk, length * width, width, L, D, length, width, 1),
        _tile(keys, chunk, length * key_row, key_row, L, D, length, width, 1),
        _tile(values, chunk, length * value_row, value_row, L, E, length, value_width, 1),
        _tile(statistics, chunk, s_chunk, s_column, D, E, width, value_width, s_row),
        between,
        since,
    )
    i, j = tl.arange(0, L)[:, None], tl.arange(0, E)[None, :]
    tl.store(out + chunk * length * value_width + i * value_width + j, tile, mask=(i < length) & (j < value_width))


@triton.jit
def _cg_kernel(
    rhs, keys, gram, ridges, diagonal, log_decay, gate, out,
    length, width, key_row, s_chunk, s_row, ridge_chunk, ridge_row, steps, tolerance,
    L: tl.constexpr, D: tl.constexpr, DECAYS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    between, since = _weights(log_decay, gate, chunk, length, L, DECAYS, GATED)
    key = _tile(keys, chunk, length * key_row, key_row, L, D, length, width, 1)
    start = _tile(gram, chunk, s_chunk, s_row, D, D, width, width, 1)
    ridge = _tile(ridges, chunk, ridge_chunk, ridge_row, L, D, length, width, 1)
    q = _tile(rhs, chunk, length * width, width, L, D, length, width, 1)
    jacobi = _tile(diagonal, chunk, length * width, width, L, D, length, width, 1)
    solution = tl.where(jacobi > 0, q / tl.where(jacobi > 0, jacobi, 1.0), 0.0)
    residual = q - _product(solution, key, key, start, between, since) - ridge * solution
    direction = residual
    size = tl.sum(residual * residual, axis=1)
    goal = tolerance * tolerance * tl.sum(q * q, axis=1)
    active = size > goal
    step = 0
    while (step < steps) & (tl.sum(active.to(tl.int32), axis=0) > 0):
        image = _product(direction, key, key, start, between, since) + ridge * direction
        curvature = tl.sum(direction * image, axis=1)
        active = active & (curvature > 0)
        move = tl.where(active, size / tl.where(active, curvature, 1.0), 0.0)
        solution += move[:, None] * direction
        residual -= move[:, None] * image
        after = tl.where(active, tl.sum(residual * residual, axis=1), size)
        ratio = tl.where(active, after / tl.where(active, size, 1.0), 0.0)
        direction = residual + ratio[:, None] * direction
        size = after
        active = active & (size > goal)
        step += 1
    i, j = tl.arange(0, L)[:, None], tl.arange(0, D)[None, :]
    tl.store(out + chunk * length * width + i * width + j, solution, mask=(i < length) & (j < width))


def causal_product(
    x: Tensor, keys: Tensor, values: Tensor, statistics: Tensor, log_decay: Tensor | None, gate: Tensor | None
) -> Tensor:
    """S_t x_t for every step, S_t = since_t S + sum_{s <= t} between_ts gate_s values_s keys_s^T, in float32.

    Args:
        x: [n, c, l, d].
        keys: [n, c, l, d].
        values: [n, c, l, e].
        statistics: before the chunk, [n, c, e, d].
        log_decay: [n, c, l], summed within the chunk, or None.
        gate: [n, c, l] or None.

    Returns:
        [n, c, l, e].
    """
    *lead, length, width = x.shape
    e = values.shape[-1]
    x, keys, values, statistics = (z.flatten(0, 1) for z in (x, keys, values, statistics))
    x, keys, values = x.contiguous(), _rows(keys), _rows(values)
    out = x.new_empty(len(x), length, e, dtype=torch.float32)
    decays, gates = _per_step(log_decay, x), _per_step(gate, x)
    _apply_kernel[(len(x),)](
        x, keys, values, statistics, decays, gates, out,
        length, width, e, keys.stride(1), values.stride(1), *statistics.stride(),
        L=_padded(length), D=_padded(width), E=_padded(e),
        DECAYS=log_decay is not None, GATED=gate is not None,
    )  # fmt: skip
    return out.unflatten(0, lead)


def conjugate_gradients(
    rhs: Tensor,
    keys: Tensor,
    gram: Tensor,
    ridges: Tensor,
    diagonal: Tensor,
    log_decay: Tensor | None,
    gate: Tensor | None,
    *,
    steps: int,
    tolerance: float,
) -> Tensor:
    """(H_t + diag(ridge_t))^-1 rhs_t by conjugate gradients from the Jacobi guess, each system stopping on its own.

    One run as in `unrolled.ops.mesa_solve.cg`, stopped by the recursive residual; nothing restarts it from the true
    one.

    Args:
        rhs: [n, c, l, d].
        keys: [n, c, l, d].
        gram: H before the chunk, [n, c, d, d].
        ridges: [n, c, 1 or l, d].
        diagonal: of H_t + diag(ridge_t), [n, c, l, d].
        log_decay: [n, c, l], summed within the chunk, or None.
        gate: [n, c, l] or None.
        steps: at most.
        tolerance: of the residual's norm, relative to the right-hand side's.
    """
    *lead, length, width = rhs.shape
    ridges = ridges.expand(*lead, length, width)
    rhs, keys, gram, ridges, diagonal = (z.flatten(0, 1) for z in (rhs, keys, gram, ridges, diagonal))
    rhs, keys, gram, diagonal = rhs.contiguous(), _rows(keys), _unit(gram), diagonal.contiguous()
    ridges = _unit(ridges)
    out = torch.empty_like(rhs, dtype=torch.float32)
    decays, gates = _per_step(log_decay, rhs), _per_step(gate, rhs)
    _cg_kernel[(len(rhs),)](
        rhs, keys, gram, ridges, diagonal, decays, gates, out,
        length, width, keys.stride(1), gram.stride(0), gram.stride(1), ridges.stride(0), ridges.stride(1),
        steps, tolerance,
        L=_padded(length), D=_padded(width), DECAYS=log_decay is not None, GATED=gate is not None,
    )  # fmt: skip
    return out.unflatten(0, lead)


def _padded(width: int) -> int:
    """The power of two that holds `width`; products need 16 at least."""
    if width > WIDEST:
        raise ValueError(f'kernel "triton" serves widths and chunks up to {WIDEST}, not {width}: use kernel="torch"')
    return max(16, 1 << (width - 1).bit_length())


def _unit(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows(x: Tensor) -> Tensor:
    """[n, l, w] whose chunks follow each other at l times the stride of a row (a slice of columns will do)."""
    return x if x.stride(-1) == 1 and x.stride(0) == x.shape[1] * x.stride(1) else x.contiguous()


def _per_step(x: Tensor | None, like: Tensor) -> Tensor:
    return like if x is None else x.flatten(0, 1).contiguous()
