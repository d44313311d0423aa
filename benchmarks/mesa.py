"""Time and memory of the mesa solve against the forms it replaces, on this machine, in one run.

    python benchmarks/mesa.py [--repeats 7] [--device cuda] [--quick] [--out FILE.json]

Contenders take turns (round-robin), so that a busy machine slows all of them alike; the least of `--repeats` times
counts. Errors are the largest of |o - o64| over the largest |o64|, where o64 is the chunk solve in float64 (which the
tests hold against dense solves). The baselines are written here in full: a Sherman-Morrison loop with nothing but the
recursion, chunked CG with exactly 30 steps, and linear attention for memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing

import torch
import torch.nn.functional as F
from torch import Tensor

from unrolled.layers.linear_attention import linear_attention
from unrolled.ops import mesa

RIDGE = 0.25


def sherman_morrison_loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The recursion as the paper states it, one step at a time: [n, t, d] -> [n, t, d]."""
    n, steps, d = q.shape
    inverse = torch.eye(d, device=q.device).div(RIDGE).expand(n, d, d).contiguous()
    cross = q.new_zeros(n, v.shape[-1], d)
    out = torch.empty_like(v)
    for t in range(steps):
        kt = k[:, t, :, None]
        image = inverse @ kt
        gain = image / (1 + kt.mT @ image)
        inverse = torch.baddbmm(inverse, gain, image.mT, alpha=-1)
        cross = torch.baddbmm(cross, v[:, t, :, None], kt.mT)
        out[:, t] = (cross @ (inverse @ q[:, t, :, None]))[..., 0]
    return out


