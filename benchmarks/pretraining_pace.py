"""Core-minutes of every training of the study `crate-pretrain`, from the pace of one thread in a step of each kind.

    python -m benchmarks.pretraining_pace --data-dir DATA [--rounds 6]

Kinds of training take turns, and the least processor time of a step counts: reading and changing the images, forward,
backward, clipping, Muon. Processor time, so other work on the machine costs little. The study itself counts operations.
What is measured of a network takes a minute at most and is not listed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.timing import CLOCKS, interleaved, machine
from unrolled.studies.cells import Cell
from unrolled.studies.crate.pretrain.cells import OBJECTIVES, PretrainConfig, cells
from unrolled.studies.crate.pretrain.learning import UNIT, Learning, Tuning, drawn
from unrolled.studies.crate.pretrain.networks import FORMS, autoencoder, classifier, images
from unrolled.studies.crate.pretrain.objectives import passes
from unrolled.studies.networks import BATCH
from unrolled.studies.pictures import as_input, augmented
from unrolled.train import TrainConfig
from unrolled.train.optim import build_optimizer

Kind = tuple[str, str]
LABELS: Kind = ("labels", "crate")


def main() -> None:
    """Measure and print two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = PretrainConfig(data_dir=arguments.data_dir)
    kinds: list[Kind] = [("mae", form) for form in FORMS]
    kinds += [(objective, "crate") for objective in OBJECTIVES if objective != "mae"] + [LABELS]
    made = {kind: training(kind, config) for kind in kinds}
    seconds = interleaved(
        {" ".join(kind): step for kind, (step, _, _) in made.items()}, rounds=arguments.rounds, clock=CLOCKS["cpu"]
    )
    print(f"{machine()}\n")
    print("| objective | network | parameters | MFLOPs a training image | images a core-minute | 10^12 a core-minute |")
    print("|---|---|---|---|---|---|")
    pace = {}
    for kind, (_, operations, parameters) in made.items():
        rate = 60 * BATCH / seconds[" ".join(kind)]
        pace[kind] = rate * operations / UNIT
        print(f"| {' | '.join(kind)} | {parameters:,} | {operations / 1e6:.1f} | {rate:,.0f} | {pace[kind]:.2f} |")
    print("\n| training | core-minutes | so far |\n|---|---|---|")
    total, done = 0.0, set()
    for cell in cells(config):
        for each in (*needed(cell), cell):
            if each not in done and isinstance(each, Learning | Tuning):
                minutes = length(each) / pace[kind_of(each)]
                total += minutes
                done.add(each)
                print(f"| {each.name} | {minutes:.1f} | {total:.0f} |")


def training(kind: Kind, config: PretrainConfig) -> tuple[Callable[[], None], float, int]:
    """A step of one kind of training, its operations an image, and the parameters that train."""
    shown = images(config.data, "train", config.data_dir)
    objective, form = kind
    model: Any
    if kind == LABELS:
        model = classifier(autoencoder(form, config.data, 0), 0, 10)
    else:
        model = config.learnt(objective, form, 0, 1.0).fresh(config.context)  # type: ignore[arg-type]
    operations = passes(model) if kind == LABELS else model.operations
    optimizer = build_optimizer(model.train(), TrainConfig(optimizer="muon", lr=1e-4))
    rows = drawn(len(shown.labels), 0, 0)

    def step() -> None:
        optimizer.zero_grad()
        if kind == LABELS:
            pixels = augmented(shown.images[rows], torch.Generator().manual_seed(0))
            loss = nn.functional.cross_entropy(model(as_input(pixels)), shown.labels[rows])
        else:
            loss = model.loss(shown.images[rows], rows, 0, 1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    network = model if kind == LABELS else model.network
    return step, operations, sum(p.numel() for p in network.parameters() if p.requires_grad)


def needed(cell: Cell) -> list[Cell]:
    """What a cell needs, first things first."""
    return [each for need in cell.needs for each in (*needed(need), need)]


def kind_of(cell: Learning | Tuning) -> Kind:
    """Which kind of training a cell is."""
    if isinstance(cell, Tuning):
        return LABELS
    return ("mae" if cell.masked else cell.objective, cell.form)


def length(cell: Any) -> float:
    """Operations of a cell's own training, in 10^12; none of one that takes its best trial."""
    if isinstance(cell, Tuning):
        return cell.tuning
    again = hasattr(cell, "trial") and cell.seed == 0 and cell.operations == cell.trial
    return 0.0 if again else cell.operations


if __name__ == "__main__":
    main()
