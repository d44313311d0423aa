"""A world of discrete events that co-occur, and modalities that observe it (arXiv 2405.07987, section 4).

Events sit on a ring, a grid or in clusters; the world walks between near ones, and two events co-occur when the walk
meets both within a window. A modality sees events through a channel: one symbol for each (bijective), one for several
(lossy), or now and then a wrong one (noisy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unrolled.seeds import seeded

Layout = Literal["ring", "grid", "clusters"]


@dataclass(frozen=True, kw_only=True)
class CooccurrenceWorld:
    """A stationary, reversible walk over events; everything about it is known exactly.

    Attributes:
        events: number of events z.
        layout: where they are: on a ring of circumference `events`, on a square torus of unit spacing, or in clusters
            of four that lie at distance 4 from each other and 1 within.
        width: standard deviation of a step's length.
        background: weight of a step anywhere, against 1 for staying: keeps every pair's probability above zero.
        skew: log-frequencies of events are normal with about this standard deviation.
        window: two times belong together if they are at most this far apart, T of the paper.
        with_itself: pairs include an event at one time with itself, as the paper's definition has it.
        world_seed: of the frequencies.
    """

    events: int = 24
    layout: Layout = "ring"
    width: float = 1.0
    background: float = 0.02
    skew: float = 0.5
    window: int = 1
    with_itself: bool = True
    world_seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ValueError(f"layout={self.layout!r}: choose one of {', '.join(get_args(Layout))}")
        if self.events < 2 or self.window < 1:
            raise ValueError(f"events must be at least 2 and window at least 1, not {self.events}, {self.window}")
        if self.layout == "grid" and math.isqrt(self.events) ** 2 != self.events:
            raise ValueError(f"events must be a square number on a grid, not {self.events}")
        if not self.width > 0 or not self.background > 0 or self.skew < 0:
            raise ValueError("width and background must be positive and skew not negative")

    def distances(self, device: torch.device | str = "cpu") -> Tensor:
        """Distances between events, [events, events] float64."""
        n = self.events
        index = torch.arange(n, device=device)
        if self.layout == "ring":
            return _around(index[:, None] - index[None, :], n).double()
        if self.layout == "grid":
            side = math.isqrt(n)
            gaps = [_around(part[:, None] - part[None, :], side).double() for part in (index // side, index % side)]
            return (gaps[0].square() + gaps[1].square()).sqrt()
        apart = torch.where(index[:, None] // 4 == index[None, :] // 4, 1.0, 4.0).double()
        return apart.fill_diagonal_(0)

    def _weights(self, device: torch.device | str) -> Tensor:
        generator = seeded(self.world_seed)
        frequency = (self.skew * torch.randn(self.events, generator=generator, dtype=torch.float64)).exp().to(device)
        near = (-0.5 * (self.distances(device) / self.width).square()).exp() + self.background
        return frequency[:, None] * near * frequency[None, :]

    def transition(self, device: torch.device | str = "cpu") -> Tensor:
        """P(z_{t+1} | z_t), [events, events] float64, rows add to one."""
        weights = self._weights(device)
        return weights / weights.sum(1, keepdim=True)

    def frequencies(self, device: torch.device | str = "cpu") -> Tensor:
        """P(z), the stationary distribution, [events] float64."""
        weights = self._weights(device).sum(1)
        return weights / weights.sum()

    def joint(self, device: torch.device | str = "cpu") -> Tensor:
        """P_coor(a, b): probability of a and b at two times within the window, [events, events] float64, symmetric."""
        step = self.transition(device)
        power = torch.eye(self.events, dtype=step.dtype, device=step.device)
        total = power.clone() if self.with_itself else torch.zeros_like(power)
        for _ in range(self.window):
            power = power @ step
            total = total + 2 * power
        joint = self.frequencies(device)[:, None] * total / (2 * self.window + self.with_itself)
        return (joint + joint.mT) / 2

    def walk(self, steps: int, *, seed: int, walks: int = 1, device: torch.device | str = "cpu") -> Tensor:
        """Events met by independent walks that start in the stationary distribution, [walks, steps] int64."""
        if steps < 1 or walks < 1:
            raise ValueError(f"steps and walks must be at least 1, not {steps}, {walks}")
        generator = seeded(seed, device)
        step = self.transition(device)
        state = torch.multinomial(self.frequencies(device), walks, replacement=True, generator=generator)
        states = [state]
        for _ in range(steps - 1):
            state = torch.multinomial(step[state], 1, generator=generator)[:, 0]
            states.append(state)
        return torch.stack(states, dim=1)

    def pairs(self, count: int, *, seed: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Co-occurring events (a, b), [count] int64 each, drawn independently from `joint`."""
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        return draw_pairs(self.joint(device), count, generator=seeded(seed, device))


