"""What one relabelling costs: each metric's own way, many at a time, against relabelling and comparing one by one.

    python -m benchmarks.relabellings [--n 1000] [--width 8] [--layers 1] [--metrics cka rsa]

Prints one JSON object: milliseconds a relabelling both ways, interleaved in one run, their ratio, and the largest
difference of the values.
"""

from __future__ import annotations

import argparse
import json

import torch

import unrolled.alignment as al
from benchmarks.timing import CLOCKS, interleaved, machine
from unrolled.alignment.metric import Metric

ORDERS = 32


def measured(metric: Metric, n: int, width: int, layers: int, rounds: int, clock: str) -> dict[str, float]:
    """Both ways on random features."""
    generator = torch.Generator().manual_seed(0)
    x, y = (
        al.prepare_layers([torch.randn(n, width, generator=generator) for _ in range(layers)], [metric]).of(metric)
        for _ in range(2)
    )
    orders = list(al.relabellings(n, ORDERS))

    def at_once() -> torch.Tensor:
        return torch.stack(list(metric.null_grids(x, y, orders)))

    def one_by_one() -> torch.Tensor:
        return torch.stack(list(Metric.null_grids(metric, x, y, orders)))

    seconds = interleaved({"at_once": at_once, "one_by_one": one_by_one}, rounds, CLOCKS[clock])
    return {
        **{f"{name}_ms": 1000 * value / ORDERS for name, value in seconds.items()},
        "ratio": seconds["one_by_one"] / seconds["at_once"],
        "difference": float((at_once() - one_by_one()).abs().max()),
    }


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", nargs="+", choices=[*al.METRICS, "unbiased_cka"], default=[*al.METRICS])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        name: measured(al.get_metric(name), given.n, given.width, given.layers, given.rounds, given.clock)
        for name in given.metrics
    }
    print(json.dumps({"machine": machine(), **vars(given), "found": found}, indent=1))


if __name__ == "__main__":
    main()
