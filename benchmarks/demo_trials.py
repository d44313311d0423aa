"""The rate and the warm-up of the demo, chosen for each of its models by equal trials on validation images.

    python -m benchmarks.demo_trials [--models ...] [--rates ...] [--warmups ...] [--seeds ...]

Every trial trains on four fifths of the digits' training images and is scored on the fifth that the seed holds out;
test images are not looked at. Epochs and batch are the demo's.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

import torch

from unrolled.data import open_images
from unrolled.studies.demo import DemoConfig
from unrolled.train import Splits, TrainConfig, fit


def trial(model: str, rate: float, warmup: float, seed: int, folder: Path) -> float:
    """Accuracy on the held-out fifth."""
    demo = DemoConfig()
    train, held = (open_images("digits", split, val_fraction=0.2, seed=seed) for split in ("train", "val"))
    config = TrainConfig(
        model=model,
        data="digits",
        seed=seed,
        epochs=demo.epochs,
        warmup_epochs=warmup,
        batch_size=demo.batch_size,
        lr=rate,
        augment=False,
        accelerator="cpu",
        keep=1,
        checkpoint_every=1_000_000,
        out=folder / f"{model}-{rate:g}-{warmup:g}-{seed}",
        quiet=True,
    )
    result = fit(config, data=Splits(train=train, test=held))
    assert result.test is not None
    return float(result.test["accuracy"])


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(DemoConfig().models))
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--warmups", nargs="+", type=float, default=[2.0, 5.0], help="epochs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[11])
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for model, rate, warmup in itertools.product(given.models, given.rates, given.warmups):
            scores = [100 * trial(model, rate, warmup, seed, Path(folder)) for seed in given.seeds]
            mean = statistics.mean(scores)
            shown = " ".join(f"{score:.1f}" for score in scores)
            print(f"{model}  rate {rate:g}  warm-up {warmup:g}: {mean:.2f} % ({shown})", flush=True)


if __name__ == "__main__":
    main()
