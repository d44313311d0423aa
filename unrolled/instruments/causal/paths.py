"""Patches to first order, along one path, and what the head would say of every layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unrolled.instruments.anatomy import find_stacks, unwrap
from unrolled.instruments.causal.effects import Effects
from unrolled.instruments.causal.scores import check_read
from unrolled.instruments.causal.spots import HALVES, Positions, at_positions, order, prefixes, spots_of
from unrolled.instruments.causal.store import ScoreStore
from unrolled.instruments.causal.sweeps import (
    CLEAN,
    PLAIN,
    PlaceValues,
    Score,
    Scores,
    as_scores,
    call,
    scores_of,
    values_at,
)
from unrolled.instruments.editing import Change, Edit, places_of
from unrolled.instruments.edits import patch
from unrolled.instruments.trace import trace
from unrolled.modes import evaluating


def attribution(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any, Any]],
    score: Score,
    places: str | Sequence[str] = HALVES,
    *,
    positions: Positions = None,
    seed: int = 0,
) -> Effects:
    """`patching` to first order, all places in two forward passes and one backward: gradient times difference.

    Args:
        model, batches, score, places, positions, seed: as in `patching`; samples of a batch must not depend on each
            other.

    Returns:
        The change of the score that each patch would make if the score were linear in it; no controls. `agreement` of
        `patching`'s effects with these says how far that holds.

    Raises:
        ValueError: as `patching`, or a score without a gradient, such as accuracy.
    """
    known = places_of(model)
    wide = spots = spots_of(model, known, places)
    names = {spot.place for spot in wide}
    plain: list[np.ndarray] = []
    goal: list[np.ndarray] = []
    changes: dict[str, list[np.ndarray]] = {}
    with evaluating(model):
        for clean, corrupted, targets in batches:
            with torch.no_grad():
                out, source = values_at(model, known, names, clean)
                goal.append(scores_of(score, out, targets, clean))
            with torch.enable_grad():
                out, here = values_at(model, known, names, corrupted, leaves=True)
                check_read(score, out, corrupted)
                values = score(out, targets)
                total = values.sum()
            plain.append(as_scores(values))
            if not values.requires_grad:
                raise ValueError("score: has no gradient; take one that is smooth, such as a logit or a probability")
            wholes = list(here.whole.values())
            slopes = torch.autograd.grad(total, wholes, allow_unused=True)
            filled = [torch.zeros_like(x) if g is None else g for g, x in zip(slopes, wholes, strict=True)]
            gradients = PlaceValues(known, dict(zip(here.whole, filled, strict=True)))
            spots = at_positions(wide, positions, wholes[0].shape[1] if positions is not None else 0)
            for spot in spots:
                moved = spot.of(source[spot.place] - here[spot.place].detach())
                each = (gradients[spot.place] * moved).flatten(1).double().sum(1)
                changes.setdefault(spot.name, []).append(np.asarray(each.cpu().numpy()))
    if not plain:
        raise ValueError("batches: holds none; give at least one")
    return Effects.of(
        {spot.name: np.concatenate(changes[spot.name]) for spot in spots}, {}, np.concatenate(plain),
        np.concatenate(goal), seed=seed,
    )  # fmt: skip


def path_patching(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any, Any]],
    score: Score,
    sender: str,
    receivers: str | Sequence[str] = HALVES,
    *,
    together: bool = False,
    seed: int = 0,
    store: ScoreStore | None = None,
) -> Effects:
    """What `sender` does to the score through each receiver alone.

    The sender is patched from the clean run into the corrupted one while every other half of a block that adds to the
    tokens, but for the receiver, stays as it was; what the receiver then is, is patched into a run of its own. ISTA
    replaces the tokens, so that it is on every path: it is computed from what comes to it.

    Args:
        model, batches, score, seed, store: as in `patching`.
        sender: a place, such as a head.
        receivers: places behind it; of patterns with wildcards those that are.
        together: all receivers at once, as one row.

    Raises:
        ValueError: as `patching`; a receiver that the sender does not come before.
    """
    known = places_of(model)
    starts = spots_of(model, known, sender)
    if len(starts) != 1:
        raise ValueError(f"sender: {sender} is {len(starts)} places; name one")
    start = starts[0]
    given = [receivers] if isinstance(receivers, str) else list(receivers)
    names = [spot.place for spot in spots_of(model, known, given)]
    stacks = prefixes(model)
    for receiver in names:
        if receiver in given and order(receiver, stacks) <= order(start.place, stacks):
            raise ValueError(f"receivers: {receiver} does not come after {start.place}")
    names = [name for name in names if order(name, stacks) > order(start.place, stacks)]
    if not names:
        raise ValueError(f"receivers: none of {', '.join(given)} comes after {start.place}")
    groups = [names] if together else [[name] for name in names]
    named = {" + ".join(group): group for group in groups}
    halves = [n for n in known if re.fullmatch(r".*block\d+/(attn|cross|mlp)", n)]
    frozen = [n for n in halves if not _same_half(n, start.place)]
    scores = Scores(model, ScoreStore() if store is None else store)
    with torch.no_grad(), evaluating(model):
        for clean, corrupted, targets in batches:
            if scores.has(clean, corrupted, targets, [PLAIN, CLEAN, *named]):
                continue
            out, source = values_at(model, known, [start.place], clean)
            scores.add(CLEAN, scores_of(score, out, targets, clean))
            out, base = values_at(model, known, {*halves, *names}, corrupted)
            before = scores_of(score, out, targets, corrupted)
            scores.add(PLAIN, before)
            sent = {start.place: start.change(patch(source))}
            for name, group in named.items():
                if not scores.known(name):
                    through = _received(model, group, frozen, base, sent, corrupted)
                    with Edit(model, {each: patch(through) for each in group}, places=known):
                        scores.add(name, scores_of(score, call(model, corrupted), targets, corrupted) - before)
    rows = {name: scores.column(name) for name in named}
    return Effects.of(rows, {}, scores.column(PLAIN), scores.column(CLEAN), seed=seed)


def _received(
    model: nn.Module, group: Sequence[str], halves: Sequence[str], base: Any, sent: dict[str, Change], inputs: Any
) -> Mapping[str, Tensor]:
    """What the receivers are when all halves that are no part of them stay as they were."""
    known = places_of(model)
    stacks = prefixes(model)
    last = max(order(each, stacks) for each in group)
    frozen = [n for n in halves if order(n, stacks) <= last and not any(_same_half(n, receiver) for receiver in group)]
    held: dict[str, Change] = {name: patch(base) for name in frozen}
    with Edit(model, {**held, **sent}, places=known):
        return values_at(model, known, group, inputs)[1]


def _same_half(half: str, place: str) -> bool:
    """Whether a place is a half of a block, a part of it, or the whole block."""
    return half == place or place.startswith(f"{half}/") or half.startswith(f"{place}/")


def logit_lens(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """What the head would say of the tokens between the blocks: logits of every `embed` and `blockNN`.

    Args:
        model: a classifier of timm (`forward_head` after the final norm), or a language model with a final norm and a
            head.
        inputs: given to the model, as keywords if they are a mapping.

    Raises:
        ValueError: the model has no head that tokens can be given.
    """
    inner: Any = unwrap(model)
    with torch.no_grad(), evaluating(model):
        with trace(model) as t:
            call(model, inputs)
        tokens = {name: t[name] for name in t if re.fullmatch(r"embed|block\d+", name)}
        norm = next((module for name, module in _finals(inner) if name == "norm"), nn.Identity())
        head = next((module for name, module in _finals(inner) if name == "head"), None)
        if head is None or not tokens:
            raise ValueError("model: has no single stack of blocks with a head that reads its tokens")
        if callable(getattr(inner, "forward_head", None)):
            return {name: inner.forward_head(norm(z)) for name, z in tokens.items()}
        return {name: head(norm(z)) for name, z in tokens.items()}


def _finals(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from unrolled.instruments.anatomy import final_sites

    yield from final_sites(model, find_stacks(model))
