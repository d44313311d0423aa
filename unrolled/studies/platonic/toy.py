"""Contrastive learners with free embeddings in the co-occurrence world, shared by two studies of the hypothesis.

Every symbol of a modality has a vector of its own, so that nothing but the objective shapes what is learnt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.reading import Json
from unrolled.studies.training import Log

Loss = Literal["infonce", "nce"]


class Embeddings(nn.Module):
    """One vector a symbol, and, with two encoders, another one for the second member of a pair.

    Args:
        symbols: number of symbols.
        dim: width of the vectors.
        seed: of their initial values, normal with standard deviation 0.1.
        encoders: 1 makes the kernel f(a)^T f(b) symmetric and positive semi-definite, 2 leaves it free.
    """

    def __init__(self, *, symbols: int, dim: int, seed: int, encoders: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        start = 0.1 * torch.randn(encoders, symbols, dim, generator=generator, dtype=torch.float64)
        self.tables = nn.Parameter(start)

    def kernel(self) -> Tensor:
        """f(a)^T f(b), or f(a)^T g(b), for all pairs, [symbols, symbols]."""
        return self.tables[0] @ self.tables[-1].mT

    def features(self) -> Tensor:
        """f of every symbol, detached, [symbols, dim]."""
        return self.tables[0].detach()


def learn_from_samples(
    joint: Tensor,
    *,
    loss: Loss,
    seed: int,
    dim: int,
    steps: int,
    batch_size: int,
    learning_rate: float = 0.03,
    share_of_true_pairs: float = 0.9,
    shuffled: bool = False,
    look: Callable[[Embeddings], Json] | None = None,
    look_at: Iterable[int] = (),
) -> tuple[Embeddings, Log]:
    """Stochastic descent (Adam) on pairs drawn from `joint` [n, n]; InfoNCE's negatives are the rest of the batch.

    Args:
        joint: co-occurrence of the modality's symbols.
        loss: "infonce" or "nce" (binary).
        seed: of initial vectors and pairs.
        dim: width of the vectors.
        steps: updates.
        batch_size: pairs a step.
        learning_rate: peak, after which it falls as a cosine to zero.
        share_of_true_pairs: p of binary NCE.
        shuffled: partners are drawn independently: the control in which nothing co-occurs.
        look: given the learner at each of `look_at` numbers of steps.
        look_at: when to look.

    Returns:
        The learner and the list of looks.
    """
    from unrolled.studies.training import train_resumable, warmup_cosine
    from unrolled.tasks.cooccurrence import draw_pairs

    learner = Embeddings(symbols=joint.shape[0], dim=dim, seed=seed).to(joint.device)
    optimizer = torch.optim.Adam(learner.parameters(), lr=learning_rate)
    true, n = round(share_of_true_pairs * batch_size), joint.shape[0]

    def count(first: Tensor, second: Tensor) -> Tensor:
        return torch.bincount(first * n + second, minlength=n * n).reshape(n, n).double()

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator(joint.device).manual_seed(1_000_003 * (seed + 1) + step)
        first, second = draw_pairs(joint, batch_size, generator=generator)
        if shuffled:
            first = first[torch.randperm(batch_size, generator=generator, device=joint.device)]
        scores = learner.kernel()
        # pairs of the same symbols have the same score, so counting them gives the batch's loss exactly
        if loss == "infonce":
            pairs = count(first, second)
            partition = (scores + pairs.sum(0).log()).logsumexp(1)
            return ((pairs.sum(1) * partition).sum() - (pairs * scores).sum()) / batch_size
        # the noise: first members with the second members of other pairs
        noise = count(first[true:], second[true:].roll(1))
        pairs = count(first[:true], second[:true])
        return (pairs * F.softplus(-scores) + noise * F.softplus(scores)).sum() / batch_size

    log = train_resumable(
        learner,
        optimizer,
        loss_at,
        steps=steps,
        rate=warmup_cosine(learning_rate, warmup=0, steps=steps),
        look=None if look is None else lambda _: look(learner),
        look_at=look_at,
    )
    return learner, log


def learn_expected(
    joint: Tensor,
    *,
    loss: Loss,
    seed: int,
    dim: int,
    encoders: int = 1,
    share_of_true_pairs: float = 0.9,
    iterations: int = 600,
) -> Embeddings:
    """Minimise the expected loss itself (L-BFGS, float64): the learner after unlimited data and time.

    Args:
        joint: co-occurrence of the modality's symbols, [n, n].
        loss: "infonce" or "nce".
        seed: of the initial vectors.
        dim: width of the vectors.
        encoders: one for both members of a pair, or two.
        share_of_true_pairs: p of binary NCE.
        iterations: at most so many.
    """
    from unrolled.theory.cooccurrence import binary_nce_loss, infonce_loss

    learner = Embeddings(symbols=joint.shape[0], dim=dim, seed=seed, encoders=encoders).to(joint.device)
    optimizer = torch.optim.LBFGS(
        learner.parameters(), max_iter=iterations, line_search_fn="strong_wolfe",
        tolerance_grad=1e-10, tolerance_change=1e-14, history_size=20,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        kernel = learner.kernel()
        value = (
            infonce_loss(kernel, joint) if loss == "infonce" else binary_nce_loss(kernel, joint, share_of_true_pairs)
        )
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return learner


def kernel_alignment(x: Tensor, y: Tensor, *, k: int) -> dict[str, float]:
    """Unbiased linear CKA and mutual k-nearest neighbours of two embeddings [events, dim].

    A learner that has learnt nothing may end at one vector for all: it agrees with nothing, so it scores 0.
    """
    from unrolled.alignment import cka, mutual_knn

    values = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*are copies of other rows")  # of a learner that has learnt little
        for name, metric in (("cka", lambda: cka(x, y, unbiased=True)), ("knn", lambda: mutual_knn(x, y, k))):
            try:
                values[name] = metric()
            except ValueError as error:
                if "variance" not in str(error) and "similarity structure" not in str(error):
                    raise
                values[name] = 0.0
    return values
