"""What ties the last token of a sequence to earlier ones: its attention weights, and its sensitivity to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unrolled.instruments.anatomy import find_stacks, unwrap
from unrolled.instruments.readouts.probes import run, widen
from unrolled.instruments.trace import trace
from unrolled.modes import evaluating


def last_token_attention(model: nn.Module, inputs: Tensor, layer: str, batch_size: int | None) -> Tensor:
    """Mean over sequences of the last token's attention weights, [h, n]."""
    parts: list[Tensor] = []

    def keep_last(name: str, weights: Tensor) -> None:
        parts.append(widen(weights[:, :, -1]))

    listening = trace(model, patterns=f"{layer}/attention", attention=True, reduce=keep_last)
    with evaluating(model), torch.no_grad(), listening:
        for _ in run(model, inputs, batch_size):
            pass
    return torch.cat(parts).mean(0)


def last_token_sensitivity(
    model: nn.Module, inputs: Tensor, layer: str, directions: int, batch_size: int | None, seed: int
) -> Tensor:
    """Root mean square over sequences of |d z_last / d e_s|_F for every s, [n], by random directions.

    E |J^T u|^2 = |J|_F^2 for u of identity covariance. The tokens entering the first block are made leaves, so that
    nothing is added to the gradients of the model's parameters.
    """
    stacks = find_stacks(unwrap(model))
    if not stacks:
        raise ValueError("directions: this model has no transformer blocks to differentiate; pass directions=0")
    leaves: list[Tensor] = []

    def cut(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaf = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        leaves.append(leaf)
        return ((leaf, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": leaf})

    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(inputs.shape[1], dtype=torch.float64)
    handle = stacks[0].blocks[0][1].register_forward_pre_hook(cut, with_kwargs=True)
    try:
        with evaluating(model), torch.enable_grad():
            for part in inputs.split(batch_size or max(len(inputs), 1)):
                leaves.clear()
                with trace(model, patterns=layer, grad=True) as recorded:
                    for _ in run(model, part):
                        pass
                z = recorded[layer][:, -1]
                for i in range(directions):
                    u = torch.randn(z.shape, generator=generator).to(z)
                    [gradient] = torch.autograd.grad((u * z).sum(), leaves, retain_graph=i + 1 < directions)
                    total += gradient.cpu().double().square().sum((0, 2))
    finally:
        handle.remove()
    return (total / (directions * len(inputs))).sqrt()
