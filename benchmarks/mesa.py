"""Time and memory of the mesa solve against the forms it replaces, on this machine, in one run.

    python benchmarks/mesa.py [--repeats 7] [--device cuda] [--quick] [--clock wall|cpu] [--out FILE.json]

Contenders take turns (round-robin), so that a busy machine slows all of them alike; the least of `--repeats` times
counts. `--clock cpu` counts this process's own time instead, where other work shares the cores. With `--out`, the cost
by length is also drawn beside it (FILE.svg). Shares of peak are floating-point operations a second over those of a
large matrix product in the same run. Errors are the largest of |o - o64| over the largest |o64|, where o64 is the chunk
solve in float64 (which the tests hold against dense solves). The baselines are written here in full: the
Sherman-Morrison recursion as the paper states it and with its updates fused, chunked CG with exactly 30 steps, linear
and softmax attention for cost and memory.
"""

from __future__ import annotations

import argparse
import json
import math
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

from unrolled.errors import MissingExtra
from unrolled.layers.linear_attention import linear_attention
from unrolled.ops import mesa, mesa_plan
from unrolled.ops.mesa_solve.predict import flops
from unrolled.report import LineChart, Series

RIDGE = 0.25
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = time.perf_counter


def sherman_morrison_loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The recursion with its rank-one updates fused into products, one step at a time: [n, t, d] -> [n, t, d]."""
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


def literal_loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The recursion as the paper writes it, R - (R k)(R k)^T / (1 + k^T R k): [n, t, d] -> [n, t, d]."""
    n, steps, d = q.shape
    inverse = torch.eye(d, device=q.device).div(RIDGE).expand(n, d, d)
    cross = q.new_zeros(n, v.shape[-1], d)
    out = torch.empty_like(v)
    for t in range(steps):
        kt = k[:, t, :, None]
        image = inverse @ kt
        inverse = inverse - image * image.mT / (1 + kt.mT @ image)
        cross = cross + v[:, t, :, None] * kt.mT
        out[:, t] = (cross @ (inverse @ q[:, t, :, None]))[..., 0]
    return out


def peak(device: str) -> float:
    """GFLOP/s of a large float32 matrix product."""
    x = torch.randn(1024, 1024, device=device)
    return 2 * 1024**3 / race({"product": lambda: x @ x}, 7)["product"] / 1e6


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
            start = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                best[name] = min(best[name], 1e3 * (clock() - start))
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
        "Sherman-Morrison loop, fused": lambda: sherman_morrison_loop(q, k, v),
        "Sherman-Morrison loop, as written": lambda: literal_loop(q, k, v),
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
    chunk = mesa_plan(q[None], v[None]).chunk_size
    loop_flops = 10.0 * n * t * d * d  # two products with R, its update, the update of G and a product with it
    work = {"chunk": n * flops(t, chunk, d, d), "Sherman-Morrison loop, fused": loop_flops}
    top = peak(device)
    rates = {name: work[name] / times[name] / 1e6 for name in work}
    return {
        "n": n,
        "t": t,
        "d": d,
        "gflop": {name: x / 1e9 for name, x in work.items()},
        "gflop_per_s": rates | {"large matrix product": top},
        "share_of_peak": {name: x / top for name, x in rates.items()},
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


def scaling(lengths: list[int], repeats: int, device: str) -> list[dict[str, Any]]:
    """Microseconds per step of one head of width 64 by length: flat means linear. Softmax attention for comparison."""
    rows = []
    for t in lengths:
        q, k, v = (x[None] for x in inputs(1, t, 64, device))
        best = race(
            {
                "chunk": lambda q=q, k=k, v=v: mesa(q, k, v, RIDGE),
                "linear attention": lambda q=q, k=k, v=v: linear_attention(q, k, v),
            },
            repeats,
        )
        best |= race(
            {"softmax attention": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True)},
            repeats if t < 16384 else 1,
        )
        rows.append({"t": t, "us_per_step": {name: 1e3 * ms / t for name, ms in best.items()}})
    return rows


def draw(rows: list[dict[str, Any]]) -> str:
    """Cost per step by length as a standalone SVG."""
    steps = [math.log2(row["t"]) for row in rows]
    series = [
        Series(label=name, x=steps, y=[row["us_per_step"][name] for row in rows]) for name in rows[0]["us_per_step"]
    ]
    chart = LineChart(
        title="microseconds per step, one head of width 64", x_label="log2 of the steps", series=series, log_y=True
    )
    return chart.svg("cost", standalone=True)


def against_fla(sizes: list[tuple[int, int]], repeats: int) -> list[dict[str, Any]]:
    """On a GPU: a fixed ridge under decay in bfloat16, 16 heads, beside flash-linear-attention where it is installed.

    A contender that cannot run is reported with its reason and left out of the race.
    """
    rows = []
    for d, t in sizes:
        q, k, v = (x[None].bfloat16() for x in inputs(16, t, d, "cuda"))
        decay = 0.9 + 0.1 * torch.rand(1, 16, t, device="cuda")
        truth = mesa(*(x.double() for x in (q, k, v)), RIDGE, decay.double())
        options: dict[str, dict[str, Any]] = {
            "auto": {},
            "cg": {"method": "cg", "tolerance": 1e-4},
            "cg, triton": {"method": "cg", "kernel": "triton", "tolerance": 1e-4},
            "fla": {"method": "fla"},
        }
        runs, errors, left_out = {}, {}, {}
        for name, o in options.items():
            runs[name] = lambda o=o, q=q, k=k, v=v, g=decay: mesa(q, k, v, RIDGE, g, **o)
            try:
                errors[name] = float((runs[name]() - truth).abs().max() / truth.abs().max())
            except (MissingExtra, RuntimeError, ValueError, AssertionError) as reason:
                left_out[name] = f"{type(reason).__name__}: {reason}"
                del runs[name]
        with torch.no_grad():
            rows.append({"d": d, "t": t, "ms": race(runs, repeats), "error": errors, "left out": left_out})
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
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=4096, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(memory_of(arguments.memory_of, arguments.steps))
        return
    global clock
    clock = CLOCKS[arguments.clock]
    repeats, device = arguments.repeats, arguments.device
    sizes = [(4, 256, 32)] if arguments.quick else [(8, 2048, 64), (1024, 50, 20), (8, 2048, 128)]
    lengths = [256, 1024] if arguments.quick else [1024, 4096, 16384, 65536]
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread",
        "repeats": repeats,
        "clock": arguments.clock,
        "speed": [speed(*size, repeats, device) for size in sizes],
        "decayed": decayed(*sizes[0], repeats, device),
        "scaling": scaling(lengths, repeats, device),
    }
    if device == "cpu":
        report["memory_mib"] = memory(4096 if arguments.quick else 16384)
    else:
        lengths = [2048] if arguments.quick else [2048, 8192, 32768]
        report["against_fla"] = against_fla([(d, t) for d in (64, 128) for t in lengths], repeats)
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
        arguments.out.with_suffix(".svg").write_text(draw(report["scaling"]))


if __name__ == "__main__":
    main()
