"""Speed of exact mutual k-NN: against the published algorithm, and as a share of the matrix product it rests on.

    python -m benchmarks.neighbours [--n 8192] [--d 768] [--rounds 3]
    ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.neighbours

One thread; CPU seconds, since other work may share the cores; both sides in turn, minimum of the rounds. The second
line keeps PyTorch and MKL to AVX2, as on machines without AVX-512. `search_over_prefiltered` is above 1 where searching
by bfloat16 products first pays, which takes AMX (`amx`) or more. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

import unrolled.alignment as al
from benchmarks.alignment import naive_mutual_knn, pairs
from benchmarks.timing import CLOCKS, interleaved, machine
from unrolled.ops.neighbours import nearest_neighbours
from unrolled.ops.prefilter import prefiltered_neighbours

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n, d = arguments.n, arguments.d
    x, y = pairs(n, d)
    a, b = torch.randn(2, 2048, 2048)
    values: dict[str, float] = {}
    seconds = interleaved(
        {
            "product": lambda: a @ b,
            "search": lambda: nearest_neighbours(x, K + 1),
            "prefiltered": lambda: prefiltered_neighbours(x, K + 1),
            "here": lambda: values.update(here=al.mutual_knn(x, y, k=K)),
            "naive": lambda: values.update(naive=naive_mutual_knn(x, y, K)),
        },
        rounds=arguments.rounds,
        clock=CLOCKS["cpu"],
        warm_up=1,
    )
    peak = 2 * 2048**3 / seconds["product"]
    record = {
        "machine": machine(), "instructions": torch.backends.cpu.get_cpu_capability(), "n": n, "d": d,
        "matmul_gflops": peak / 1e9, "cpu_seconds": seconds, "ratio": seconds["naive"] / seconds["here"],
        # n^2 d multiplications and additions: every tile of scores serves its rows and its columns
        "search_share_of_peak": n * n * d / seconds["search"] / peak,
        "amx": bool(torch.cpu.get_capabilities().get("amx_tile")) if hasattr(torch.cpu, "get_capabilities") else None,
        "search_over_prefiltered": seconds["search"] / seconds["prefiltered"],
        "difference": abs(values["here"] - values["naive"]),
    }  # fmt: skip
    json.dump(record, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
