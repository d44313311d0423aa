"""What a CRATE-MAE that ships with the package is worth beside completions that learn nothing.

python -m benchmarks.completion --data-dir DATA [--model NAME] [--images 10000]

Mean squared error on removed patches, 48 of 64, in the model's normalised pixels; masks as in `unrolled eval`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import unrolled
from unrolled.data import eval_loader, eval_transform, model_input, open_images
from unrolled.studies.crate.mae_layers.completion import completed_by_baselines, patches_of
from unrolled.train.tasks.images import HELD_OUT_SEED
from unrolled.train.tasks.masked import mask_noise

NAME = "crate_mae_nano_patch4_32.cifar10_long"


def main() -> None:
    """Print the error of each completion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with cifar10")
    parser.add_argument("--model", default=NAME, help="name of weights that ship")
    parser.add_argument("--images", type=int, default=10_000, help="first test images")
    asked = parser.parse_args()
    model = unrolled.create_model(asked.model, pretrained=True).eval()
    for name, error in completion_errors(model, asked.data_dir, asked.images).items():
        print(f"{name}: {error:.3f}")


def completion_errors(model: Any, data_dir: Path, count: int) -> dict[str, float]:
    """Of a masked autoencoder that predicts pixels, `model`, and of every baseline, on the first test images."""
    wants = model_input(model)
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
    size, mean, std, interpolation, crop = (wants[key] for key in keys)
    transform = eval_transform(size, mean, std, interpolation=interpolation, crop_pct=crop)
    source = open_images("cifar10", "test", data_dir=data_dir)
    errors: dict[str, list[torch.Tensor]] = {}
    seen = 0
    for batch in eval_loader(source, transform, batch_size=250):
        images, noise = batch.images, mask_noise(HELD_OUT_SEED, 0, batch.indices, 64)
        with torch.no_grad():
            filled, _ = model.complete(images, 0.75, noise)
            mask = model(images, 0.75, noise)[2]
        truth = patches_of(images, 4)
        completions = {"model": patches_of(filled, 4), **completed_by_baselines(images, mask.bool(), 4)}
        for name, completed in completions.items():
            error = ((completed - truth).square().mean(-1) * mask).sum(1) / mask.sum(1)
            errors.setdefault(name, []).append(error)
        seen += len(images)
        if seen >= count:
            break
    return {name: float(torch.cat(parts)[:count].mean()) for name, parts in errors.items()}


if __name__ == "__main__":
    main()
