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
from unrolled.instruments.sites import first_tensor
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

    The tokens pass the final norm, the head, and what the model's configuration then does to its logits: a scale
    (Granite, Cohere) or a soft cap (Gemma 2).

    Args:
        model: a classifier of timm (`forward_head` after the final norm), or a language model with a final norm and a
            head.
        inputs: given to the model, as keywords if they are a mapping.

    Raises:
        ValueError: the model has no head that tokens can be given, or does more between its last block and its logits
            than is known here: of the last block the lens must say what the model says.
    """
    inner: Any = unwrap(model)
    with torch.no_grad(), evaluating(model):
        finals = list(_finals(inner))
        norm = next((module for name, module in finals if name == "norm"), nn.Identity())
        head = next((module for name, module in finals if name == "head"), None)
        stacks = find_stacks(inner)
        if head is None or [stack.prefix for stack in stacks] != [""]:
            raise ValueError("model: has no single stack of blocks with a head that reads its tokens")
        names = ["embed", *(stacks[0].name(index) for index in range(len(stacks[0].blocks)))]
        with trace(model, patterns=names) as t:
            out = call(model, inputs)
        if len({t[name].shape[-1] for name in t}) > 1:
            raise ValueError(f"model: tokens of {type(inner).__name__} change their width, and its head reads the last")
        if callable(getattr(inner, "forward_head", None)):
            logits = {name: inner.forward_head(norm(t[name])) for name in t}
        else:
            logits = {name: _as_configured(inner, head(norm(t[name]))) for name in t}
        last = first_tensor(getattr(out, "logits", out))
        if last is None or names[-1] not in logits or not _says(logits[names[-1]], last):
            raise ValueError(
                f"model: {type(inner).__name__} does more between its last block and its logits than a norm and a "
                "head: the lens of its last block is not what it says; trace its blocks and apply its own head to them"
            )
        return logits


def _as_configured(model: Any, logits: Tensor) -> Tensor:
    """Logits as the model's configuration scales or caps what the head returns."""
    config = getattr(model, "config", None)
    divisor, scale, cap = (
        getattr(config, name, None) for name in ("logits_scaling", "logit_scale", "final_logit_softcapping")
    )
    logits = logits * ((scale or 1.0) / (divisor or 1.0))
    return (logits / cap).tanh() * cap if cap else logits


def _says(lens: Tensor, logits: Tensor) -> bool:
    """Whether the lens of the last block is the model's logits, or those of a token or of the mean where it has one."""
    if lens.shape == logits.shape:
        pairs = lens[:, None], logits[:, None]
    elif lens.dim() == 3 and logits.dim() == 2 and (len(lens), lens.shape[-1]) == tuple(logits.shape):
        pairs = torch.cat([lens, lens.mean(1, keepdim=True)], 1), logits[:, None]
    else:
        return False
    away = (pairs[0] - pairs[1]).double().flatten(2).norm(dim=2).amin(1)
    return bool((away <= 1e-2 * pairs[1].double().flatten(1).norm(dim=1)).all())


def _finals(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from unrolled.instruments.anatomy import final_sites

    yield from final_sites(model, find_stacks(model))
