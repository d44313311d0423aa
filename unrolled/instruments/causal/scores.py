"""What a sweep looks at: one number a sample, by name. A function of (output, targets) of one's own does as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unrolled.instruments.causal.attending import marked_jaccard
from unrolled.instruments.sequences.losses import IGNORED, token_nats


@dataclass(frozen=True)
class Named:
    """A score.

    Attributes:
        score: of (what the model returns, targets).
        words: what it is, with its unit.
    """

    score: Callable[[Any, Any], Tensor]
    words: str


def logits_of(output: Any) -> Tensor:
    """The logits that a model returned.

    Raises:
        ValueError: it returned none.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(f"model: returns a {type(output).__name__} without logits")
    return logits


def accuracy(output: Any, targets: Tensor) -> Tensor:
    """1 where the right answer has the highest logit, else 0."""
    logits, right, _ = _answers(output, targets)
    return (logits.argmax(-1) == right).double()


def probability(output: Any, targets: Tensor) -> Tensor:
    """Of the right answer."""
    return (-loss(output, targets)).exp()


def loss(output: Any, targets: Tensor) -> Tensor:
    """Cross-entropy of the right answer, in nats."""
    logits, right, _ = _answers(output, targets)
    return -logits.double().log_softmax(-1).gather(-1, right[:, None])[:, 0]


def logit(output: Any, targets: Tensor) -> Tensor:
    """Of the right answer."""
    logits, right, _ = _answers(output, targets)
    return logits.double().gather(-1, right[:, None])[:, 0]


def logit_difference(output: Any, targets: Tensor) -> Tensor:
    """Logit of the right answer less that of the other one, or of the best other one where none is named."""
    logits, right, other = _answers(output, targets)
    logits = logits.double()
    if other is None:
        rest = logits.scatter(-1, right[:, None], -math.inf).amax(-1)
    else:
        rest = logits.gather(-1, other[:, None])[:, 0]
    return logits.gather(-1, right[:, None])[:, 0] - rest


def _answers(output: Any, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits `[b, classes]`, of a language model those after the last token, the right answers, and other ones."""
    logits = logits_of(output)
    logits = logits[:, -1] if logits.dim() == 3 else logits
    targets = torch.as_tensor(targets, device=logits.device)
    if int(targets.max()) >= logits.shape[-1]:
        raise ValueError(f"targets: class {int(targets.max())} is none of the {logits.shape[-1]} that the model has")
    if targets.dim() == 2:
        return logits, targets[:, 0], targets[:, 1]
    return logits, targets, None


_OF_ANSWERS = (accuracy, probability, loss, logit, logit_difference)


def check_read(score: Callable[[Any, Any], Tensor], output: Any, inputs: Any) -> None:
    """That the last position, which scores of answers read of a language model, is no padding.

    Args:
        score: any; only those of answers are checked.
        output: of the model.
        inputs: of the model.

    Raises:
        ValueError: it is, by the attention mask among the inputs.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if (
        score not in _OF_ANSWERS
        or not isinstance(logits, Tensor)
        or logits.dim() != 3
        or not isinstance(inputs, Mapping)
    ):
        return
    side = "decoder_" if "decoder_input_ids" in inputs else ""
    mask = inputs.get(f"{side}attention_mask")
    if isinstance(mask, Tensor) and mask.shape == logits.shape[:2] and not bool(mask[:, -1].all()):
        raise ValueError(
            f"batches: {side}attention_mask says that some texts end in padding, where this score would read the "
            "answer; pad them on the left, or give texts of one length at a time"
        )


def of_tokens(output: Any, targets: tuple[Tensor, float]) -> Tensor:
    """Nats of all tokens of each text times a factor, see `per_unit`: (ids [b, n], of which the first is only read)."""
    ids, factor = targets
    logits = logits_of(output)
    # the last one predicts nothing; leaving it out of the logits would copy them
    following = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORED).to(logits.device)
    nats = token_nats(logits, following).double().sum(-1)
    return nats * factor


def per_unit(counts: Sequence[int], *, bits: bool = False) -> float:
    """For `of_tokens`: the factor that makes its mean over texts their nats per token, or bits per byte.

    Args:
        counts: tokens, or bytes, that are predicted in each of all texts.
        bits: in place of nats.
    """
    return len(counts) / (sum(counts) * (math.log(2) if bits else 1.0))


SCORES = {
    "accuracy": Named(accuracy, "accuracy"),
    "probability": Named(probability, "probability of the right answer"),
    "logit": Named(logit, "logit of the right answer"),
    "logit-difference": Named(logit_difference, "logit of the right answer less that of another"),
    "loss": Named(loss, "loss (nats)"),
    "bits-per-byte": Named(of_tokens, "bits per byte"),
    "jaccard": Named(marked_jaccard, "Jaccard index of the attention with what is marked"),
    "nats-per-token": Named(of_tokens, "loss (nats per token)"),
}
"""By name."""
