"""How a classifier's errors grow when its images are made worse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from unrolled.modes import evaluating
from unrolled.train.evaluation import check_labels, logits_of


@torch.no_grad()
def corruption_errors(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str = "cpu",
    *,
    mean: Sequence[float],
    std: Sequence[float],
    names: Sequence[str] = CORRUPTIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """Top-1 errors on clean images and on each corruption at each severity.

    Images are corrupted at the model's own input size, after resizing and cropping and before normalisation.

    Args:
        model: images `[b, c, h, w]` -> logits `[b, classes]`; its training mode is restored afterwards.
        loader: batches whose `images` are 8-bit values in 0..1, not normalised, with `labels` and `indices`.
        device: where the batches go.
        mean, std: normalisation of the model, one value a channel.
        names: of `data.corruptions`.
        seed: of noise and of the direction of motion.

    Returns:
        `images`, `clean` (error on the clean images), `corruptions`: name -> errors at severities 1 to 5, and
        `mean_error` over all of these. Errors are shares in 0..1.

    Raises:
        ValueError: no image, no or unknown corruption, or labels outside the classes.
    """
    if not names or (unknown := sorted(set(names) - set(CORRUPTIONS))):
        raise ValueError(f"names: {unknown if names else 'is empty'}; choose from {', '.join(CORRUPTIONS)}")
    shift, scale = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (mean, std))
    wrong = {name: [0] * len(SEVERITIES) for name in names}
    images = clean = 0

    def guess(pixels: Tensor) -> Tensor:
        return logits_of(model(((pixels - shift) / scale).to(device))).float().cpu()

    with evaluating(model):
        for batch in loader:
            if not len(batch.labels):
                continue
            first = guess(batch.images)
            check_labels(batch.labels, batch.indices, first.shape[-1])
            clean += int((first.argmax(1) != batch.labels).sum())
            images += len(batch.labels)
            originals = batch.images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
            places = batch.indices.tolist()
            for name in names:
                for at, severity in enumerate(SEVERITIES):
                    changed = [
                        torch.from_numpy(corrupt(image, name, severity, index=place, seed=seed).copy())
                        for image, place in zip(originals, places, strict=True)
                    ]
                    pixels = torch.stack(changed).permute(0, 3, 1, 2).float().div_(255)
                    wrong[name][at] += int((guess(pixels).argmax(1) != batch.labels).sum())
    if not images:
        raise ValueError("nothing to evaluate: no image could be read")
    shares = {name: [count / images for count in counts] for name, counts in wrong.items()}
    every = [share for row in shares.values() for share in row]
    return {"images": images, "clean": clean / images, "corruptions": shares, "mean_error": sum(every) / len(every)}


def relative_errors(errors: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """For each corruption: `error` (mean over severities), `increase` over the clean error, and `ratio` to it.

    `ratio` is None where no clean image is wrong.
    """
    rows: dict[str, dict[str, float | None]] = {}
    for name, severities in errors["corruptions"].items():
        error = sum(severities) / len(severities)
        ratio = error / errors["clean"] if errors["clean"] else None
        rows[name] = {"error": error, "increase": error - errors["clean"], "ratio": ratio}
    return rows
