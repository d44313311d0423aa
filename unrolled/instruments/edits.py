"""What one does to a tensor in a forward pass: functions for `unrolled.edit`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.instruments.anatomy import find_stacks, head_subspaces, unwrap
from unrolled.instruments.editing import Change


def zero(x: Tensor) -> Tensor:
    """Nothing: zero ablation."""
    return torch.zeros_like(x)


def mean(x: Tensor) -> Tensor:
    """The mean over all but the last dimension, for every sample and token of the call: mean ablation."""
    return x.mean(tuple(range(x.dim() - 1)), keepdim=True).expand_as(x) if x.dim() > 1 else x.mean().expand_as(x)


def token_mean(x: Tensor) -> Tensor:
    """The mean over the tokens of each sample by itself, `[b, n, ...]`."""
    return x.mean(1, keepdim=True).expand_as(x)


def constant(value: Tensor | float) -> Change:
    """The same value everywhere, such as a mean over other data; broadcast to the shape of what it replaces."""
    return lambda x: torch.as_tensor(value, dtype=x.dtype, device=x.device).expand_as(x)


def resample(seed: int = 0) -> Change:
    """What the other samples of the batch have in this place: resample ablation, no sample keeping its own.

    Raises:
        ValueError: when it runs, a batch of one.
    """

    def change(x: Tensor) -> Tensor:
        n = x.shape[0]
        if n < 2:
            raise ValueError("resample: needs at least two samples in a batch")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(n, generator=generator).to(x.device)
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # one cycle through all of them
        return x[other]

    return change


@dataclass(frozen=True)
class patch:
    """What another run had in the same place: activation patching.

    Args:
        source: a trace or another mapping from names to tensors, or the tensor itself. One sample of it serves a whole
            batch. Patches of heads need a trace with `heads=True`.

    Raises:
        ValueError: the source has nothing of that name, or when it runs, of another shape.
    """

    source: Mapping[str, Any] | Tensor

    def bind(self, name: str) -> Change:
        """The change for a place."""
        value = self.source if isinstance(self.source, Tensor) else self._find(self.source, name)
        return lambda x: self._like(value, x, name)

    def __call__(self, x: Tensor) -> Tensor:
        """For a source that is a tensor."""
        return self.bind("patch")(x)

    @staticmethod
    def _find(source: Mapping[str, Any], name: str) -> Tensor:
        if name in source:
            value = source[name]
        elif (head := re.fullmatch(r"(.+/attn)/head(\d+)", name)) and f"{head[1]}/heads" in source:
            value = source[f"{head[1]}/heads"][..., int(head[2]), :]
        elif (atom := re.fullmatch(r"(.+/ista)/atom(\d+)", name)) and atom[1] in source:
            value = source[atom[1]][..., int(atom[2])]
        else:
            heads = "; trace with heads=True" if "/head" in name else ""
            raise ValueError(f"patch: the source holds no {name}{heads}")
        if not isinstance(value, Tensor):
            raise ValueError(f"patch: the source holds a {type(value).__name__} for {name}; trace without reduce=")
        return value

    @staticmethod
    def _like(value: Tensor, x: Tensor, name: str) -> Tensor:
        if value.shape[1:] != x.shape[1:] or value.shape[0] not in (1, x.shape[0]):
            raise ValueError(f"patch: {name} is {list(x.shape)} here and {list(value.shape)} in the source")
        return value.to(x).expand_as(x)


def steer(direction: Tensor, strength: float = 1.0) -> Change:
    """Add `strength` times `direction`, `[d]`, to every token."""
    return lambda x: x + strength * direction.to(x)


def project_out(basis: Tensor) -> Change:
    """Remove what lies in a subspace, given by any vectors that span it, `[d]` or `[d, p]`."""
    u = orthonormal(basis)

    def change(x: Tensor) -> Tensor:
        q = u.to(x)
        return x - (x @ q) @ q.mT

    return change


def within(change: Change, basis: Tensor) -> Change:
    """Of a change only what lies in a subspace: with `zero` it is `project_out`, with `patch` another run's part."""
    u = orthonormal(basis)

    def act(x: Tensor) -> Tensor:
        q = u.to(x)
        return x + ((change(x) - x) @ q) @ q.mT

    return act


def orthonormal(basis: Tensor) -> Tensor:
    """Orthonormal columns, float64, of the space of the columns of `basis`, `[d]` or `[d, p]`."""
    columns = basis.detach().double().reshape(basis.shape[0], -1)
    u, size, _ = torch.linalg.svd(columns, full_matrices=False)
    return u[:, size > size.max() * columns.shape[0] * torch.finfo(torch.float64).eps]


def bound(change: Change, name: str) -> Change:
    """`change` for the place of that name, where it is not the same everywhere, such as `patch`."""
    bind = getattr(change, "bind", None)
    return change if bind is None else bind(name)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class at:
    """A change at some tokens only: `positions` of the n of `[b, n, ...]`. Patch i of an image is token i + prefix."""

    change: Change
    positions: int | slice | Sequence[int]

    def bind(self, name: str) -> Change:
        """The change for a place."""
        change = bound(self.change, name)
        return lambda x: self._only(change(x), x)

    def __call__(self, x: Tensor) -> Tensor:
        """For a change that is the same in every place."""
        return self._only(self.change(x), x)

    def _only(self, new: Tensor, x: Tensor) -> Tensor:
        if new is x:
            return x
        chosen: Any = [self.positions] if isinstance(self.positions, int) else self.positions
        if not isinstance(chosen, slice) and (far := [i for i in chosen if not -x.shape[1] <= i < x.shape[1]]):
            raise ValueError(f"at: there is no token {far[0]} among {x.shape[1]}, which count from 0")
        out = x.clone()
        out[:, chosen] = new[:, chosen]
        return out


def subspace(model: nn.Module, block: str, head: int) -> Tensor:
    """The subspace U_k of a head, `[d, p]`, of a block by its name: for `project_out`, on what enters that block.

    Raises:
        ValueError: no block of that name, no such head, or subspaces that are not known.
    """
    blocks = {
        stack.name(index): module
        for stack in find_stacks(unwrap(model))
        for index, (_, module) in enumerate(stack.blocks)
    }
    if block not in blocks:
        raise ValueError(f"block: {block!r} is not one of {', '.join(blocks)}")
    bases = head_subspaces(blocks[block])
    if not 0 <= head < len(bases):
        raise ValueError(f"head: {head} is not one of the {len(bases)} heads of {block}")
    return bases[head]