def cg30(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Chunked CG with 30 steps from the Jacobi guess, all chunks at once, differentiable by plain autograd."""
    q, k, v = (x.unflatten(1, (-1, 64)) if x.shape[1] % 64 == 0 else x[:, None] for x in (q, k, v))
    growth = torch.cat([v, k], -1).mT @ k
    starts = growth.cumsum(1) - growth
    cross, gram = starts.split([v.shape[-1], k.shape[-1]], dim=2)

    def product(p: Tensor) -> Tensor:
        return p @ gram + (p @ k.mT).tril() @ k + RIDGE * p

    diagonal = gram.diagonal(dim1=-2, dim2=-1)[:, :, None] + k.square().cumsum(2) + RIDGE
    x = q / diagonal
    r = q - product(x)
    p, size = r, r.square().sum(-1, keepdim=True)
    for _ in range(30):
        image = product(p)
        length = size / (p * image).sum(-1, keepdim=True).clamp_min(1e-20)
        x, r = x + length * p, r - length * image
        after = r.square().sum(-1, keepdim=True)
        p, size = r + after / size.clamp_min(1e-20) * p, after
    out = x @ cross.mT + (x @ k.mT).tril() @ v
    return out.flatten(1, 2)


def race(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Least milliseconds of each, taking turns."""
    best = dict.fromkeys(contenders, float("inf"))
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def inputs(n: int, t: int, d: int, device: str) -> list[Tensor]:
    torch.manual_seed(0)
    return [F.normalize(torch.randn(n, t, d, device=device), dim=-1) for _ in range(3)]


def speed(n: int, t: int, d: int, repeats: int, device: str) -> dict[str, Any]:
    """Forward, and forward with backward, of each contender at n sequences of t steps."""
    q, k, v = inputs(n, t, d, device)
    truth = mesa(*(x[None].double() for x in (q, k, v)), RIDGE, method="chunk")[0]

    def error(out: Tensor) -> float:
        return float((out - truth).abs().max() / truth.abs().max())

    forward = {
        "chunk": lambda: mesa(q[None], k[None], v[None], RIDGE)[0],
        "recurrent": lambda: mesa(q[None], k[None], v[None], RIDGE, method="recurrent")[0],
        "Sherman-Morrison loop": lambda: sherman_morrison_loop(q, k, v),
        "CG-30": lambda: cg30(q, k, v),
    }
    errors = {name: error(run()) for name, run in forward.items()}
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    both = {
        "chunk": lambda: mesa(*(x[None] for x in leaves), RIDGE).sum().backward(),
        "CG-30": lambda: cg30(*leaves).sum().backward(),
    }
    with torch.no_grad():
        times = race(forward, repeats)
    backward = race(both, max(2, repeats // 2))
    return {
        "n": n,
        "t": t,
        "d": d,
        "forward_ms": times,
        "error": errors,
        "forward_backward_ms": backward,
        "speedup": {name: times[name] / times["chunk"] for name in times},
        "speedup_forward_backward": backward["CG-30"] / backward["chunk"],
    }


def decayed(n: int, t: int, d: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """A fixed ridge under decay (MesaNet): `auto` and plain CG at equal tolerance, CG-30's residual for comparison."""
    rows = []
    q, k, v = (x[None] for x in inputs(n, t, d, device))
    for slowest in (0.9975, 0.99, 0.9, 0.5):
        decay = slowest + (1 - slowest) * torch.rand(1, n, t, device=device)
        options = {"auto": {}, "cg": {"method": "cg"}, "CG-30": {"method": "cg", "steps": 30, "tolerance": 0.0}}
        runs = {name: lambda o=o, g=decay: mesa(q, k, v, RIDGE, g, **o) for name, o in options.items()}
        residuals = {
            name: float(mesa(q, k, v, RIDGE, decay, return_residual=True, **o)[1].max()) for name, o in options.items()
        }
        rows.append({"slowest decay": slowest, "ms": race(runs, repeats), "residual": residuals})
    return rows


def scaling(lengths: list[int], repeats: int, device: str) -> list[dict[str, float]]:
    """Milliseconds per step of one head by length: flat means linear."""
    rows = []
    for t in lengths:
        q, k, v = (x[None] for x in inputs(1, t, 64, device))
        best = race({"chunk": lambda q=q, k=k, v=v: mesa(q, k, v, RIDGE)}, repeats)["chunk"]
        rows.append({"t": t, "ms": best, "us_per_step": 1e3 * best / t})
    return rows


def memory(t: int) -> dict[str, float]:
    """Peak growth of the resident set, MiB, of forward and backward in a process of its own, 8 heads of width 64."""
    out = {}
    for name in ("chunk", "linear attention"):
        command = [sys.executable, __file__, "--memory-of", name, "--steps", str(t)]
        out[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    out["ratio to linear attention"] = out["chunk"] / out["linear attention"]
    return out


def memory_of(name: str, t: int) -> float:
    def run(q: Tensor, k: Tensor, v: Tensor) -> None:
        if name == "chunk":
            out = mesa(q[None], k[None], v[None], RIDGE)
        else:
            out, _ = linear_attention(q[None], k[None], v[None])
        out.sum().backward()

    run(*(x.requires_grad_() for x in inputs(8, 64, 64, "cpu")))  # code and thread pools, not data
    leaves = [x.requires_grad_() for x in inputs(8, t, 64, "cpu")]
    before = peak_mib()
    run(*leaves)
    return peak_mib() - before


def peak_mib() -> float:
    """Peak resident set of this process (Linux); getrusage would report the parent's where that was larger."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=4096, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(memory_of(arguments.memory_of, arguments.steps))
        return
    repeats, device = arguments.repeats, arguments.device
    sizes = [(4, 256, 32)] if arguments.quick else [(8, 2048, 64), (1024, 50, 20), (8, 2048, 128)]
    lengths = [256, 1024] if arguments.quick else [1024, 4096, 16384, 65536]
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread",
        "repeats": repeats,
        "speed": [speed(*size, repeats, device) for size in sizes],
        "decayed": decayed(*sizes[0], repeats, device),
        "scaling": scaling(lengths, repeats, device),
    }
    if device == "cpu":
        report["memory_mib"] = memory(4096 if arguments.quick else 16384)
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
