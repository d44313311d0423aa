"""Images that one thread trains on in a minute, for every family of the study `crate-minutes`.

    python -m benchmarks.training_pace --data-dir DATA [--families crate vit ...] [--rounds 6]

Families take turns, and the least processor time of a step counts: forward, backward, clipping, Muon. Reading and
augmenting a batch of CIFAR-10 is the same for all, and added. Processor time, so other work on the machine costs
little. The study turns minutes into images by what this printed (`Family.pace`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.optimizers import step_of
from benchmarks.timing import CLOCKS, interleaved, machine
from unrolled.data import open_images, train_loader, train_transform
from unrolled.models import create_model
from unrolled.models.compare import count_flops
from unrolled.studies.crate.minutes.cells import BATCH, FAMILIES
from unrolled.train import TrainConfig
from unrolled.train.optim import build_optimizer


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    source = open_images("cifar10", "train", data_dir=arguments.data_dir)
    half = (0.5, 0.5, 0.5)
    transform = train_transform(TrainConfig(pad_crop=4), (3, 32, 32), half, half)
    batches = train_loader(source, transform, batch_size=BATCH, seed=0)
    calls: dict[str, Callable[[], object]] = {"": lambda: next(batches)}
    rows = {}
    for name in arguments.families:
        family = FAMILIES[name]
        model = create_model(family.model, **family.arguments)
        optimizer = build_optimizer(model, TrainConfig(model=family.model, optimizer="muon", lr=1e-4))
        calls[name] = step_of(model, optimizer, images)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        rows[name] = f"{parameters:,} | {count_flops(model.eval(), images[:1]) / 1e6:.1f}"
        model.train()
    seconds = interleaved(calls, rounds=arguments.rounds, clock=CLOCKS["cpu"])
    print(f"{machine()}; a batch is read in {1e3 * seconds['']:.0f} ms\n")
    print("| family | parameters | MFLOPs | ms an image | images a core-minute |\n|---|---|---|---|---|")
    for name, numbers in rows.items():
        each = (seconds[name] + seconds[""]) / BATCH
        print(f"| {FAMILIES[name].words} | {numbers} | {1e3 * each:.2f} | {60 / each:,.0f} |")


if __name__ == "__main__":
    main()
