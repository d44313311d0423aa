"""What counting bytes does beside a network: modified Kneser-Ney, and a file packer."""

from __future__ import annotations

import lzma
import math

import numpy as np
import torch
from torch import Tensor

from unrolled.studies.crate.text.ngrams import LONGEST, gram_codes


class KneserNey:
    """Modified Kneser-Ney: interpolated n-grams with three discounts an order (Chen and Goodman 1999, section 3).

    The highest order counts bytes; a lower one counts in how many contexts, one byte longer, its gram was seen. Such
    continuation counts are for backing off: at the start of an excerpt, where fewer bytes stand before the predicted
    one, the order that they make is the highest, and counts bytes. Order 1 is mixed with the uniform distribution. A
    discount is estimated from how many grams were seen once to four times; where these are too few to tell it is a half
    of the count.
    """

    def __init__(self, tokens: Tensor, order: int) -> None:
        """Count.

        Args:
            tokens: bytes of the training text, integers [n] below 256.
            order: bytes that count, the predicted one included; 1 to `LONGEST`.

        Raises:
            ValueError: no such order, or a text of fewer bytes.
        """
        if not 1 <= order <= LONGEST:
            raise ValueError(f"order={order}: must lie between 1 and {LONGEST}")
        if len(tokens) < order:
            raise ValueError(f"tokens: {len(tokens)} bytes are fewer than order={order}; give a longer text")
        values = tokens.numpy().astype(np.int64)
        self.order = order
        self._counts = [_Table(*_counted(gram_codes(values, length))) for length in range(1, order + 1)]
        # the distinct grams of one byte more, each counted once without its first byte
        self._continuations = [
            _Table(*_counted(longer.grams & ((1 << 8 * length) - 1)))
            for length, longer in enumerate(self._counts[1:], 1)
        ]

    def losses(self, rows: Tensor) -> Tensor:
        """Nats for every byte of excerpts but the first, from bytes of the same excerpt alone.

        Args:
            rows: excerpts, integers [b, t + 1].

        Returns:
            [b, t] in float64; near the start of an excerpt the order is what the excerpt has.
        """
        values = rows.numpy().astype(np.int64)
        below = np.full((values.shape[0], values.shape[1] - 1), 1 / 256)  # by the orders below
        probability = np.empty_like(below)
        for length in range(1, min(self.order, values.shape[1]) + 1):
            begin = max(length - 2, 0)  # the first prediction with length - 1 bytes before it
            grams = gram_codes(values, length)[:, length == 1 :]
            highest = slice(None if length == self.order else 1)  # predictions that have no more bytes before them
            mixed = self._counts[length - 1].mixed(grams[:, highest], below[:, begin:][:, highest])
            probability[:, begin:][:, highest] = mixed
            if length < self.order:
                below[:, begin:] = self._continuations[length - 1].mixed(grams, below[:, begin:])
        return torch.from_numpy(-np.log(probability))


class _Table:
    """Grams of one length, what is left of their counts after the discount, and what their contexts give away."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray) -> None:
        left = counts - _discounts(counts)[np.minimum(counts, 3)]
        self.grams, self.left = grams, left
        self.contexts, first = np.unique(grams >> 8, return_index=True)
        self.totals = np.add.reduceat(counts, first).astype(np.float64)
        self.given = (self.totals - np.add.reduceat(left, first)) / self.totals

    def mixed(self, grams: np.ndarray, below: np.ndarray) -> np.ndarray:
        """Probabilities of grams, from those of the next lower order; of an unseen context the lower ones."""
        place, seen = _places(self.contexts, grams >> 8)
        gram, known = _places(self.grams, grams)
        mixture = np.where(known, self.left[gram], 0.0) / self.totals[place] + self.given[place] * below
        return np.where(seen, mixture, below)


def packed(text: Tensor, *, after: Tensor) -> float:
    """Nats a byte that `xz` adds for `text` behind another text: of both together, less of the first alone."""
    first, both = (bytes(part.to(torch.uint8).numpy()) for part in (after, torch.cat([after, text])))
    sizes = [len(lzma.compress(part, preset=9 | lzma.PRESET_EXTREME)) for part in (first, both)]
    return 8 * (sizes[1] - sizes[0]) / len(text) * math.log(2)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """By count 0 to 3, the last for all above: equation 26 of the source; never more than there is."""
    seen = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    discounts = np.array([0.0, 0.5, 1.0, 1.5])
    if seen[1:5].all():
        share = seen[1] / (seen[1] + 2 * seen[2])
        estimated = [count - (count + 1) * share * seen[count + 1] / seen[count] for count in (1, 2, 3)]
        discounts[1:] = np.clip(estimated, 0.05, [0.95, 1.95, 2.95])
    return discounts


def _counted(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct grams, sorted, and how often each is there."""
    distinct, counts = np.unique(grams, return_counts=True)
    return distinct, counts


def _places(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where `wanted` is in the sorted `keys`, and whether it is there."""
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return places, keys[places] == wanted
