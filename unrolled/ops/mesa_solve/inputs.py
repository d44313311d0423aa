"""What `mesa` accepts: shapes, ranges, padding, and the flat form the solvers work on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class MesaState(NamedTuple):
    """Everything later steps need to know about earlier ones.

    Attributes:
        gram: H, [b, h, dk, dk], without the ridge.
        cross: G, [b, h, dv, dk].
        ridge_scale: [b, h], the product of all decays if the ridge decays, else ones.
        inverse: (H + ridge)^-1 where a decode step left it, else None; it is rebuilt when it no longer fits.
    """

    gram: Tensor
    cross: Tensor
    ridge_scale: Tensor
    inverse: Tensor | None = None


@dataclass
class Inputs:
    """Checked arguments with batch and heads flattened to n; statistics in the arithmetic dtype."""

    shape: tuple[int, int]  # (b, h)
    q: Tensor  # [n, t, d]
    k: Tensor  # [n, t, d]
    v: Tensor  # [n, t, e]
    ridge: Tensor  # [n, d]
    decay: Tensor | None  # [n, t]
    gate: Tensor | None  # [n, t]
    statistics: Tensor  # [n, e + d, d]
    ridge_scale: Tensor  # [n]
    inverse: Tensor | None  # [n, d, d]

    @property
    def dtype(self) -> torch.dtype:
        """Of all arithmetic."""
        return self.ridge.dtype


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor | float,
    decay: Tensor | None,
    input_gate: Tensor | None,
    lengths: Tensor | None,
    state: MesaState | None,
) -> Inputs:
    """Validate the arguments of `mesa`, blank what lies beyond `lengths`, and flatten.

    Raises:
        ValueError: naming the argument and what it should be.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a tensor [batch, heads, steps, width], not {type(x).__name__}")
        if x.ndim != 4:
            raise ValueError(f"{name} must be [batch, heads, steps, width], not {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, not {x.dtype}")
    batch, heads = q.shape[:2]
    if k.shape != q.shape:
        raise ValueError(f"k must have the shape of q, {list(q.shape)}, not {list(k.shape)}")
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(f"v must agree with q in batch, heads and steps, {list(q.shape[:3])}, not {list(v.shape[:3])}")
    if min(*q.shape, v.shape[-1]) == 0:
        raise ValueError(f"q and v must hold at least one step and one channel, not {list(q.shape)}, {list(v.shape)}")
    carried = () if state is None or not isinstance(state.gram, Tensor) else (state.gram.dtype,)
    double = torch.float64 in (q.dtype, k.dtype, v.dtype, *carried)
    dtype = torch.float64 if double else torch.float32
    decay = _per_step("decay", decay, q, dtype)
    input_gate = _per_step("input_gate", input_gate, q, dtype)
    # first, because padding may hold anything
    if lengths is not None:
        q, k, v, decay, input_gate = _blank(lengths, q, k, v, decay, input_gate)
    if decay is not None and not bool(((decay > 0) & (decay <= 1)).all()):
        raise ValueError("decay must lie in (0, 1]: pass a sigmoid or exp(-softplus), clamped away from zero")
    if input_gate is not None and not bool(((input_gate >= 0) & input_gate.isfinite()).all()):
        raise ValueError("input_gate must be finite and at least zero, or the systems lose their minimum")
    statistics, ridge_scale, inverse = _carried(state, q, v, dtype)
    return Inputs(
        (batch, heads),
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        _ridge(ridge, q, dtype),
        None if decay is None else decay.flatten(0, 1),
        None if input_gate is None else input_gate.flatten(0, 1),
        statistics,
        ridge_scale,
        inverse,
    )


def widened(inputs: Inputs) -> Inputs:
    """The same in float64."""
    tensors: dict[str, Any] = {name: x.double() for name, x in vars(inputs).items() if isinstance(x, Tensor)}
    return replace(inputs, **tensors)


def check_finite(inputs: Inputs) -> None:
    """Raise a `ValueError` that names an argument which holds infinities or NaN, if any does."""
    for name, x in (("q", inputs.q), ("k", inputs.k), ("v", inputs.v), ("state", inputs.statistics)):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} holds values that are not finite")


def check_output(outputs: Tensor, inputs: Inputs) -> None:
    """Raise a `ValueError` that says why, if any output is not finite."""
    if bool(torch.isfinite(outputs.sum())) or bool(torch.isfinite(outputs).all()):
        return
    check_finite(inputs)
    check_size(inputs)
    raise ValueError(
        f"the solve overflows {inputs.dtype}, and k and v are not large: ridge, {float(inputs.ridge.min()):.2g} at "
        "its smallest, is too small to divide by; raise it, or pass float64"
    )


