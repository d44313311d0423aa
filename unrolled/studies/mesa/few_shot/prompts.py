"""Prompts of few-shot regression: what is tuned or trained on them, and the losses."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unrolled.models import SequenceRegressor
from unrolled.studies.mesa.few_shot.gates import ContentGate, PositionGate, gated, parity_gate
from unrolled.studies.mesa.held_out import TEST_SEED, TUNE_SEED
from unrolled.studies.mesa.stacks import Recipe, fit, new_model, world_of
from unrolled.studies.training import Checkpoint, train_resumable, warmup_cosine
from unrolled.tasks import FewShotRegression, LinearDynamics, RegressionSequences, sequence_loss

NOISE = LinearDynamics.noise
"""Standard deviation of the noise on answers, as of the noise of the dynamics."""
Gate = Literal["none", "parity", "content", "squares", "position", "position and ridge"]


def prompts_of(tokens: int, *, eos: bool = False, prefix: int = 0, switch_at: int | None = None) -> FewShotRegression:
    """Prompts of so many tokens, of the width and with the noise of the dynamics."""
    return FewShotRegression(
        dim=LinearDynamics.dim, steps=tokens, eos=eos, prefix=prefix, switch_at=switch_at, noise=NOISE
    )


class Tuned(nn.Module):
    """What is learned in front of frozen weights: an EOS token, a prefix, a gate, each absent if not asked for."""

    def __init__(
        self, world: FewShotRegression, *, gate: Gate = "none", dim: int = 40, heads: int = 4, seed: int = 0
    ) -> None:
        super().__init__()
        if gate not in get_args(Gate):
            raise ValueError(f"gate={gate!r}: choose one of {', '.join(get_args(Gate))}")
        # EOS starts at a norm of about 1, so that ending near zero is something it learned
        start = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
        self.eos = nn.Parameter(0.3 * start(world.dim)) if world.eos else None
        self.prefix = nn.Parameter(0.3 * start(world.prefix, world.dim)) if world.prefix else None
        self.gate: nn.Module = nn.Identity()
        if gate in ("content", "squares"):
            self.gate = ContentGate(dim, heads, squares=gate == "squares")
        elif gate == "parity":
            self.gate = parity_gate(world)
        elif gate != "none":
            self.gate = PositionGate(world.steps, heads if gate == "position and ridge" else None)

    def tokens(self, prompts: RegressionSequences) -> Tensor:
        """The prompts with the learned tokens put in, [b, t, d]."""
        return prompts.with_tokens(self.eos, self.prefix)


def tune(
    model: SequenceRegressor,
    world: FewShotRegression,
    *,
    gate: Gate,
    seed: int,
    steps: int,
    batch_size: int,
    lr: float,
    keep: Checkpoint | None = None,
) -> tuple[SequenceRegressor, Tuned]:
    """Tune tokens and gate on prompts of `world`, the weights of the model frozen.

    Args:
        model: trained on dynamics.
        world: of the prompts.
        gate: a kind.
        seed: of the initial tokens and the prompts.
        steps: of Adam.
        batch_size: prompts per step.
        lr: of tokens and of a gate that reads them; one that reads positions has ten times that, of squares five.
        keep: where the tuning is saved to and goes on from.

    Returns:
        The model to use (a copy with the gate, if there is one) and what was tuned.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        tuned = Tuned(world, gate=gate, seed=seed).to(device)
    user = model if gate == "none" else gated(model, tuned.gate)
    prompt = {id(p) for p in tuned.parameters()}
    frozen = [p for p in user.parameters() if id(p) not in prompt and p.requires_grad]
    if not prompt:
        return user, tuned
    for parameter in frozen:
        parameter.requires_grad_(False)

    def loss_at(step: int) -> Tensor:
        batch = world.sample(batch_size, seed=TUNE_SEED + seed * 10_000_000 + step, device=device)
        return batch.pair_losses(user(tuned.tokens(batch))).mean()

    rate = lr * {"none": 1, "content": 1, "squares": 5}.get(gate, 10)
    train_resumable(
        tuned,
        torch.optim.Adam(tuned.parameters(), lr=rate),
        loss_at,
        steps=steps,
        keep=keep,
        rate=warmup_cosine(rate, warmup=0, steps=steps),
    )
    for parameter in frozen:
        parameter.requires_grad_(True)
    return user, tuned


