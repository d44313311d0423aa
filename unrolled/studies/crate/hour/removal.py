"""Deletion and insertion curves of several ways to say which patches a decision hangs on, beside random orders."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.studies.cells import Result

METHODS = {
    "evidence": "the exact terms of `unrolled explain`, summed by patch",
    "gradient": "size of the gradient of the logit, summed over the patch",
    "gradient x input": "the logit that removing the patch costs to first order",
    "rollout": "attention of all layers, multiplied (arXiv 2005.00928)",
}
RANDOM = "random"
SCALES = ("probability", "logit")
WAYS = ("deletion", "insertion")
SHARES = tuple(eighth / 8 for eighth in range(9))
"""Of the patches that are removed or kept, from none to all."""
_DRAWS = 2


def curves(model: nn.Module, images: Tensor, seed: int = 0) -> Result:
    """What becomes of the probability of the predicted class as patches are removed, or come back, in some order.

    Removed patches have the mean colour; most important ones go first (deletion, where a lower curve is better) or come
    first into an empty image (insertion, where a higher one is; arXiv 1806.07421).

    Args:
        model: a classifier that `explain_logit` understands and whose attention can be had.
        images: normalised, [n, c, h, w].
        seed: of the random orders, two an image.

    Returns:
        `shares`, and for `probability` (after the softmax) and `logit`, for `deletion` and `insertion`, by method the
        mean `curve` over images, and `areas`, the area under the curve of each image.
    """
    table: dict[str, list[Tensor]] = {name: [] for name in (*METHODS, RANDOM)}
    for number, image in enumerate(images.split(1)):
        orders, grid, target = _orders(model, image, np.random.default_rng((seed, number)))
        for name, values in _followed(model, image, orders, grid, target).items():
            table[name].append(values)
    every = {name: torch.stack(rows) for name, rows in table.items()}  # [images, scales, ways, shares]
    out: Result = {"shares": list(SHARES)}
    for scale, of_scale in enumerate(SCALES):
        out[of_scale] = {}
        for way, what in enumerate(WAYS):
            chosen = {name: rows[:, scale, way] for name, rows in every.items()}
            areas = {name: torch.trapezoid(rows, dx=1 / (len(SHARES) - 1), dim=1) for name, rows in chosen.items()}
            out[of_scale][what] = {
                name: {"curve": _plain(rows.mean(0)), "areas": _plain(areas[name])} for name, rows in chosen.items()
            }
    return out


def _orders(
    model: nn.Module, image: Tensor, random: np.random.Generator
) -> tuple[dict[str, Tensor], tuple[int, int], int]:
    """By method the patches, most important first, [orders, patches]; the grid; and the predicted class."""
    from unrolled.instruments.attention_rollout import attention_map
    from unrolled.instruments.explain import explain_logit

    explanation = explain_logit(model, image)
    pixels = image.clone().requires_grad_()
    with torch.enable_grad():
        logit = model(pixels)[0, explanation.target]
        (gradient,) = torch.autograd.grad(logit, pixels)
    maps = {
        "evidence": explanation.evidence(),
        "gradient": _by_patch(gradient.abs(), explanation.grid),
        "gradient x input": _by_patch(gradient * image, explanation.grid),
        "rollout": attention_map(model, image)[0],
    }
    orders = {name: each.flatten().cpu().argsort(descending=True, stable=True)[None] for name, each in maps.items()}
    count = explanation.grid[0] * explanation.grid[1]
    orders[RANDOM] = torch.from_numpy(np.stack([random.permutation(count) for _ in range(_DRAWS)]))
    return orders, explanation.grid, explanation.target


def _followed(
    model: nn.Module, image: Tensor, orders: dict[str, Tensor], grid: tuple[int, int], target: int
) -> dict[str, Tensor]:
    """By method the probability and the logit of the class, [scales, ways, shares], the mean over its orders."""
    from unrolled.instruments.readouts.faithfulness import all_logits_without

    places = torch.cat(list(orders.values())).argsort(1)  # rank of every patch in each order
    counts = [round(share * places.shape[1]) for share in SHARES]
    first = torch.stack([places < count for count in counts], 1)  # [orders, shares, patches]
    removed = torch.stack([first, ~first])
    logits = all_logits_without(model, image, removed.flatten(0, 2), grid)
    values = torch.stack([logits.softmax(1)[:, target], logits[:, target]]).view(len(SCALES), *removed.shape[:3])
    parts = values.split([len(each) for each in orders.values()], 2)
    return {name: part.mean(2) for name, part in zip(orders, parts, strict=True)}


def _by_patch(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sums of [1, c, h, w] over channels and over each patch, [H, W]."""
    rows, columns = grid
    return values.sum((0, 1)).unflatten(0, (rows, -1)).unflatten(2, (columns, -1)).sum((1, 3))


def _plain(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
