"""Exact terms of a logit beside what happens when the head or half that a term is of is really removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from unrolled.instruments.anatomy import unwrap
from unrolled.instruments.causal.scores import logits_of
from unrolled.instruments.causal.sweeps import ablate
from unrolled.instruments.editing import places_of
from unrolled.instruments.explain import Explanation
from unrolled.instruments.regions.patches import main_stack


@dataclass(frozen=True)
class Removed:
    """What the explained logit loses without a head, or a half that adds to the tokens; one row each.

    Attributes:
        layer: of each row.
        head: of each row; None: the whole half.
        kind: `"attn"` or `"mlp"`.
        term: the exact term of `explain_logit`.
        lost: the logit less the logit when it is removed: equal to the term if nothing else reacted.
        random: the same for a change in a random direction, as large at every token.
    """

    layer: tuple[int, ...]
    head: tuple[int | None, ...]
    kind: tuple[str, ...]
    term: np.ndarray
    lost: np.ndarray
    random: np.ndarray

    def of_heads(self) -> np.ndarray:
        """Which rows are heads, bool."""
        return np.array([head is not None for head in self.head], bool)

    def agreement(self) -> dict[str, float]:
        """Of heads: Spearman's correlation of term and loss, and with the random change; share of equal signs.

        NaN of fewer than three heads.
        """
        from scipy.stats import spearmanr

        heads = self.of_heads()
        if heads.sum() < 3:
            return dict.fromkeys(("rank_correlation", "random", "same_sign"), float("nan"))
        term, lost, random = self.term[heads], self.lost[heads], self.random[heads]
        return {
            "rank_correlation": float(spearmanr(term, lost).statistic),
            "random": float(spearmanr(term, random).statistic),
            "same_sign": float((np.sign(term) == np.sign(lost)).mean()),
        }


def removed(model: nn.Module, image: Tensor, explanation: Explanation, *, seed: int = 0) -> Removed | None:
    """Remove every head, attention and MLP by itself, `unrolled.edit`'s zero, and see what the explained logit loses.

    What ISTA does is left out: it replaces the tokens, and nothing would be left without it.

    Args:
        model, image: what `explain_logit` was given.
        explanation: what it returned.
        seed: of the random changes.

    Returns:
        None where the heads and halves of the model have no names that can be changed.
    """
    stack = main_stack(unwrap(model))
    known = places_of(model)
    rows: dict[str, tuple[int, int | None, str, float]] = {}
    for half in explanation.halves:
        if half.replaces:
            continue
        name = f"{stack.name(half.layer)}/{half.kind}"
        for head, term in enumerate([] if half.heads is None else half.heads.tolist()):
            rows[f"{name}/head{head}"] = (half.layer, head, half.kind, term)
        rows[name] = (half.layer, None, half.kind, half.total)
    rows = {name: row for name, row in rows.items() if name in known}
    if not rows:
        return None
    target, against = explanation.target, explanation.against

    def logit(output: Any, _: Any) -> Tensor:
        logits = logits_of(output).double()
        return logits[:, target] - (0 if against is None else logits[:, against])

    effects = ablate(model, [(image, None)], logit, list(rows), seed=seed)
    changed = {row.name: row for row in effects}
    return Removed(
        layer=tuple(layer for layer, *_ in rows.values()),
        head=tuple(head for _, head, *_ in rows.values()),
        kind=tuple(kind for _, _, kind, _ in rows.values()),
        term=np.array([term for *_, term in rows.values()]),
        lost=np.array([-changed[name].change for name in rows]),
        random=np.array([-changed[name].control for name in rows]),
    )


def parted(removed: Removed) -> list[tuple[int, int, float, float]]:
    """Heads (layer, head, term, lost) in the order of how far term and loss are apart, the farthest first."""
    heads = np.flatnonzero(removed.of_heads())
    order = heads[np.argsort(-np.abs(removed.term[heads] - removed.lost[heads]), kind="stable")]
    return [
        (removed.layer[i], int(removed.head[i] or 0), float(removed.term[i]), float(removed.lost[i])) for i in order
    ]
