"""Dynamical systems to be identified from their own past (arXiv 2309.05858).

Where the paper and its published code disagree, `variant` chooses: "paper" or "code". Every world draws from a
generator seeded by `sample(seed=...)`, on the device asked for; what all sequences of a world share (a fixed teacher, a
nonlinear feature map) is drawn once from `world_seed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from unrolled.seeds import seeded

Variant = Literal["paper", "code"]
Teacher = Literal["orthogonal", "contracting", "oblique", "fixed"]


class Sequences(NamedTuple):
    """A batch of sequences for next-token prediction.

    Attributes:
        inputs: observations s_1..s_T, [b, t, d].
        targets: observations s_2..s_{T+1}, [b, t, d].
        transition: W* of each sequence, [b, h, h] with h the hidden width.
    """

    inputs: Tensor
    targets: Tensor
    transition: Tensor


@dataclass(frozen=True, kw_only=True)
class LinearDynamics:
    """Fully observed linear dynamics s_{t+1} = W* s_t + noise.

    Attributes:
        dim: width of the state, 10 in the paper.
        steps: tokens of a sequence, 50 in the paper.
        noise: standard deviation of the process noise; the paper does not say, its code has 0.01.
        clip: states are clipped to [-clip, clip]; None takes the code's 10 (2 for "contracting" and "oblique"), or none
            for "paper".
        teacher: "orthogonal" draws W* uniformly from the orthogonal group for every sequence; "contracting" draws a
            symmetric W* with eigenvalues uniform in [0.3, 0.9]; "oblique" draws W* = M diag(eigenvalues) M^-1 with M
            standard normal, one eigenvalue 0.9 and the others uniform in [0.3, 0.9]; "fixed" uses one orthogonal W* for
            all sequences, the negative control, where nothing has to be learned in context. The code's contracting
            world is the oblique one: eigenvectors that are not orthogonal let a state grow far before it shrinks, so
            the clip is at work there, and least squares is not exact. A symmetric W* shrinks every state at once.
        variant: "code" draws s_1 from U(-1, 1), "paper" from N(0, 1).
        world_seed: of the fixed teacher.
    """

    dim: int = 10
    steps: int = 50
    noise: float = 0.01
    clip: float | None = None
    teacher: Teacher = "orthogonal"
    variant: Variant = "code"
    world_seed: int = 0

    def __post_init__(self) -> None:
        _check(self.dim, self.steps, self.noise, self.variant)
        if self.teacher not in get_args(Teacher):
            raise ValueError(f"teacher must be one of {', '.join(get_args(Teacher))}, not {self.teacher!r}")

    def sample(
        self, batch: int, *, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Sequences:
        """A batch of `steps` inputs and targets, a function of `seed` alone on one kind of device."""
        generator = seeded(seed, device)
        shared = seeded(self.world_seed, device)
        if self.teacher == "fixed":
            transition = random_orthogonal(1, self.dim, shared, dtype).expand(batch, -1, -1)
        elif self.teacher == "oblique":
            transition = _oblique(batch, self.dim, generator, dtype)
        else:
            transition = random_orthogonal(batch, self.dim, generator, dtype)
        if self.teacher == "contracting":
            values = uniform((batch, 1, self.dim), generator, dtype, 0.3, 0.9)
            transition = (transition * values) @ transition.mT
        state = _start((batch, self.dim), self.variant, 1.0, generator, dtype)
        clip = self.clip
        if clip is None and self.variant == "code":
            clip = 2.0 if self.teacher in ("contracting", "oblique") else 10.0
        states = [state]
        for _ in range(self.steps):
            state = (transition @ state[..., None])[..., 0] + self.noise * normal(state.shape, generator, dtype)
            state = state if clip is None else state.clamp(-clip, clip)
            states.append(state)
        observed = torch.stack(states, 1)
        return Sequences(observed[:, :-1], observed[:, 1:], transition)


@dataclass(frozen=True, kw_only=True)
class PartialDynamics:
    """Linear dynamics of a hidden state, seen through a projection: h_{t+1} = W* h_t + noise, s_t = C* h_t + noise.

    Attributes:
        hidden: width of the hidden state, 15 in the paper.
        dim: width of an observation, 5 in the paper.
        steps: tokens of a sequence.
        noise: standard deviation of process and observation noise.
        clip: of the hidden state; None takes the code's 10, or none for "paper".
        variant: C* is 0.5 N(0, 1) in the code and N(0, 0.5), read as a variance, in the paper; the start as in
            `LinearDynamics`.
    """

    hidden: int = 15
    dim: int = 5
    steps: int = 50
    noise: float = 0.01
    clip: float | None = None
    variant: Variant = "code"

    def __post_init__(self) -> None:
        _check(min(self.dim, self.hidden), self.steps, self.noise, self.variant)

    def sample(
        self, batch: int, *, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Sequences:
        """A batch as in `LinearDynamics.sample`; transition is that of the hidden state."""
        world = LinearDynamics(
            dim=self.hidden, steps=self.steps, noise=self.noise, clip=self.clip, variant=self.variant
        )
        hidden = world.sample(batch, seed=seed, device=device, dtype=dtype)
        generator = seeded(seed + 2**40, device)  # apart from the stream of the hidden states
        scale = 0.5 if self.variant == "code" else 0.5**0.5
        projection = scale * normal((batch, self.dim, self.hidden), generator, dtype)
        states = torch.cat([hidden.inputs, hidden.targets[:, -1:]], dim=1)
        observed = states @ projection.mT
        observed = observed + self.noise * normal(observed.shape, generator, dtype)
        return Sequences(observed[:, :-1], observed[:, 1:], hidden.transition)


@dataclass(frozen=True, kw_only=True)
class NonlinearDynamics:
    """Dynamics linear in a fixed feature map: s_{t+1} = W* f(s_t) + noise, f(s) = B GELU(A s).

    A, B have entries 1.1 N(0, 1) and are shared by all sequences (drawn from `world_seed`); W* is orthogonal and
    new for every sequence.

    Attributes:
        dim: width of the state, 10.
        width: of the hidden layer of f, 40.
        steps: tokens of a sequence.
        noise: standard deviation of the process noise.
        clip: of the states, 10 in the code. The "paper" variant needs it too: f expands, so its states would overflow.
        variant: "code" divides f(s) by its l2 norm before W*, which the paper does not mention. Both start in
            U(-0.25, 0.25).
        world_seed: of A and B.
    """

    dim: int = 10
    width: int = 40
    steps: int = 50
    noise: float = 0.01
    clip: float = 10.0
    variant: Variant = "code"
    world_seed: int = 0

    def __post_init__(self) -> None:
        _check(min(self.dim, self.width), self.steps, self.noise, self.variant)

    def features(self, states: Tensor) -> Tensor:
        """f(s), the regressors in which the dynamics are linear, [..., dim]."""
        shared = seeded(self.world_seed, states.device)
        inner = 1.1 * normal((self.width, self.dim), shared, states.dtype)
        outer = 1.1 * normal((self.dim, self.width), shared, states.dtype)
        out = F.gelu(states @ inner.mT) @ outer.mT
        return F.normalize(out, dim=-1) if self.variant == "code" else out

    def sample(
        self, batch: int, *, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Sequences:
        """A batch as in `LinearDynamics.sample`."""
        generator = seeded(seed, device)
        transition = random_orthogonal(batch, self.dim, generator, dtype)
        state = uniform((batch, self.dim), generator, dtype, -0.25, 0.25)
        states = [state]
        for _ in range(self.steps):
            state = (transition @ self.features(state)[..., None])[..., 0]
            state = state + self.noise * normal(state.shape, generator, dtype)
            states.append(state.clamp(-self.clip, self.clip))
            state = states[-1]
        observed = torch.stack(states, 1)
        return Sequences(observed[:, :-1], observed[:, 1:], transition)


def constructed_tokens(states: Tensor, initial: Tensor | None = None) -> Tensor:
    """The tokens of Proposition 1, in which neighbouring states are already bound together.

    Args:
        states: [b, t, d].
        initial: Phi_0, [d, d], for tokens [Phi_0 s_t, s_t, s_{t-1}]; None for the experiments' four channels
            [0, s_t, s_t, s_{t-1}]. Before the first state stands zero.

    Returns:
        [b, t, 3 d] or [b, t, 4 d].
    """
    before = F.pad(states[:, :-1], (0, 0, 1, 0))
    if initial is None:
        return torch.cat([torch.zeros_like(states), states, states, before], dim=-1)
    return torch.cat([states @ initial.mT, states, before], dim=-1)


def sequence_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """1/2 |error|^2, summed over the width and averaged over the rest: the scale of the paper's curves."""
    return 0.5 * (predictions - targets).square().sum(-1).mean()


