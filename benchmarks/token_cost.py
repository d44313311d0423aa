"""Time and memory of one vision layer of each kind by the number of tokens, to 4,096.

    python -m benchmarks.token_cost [--rounds 7] [--sides 8 16 32 48 64] [--dim 192] [--svg FILE] [--quick]

One layer of each model of the family (attention and second half, with their norms) on one image of `side` x `side`
tokens and a class token: inference, and forward with backward. The kinds take turns and the least of `--rounds` times
counts. Memory is the peak growth of the resident set in forward and backward, in a process of its own for each kind;
on a GPU the allocator's peak. "CRATE, as published" forms the n x n attention maps; the others' attention runs in a
fused kernel, which is quadratic in time but not in memory. Exponents are fitted to the three largest sizes. Prints
tables in Markdown and draws the times.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import published_forms
from benchmarks.timing import CLOCKS, exponent, interleaved, machine
from unrolled.layers import CRATEBlock, ToSTBlock
from unrolled.report import LineChart, Series

KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    "CRATE": CRATEBlock,
    "CRATE-alpha": partial(CRATEBlock, sparsifier="overcomplete", decoupled=True, residual=True, bias=False),
    "ToST": ToSTBlock,
    "CBT": partial(CRATEBlock, attention="cbsa"),
    "attention-only": partial(CRATEBlock, sparsifier="none"),
    "ViT": partial(CRATEBlock, attention="mhsa", sparsifier="mlp", residual=True),
}
PUBLISHED = "CRATE, as published"


def forms(dim: int, heads: int, device: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every kind as a function of tokens `[1, 1 + n, d]`."""
    torch.manual_seed(0)
    layers: dict[str, Any] = {kind: build(dim, heads).to(device) for kind, build in KINDS.items()}

    def published(z: Tensor) -> Tensor:
        block = layers["CRATE"]
        z = z + published_forms.subspace_attention(block.attn, block.norm1(z))
        return published_forms.ista(block.ista, block.norm2(z))

    return {**layers, PUBLISHED: published}


def tokens(side: int, dim: int, device: str) -> Tensor:
    return torch.randn(1, 1 + side**2, dim, device=device)


def infer(form: Callable[[Tensor], Tensor], z: Tensor) -> None:
    with torch.no_grad():
        form(z)


def learn(form: Callable[[Tensor], Tensor], z: Tensor) -> None:
    form(z.requires_grad_()).sum().backward()


def times(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of every kind at every size."""
    layers = forms(args.dim, args.heads, args.device)
    rows = []
    for side in args.sides:
        row: dict[str, Any] = {"tokens": side**2}
        for name, run in (("inference", infer), ("forward and backward", learn)):
            z = tokens(side, args.dim, args.device)
            for layer in layers.values():
                if isinstance(layer, nn.Module):
                    layer.train(run is learn)
            calls: dict[str, Callable[[], object]] = {kind: partial(run, form, z) for kind, form in layers.items()}
            row[name] = interleaved(calls, args.rounds, CLOCKS[args.clock])
        rows.append(row)
    return rows


def memory(args: argparse.Namespace) -> dict[str, list[float]]:
    """MiB of forward and backward by kind and size."""
    if args.device == "cuda":
        return {kind: peaks(kind, args) for kind in (*KINDS, PUBLISHED)}
    out = {}
    for kind in (*KINDS, PUBLISHED):
        command = [sys.executable, "-m", "benchmarks.token_cost", "--memory-of", kind, "--dim", str(args.dim)]
        command += ["--heads", str(args.heads), "--sides", *map(str, args.sides)]
        # large blocks go back to the system as soon as they are free, so that each size starts from the same ground
        fresh = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        answer = subprocess.run(command, check=True, capture_output=True, text=True, env=fresh).stdout
        out[kind] = json.loads(answer.splitlines()[-1])
    return out


def peaks(kind: str, args: argparse.Namespace) -> list[float]:
    """MiB that one pass forward and backward adds, by size, after a small one has loaded the code."""
    form = forms(args.dim, args.heads, args.device)[kind]
    learn(form, tokens(4, args.dim, args.device))
    out = []
    for side in args.sides:
        z = tokens(side, args.dim, args.device)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = float(torch.cuda.memory_allocated())
            learn(form, z)
            out.append((torch.cuda.max_memory_allocated() - before) / 2**20)
            continue
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
        before = _peak()
        learn(form, z)
        out.append(_peak() - before)
    return out


def _peak() -> float:
    """Peak resident set of this process in MiB (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def tables(rows: list[dict[str, Any]], megabytes: dict[str, list[float]]) -> str:
    """Time and memory by tokens, Markdown."""
    sizes = [row["tokens"] for row in rows]
    parts = []
    found: list[tuple[str, dict[str, list[float]], str]] = [
        (f"Milliseconds, {name}", {kind: [1e3 * row[name][kind] for row in rows] for kind in rows[0][name]}, ".2f")
        for name in ("inference", "forward and backward")
    ]
    for title, values, form in [*found, ("MiB, forward and backward", megabytes, ".1f")]:
        lines = [f"{title}, one layer, by tokens.\n"]
        lines.append("| layer | " + " | ".join(f"{n:,}" for n in sizes) + " | exponent |")
        lines.append("| --- |" + " --: |" * (len(sizes) + 1))
        for kind, series in values.items():
            power = exponent(sizes[-3:], [max(x, 1e-9) for x in series[-3:]])
            lines.append(f"| {kind} | " + " | ".join(format(x, form) for x in series) + f" | {power:.2f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def draw(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of forward and backward by tokens as a standalone SVG."""
    steps = [math.log2(row["tokens"]) for row in rows]
    name = "forward and backward"
    series = [
        Series(
            label="as published" if kind == PUBLISHED else kind,
            x=steps,
            y=[1e3 * row[name][kind] for row in rows],
            color=0 if kind == PUBLISHED else place,
            dashed=kind == PUBLISHED,
        )
        for place, kind in enumerate(rows[0][name])
    ]
    title = "milliseconds, one layer, forward and backward"
    return LineChart(title=title, x_label="log2 of the tokens", series=series, log_y=True).svg(
        "tokens", standalone=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32, 48, 64])
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--svg", type=Path, help="where to draw, e.g. docs/token_cost.svg")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.sides, args.dim, args.heads = [4, 8, 12], 48, 3
    if args.memory_of:
        print(json.dumps(peaks(args.memory_of, args)))
        return
    rows, megabytes = times(args), memory(args)
    print(f"{machine(args.device)}; width {args.dim}, minimum of {args.rounds} rounds, {args.clock} clock\n")
    print(tables(rows, megabytes))
    if args.svg:
        args.svg.write_text(draw(rows))


if __name__ == "__main__":
    main()
