"""Where a sweep changes a model: places of `unrolled.edit`, subspaces, and single positions of either."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unrolled.instruments.anatomy import find_stacks, head_subspaces, unwrap
from unrolled.instruments.editing import Change, Edit, Places
from unrolled.instruments.edits import at, bound, orthonormal, within, zero

HALVES = ("block??", "block*/attn", "block*/mlp", "block*/ista")
"""Blocks and their halves, of those that a model has."""
Positions = Sequence[int] | Literal["each"] | None
"""Tokens that are changed one at a time, from the end if negative; `"each"` of them; None: all together."""


@dataclass(frozen=True)
class Spot:
    """One place of a sweep.

    Attributes:
        name: what results call it: `block03/attn/head2`, `block03/subspace1`, `block05@12`.
        place: the name of `unrolled.edit`.
        basis: only what lies in the space of these columns `[d, p]` is changed.
        position: only this token is.
    """

    name: str
    place: str
    basis: Tensor | None = field(default=None, compare=False, repr=False)
    position: int | None = None

    def change(self, change: Change) -> Change:
        """`change` at this spot."""
        changed = bound(change, self.place)
        if self.basis is not None:
            changed = within(changed, self.basis)
        return changed if self.position is None else at(changed, self.position)

    def of(self, value: Tensor) -> Tensor:
        """What of a difference at the place is of this spot."""
        return self.change(lambda x: value)(torch.zeros_like(value))


def spots_of(model: nn.Module, known: Places, places: str | Sequence[str]) -> list[Spot]:
    """The spots that patterns mean, all positions together, in the order of the model.

    `blockNN/subspaceK` is U_K of a block (`head_subspaces`), in the tokens that enter it.

    Raises:
        ValueError: a pattern matches nothing, but for one of `HALVES`; the nearest names are given.
    """
    patterns = [places] if isinstance(places, str) else list(places)
    spots = {name: Spot(name, name) for name in known if _matches(name, patterns)}
    if any("subspace" in pattern for pattern in patterns):
        for spot in _subspaces(model):
            if _matches(spot.name, patterns):
                spots[spot.name] = spot
    for pattern in patterns or [""]:
        missing = not any(fnmatchcase(name, pattern) for name in spots)
        if missing and not (spots and tuple(patterns) == HALVES):  # models have one kind of second half or the other
            if "subspace" in pattern:
                raise ValueError(f"places: {pattern!r} matches no subspace; they are called block00/subspace0")
            try:  # a module's path, or says what is near
                paths = Edit(model, {pattern: zero}, places=known).names
            except ValueError as error:
                raise ValueError(f"places: {str(error).removeprefix('edits: ')}") from None
            spots |= {name: Spot(name, name) for name in paths}
    stacks = prefixes(model)
    return sorted(spots.values(), key=lambda spot: order(spot.name, stacks))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def at_positions(spots: Sequence[Spot], positions: Positions, tokens: int) -> list[Spot]:
    """Every spot at every position by itself.

    Raises:
        ValueError: there is no such token.
    """
    if positions is None:
        return list(spots)
    chosen = range(tokens) if positions == "each" else positions
    for position in chosen:
        if not -tokens <= int(position) < tokens:
            raise ValueError(f"positions: there is no token {position} among {tokens}, which count from 0")
    return [replace(spot, name=f"{spot.name}@{each}", position=int(each)) for spot in spots for each in chosen]


def order(name: str, stacks: Sequence[str]) -> tuple[int, float, int]:
    """Where a place stands in a model: by stack, block, what enters it, attention, the second half, the whole block.

    Args:
        name: of the place.
        stacks: prefixes of the model's stacks, in their order; what is in none comes after them, but for an embedding.
    """
    within = next((index for index, prefix in enumerate(stacks) if prefix and name.startswith(prefix)), None)
    if within is None:
        within = stacks.index("") if "" in stacks else -1 if "embed" in name else len(stacks)
    return (within, *_order_in_stack(name))


def _order_in_stack(name: str) -> tuple[float, int]:
    match = re.search(r"block(\d+)(?:/(subspace|attn|half|cross|mlp|ista))?", name)
    if match is None:
        return (-1, 0) if re.search(r"embed", name) or not re.search(r"(norm|head)$", name) else (float("inf"), 0)
    return int(match[1]), {"subspace": -1, "attn": 0, "half": 1, "cross": 1, "mlp": 2, "ista": 2, None: 3}[match[2]]


def prefixes(model: nn.Module) -> list[str]:
    """Of a model's stacks, in their order: an encoder's before its decoder's."""
    return [stack.prefix for stack in find_stacks(unwrap(model))]


def _subspaces(model: nn.Module) -> list[Spot]:
    spots = []
    for stack in find_stacks(unwrap(model)):
        for index, (_, block) in enumerate(stack.blocks):
            entering = f"{stack.prefix}embed" if index == 0 else stack.name(index - 1)
            bases: Any = head_subspaces(block)
            for head, basis in enumerate(bases):
                spots.append(Spot(f"{stack.name(index)}/subspace{head}", entering, orthonormal(basis)))
    return spots
