"""What tracing and editing add to a forward pass, and what a sweep over heads saves by keeping earlier blocks.

    python -m benchmarks.editing [--model vit_tiny_patch16_224] [--batch 8] [--rounds 15]

Kinds of pass take turns, so that a noisy machine disturbs them alike; ratios are of median process times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch

import unrolled
import unrolled.models
from unrolled.instruments import causal


def take_turns(kinds: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of process time of each."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds + 1):
        for name, run in kinds.items():
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = timm.create_model(given.model).eval()
    images = torch.randn(given.batch, *model.default_cfg["input_size"])

    def plain() -> None:
        model(images)

    def traced() -> None:
        with unrolled.trace(model, patterns="block??"):
            model(images)

    def edited() -> None:
        with unrolled.edit(model, {"block*/attn/head0": lambda x: x}):
            model(images)

    with torch.no_grad():
        times = take_turns({"plain": plain, "traced": traced, "edited": edited}, given.rounds)
    for name in ("traced", "edited"):
        print(f"{name}: {times[name] / times['plain']:.3f} of a plain pass ({1000 * times['plain']:.0f} ms)")

    for heads in (None, 12):
        swept = timm.create_model(given.model, **({} if heads is None else {"num_heads": heads})).eval()

        def sweep(reuse: bool, swept: torch.nn.Module = swept) -> Callable[[], object]:
            batches = [(images[:2], None)]
            return lambda: causal.ablate(swept, batches, lambda out, _: out[:, 0], control=False, reuse=reuse)

        times = take_turns({"naive": sweep(False), "reusing": sweep(True)}, 2)
        of = "all heads" if heads is None else f"{heads} heads a layer"
        ratio = times["naive"] / times["reusing"]
        print(f"sweep over {of}: {ratio:.2f} times as fast ({times['naive']:.1f} s naive)")


if __name__ == "__main__":
    main()
