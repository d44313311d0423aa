"""Few-shot linear regression posed as a sequence x_1, y_1, x_2, y_2, ... (arXiv 2309.05858, figures 8 and 18).

A model trained on dynamics sees every neighbouring pair as an example, the spurious (y_i, x_{i+1}) included; a learned
end-of-sequence token between pairs, and a learned prefix before them, are the paper's remedies. The generator leaves
room for both and says where they are; the tokens themselves belong to the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unrolled.seeds import seeded
from unrolled.tasks.dynamics import Variant, normal, random_orthogonal, uniform

X, Y, EOS, PREFIX = 0, 1, 2, 3


class RegressionSequences(NamedTuple):
    """A batch of few-shot sequences.

    Attributes:
        tokens: [b, t, d]; zero where the model puts its own (EOS, PREFIX).
        kinds: what stands at each position, [t] of X, Y, EOS, PREFIX.
        queries: positions of the x tokens, [pairs]; a model predicts y there.
        answers: y of each pair, [b, pairs, d].
        task: which task each pair belongs to, [pairs], counted from 0.
        maps: W* of every task, [b, tasks, d, d].
    """

    tokens: Tensor
    kinds: Tensor
    queries: Tensor
    answers: Tensor
    task: Tensor
    maps: Tensor

    def with_tokens(self, eos: Tensor | None = None, prefix: Tensor | None = None) -> Tensor:
        """The tokens with the model's own put in, differentiable in them.

        Args:
            eos: [d].
            prefix: [prefix length, d].
        """
        tokens = self.tokens
        if eos is not None:
            tokens = tokens + (self.kinds == EOS)[:, None] * eos
        if prefix is not None:
            tokens = torch.cat([prefix.expand(len(tokens), -1, -1), tokens[:, len(prefix) :]], dim=1)
        return tokens

    def pair_losses(self, predictions: Tensor) -> Tensor:
        """1/2 |y - prediction|^2 of each pair averaged over the batch, [pairs]; predictions are [b, t, d]."""
        return 0.5 * (predictions[:, self.queries] - self.answers).square().sum(-1).mean(0)


@dataclass(frozen=True, kw_only=True)
class FewShotRegression:
    """y_i = W* x_i with W* orthogonal, new for every sequence and task.

    Attributes:
        dim: width of x and y, 10.
        steps: tokens of a sequence, 224 in the paper.
        variant: "code" draws x from U(-1, 1), "paper" from N(0, 1).
        eos: leave a position after every pair.
        prefix: positions left before the first pair, 20 in the paper's prefix tuning.
        switch_at: token at which a second task begins (81 of the paper's 228), at the next whole pair.
        noise: standard deviation of what is added to every answer, in the tokens and in `answers` alike.
    """

    dim: int = 10
    steps: int = 224
    variant: Variant = "code"
    eos: bool = False
    prefix: int = 0
    switch_at: int | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.variant not in ("paper", "code"):
            raise ValueError(f'variant must be "paper" or "code", not {self.variant!r}')
        if self.dim < 1 or self.prefix < 0:
            raise ValueError(f"dim must be at least 1 and prefix at least 0, not {self.dim}, {self.prefix}")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"noise must be 0 or more, not {self.noise}")
        if self.pairs < 1:
            raise ValueError(f"steps must leave room for a pair after {self.prefix} prefix tokens, not {self.steps}")
        if self.switch_at is not None and not 0 < self.switch_at < self.steps:
            raise ValueError(f"switch_at must lie inside the {self.steps} steps, not {self.switch_at}")
        last = self.prefix + (3 if self.eos else 2) * (self.pairs - 1)
        if self.switch_at is not None and not self.prefix < self.switch_at <= last:
            raise ValueError(
                f"switch_at must leave each task a pair: pairs begin at {self.prefix} to {last}, so between "
                f"{self.prefix + 1} and {last}, not {self.switch_at}"
            )

    @property
    def pairs(self) -> int:
        """Whole pairs in a sequence."""
        return (self.steps - self.prefix) // (3 if self.eos else 2)

    def sample(
        self, batch: int, *, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> RegressionSequences:
        """A batch, a function of `seed` alone on one kind of device; tokens beyond the last whole pair are dropped."""
        generator = seeded(seed, device)
        stride = 3 if self.eos else 2
        starts = self.prefix + stride * torch.arange(self.pairs, device=device)
        task = torch.zeros_like(starts) if self.switch_at is None else (starts >= self.switch_at).long()
        tasks = 1 if self.switch_at is None else 2
        maps = random_orthogonal(batch * tasks, self.dim, generator, dtype).unflatten(0, (batch, tasks))
        shape = (batch, self.pairs, self.dim)
        x = normal(shape, generator, dtype) if self.variant == "paper" else uniform(shape, generator, dtype, -1, 1)
        y = (maps[:, task] @ x[..., None])[..., 0]
        if self.noise:
            y = y + self.noise * normal(shape, generator, dtype)
        total = self.prefix + stride * self.pairs
        kinds = torch.full((total,), EOS, device=device)
        kinds[: self.prefix] = PREFIX
        kinds[starts], kinds[starts + 1] = X, Y
        tokens = torch.zeros(batch, total, self.dim, device=device, dtype=dtype)
        tokens[:, starts], tokens[:, starts + 1] = x, y
        return RegressionSequences(tokens, kinds, starts, y, task, maps)
