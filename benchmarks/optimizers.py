"""A training step with Muon against one with AdamW, taking turns, and against timm's Muon.

    python -m benchmarks.optimizers [--model crate_nano_patch4_32 ...] [--batch 128] [--rounds 9] [--threads 1]
                                    [--clock wall|cpu] [--device cpu|cuda]

A step is forward, backward, clipping and the optimiser, on random images. Prints a table in Markdown: milliseconds a
step, and what each optimiser adds to AdamW's. Wanted on a CPU: at most 6 %. timm's Muon works matrix by matrix in
bfloat16, which is slow where the CPU does not know it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.timing import CLOCKS, interleaved, machine
from unrolled.models import create_model
from unrolled.train import TrainConfig
from unrolled.train.optim import build_optimizer


def timm_muon(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """What `--optimizer muon` would be without ours."""
    from timm.optim import create_optimizer_v2

    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model, opt="muon", lr=config.lr, weight_decay=config.weight_decay
    )
    return optimizer


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> Callable[[], None]:
    """One training step of the model."""
    labels = torch.arange(len(images), device=images.device) % 10

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["crate_nano_patch4_32", "vit_nano_patch4_32"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(machine(arguments.device))
    print("\n| model | optimiser | ms a step | against AdamW |\n|---|---|---|---|")
    for name in arguments.model:
        model = create_model(name, num_classes=10).to(arguments.device)
        images = torch.randn(arguments.batch, *model.default_cfg["input_size"], device=arguments.device)
        made: dict[str, Any] = {
            "AdamW": lambda own: build_optimizer(own, TrainConfig()),
            "Muon": lambda own: build_optimizer(own, TrainConfig(optimizer="muon")),
            "Muon (timm)": lambda own: timm_muon(own, TrainConfig()),
        }
        copies = {kind: copy.deepcopy(model) for kind in made}
        steps = {kind: step_of(own, made[kind](own), images) for kind, own in copies.items()}
        best = interleaved(steps, arguments.rounds, CLOCKS[arguments.clock])
        for kind, seconds in best.items():
            print(f"| {name} | {kind} | {1e3 * seconds:.1f} | {100 * (seconds / best['AdamW'] - 1):+.1f} % |")


if __name__ == "__main__":
    main()
