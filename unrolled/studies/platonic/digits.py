"""Small networks on the scikit-learn digits, many trained side by side, for studies of what makes them alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.studies.training import train_resumable, warmup_cosine


class Perceptrons(nn.Module):
    """Networks of two hidden layers side by side, each with a seed of its own.

    Args:
        inputs, width, outputs: of every network.
        seeds: one a network; a network does not depend on the others.
        scale: of initial weights, as a multiple of He's.
    """

    def __init__(self, *, inputs: int, width: int, outputs: int, seeds: Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        shapes = ((inputs, width), (width, width), (width, outputs))
        drawn: list[list[Tensor]] = [[] for _ in shapes]
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for column, shape in zip(drawn, shapes, strict=True):
                column.append(torch.randn(shape, generator=generator) * scale * math.sqrt(2 / shape[0]))
        self.weights = nn.ParameterList([nn.Parameter(torch.stack(column)) for column in drawn])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(len(seeds), 1, shape[1])) for shape in shapes])

    def features(self, x: Tensor) -> Tensor:
        """The second hidden layer of every network for x [n, inputs], [networks, n, width]."""
        first = F.relu(x @ self.weights[0] + self.biases[0])
        return F.relu(first @ self.weights[1] + self.biases[1])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of every network, [networks, n, outputs]."""
        return self.features(x) @ self.weights[2] + self.biases[2]


@cache
def digits_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [n, 64] in [-1, 1] and classes of the digits: two thirds to learn, one third held out, always the same."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.as_tensor(digits.data, dtype=torch.float32) / 8 - 1
    y = torch.as_tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    held_out = len(x) // 3
    return x[order[held_out:]], y[order[held_out:]], x[order[:held_out]], y[order[:held_out]]


def halvings(count: int, seed: int) -> Tensor:
    """[10, count] of 0 and 1: tasks that each put five of the ten classes against the other five."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(10, generator=generator) for _ in range(count)], 1)
    return (order < 5).float()


def train(
    nets: Perceptrons,
    x: Tensor,
    labels: Tensor,
    tasks: Tensor | None = None,
    *,
    steps: int,
    learning_rate: float = 3e-3,
    decay: float = 0.0,
) -> None:
    """Train every network in place, each step on all samples (Adam; the rate falls as a cosine to zero).

    Args:
        nets: the networks.
        x: [n, inputs].
        labels: of each network, [networks, n] classes.
        tasks: what each network learns of a class, [networks, classes, outputs] of 0 and 1; None: which class it is.
        steps: updates.
        learning_rate: the peak.
        decay: weight of half the squared norm of all weights, added to the loss.
    """
    wanted = None if tasks is None else answers(tasks, labels)

    def loss_at(step: int) -> Tensor:
        out = nets(x)
        if wanted is None:
            loss = F.cross_entropy(out.flatten(0, 1), labels.flatten())
        else:
            loss = F.binary_cross_entropy_with_logits(out, wanted)
        # the sum over networks, each of which then learns as if it were alone
        return loss * len(out) + 0.5 * decay * torch.stack([w.square().sum() for w in nets.weights]).sum()

    optimizer = torch.optim.Adam(nets.parameters(), lr=learning_rate)
    train_resumable(nets, optimizer, loss_at, steps=steps, rate=warmup_cosine(learning_rate, warmup=0, steps=steps))


def accuracies(nets: Perceptrons, x: Tensor, labels: Tensor, tasks: Tensor | None = None) -> list[float]:
    """Share of right answers of every network; arguments as those of `train`."""
    with torch.no_grad():
        out = nets(x)
    right = out.argmax(-1) == labels if tasks is None else (out > 0) == (answers(tasks, labels) > 0.5)
    return right.float().flatten(1).mean(1).tolist()  # type: ignore[no-any-return]


def answers(tasks: Tensor, labels: Tensor) -> Tensor:
    """What each network is to say of each sample, [networks, n, outputs], for `tasks` and `labels` as in `train`."""
    return torch.stack([task[labels_of_network] for task, labels_of_network in zip(tasks, labels, strict=True)])
