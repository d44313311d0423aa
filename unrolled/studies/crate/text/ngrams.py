"""Interpolated n-gram models of bytes: what counting does, beside what a network learns."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LONGEST = 6


class NGrams:
    """Byte n-gram probabilities with Witten-Bell smoothing (IEEE Trans. Inf. Theory 37, 1991), orders 1 to `LONGEST`.

    An order is mixed with the one below by how often its context led to something new; order 1 is mixed with the
    uniform distribution.
    """

    def __init__(self, tokens: Tensor) -> None:
        """Count.

        Args:
            tokens: bytes of the training text, integers [n] below 256.
        """
        values = tokens.numpy().astype(np.int64)
        if len(values) <= LONGEST:
            raise ValueError(f"tokens: {len(values)} bytes are fewer than an n-gram has; give a longer text")
        self._tables = []
        for order in range(1, LONGEST + 1):
            grams, seen = np.unique(gram_codes(values, order), return_counts=True)
            contexts, first, kinds = np.unique(grams >> 8, return_index=True, return_counts=True)
            self._tables.append((grams, seen, contexts, np.add.reduceat(seen, first), kinds))

    def losses(self, rows: Tensor, order: int) -> Tensor:
        """Nats for every byte of excerpts but the first, from bytes of the same excerpt alone.

        Args:
            rows: excerpts, integers [b, t + 1].
            order: bytes that count, the predicted one included; at most `LONGEST`.

        Returns:
            [b, t] in float64; near the start of an excerpt the order is what the excerpt has.
        """
        if not 1 <= order <= LONGEST:
            raise ValueError(f"order={order}: must lie between 1 and {LONGEST}")
        values = rows.numpy().astype(np.int64)
        probability = np.full((values.shape[0], values.shape[1] - 1), 1 / 256)
        for k in range(1, min(order, values.shape[1]) + 1):
            begin = max(k - 2, 0)  # the first prediction with k - 1 bytes before it
            codes = gram_codes(values, k)[:, 1:] if k == 1 else gram_codes(values, k)
            grams, seen, contexts, totals, kinds = self._tables[k - 1]
            count, total = _looked_up(grams, seen, codes), _looked_up(contexts, totals, codes >> 8)
            new = _looked_up(contexts, kinds, codes >> 8)
            below = probability[:, begin:]
            mixed = (count + new * below) / np.maximum(total + new, 1)
            probability[:, begin:] = np.where(total > 0, mixed, below)
        return torch.from_numpy(-np.log(probability))


def gram_codes(values: np.ndarray, order: int) -> np.ndarray:
    """One number for every `order` bytes in a row, along the last axis."""
    count = values.shape[-1] - order + 1
    codes = np.zeros((*values.shape[:-1], count), np.int64)
    for place in range(order):
        codes = (codes << 8) | values[..., place : place + count]
    return codes


def _looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`values` at the places of `wanted` in the sorted `keys`, 0 where it is not there."""
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
