"""What a comparison of two says in words: which layers agree, and how much of it comes without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unrolled.alignment import Comparison
    from unrolled.commands.align.twins import Twin

FIRST_LAYERS = (
    "First layers are still close to the pixels (of texts, to the words), and agree between almost any two models, "
    "trained or not"
)
RANDOM = (
    "Random weights agree with trained ones and with each other far beyond chance, since they pass on what is near."
)


def layer_words(result: Comparison, metric: str) -> str:
    """Where among the layers the best pair stands, and how the score runs along both sides; empty for one of each."""
    (rows, columns), best = result.layers, result.best
    if len(rows) == len(columns) == 1:
        return ""
    where = [rows.index(best[0]), columns.index(best[1])]
    enough = [len(names) > 2 for names in (rows, columns)]  # of one or two, none is first in this sense
    early = [some and 3 * i < len(names) for some, i, names in zip(enough, where, (rows, columns), strict=True)]
    if any(early):
        which = "Both are" if all(early) else f"{best[early.index(True)]} of {'AB'[early.index(True)]} is"
        verdict = f"{which} among the first layers. {FIRST_LAYERS}, so this says little of what was learned."
    elif not all(enough):
        few = "both sides" if not any(enough) else "AB"[enough.index(False)]
        verdict = (
            f"{FIRST_LAYERS}; {few} {'have' if not any(enough) else 'has'} too few to tell how far up this pair is."
        )
    else:
        verdict = f"Neither is among the first layers. {FIRST_LAYERS}; this pair is further up."
    along = run_words(result, metric)
    return f"{best[0]} of A and {best[1]} of B agree best by {metric}. {verdict}{' ' * bool(along)}{along}"


def run_words(result: Comparison, metric: str) -> str:
    """How the score runs along the layers of both sides, and that of the last two; empty of one each."""
    import numpy as np

    (rows, columns), best = result.layers, result.best
    scores = result.scores.double().cpu().numpy()
    closest = np.nanmax if _higher_is_closer(metric) else np.nanmin
    runs = [
        f"along {side} from {closest(first):.3g} ({names[0]}) to {closest(last):.3g} ({names[-1]})"
        for side, names, first, last in (
            ("A", rows, scores[0], scores[-1]),
            ("B", columns, scores[:, 0], scores[:, -1]),
        )
        if len(names) > 1 and np.isfinite(first).any() and np.isfinite(last).any()
    ]
    ends = f"The last layers of both, {rows[-1]} and {columns[-1]}, have {scores[-1, -1]:.3g}." * bool(
        np.isfinite(scores[-1, -1]) and best != (rows[-1], columns[-1])
    )
    run = f"The best score of a layer goes {', '.join(runs)}." if runs else ""
    return " ".join(filter(None, (run, ends)))


def training_words(result: Comparison, metric: str, place: int, twins: Sequence[Twin], random: Sequence[str]) -> str:
    """What part of the score comes without training.

    Args:
        result: of the two sides.
        metric: its name.
        place: of the metric among those of the twins.
        twins: the sides with fresh weights.
        random: the sides, "A" or "B", that have random weights themselves.
    """
    parts = []
    if random and place == 0:
        which = f"{random[0]} has" if len(random) == 1 else "Both sides have"
        parts.append(f"{which} random weights: nothing was learned there. {RANDOM}")
    if twins:
        values = " and ".join(
            f"{twin.scores[place]:.3g} with {twin.side} untrained (the same architecture, fresh weights)"
            if i == 0
            else f"{twin.scores[place]:.3g} with {twin.side} untrained"
            for i, twin in enumerate(twins)
        )
        parts.append(f"The score of {result.score:.3g} stands beside {values}.")
        sign = 1.0 if _higher_is_closer(metric) else -1.0
        nearest = max(sign * twin.scores[place] for twin in twins)
        beyond = sign * (result.score - result.chance)
        if nearest >= sign * result.score:
            parts.append("An untrained twin agrees as well: this is no sign that training made the two alike.")
        elif beyond > 0:
            share = max(0.0, (nearest - sign * result.chance) / beyond)
            parts.append(f"So {share:.0%} of what lies beyond chance comes without training.")
    return " ".join(parts)


def _higher_is_closer(metric: str) -> bool:
    from unrolled.alignment.registry import get_metric

    return get_metric(metric).higher_is_closer
