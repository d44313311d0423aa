"""Plain evaluation: cross-entropy (never the smoothed or mixed training loss) and accuracy over a loader, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.modes import evaluating


def check_labels(labels: Tensor, indices: Tensor, classes: int) -> None:
    """Refuse labels outside `0 .. classes - 1`.

    Args:
        labels: int64 [b], on the CPU.
        indices: [b], which images they belong to.
        classes: how many the model tells apart.

    Raises:
        ValueError: naming the first such label and its image's index.
    """
    low, high = torch.aminmax(labels)
    if low < 0 or high >= classes:
        at = int(((labels < 0) | (labels >= classes)).nonzero()[0, 0])
        raise ValueError(
            f"label {int(labels[at])} of image {int(indices[at])} is outside the model's {classes} classes "
            f"(0 to {classes - 1}); correct the label, or give the model more classes"
        )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    device: torch.device | str = "cpu",
    *,
    reduce: Callable[[Tensor], Tensor] | None = None,
    on_batch: Callable[[], None] | None = None,
    on_logits: Callable[[Tensor, Any], None] | None = None,
    collective: bool = False,
) -> dict[str, Any]:
    """Mean cross-entropy and top-1/top-5 accuracy of `model` over every batch of `loader`.

    Args:
        model: images `[b, c, h, w]` -> logits `[b, classes]`; its training mode is restored afterwards.
        loader: batches with `images`, `labels` and `skipped` (names of images that could not be read).
        device: where the batches go.
        reduce: sums a float64 tensor over processes.
        on_batch: called after each batch.
        on_logits: called with the float32 logits `[b, classes]` of each batch that is not empty, and the batch.
        collective: the forward pass is one in which all processes must take part, so run it even on an empty batch.

    Returns:
        `accuracy` and `top5` as fractions (top5 is over min(5, classes) guesses), `loss` in nats, `images`, `skipped`.

    Raises:
        ValueError: a label outside the classes, or nothing to evaluate.
    """
    sums = torch.zeros(5, dtype=torch.float64)  # images, top-1, top-5, loss, skipped
    with evaluating(model):
        for batch in loader:
            sums[4] += len(batch.skipped)
            if collective and len(batch.labels) == 0:
                model(batch.images.new_zeros(1, *batch.images.shape[1:]).to(device))
            if len(batch.labels):
                logits = logits_of(model(batch.images.to(device, non_blocking=True))).float()
                check_labels(batch.labels, batch.indices, logits.shape[-1])
                labels = batch.labels.to(device, non_blocking=True)
                hits = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]
                loss = F.cross_entropy(logits, labels, reduction="sum")
                counts = torch.stack([hits[:, 0].sum().float(), hits.any(1).sum().float(), loss])
                sums[1:4] += counts.cpu().double()
                sums[0] += len(labels)
                if on_logits is not None:
                    on_logits(logits, batch)
            if on_batch is not None:
                on_batch()
    images, top1, top5, total, skipped = (reduce(sums) if reduce is not None else sums).tolist()
    if images == 0:
        raise ValueError("nothing to evaluate: the split is empty or no image in it could be read")
    return {
        "accuracy": top1 / images,
        "top5": top5 / images,
        "loss": total / images,
        "images": int(images),
        "skipped": int(skipped),
    }


def logits_of(output: Any) -> Tensor:
    """The logits of a classifier's output: the tensor itself, or the `logits` of a Hugging Face output."""
    return getattr(output, "logits", output)
