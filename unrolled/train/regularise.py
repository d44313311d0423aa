"""What training may add to its loss: the layers' sparse rate reduction (arXiv 2411.17182), and a price on overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from unrolled.instruments.anatomy import Stack, find_stacks, head_subspaces
from unrolled.layers.subspace import SubspaceAttention
from unrolled.theory import normalize_tokens, orthogonality_penalty, sparse_rate_reduction


def srr_loss(
    model: nn.Module,
    traced: Mapping[str, Tensor],
    *,
    eps: float,
    sparsity: float = 0.0,
    layers: Sequence[int] | None = None,
    point: Literal["half", "next"] = "next",
) -> Tensor:
    r"""Minus the sparse rate reduction of the layers' tokens, to be weighted and added to a training loss.

    $$-\frac{1}{|L|\,N} \sum_{\ell \in L} \Big( R(Z^\ell) - R^c(Z^\ell \mid U^\ell) - \lambda\,\|Z^\ell\|_1 \Big)$$

    Tokens are divided by their norms first, so that scale cannot lower the loss; l1 stands for l0, which has no
    gradient. Gradients reach the tokens and, in white-box attention, the subspaces.

        with trace(model, patterns="block*", grad=True) as t:
            logits = model(images)
        loss = F.cross_entropy(logits, labels) + 0.1 * srr_loss(model, t, eps=0.5)

    Args:
        model: the model that was traced, not compiled: white-box, or a transformer with known value projections.
        traced: names to tokens `[b, n, d]` of one forward pass, from `instruments.trace.trace(..., grad=True)`.
        eps: distortion of the coding rates, > 0.
        sparsity: lambda, >= 0, weight of the l1 norm against rates in nats.
        layers: which layers, negative from the end; default all of the encoder.
        point: after the whole layer (`"next"`, trace names `block03`), or after compression (`"half"`, `block03/half`).

    Returns:
        A number in nats per token, the mean over images and layers.

    Raises:
        ValueError: a layer was not traced, or not on the autograd graph while gradients are on; a layer does not exist;
            or as `theory.sparse_rate_reduction`.
    """
    if point not in ("half", "next"):
        raise ValueError(f"point={point!r}: choose 'half' or 'next'")
    stack = next((stack for stack in find_stacks(model) if not stack.prefix), None)
    if stack is None:
        raise ValueError(f"model: {type(model).__name__} has no transformer blocks")
    depth = len(stack.blocks)
    chosen = range(depth) if layers is None else layers
    if not chosen or any(not -depth <= layer < depth for layer in chosen):
        raise ValueError(f"layers={list(chosen)}: choose from 0 to {depth - 1}, or -{depth} to -1")
    total: list[Tensor] = []
    for layer in chosen:
        name = stack.name(layer % depth) + ("/half" if point == "half" else "")
        if name not in traced:
            raise ValueError(f"traced: has no {name!r}; trace the model with patterns that match it")
        z = traced[name]
        if torch.is_grad_enabled() and not z.requires_grad:
            raise ValueError(f"traced: {name!r} carries no gradient; trace with grad=True")
        subspaces = _subspaces(stack.blocks[layer % depth][1])
        value = sparse_rate_reduction(normalize_tokens(z), subspaces, eps, sparsity, norm="l1")
        total.append(value.mean() / z.shape[-2])
    return -torch.stack(total).mean()


def main_stack(model: nn.Module, setting: str, called: str) -> Stack:
    """The layers of a model that a term of the loss may be taken of.

    Raises:
        ValueError: it has none; the message names the setting and what the model is called.
    """
    stack = next((stack for stack in find_stacks(model) if not stack.prefix), None)
    if stack is None:
        raise ValueError(f"{setting}: {called} has no transformer layers to take it of; leave it at 0")
    return stack


def layer_names(stack: Stack, layers: Sequence[int], setting: str, called: str) -> list[str]:
    """Names in a trace of layers by number, negative from the end.

    Raises:
        ValueError: there are no such layers; the message begins with `setting`, which has its value.
    """
    depth = len(stack.blocks)
    if not layers or any(not -depth <= layer < depth for layer in layers):
        raise ValueError(f"{setting}: {called} has {depth} layers, 0 to {depth - 1}, or negative from the end")
    return [stack.name(layer % depth) for layer in layers]


def orthogonality_loss(model: nn.Module) -> Tensor:
    """`theory.orthogonality_penalty` of the subspaces of a layer, averaged over the white-box attention layers.

    The soft form of the option `orthogonal` of these layers, to be weighted and added to a training loss.

    Raises:
        ValueError: the model has no white-box attention, or keeps its subspaces orthogonal anyway.
    """
    layers = [module for module in model.modules() if isinstance(module, SubspaceAttention)]
    if not layers:
        raise ValueError(f"orthogonality_weight: {type(model).__name__} has no subspaces to keep apart; leave it at 0")
    if any(is_parametrized(module.subspaces) for module in layers):
        raise ValueError("orthogonality_weight: the subspaces are kept orthogonal as it is; leave it at 0")
    return torch.stack([orthogonality_penalty(module.bases()) for module in layers]).mean()


def _subspaces(block: nn.Module) -> Tensor:
    """U_1 ... U_K on the autograd graph where the layer has them as its own, otherwise detached."""
    attention = getattr(block, "attn", None)
    return attention.bases() if isinstance(attention, SubspaceAttention) else head_subspaces(block)