def train_on_both(
    recipe: Recipe,
    world: FewShotRegression,
    *,
    gate: Gate,
    seed: int,
    device: str = "cpu",
    keep: Checkpoint | None = None,
) -> tuple[SequenceRegressor, Tuned]:
    """A model trained from the start on dynamics and on prompts of `world`, half the batch each, with a gate."""
    dynamics = world_of(recipe)
    model, tuned = new_model(recipe, seed).to(device), Tuned(world, gate=gate, seed=seed).to(device)
    if gate != "none":
        model = gated(model, tuned.gate)
        tuned.gate = nn.Identity()  # trained as a part of the model
    whole = nn.ModuleDict({"model": model, "tuned": tuned})
    half = max(1, recipe.batch_size // 2)

    def loss_at(step: int) -> Tensor:
        one = dynamics.sample(half, seed=seed * 10_000_000 + step, device=device)
        two = world.sample(half, seed=TUNE_SEED + seed * 10_000_000 + step, device=device)
        few_shot = two.pair_losses(model(tuned.tokens(two))).mean()
        return 0.5 * (sequence_loss(model(one.inputs), one.targets) + few_shot)

    fit(whole, recipe, loss_at, keep)
    return model, tuned


@torch.no_grad()
def prompt_losses(
    model: nn.Module,
    world: FewShotRegression,
    tuned: Tuned | None = None,
    *,
    count: int,
    shuffled: bool = False,
    device: str = "cpu",
) -> list[float]:
    """1/2 |error|^2 at every pair, averaged over `count` held-out prompts.

    Args:
        model: to be asked.
        world: of the prompts.
        tuned: learned tokens.
        count: prompts.
        shuffled: answers are dealt out anew within each prompt, all but the one asked for: a control in which nothing
            can be learned from the pairs.
        device: where.
    """
    sums: Tensor | None = None
    for start in range(0, count, 128):
        batch = world.sample(min(128, count - start), seed=TEST_SEED + 7 + start, device=device)
        if shuffled:
            batch = _shuffled(batch, seed=start)
        tokens = batch.tokens if tuned is None else tuned.tokens(batch)
        part = batch.pair_losses(model(tokens)) * len(tokens)
        sums = part if sums is None else sums + part
    assert sums is not None
    losses: list[float] = (sums / count).tolist()
    return losses


def least_squares_losses(
    world: FewShotRegression, *, count: int, ridges: tuple[float, ...], overlapping: bool
) -> tuple[Tensor, float]:
    """Losses of ridge regression on the pairs seen, [count, pairs], and the ridge, chosen on other prompts by the mean.

    Args:
        world: raw prompts.
        count: held-out prompts.
        ridges: to choose from.
        overlapping: use every two neighbouring tokens as a pair, (y_i, x_{i+1}) too, as a model of dynamics must.
    """

    def losses(seed: int, number: int, ridge: float) -> Tensor:
        batch = world.sample(number, seed=seed, dtype=torch.float64)
        x, y = batch.tokens[:, batch.queries], batch.answers
        keys, values = (batch.tokens[:, :-1], batch.tokens[:, 1:]) if overlapping else (x, y)
        zero = keys.new_zeros(number, 1, world.dim, world.dim)

        def sums(left: Tensor) -> Tensor:  # before each pair: of everything that ended with or before the last answer
            total = torch.cat([zero, (left[..., None] * keys[:, :, None]).cumsum(1)], dim=1)
            # token 2i is x_i: pairs of neighbours 0 .. 2i - 1 are complete there, counted from 0
            return total[:, : 2 * world.pairs : 2] if overlapping else total[:, : world.pairs]

        gram = sums(keys) + ridge * torch.eye(world.dim, dtype=x.dtype)
        maps = torch.linalg.solve(gram, sums(values).mT).mT
        return 0.5 * ((maps @ x[..., None])[..., 0] - y).square().sum(-1)

    best = min(ridges, key=lambda ridge: float(losses(TUNE_SEED + 3, min(count, 256), ridge).mean()))
    return losses(TEST_SEED + 7, count, best), best


def _shuffled(batch: RegressionSequences, seed: int) -> RegressionSequences:
    generator = torch.Generator(batch.tokens.device).manual_seed(seed)
    order = torch.rand(batch.answers.shape[:2], generator=generator, device=batch.tokens.device).argsort(1)
    tokens = batch.tokens.clone()
    tokens[:, batch.queries + 1] = batch.answers.gather(1, order[..., None].expand_as(batch.answers))
    return batch._replace(tokens=tokens)
