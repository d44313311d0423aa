"""Rows of features [n, d]: what may come in as such, and their unit vectors at any scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_ONE_WAY = 1e-2  # mean of 1 - cosine over pairs
_MODERATE = 2.0**30  # squares of such features, and products of those, stay far inside float32


def as_floats(x: Any, name: str = "x") -> Tensor:
    """`x` (tensor, array or nested lists) as a detached float32 or float64 tensor of any shape, on its own device.

    Integers, truth values and half precision become float32, integers that float32 does not hold float64. Arrays are
    copied only if torch cannot share them: reversed, read-only, of another byte order.

    Raises:
        ValueError: masked, sparse, complex, without data (meta), or not numbers; `name` and the fix are said.
    """
    check_kind(x, name)
    if not isinstance(x, Tensor):
        try:
            array = np.asarray(x)
            check_kind(array, name)
            x = torch.from_numpy(_shareable(array))
        except (TypeError, ValueError, RuntimeError) as error:
            if str(error).startswith(f"{name} "):
                raise
            raise ValueError(f"{name} must be an array of numbers [n, d]: {error}") from error
    x = x.detach()
    if x.dtype in (torch.float32, torch.float64):
        return x
    if not x.is_floating_point() and x.element_size() >= 4 and x.numel() and float(x.double().abs().max()) > 2**24:
        return x.double()
    return x.float()


def check_kind(x: Any, name: str = "x") -> None:
    """Refuse what only looks like an array of numbers, without reading it; errors as in `as_floats`."""
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(
            f"{name} is a masked array: its mask would be ignored; fill it with x.filled(value), or drop the masked "
            "rows on both sides"
        )
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            raise ValueError(f"{name} is sparse ({x.layout}): pass {name}.to_dense()")
        if x.is_quantized:
            raise ValueError(f"{name} is quantised: pass {name}.dequantize()")
        if x.is_nested:
            raise ValueError(f"{name} is a nested tensor: pad or pool its parts to one [n, d] first")
        if x.is_meta:
            raise ValueError(f"{name} is on the meta device and holds no numbers: load or compute it first")
        if x.is_complex():
            raise ValueError(f"{name} is complex: pass real and imaginary parts as separate columns")
        return
    if hasattr(x, "toarray") and hasattr(x, "nnz"):  # of SciPy
        raise ValueError(f"{name} is a sparse matrix: pass {name}.toarray()")
    if isinstance(x, np.ndarray):
        if x.dtype.kind == "c":
            raise ValueError(f"{name} is complex: pass real and imaginary parts as separate columns")
        if x.dtype.kind not in "biuf":
            raise ValueError(f"{name} must be an array of numbers [n, d]: its entries are {x.dtype}")


def check_devices(x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless both are on one device."""
    if x.device != y.device:
        raise ValueError(f"x is on {x.device} and y on {y.device}: move one with .to({str(x.device)!r})")


def check_array(x: Any, name: str = "x") -> None:
    """As `check_kind`, where parts are read one after another: only a tensor or an array will do."""
    check_kind(x, name)
    if not isinstance(x, Tensor | np.ndarray):
        raise ValueError(f"{name} must be a tensor or an array [n, d], not {type(x).__name__}")


def as_rows(x: Any, name: str = "x") -> Tensor:
    """As `as_floats`, and [n, d] with finite entries.

    Raises:
        ValueError: as `as_floats`; not two-dimensional, no columns, or NaN or infinite entries (rows named).
    """
    tensor = as_floats(x, name)
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise ValueError(f"{name} must be [n, d] with d >= 1, got shape {tuple(tensor.shape)}: {_two_axes(x, name)}")
    # one sum finds any NaN or infinity; only then is it worth looking for the rows
    if not bool(torch.isfinite(tensor.sum())) and not bool((finite := torch.isfinite(tensor).all(1)).all()):
        bad = (~finite).nonzero()[:, 0].tolist()
        rows = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise ValueError(
            f"{name} has NaN or infinite values in {len(bad)} of {len(finite)} rows ({rows}): "
            "drop these samples on both sides"
        )
    return tensor


def _two_axes(x: Any, name: str) -> str:
    """The line of code that makes features [n, d] of something else."""
    shape = np.shape(x)
    if len(shape) < 2:
        return f"give one row a sample, {name}[:, None] if that is one number of each"
    if shape[-1] == 0:
        return "it has no columns"
    pooled = "mean(1), of tokens" if len(shape) == 3 else f"mean({tuple(range(2, len(shape)))}), of channels at places"
    return f"give {name}.{pooled}, or all of it as {name}.reshape(len({name}), -1)"


def unit_rows(x: Tensor) -> Tensor:
    """Rows (last axis) of float `x` divided by their l2 norms; zero rows stay zero. Differentiable.

    Every row is first divided by a power of two near its largest entry, which changes no digit, so that squares neither
    overflow nor underflow: rows of 1e30 or 1e-30 have unit vectors too, equal to those of the same rows near 1.
    """
    scaled = scaled_rows(x)
    norm = scaled.norm(dim=-1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1)


def scaled_rows(x: Tensor) -> Tensor:
    """Every row (last axis) of `x` divided by the largest power of two that is at most its largest entry."""
    return x / power_of_two(x.detach().abs().amax(-1, keepdim=True))


def varies(x: Tensor) -> Tensor:
    """[d] which columns of `x` [n, d] differ by more than the rounding of their values."""
    return (x - x[0]).abs().amax(0) > 8 * torch.finfo(x.dtype).eps * x.abs().amax(0)


def nearly_one_way(x: Tensor) -> bool:
    """Whether the rows of `x` [n, d], float32 or float64, are so alike in direction that cosines lose digits.

    1 less the squared length of the mean unit row is the mean of 1 - cosine over pairs, and 0.01 the bar: float32
    resolves cosines to about 1e-7, so 1e-5 of what they differ by there.
    """
    return float(unit_rows(x).mean(0).square().sum()) > 1 - _ONE_WAY


def moderate(x: Tensor) -> tuple[Tensor, float]:
    """`x` divided by a power of two, and that power: 1, and `x` itself, unless its largest entry is beyond 2**+-30."""
    peak = x.detach().abs().max()
    if 1 / _MODERATE <= float(peak) <= _MODERATE or float(peak) == 0:
        return x, 1.0
    scale = power_of_two(peak)
    return x / scale, float(scale)


def power_of_two(size: Tensor) -> Tensor:
    """The largest power of two that is at most `size` (float32 or float64, >= 0) and is a normal number; 1 for 0."""
    bits, exponent = (torch.int64, 0x7FF0000000000000) if size.dtype == torch.float64 else (torch.int32, 0x7F800000)
    power = (size.view(bits) & exponent).view(size.dtype).clamp_min(torch.finfo(size.dtype).tiny)
    return torch.where(size > 0, power, 1)


def _shareable(array: np.ndarray) -> np.ndarray:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.itemsize > 8:  # of longdouble torch has no counterpart
        array = array.astype(np.float64)
    if not array.flags.writeable or any(step < 0 for step in array.strides):
        array = array.copy()
    return array