def draw_pairs(joint: Tensor, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs drawn from a joint distribution [n, m] on its device, [count] int64 each."""
    flat = torch.multinomial(joint.flatten(), count, replacement=True, generator=generator)
    return flat // joint.shape[1], flat % joint.shape[1]


def count_pairs(walks: Tensor, events: int, window: int, *, with_itself: bool = True) -> Tensor:
    """Counts of pairs within `window` steps of each other in walks [walks, steps], [events, events] float64, symmetric.

    Raises:
        ValueError: the walks are no longer than the window.
    """
    if walks.shape[1] <= window:
        raise ValueError(f"walks of {walks.shape[1]} steps have no pairs {window} apart: take longer ones")
    counts = torch.zeros(events * events, dtype=torch.float64, device=walks.device)
    for gap in range(0 if with_itself else 1, window + 1):
        first, second = walks[:, : walks.shape[1] - gap].flatten(), walks[:, gap:].flatten()
        for a, b in ((first, second), (second, first)) if gap else ((first, second),):
            counts += torch.bincount(a * events + b, minlength=events * events)
    return counts.reshape(events, events)


def bijective(events: int, *, seed: int) -> Tensor:
    """A channel with one symbol for each event, in an order of its own, [events, events] float64, P(symbol | event)."""
    order = torch.randperm(events, generator=seeded(seed))
    return torch.eye(events, dtype=torch.float64)[order]


def lossy(events: int, symbols: int, *, seed: int) -> Tensor:
    """A channel that shows several events as one symbol, [events, symbols] float64; which ones share is random.

    Every symbol shows events // symbols of them or one more.
    """
    if not 1 <= symbols <= events:
        raise ValueError(f"symbols must be between 1 and the {events} events, not {symbols}")
    order = torch.randperm(events, generator=seeded(seed))
    return torch.eye(symbols, dtype=torch.float64)[order % symbols]


def noisy(channel: Tensor, rate: float) -> Tensor:
    """`channel` [events, symbols] that shows a uniformly random symbol with probability `rate`."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], not {rate}")
    return (1 - rate) * channel + rate / channel.shape[1]


def observed_joint(joint: Tensor, channel: Tensor) -> Tensor:
    """Joint distribution [symbols, symbols] of what a modality sees of pairs from `joint` [events, events].

    Both members of a pair are observed independently.
    """
    return channel.mT @ joint @ channel


def observe(events: Tensor, channel: Tensor, *, generator: torch.Generator) -> Tensor:
    """Symbols drawn for `events` (int64, any shape) from the rows of `channel`, on its device."""
    return torch.multinomial(channel[events.flatten()], 1, generator=generator).reshape(events.shape)


def bits_lost(frequencies: Tensor, channel: Tensor) -> float:
    """H(event | symbol) in bits: what a modality does not tell of an event of P(z) `frequencies` [events]."""
    joint = frequencies[:, None] * channel
    seen = joint.sum(0)
    given = joint / seen.clamp_min(torch.finfo(joint.dtype).tiny)
    return max(0.0, float(-(joint * torch.where(joint > 0, given, 1.0).log2()).sum()))


def _around(gap: Tensor, length: int) -> Tensor:
    gap = gap.remainder(length)
    return torch.minimum(gap, length - gap)
