"""What `unrolled trace` says of a language model's context: the loss by position, and whether layers descend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unrolled.harness import Answer
from unrolled.reading import Json

if TYPE_CHECKING:
    import torch

    from unrolled.subjects.texts import TextReader, Texts

_FEWEST, _SHORTEST = 8, 20
_WIDEST = 256  # the exact minimiser of every context is a solve in this dimension
_PAIRS, _MOST = 4, 64


def in_context(reader: TextReader, texts: Texts, where: torch.device, batch_size: int) -> Json:
    """`in_context_score` and `mesa_descent` where they apply, under `context` and `descent`; else `..._note`, why not.

    The score compares the loss in the tenth part of the sequence that follows the first with that in its last tenth.
    """
    import torch
    from torch import nn

    from unrolled.instruments import in_context_score, mesa_descent

    if not reader.causal:
        why = "this model does not predict the next token from those before"
        return {"context_note": why, "descent_note": why}
    length = len(texts.ids[0])
    if not texts.whole or len(texts.ids) < _FEWEST or length < _SHORTEST:
        why = f"it needs at least {_FEWEST} windows of at least {_SHORTEST} tokens of a corpus (--data)"
        return {"context_note": why, "descent_note": why}
    ids, model = torch.stack(texts.ids).to(where), reader.module.to(where)
    tenth = max(1, length // 10)
    late = length - 1 - tenth
    scores = in_context_score(model, ids, early=tenth, late=late, window=tenth, batch_size=batch_size)
    result: Answer = {"context": {**scores, "early_position": tenth, "late_position": late}}
    width = next((part.embedding_dim for part in model.modules() if isinstance(part, nn.Embedding)), 0)
    if width > _WIDEST:
        return {**result, "descent_note": f"tokens of width {width} are more than the {_WIDEST} it is computed for"}
    try:
        result["descent"] = mesa_descent(model, ids[:_MOST], pairs=_PAIRS, batch_size=batch_size)
    except ValueError as error:
        result["descent_note"] = str(error)
    return result


def context_sentences(result: Answer) -> list[str]:
    """The findings in words."""
    sentences = []
    if (context := result.get("context")) is not None:
        sentences.append(
            f"in-context score {context['score']:+.4f} ± {context['standard_error']:.2g} nats a token: loss "
            f"{context['early']:.4f} from position {context['early_position']} on, {context['late']:.4f} from position "
            f"{context['late_position']} on (below 0: the context helps)"
        )
    if (descent := result.get("descent")) is not None:
        first, last, least = descent[0], descent[-2], descent[-1]
        sentences.append(
            f"mesa-objective of its own context, {first['layer']} -> {last['layer']}: {first['context']:.3f} -> "
            f"{last['context']:.3f} (exact minimiser {least['context']:.3f}; of another context {last['foreign']:.3f})"
        )
    return sentences
