"""Parts of a model switched off, and what becomes of its prediction: `unrolled.edit` behind switches."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unrolled.explorer.models import Opened

if TYPE_CHECKING:
    from torch import Tensor

MOST = 64
"""Parts that may be off at once."""
TOP = 5
_PARTS = re.compile(r"block(\d+)/(attn/head\d+|subspace\d+|attn|mlp)")


def switches(opened: Opened) -> list[str]:
    """The parts that can be switched off, by the names that `unrolled ablate` has for them, in the model's order.

    Heads (what they computed becomes 0), whole halves that add to the tokens (they add nothing), and subspaces (what
    enters the block loses what it has in one). A model whose parts are not understood has none.
    """
    from unrolled.instruments.anatomy import head_subspaces
    from unrolled.instruments.regions.patches import main_stack

    names = [name for name in opened.places if _PARTS.fullmatch(name)]
    stack = main_stack(opened.network)
    for index, (_, block) in enumerate(stack.blocks):
        with contextlib.suppress(ValueError):  # a projection that is not known
            names += [f"{stack.name(index)}/subspace{k}" for k in range(len(head_subspaces(block)))]
    return sorted(names, key=_order)


def predict_without(opened: Opened, pixels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The prediction with parts switched off, beside the one with all of them.

    The catalogue's lock must be held.

    Raises:
        ValueError: a name is none of `switches`, or there are more than `MOST`.
    """
    import torch

    from unrolled.instruments.causal.spots import spots_of
    from unrolled.instruments.editing import Edit
    from unrolled.instruments.edits import project_out, zero

    known = switches(opened)
    if len(names) > MOST or len(set(names)) < len(names):
        raise ValueError(f"off: at most {MOST} parts, each once")
    if bad := [name for name in names if name not in known]:
        raise ValueError(f"off: {opened.choice.label} has no part {bad[0][:60]!r} to switch off")
    changes: dict[str, Any] = {}
    bases: dict[str, list[Tensor]] = {}
    for spot in spots_of(opened.network, opened.places, names) if names else []:
        if spot.basis is None:
            changes[spot.place] = zero
        else:
            bases.setdefault(spot.place, []).append(spot.basis)
    # several subspaces of one block: their sum is removed, as they need not be at right angles
    changes |= {place: project_out(torch.cat(columns, -1)) for place, columns in bases.items()}
    where = next(opened.network.parameters())
    images = pixels.to(where.device)
    with torch.no_grad():
        before = _shares(opened.network(images))
        if not changes:
            after = before
        else:
            with Edit(opened.network, changes, places=opened.places):
                after = _shares(opened.network(images))
    if not bool(after.isfinite().all()):
        raise ValueError("off: without these parts the model's answer is not finite; switch fewer off")
    best = [values.argsort(descending=True)[:TOP].tolist() for values in (before, after)]
    shown = sorted(dict.fromkeys(best[0] + best[1]), key=lambda i: -float(before[i]))
    return {
        "off": list(names),
        "classes": [
            {"name": opened.name_of(i), "before": round(float(before[i]), 5), "after": round(float(after[i]), 5)}
            for i in shown
        ],
        "top": [opened.name_of(order[0]) for order in best],
    }


def _shares(output: Any) -> Tensor:
    return getattr(output, "logits", output)[0].double().softmax(-1)  # type: ignore[no-any-return]


def _order(name: str) -> tuple[int, int, int]:
    """By block; heads, the halves, subspaces; by number."""
    match = _PARTS.fullmatch(name)
    assert match is not None
    kind, number = re.fullmatch(r"(.*?)(\d*)", match[2]).groups()  # type: ignore[union-attr]
    return int(match[1]), ("attn/head", "attn", "mlp", "subspace").index(kind), int(number or 0)
