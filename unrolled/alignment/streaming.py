"""Alignment of data that arrive in batches, possibly in several processes: `update`, `compute`, `reset`.

When `torch.distributed` is initialised, `compute` combines what all processes have seen (every process must call it)
and leaves the local state as it was. Samplers that repeat samples to even out processes add duplicates; pass each
sample once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unrolled.alignment.metric import Features, Metric
from unrolled.alignment.registry import get_metric
from unrolled.ops.gram import LinearMoments
from unrolled.ops.rows import as_rows, check_devices


class StreamingCKA:
    """Linear CKA in one pass: memory depends on the widths of x and y, not on the number of samples.

    Equal to `cka` of all rows together. Sums are float64; pass a rough mean as `center_x`, `center_y` if features lie
    far from the origin (the same in all processes).

    Args:
        unbiased: as in `cka`; the default here, since biased values depend on n.
    """

    def __init__(self, *, unbiased: bool = True, center_x: Tensor | None = None, center_y: Tensor | None = None):
        self.unbiased = unbiased
        self._centers = {"center_x": center_x, "center_y": center_y}
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._moments = LinearMoments(**self._centers)

    def update(self, x: Features, y: Features) -> None:
        """Add paired rows x [b, d_x], y [b, d_y].

        Raises:
            ValueError: shapes or devices do not match, not numbers, or NaN or infinite values (the batch is not added).
        """
        self._moments.update(*_checked(x, y))

    def compute(self) -> float:
        """CKA of all rows so far, over all processes.

        Raises:
            ValueError: too few samples, features without variance, or beyond 1e75 in size.
        """
        moments = _reduced(self._moments)
        cross, own_x, own_y = moments.hsic(unbiased=self.unbiased)
        if not math.isfinite(own_x) or not math.isfinite(own_y):
            raise ValueError("features are too large for sums of their fourth powers: divide them by a constant")
        for name, hsic in (("x", own_x), ("y", own_y)):
            # what is left of the sums where features are constant: rounding, once subtracted and once cancelled
            total = float(moments.sums[name * 2].square().sum())
            if not hsic > (1e-14 * total / moments.n**2 if self.unbiased else 1e-26 * total):
                raise ValueError(
                    f"{name} has zero variance, or a mean so far from the origin that rounding hides it: similarity is "
                    f"undefined; for the latter pass a rough mean as center_{name}"
                )
        value: float = cross / (own_x**0.5 * own_y**0.5)
        return max(-1.0 if self.unbiased else 0.0, min(1.0, value))


class StreamingMetric:
    """Any metric over batches, by keeping the rows: memory grows with the data.

    Args:
        metric: name (with `options`) or object.
    """

    def __init__(self, metric: str | Metric, **options: Any):
        self.metric = get_metric(metric, **options)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._rows: tuple[list[Tensor], list[Tensor]] = ([], [])

    def update(self, x: Features, y: Features) -> None:
        """Add paired rows x [b, d_x], y [b, d_y].

        Raises:
            ValueError: shapes or devices do not match, not numbers, or NaN or infinite values (the batch is not added).
        """
        x, y = _checked(x, y)
        for rows, batch in zip(self._rows, (x, y), strict=True):
            if rows and rows[0].shape[1] != batch.shape[1]:
                raise ValueError(f"widths changed from {rows[0].shape[1]} to {batch.shape[1]}")
        for rows, batch in zip(self._rows, (x, y), strict=True):
            rows.append(batch.clone())

    def compute(self) -> float:
        """Value for all rows so far, over all processes, in the order of ranks.

        Raises:
            ValueError: no rows, or what the metric refuses.
        """
        x, y = (_gathered(rows) for rows in self._rows)
        return self.metric(x, y)


def _checked(x: Features, y: Features) -> tuple[Tensor, Tensor]:
    left, right = as_rows(x, "x"), as_rows(y, "y")
    if left.shape[0] != right.shape[0]:
        raise ValueError(f"x and y must be [b, d] with the same b, got {tuple(left.shape)} and {tuple(right.shape)}")
    check_devices(left, right)
    return left, right


def _device(fallback: torch.device) -> torch.device:
    """Where collective operations can read tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else fallback


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _widths(local: list[int], device: torch.device) -> list[int]:
    """Largest of each number over processes, so that one without data learns the shapes."""
    shared = torch.tensor(local, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return [int(width) for width in shared]


def _reduced(moments: LinearMoments) -> LinearMoments:
    if not _many():
        return moments
    sums = moments.sums
    home = sums["xy"].device if sums else torch.device("cpu")
    device = _device(home)
    dx, dy = _widths(list(sums["xy"].shape) if sums else [0, 0], device)
    shapes = {
        "xy": (dx, dy), "xx": (dx, dx), "yy": (dy, dy), "x": (dx,), "y": (dy,), "a": (), "b": (),
        "ax": (dx,), "bx": (dx,), "ay": (dy,), "by": (dy,), "aa": (), "bb": (), "ab": (),
    }  # fmt: skip
    total = LinearMoments(center_x=moments.center["x"], center_y=moments.center["y"])
    count = torch.tensor(moments.n, device=device)
    dist.all_reduce(count)
    total.n = int(count)
    for key, shape in shapes.items():
        part = sums[key].to(device, copy=True) if sums else torch.zeros(shape, dtype=torch.float64, device=device)
        dist.all_reduce(part)
        total.sums[key] = part
    return total


def _gathered(rows: list[Tensor]) -> Tensor:
    local = torch.cat(rows) if rows else None
    if not _many():
        if local is None:
            raise ValueError("no batches were added: call update first")
        return local
    device = _device(local.device if local is not None else torch.device("cpu"))
    mine = [0, 0, 0] if local is None else [len(local), local.shape[1], int(local.dtype == torch.float64)]
    count, width, wide = _widths(mine, device)
    if count == 0:
        raise ValueError("no batches were added: call update first")
    dtype = torch.float64 if wide else torch.float32
    padded = torch.zeros(count, width, dtype=dtype, device=device)
    if local is not None:
        padded[: len(local)] = local.to(padded)
    sizes = [torch.zeros((), dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor(0 if local is None else len(local), device=device))
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])
