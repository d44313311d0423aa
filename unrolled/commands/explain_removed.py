"""What `unrolled explain` says of heads that are really removed, beside their exact terms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from unrolled.reading import Json

if TYPE_CHECKING:
    from unrolled.instruments.causal import Removed
    from unrolled.report import Report

_MOST = 5  # heads that are told as having parted


def removed_record(removed: Removed | None) -> Json | None:
    """For `report.json`: a row for each head and half, and how well terms and losses agree."""
    if removed is None:
        return None
    rows = [
        {"layer": layer, "head": head, "kind": kind, "term": float(term), "lost": float(lost), "random": float(random)}
        for layer, head, kind, term, lost, random in zip(
            removed.layer, removed.head, removed.kind, removed.term, removed.lost, removed.random, strict=True
        )
    ]
    return {"rows": rows, **removed.agreement()}


def removed_sentence(removed: Removed | None) -> str:
    """What was found, in a sentence or two."""
    if removed is None:
        return "Heads of this model have no names that can be changed, so none was removed."
    agreement, heads = removed.agreement(), removed.of_heads()
    if not heads.any():
        return "The terms of this model's attention are not split into heads, so no head was removed by itself."
    if math.isnan(agreement["rank_correlation"]):
        return "This model has too few heads, or their losses are all equal, so terms and losses are not ranked."
    gap = np.abs(removed.term[heads] - removed.lost[heads]).mean()
    return (
        f"When each of the {heads.sum()} heads is really removed by itself, what the logit loses ranks like the heads' "
        f"terms with a correlation of {agreement['rank_correlation']:+.2f} (a random change as large: "
        f"{agreement['random']:+.2f}); signs are equal for {agreement['same_sign']:.0%}. Term and loss are "
        f"{gap:.3f} apart on average, terms {np.abs(removed.term[heads]).mean():.3f} from 0."
    )


def add_removed(report: Report, removed: Removed | None) -> None:
    """The section of heads that are removed."""
    from unrolled.instruments.causal.terms import parted
    from unrolled.report import HeatMap

    section = report.section("When heads are removed", removed_sentence(removed))
    if removed is None:
        return
    section.text(
        "A head's term is what it wrote, read by the classifier with everything behind it held as it was. Remove the "
        "head, and everything behind it reacts: later attention looks elsewhere, norms rescale what is left, ISTA's "
        "zeros and MLPs change. Where term and loss are equal, nothing behind the head depended on it; a loss far "
        "above the term means that later layers built on the head; one of the other sign, that they make up for it."
    )
    heads = removed.of_heads()
    if heads.any():
        layers = sorted({layer for layer, head in zip(removed.layer, heads, strict=True) if head})
        columns = 1 + max(int(head) for head in removed.head if head is not None)
        panels = []
        for title, values in (("Exact term", removed.term), ("Lost when the head is removed", removed.lost)):
            table = np.full((len(layers), columns), np.nan)
            for layer, head, value in zip(removed.layer, removed.head, values, strict=True):
                if head is not None:
                    table[layers.index(layer), head] = value
            panels.append(
                HeatMap(
                    title=title, values=table, rows=[str(layer) for layer in layers],
                    columns=[str(head) for head in range(columns)], row_label="layer", column_label="head", signed=True,
                )
            )  # fmt: skip
        section.figure(panels, name="removed", caption="In units of the logit; each map has a scale of its own.")
        apart = ", ".join(
            f"layer {layer} head {head} (term {term:+.3f}, lost {lost:+.3f})"
            for layer, head, term, lost in parted(removed)[:_MOST]
        )
        section.text(f"Farthest apart: {apart}. This is one picture; the study `crate-attribution` takes many.")
    names = {"attn": "attention", "mlp": "MLP"}
    section.table(
        ["layer", "part", "exact term", "lost when removed", "lost by a random change"],
        [
            [layer, names[kind] if head is None else f"head {head}", float(term), float(lost), float(random)]
            for layer, head, kind, term, lost, random in zip(
                removed.layer, removed.head, removed.kind, removed.term, removed.lost, removed.random, strict=True
            )
        ],
        caption="Lost when removed: the logit less the logit with that part set to zero, by itself. Random change: as "
        "far at every token, in a random direction. ISTA is not removed: it replaces the tokens.",
    )
