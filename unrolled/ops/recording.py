"""Whether code runs on values, or is being recorded into a graph by `torch.export`, `torch.jit.trace` or `torch.fx`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.jit._trace import TracerWarning, is_tracing


def is_recording(x: Any) -> bool:
    """Whether what happens to `x` is recorded, for other values and batch sizes than it may have now.

    Then nothing may be decided by values, or by sizes that may change, nothing be kept for the next call, and what is
    checked of values must be left to the caller.
    """
    return isinstance(x, Proxy) or torch.compiler.is_exporting() or is_tracing()


def knows_sizes(x: Any) -> bool:
    """Whether the sizes of `x` can be compared: numbers, or symbols that `torch.export` puts conditions on."""
    return not isinstance(x, Proxy) and not is_tracing()


def sizes(x: Tensor, *dimensions: int) -> tuple[int, ...]:
    """Some sizes of `x`: numbers, or the symbols of a recording that is good for other sizes.

    `torch.jit.trace` records one size of an image, and these are its numbers.
    """
    shape = tuple(x.shape[i] for i in dimensions)
    if not is_tracing():
        return shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)
        return tuple(int(size) for size in shape)
