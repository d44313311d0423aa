"""Timing that survives a noisy machine: variants interleaved, minimum of many rounds, ratios from one run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved(
    variants: dict[str, Callable[[], object]],
    rounds: int = 9,
    clock: Callable[[], float] = time.perf_counter,
    *,
    warm_up: int = 2,
) -> dict[str, float]:
    """Seconds of each variant: the minimum over `rounds`, each running all of them in turn, after `warm_up` more.

    `CLOCKS["cpu"]` counts this process's own time, where other work shares the cores.
    """
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(warm_up):
        for run in variants.values():
            run()
    _synchronize()
    for _ in range(rounds):
        for name, run in variants.items():
            start = clock()
            run()
            _synchronize()
            best[name] = min(best[name], clock() - start)
    return best


def matmul_peak(dtype: torch.dtype, device: str = "cpu", size: int = 2048) -> float:
    """FLOP/s of a large square matrix product on this machine, the best of several."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = interleaved({"product": lambda: a @ b}, rounds=7)["product"]
    return 2 * size**3 / seconds


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of the power law cost = c * size^p that fits best: least squares on logarithms."""
    x, y = (torch.tensor(list(values), dtype=torch.float64).log() for values in (sizes, costs))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def machine(device: str = "cpu") -> str:
    """One line naming the hardware and versions."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as info:
            name = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), name)
    if device == "cuda":
        name = torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
