"""Whether evidence on patches says what the model does without them: patches removed and kept, against random ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.instruments.explain import Explanation, explain_logit
from unrolled.instruments.regions.overlap import bootstrap_interval
from unrolled.modes import evaluating

SHARES = (0.1, 0.3, 0.5)

Row = dict[str, Any]


def logits_without(model: nn.Module, image: Tensor, removed: Tensor, explanation: Explanation) -> Tensor:
    """The explained logit when patches become the mean colour, and the network runs again.

    Args:
        model: a classifier; run in eval mode and left as it was.
        image: normalised, `[1, c, h, w]`; 0 is the mean colour.
        removed: boolean `[k, n]`, k sets of patches.
        explanation: of the logit, for its grid, target and `against`.

    Returns:
        float64 `[k]` on the CPU.
    """
    logits = all_logits_without(model, image, removed, explanation.grid)
    return logits[:, explanation.target] - (logits[:, explanation.against] if explanation.against is not None else 0)


@torch.no_grad()
def all_logits_without(model: nn.Module, image: Tensor, removed: Tensor, grid: tuple[int, int]) -> Tensor:
    """`logits_without` of every class, float64 `[k, classes]`; `grid` is (H, W) in patches.

    Raises:
        ValueError: the image is no whole number of patches.
    """
    if image.shape[2] % grid[0] or image.shape[3] % grid[1]:
        raise ValueError(f"grid={grid}: an image of {tuple(image.shape[2:])} pixels is no whole number of such patches")
    weight = next(model.parameters())
    rows, columns = grid
    mask = removed.view(-1, 1, rows, columns)
    mask = mask.repeat_interleave(image.shape[2] // rows, 2).repeat_interleave(image.shape[3] // columns, 3)
    with evaluating(model):
        out = model(image.masked_fill(mask, 0.0).to(weight))
    return (out if isinstance(out, Tensor) else out.logits).double().cpu()


def faithfulness(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    prefix: int | None = None,
    grid: tuple[int, int] | None = None,
    shares: Sequence[float] = SHARES,
    draws: int = 4,
    seed: int = 0,
) -> list[Row]:
    """What becomes of the logit when patches with the most evidence for it are removed, or alone are kept.

    Evidence is a sum that is exact for one forward pass, which does not say that the model needs what it lies on. If it
    does, removing the patches with the most lowers the logit more than removing as many random ones (deletion), and
    keeping only them leaves more of it than keeping as many random ones (insertion; arXiv 1806.07421).

    Args:
        model: a classifier that `explain_logit` understands.
        images: preprocessed, `[1, c, h, w]` each; of each the logit of the predicted class is explained.
        prefix, grid: as in `explain_logit`.
        shares: of the patches removed or kept; the nearest count, at least one.
        draws: random sets of patches, of each image and share.
        seed: of them; image i draws by (seed, i).

    Returns:
        A row for each of "removed" and "kept" and each share: `what`, `share`, `evidence` and `random`, the mean change
        of the logit over images, `difference` of the two with its bootstrap interval over images `low`, `high`,
        `agree`, the share of images where the evidence does better than the mean of the random sets, and `images`.

    Raises:
        ValueError: no image, or what `explain_logit` refuses.
    """
    changes: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for number, image in enumerate(images):
        explanation = explain_logit(model, image, prefix=prefix, grid=grid)
        order = explanation.evidence().flatten().argsort(descending=True, stable=True)
        random = torch.from_numpy(_orders(len(order), draws, seed, number))
        orders = torch.cat([order[None], random])
        counts = [max(1, round(share * len(order))) for share in shares]
        places = orders.argsort(1)  # rank of every patch in each order
        first = torch.stack([places < count for count in counts])  # [shares, 1 + draws, n]
        sets = torch.stack([first, ~first])
        change = logits_without(model, image, sets.flatten(0, 2), explanation).view(sets.shape[:3]) - explanation.logit
        for what, values in zip(("removed", "kept"), change, strict=True):
            for share, row in zip(shares, values, strict=True):
                changes.setdefault((what, share), []).append((float(row[0]), float(row[1:].mean())))
    if not changes:
        raise ValueError("images: there is not one")
    return [_row(what, share, np.array(values)) for (what, share), values in changes.items()]


def _orders(n: int, draws: int, seed: int, number: int) -> np.ndarray:
    rng = np.random.default_rng(np.random.SeedSequence((seed, number)))
    return np.stack([rng.permutation(n) for _ in range(draws)])


def _row(what: str, share: float, values: np.ndarray) -> Row:
    difference = values[:, 0] - values[:, 1]
    low, high = bootstrap_interval(difference)
    better = difference < 0 if what == "removed" else difference > 0
    return {
        "what": what,
        "share": share,
        "evidence": float(values[:, 0].mean()),
        "random": float(values[:, 1].mean()),
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "agree": float(better.mean()),
        "images": len(values),
    }