def random_orthogonal(batch: int, dim: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices drawn uniformly from the orthogonal group, [batch, dim, dim], on the generator's device."""
    q, r = torch.linalg.qr(normal((batch, dim, dim), generator, dtype))
    signs: Tensor = r.diagonal(dim1=-2, dim2=-1).sign()
    out: Tensor = q * torch.where(signs == 0, 1.0, signs)[:, None, :]
    return out


def _oblique(batch: int, dim: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """M diag(eigenvalues) M^-1 with M standard normal; one eigenvalue is 0.9, the others are uniform in [0.3, 0.9]."""
    vectors = normal((batch, dim, dim), generator, torch.float64)  # M can be close to singular
    values = uniform((batch, 1, dim), generator, torch.float64, 0.3, 0.9)
    values[..., 0] = 0.9
    matrix: Tensor = torch.linalg.solve(vectors, vectors * values, left=False)
    return matrix.to(dtype)


def _check(dim: int, steps: int, noise: float, variant: str) -> None:
    if dim < 1 or steps < 1:
        raise ValueError(f"widths and steps must be at least 1, not {dim}, {steps}")
    if not noise >= 0:
        raise ValueError(f"noise must be 0 or more, not {noise}")
    if variant not in ("paper", "code"):
        raise ValueError(f'variant must be "paper" or "code", not {variant!r}')


def _start(
    shape: tuple[int, ...], variant: str, half_width: float, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    if variant == "paper":
        return normal(shape, generator, dtype)
    return uniform(shape, generator, dtype, -half_width, half_width)


def normal(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers."""
    # drawn in float32 whatever the dtype: generators give other numbers in float64, so that it would be another world
    return torch.randn(shape, generator=generator, device=generator.device).to(dtype)


def uniform(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, low: float, high: float) -> Tensor:
    """Numbers between `low` and `high`."""
    return torch.rand(shape, generator=generator, device=generator.device).to(dtype) * (high - low) + low