def check_size(inputs: Inputs) -> None:
    """Raise a `ValueError` if the statistics overflow."""
    steps = inputs.k.shape[1] * (1.0 if inputs.gate is None else float(inputs.gate.max()))
    largest = [float(x.abs().amax()) for x in (inputs.k, inputs.v, inputs.statistics)]
    if not steps * largest[0] * max(largest[:2]) + largest[2] < torch.finfo(inputs.dtype).max ** 0.5:
        raise ValueError(f"the statistics of k and v overflow {inputs.dtype}: scale k and v down, or pass float64")


def check_lengths(lengths: Tensor, batch: int, steps: int, device: torch.device) -> Tensor:
    """`lengths` as a tensor [batch] on the device.

    Raises:
        ValueError: they are not integers in 0..steps, one per sequence.
    """
    lengths = torch.as_tensor(lengths, device=device)
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(
            f"lengths must be {batch} integers, one per sequence, not {list(lengths.shape)} {lengths.dtype}"
        )
    if not bool(((lengths >= 0) & (lengths <= steps)).all()):
        raise ValueError(f"lengths must lie in 0..{steps}")
    return lengths


def _ridge(ridge: Tensor | float, q: Tensor, dtype: torch.dtype) -> Tensor:
    batch, heads, _, width = q.shape
    try:
        # numbers in float64: as float32 they would lose digits, or become zero
        given = ridge if isinstance(ridge, Tensor) else torch.as_tensor(ridge, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"ridge must be a positive number or tensor, not {type(ridge).__name__}") from error
    if given.is_complex():
        raise ValueError(f"ridge must be real, not {given.dtype}")
    ridge = given.to(dtype).to(q.device)
    if ridge.shape not in ((), (heads,), (heads, width)):
        raise ValueError(f"ridge must be a float, [{heads}] or [{heads}, {width}], not {list(ridge.shape)}")
    if not bool((given > 0).all() & ridge.isfinite().all()):
        raise ValueError("ridge must be positive and finite: without it the first steps have no unique solution")
    smallest = torch.finfo(dtype).tiny
    if bool((ridge < smallest).any()):
        raise ValueError(
            f"ridge holds {float(given.min()):.2g}, which {dtype} cannot divide by: its smallest normal number is "
            f"{smallest:.2g}; raise the ridge, to 1e-6 or more for answers that mean something, or pass float64"
        )
    if ridge.ndim == 1:
        ridge = ridge[:, None]
    return ridge.expand(batch, heads, width).reshape(batch * heads, width)


def _per_step(name: str, x: Tensor | None, q: Tensor, dtype: torch.dtype) -> Tensor | None:
    if x is None:
        return None
    if not isinstance(x, Tensor):
        wanted = f"[batch, heads, steps] = {list(q.shape[:3])}"
        raise ValueError(f"{name} must be a tensor {wanted}, not {type(x).__name__}: torch.full serves a constant")
    if x.shape != q.shape[:3]:
        raise ValueError(f"{name} must be [batch, heads, steps] = {list(q.shape[:3])}, not {list(x.shape)}")
    return x.to(dtype)


def _blank(
    lengths: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Make the steps beyond each length do nothing: no query, no pair, no forgetting."""
    batch, _, steps, _ = q.shape
    lengths = check_lengths(lengths, batch, steps, q.device)
    valid = (torch.arange(steps, device=q.device) < lengths[:, None])[:, None]  # [b, 1, t]
    q, k, v = (torch.where(valid[..., None], x, 0.0) for x in (q, k, v))
    decay = None if decay is None else torch.where(valid, decay, 1.0)
    return q, k, v, decay, None if gate is None else torch.where(valid, gate, 0.0)


def _carried(state: MesaState | None, q: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    batch, heads, _, width = q.shape
    lead, value_width = (batch, heads), v.shape[-1]
    if state is None:
        zeros = q.new_zeros(batch * heads, value_width + width, width, dtype=dtype)
        return zeros, q.new_ones(batch * heads, dtype=dtype), None
    wanted = {"gram": (*lead, width, width), "cross": (*lead, value_width, width), "ridge_scale": lead}
    for name, shape in wanted.items():
        field = getattr(state, name)
        if not isinstance(field, Tensor) or field.shape != shape:
            actual = list(field.shape) if isinstance(field, Tensor) else type(field).__name__
            raise ValueError(f"state.{name} must be {list(shape)} for these q and v, not {actual}: use their own state")
    statistics = torch.cat([state.cross, state.gram], dim=-2).to(q.device, dtype).flatten(0, 1)
    inverse = state.inverse
    if inverse is not None:
        if inverse.shape != state.gram.shape:
            raise ValueError(f"state.inverse must have the shape of state.gram, not {list(inverse.shape)}")
        inverse = inverse.to(q.device, dtype).flatten(0, 1)
    return statistics, state.ridge_scale.to(q.device, dtype).flatten(), inverse
