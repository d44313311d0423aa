"""Attention rollout: attention of all layers, multiplied (Abnar and Zuidema, arXiv 2005.00928, section 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from unrolled.instruments.anatomy import check_values, unwrap
from unrolled.instruments.features.layout import Layout
from unrolled.instruments.regions.patches import grid_of, main_stack, prefix_of
from unrolled.instruments.trace import trace
from unrolled.modes import evaluating

Fusion = Literal["mean", "max", "min"]
_FUSE = {"mean": lambda a: a.mean(1), "max": lambda a: a.amax(1), "min": lambda a: a.amin(1)}


def rollout(
    attention: Iterable[Tensor], *, residual: float = 0.5, heads: Fusion = "mean", discard: float = 0.0
) -> Tensor:
    r"""How much of every token at the input is in every token at the output, were attention all that mixes them.

    $$ \hat A_\ell = r I + (1 - r) \bar A_\ell, \qquad \tilde A_\ell = \hat A_\ell \tilde A_{\ell-1}, \quad
       \tilde A_0 = I $$

    with r = `residual` and, of the heads together, \bar A. Values, output projections and second halves are not looked
    at: a token may be attended to and change nothing. `unrolled.instruments.causal.ablate` asks what changes.

    Args:
        attention: weights of the layers from the first to the last, each `[b, h, n, n]`, such as
            `t.values()` of `trace(model, patterns="block*/attention", attention=True)`. They may come one by one: only
            the product is kept.
        residual: share of what the residual stream carries past attention, 0 to 1; 0.5 in the paper.
        heads: how the heads become one: their `"mean"` (the paper's), or entry by entry the `"max"` or `"min"`.
        discard: share of the smallest entries of each layer and sample that are set to 0 first, 0 to below 1; the
            paper discards none. Rows then sum to 1 again, and a token left without any attention keeps itself.

    Returns:
        `[b, n, n]` in float32 at least; rows (of the output) sum to 1.

    Raises:
        ValueError: no weights, another shape, or a setting out of its range.
    """
    return _multiplied(_mixing(weights, residual, heads, discard) for weights in attention)


def attention_map(
    model: nn.Module,
    images: Tensor,
    *,
    residual: float = 0.5,
    heads: Fusion = "mean",
    discard: float = 0.0,
    prefix: int | None = None,
    pool: Literal["token", "avg"] | None = None,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Attention rollout from what the classifier reads to the patches of each image, in one forward pass.

    Args:
        model: of images, whose attention `trace` can have; evaluated without gradients and left as it was.
        images: preprocessed, `[b, c, h, w]`.
        residual, heads, discard: of `rollout`.
        prefix: tokens before the patches (class token, registers); default what the model says.
        pool: what the classifier reads: the class token (`"token"`) or the mean of the patches (`"avg"`); default what
            a timm model says by `global_pool`, else the class token where there is one.
        grid: (H, W) of the patches; default from their number and the shape of the image.

    Returns:
        `[b, H, W]`: share of each patch. They sum to less than 1 by what stays in the prefix tokens.

    Raises:
        ValueError: the model has no attention weights that can be had, no class token to read, patches that form no
            grid, or a setting out of its range.
    """
    inner = unwrap(model)
    check_values(inner)
    count, has_class = prefix_of(inner, prefix)
    if pool is None:
        pooling = getattr(inner, "global_pool", None)
        pool = "token" if has_class and pooling in (None, "", "token", "map") else "avg"
    if pool not in ("token", "avg"):
        raise ValueError(f"pool={pool!r}: choose 'token' or 'avg'")
    if pool == "token" and not has_class:
        raise ValueError("pool='token': this model has no class token; use pool='avg', or say prefix=1 if it has one")
    stack = main_stack(inner)
    names = [f"{stack.name(index)}/attention" for index in range(len(stack.blocks))]
    weight = next(inner.parameters())
    with (
        torch.no_grad(),
        evaluating(model),
        trace(
            model,
            patterns=names,
            attention=True,
            reduce=lambda name, weights: _mixing(weights, residual, heads, discard),  # h times less to keep
        ) as t,
        Layout(inner, prefix) as layout,
    ):
        model(images.to(weight))
    product = _multiplied(t[name][0] for name in names)
    rows = product[:, 0] if pool == "token" else product[:, count:].mean(1)
    patches = rows[:, count:]
    return patches.unflatten(1, grid_of(patches.shape[1], images.shape[-2:], grid, layout.grid(stack.prefix)))


def _mixing(weights: Tensor, residual: float, heads: Fusion, discard: float) -> Tensor:
    """What one layer mixes: `[b, h, n, n]` -> `[b, n, n]`, rows sum to 1."""
    if heads not in _FUSE:
        raise ValueError(f"heads={heads!r}: choose 'mean', 'max' or 'min'")
    if not 0 <= residual <= 1:
        raise ValueError(f"residual={residual}: is a share, 0 to 1")
    if not 0 <= discard < 1:
        raise ValueError(f"discard={discard}: is a share, 0 to below 1")
    if weights.dim() != 4 or weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"attention: weights must be [b, h, n, n], not {tuple(weights.shape)}")
    fused = _FUSE[heads](weights.to(torch.promote_types(weights.dtype, torch.float32)))
    if dropped := int(discard * fused[0].numel()):
        fused = fused.flatten(1)
        fused = fused.scatter(1, fused.topk(dropped, largest=False).indices, 0).view(weights[:, 0].shape)
    total = fused.sum(-1, keepdim=True)
    eye = torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
    attended = torch.where(total > 0, fused / torch.where(total > 0, total, 1), eye)
    return residual * eye + (1 - residual) * attended


def _multiplied(steps: Iterable[Tensor]) -> Tensor:
    product: Tensor | None = None
    for step in steps:
        if product is not None and product.shape != step.shape:
            raise ValueError(
                f"attention: layers of {tuple(product.shape)} and {tuple(step.shape)} do not multiply; layers that "
                "merge tokens have no rollout"
            )
        product = step if product is None else step @ product
    if product is None:
        raise ValueError("attention: holds no layer; trace the model with attention=True")
    return product
