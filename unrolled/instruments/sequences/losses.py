"""What a language model says of the tokens that come: cross-entropy by token, in memory that is bounded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Target of a token that does not count."""
_ROWS = 2048  # of logits at a time: with 50,000 tokens, 0.4 GB in float32


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every token in nats, `[b, n]` float32, of logits `[b, n, v]` and ids `[b, n]`; 0 where ignored.

    Rows are taken some at a time, so that beside the logits there is no second tensor of their size, in any precision.
    """
    flat, wanted = logits.flatten(0, -2), targets.flatten()
    losses = [
        F.cross_entropy(rows.float(), ids, ignore_index=IGNORED, reduction="none")
        for rows, ids in zip(flat.split(_ROWS), wanted.split(_ROWS), strict=True)
    ]
    return torch.cat(losses).reshape(targets.shape)
