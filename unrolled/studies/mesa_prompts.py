"""Few-shot prompts for models of dynamics: trained models, tuned tokens and gates in front of frozen weights.

A gate decides how much the pair bound at a token weighs in the sums of a mesa layer, which is `input_gate` of
`unrolled.ops.mesa`; 0 leaves the pair out. A mask does the same, by hand, to the keys of softmax layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled.layers import MesaLayer, SoftmaxSelfAttention
from unrolled.models import RegressorConfig, SequenceRegressor
from unrolled.ops.mesa_solve import mesa
from unrolled.studies.mesa_train import TEST_SEED, TUNE_SEED
from unrolled.studies.remembered import checkpoint
from unrolled.studies.training import train_kept, warmup_cosine
from unrolled.tasks import FewShotRegression, LinearDynamics, RegressionSequences, sequence_loss
from unrolled.tasks.regression import Y

DIM = 10
GATES = ("none", "content", "squares", "position", "position and ridge")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of one study's models and tunings; the training of a cell depends on nothing else and its seed.

    Attributes:
        tokens: of a sequence, in training and in every prompt.
        softmax_layers: of the softmax model; the hybrid is one softmax and one mesa layer.
        steps: of training, by model.
        batch_size: sequences per step.
        lr: peak learning rate.
        tune_steps: steps of tuning of EOS, prefix or gate, the weights frozen.
        tune_batch: prompts per step of tuning.
        tune_lr: of tuned tokens and of a gate that reads tokens; one that reads positions has ten times that, one
            that reads squares five times.
        noise: standard deviation of the process noise and of the noise on answers.
        device: where.
    """

    tokens: int
    softmax_layers: int
    steps: Mapping[str, int]
    batch_size: int
    lr: float
    tune_steps: int
    tune_batch: int
    tune_lr: float
    noise: float = 0.01
    device: str = "cpu"

    def prompts(self, *, eos: bool = False, prefix: int = 0, switch_at: int | None = None) -> FewShotRegression:
        """The prompts of `tokens` tokens."""
        return FewShotRegression(
            dim=DIM, steps=self.tokens, eos=eos, prefix=prefix, switch_at=switch_at, noise=self.noise
        )


class ContentGate(nn.Module):
    """sigmoid(W z + b) of every head: the gate of MesaNet, open at the start. With `squares` it reads z^2 too.

    A linear gate cannot tell the zero vector from its surroundings; squares can.
    """

    def __init__(self, dim: int, heads: int, *, squares: bool = False) -> None:
        super().__init__()
        self.squares = squares
        self.linear = nn.Linear(2 * dim if squares else dim, heads)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, 2.0)

    def forward(self, z: Tensor) -> Tensor:
        """[b, t, dim] -> [b, heads, t]."""
        z = torch.cat([z, z.square()], dim=-1) if self.squares else z
        gate: Tensor = self.linear(z).sigmoid().transpose(1, 2)
        return gate


class PositionGate(nn.Module):
    """One weight in (0, 1) for every position, whatever stands there; 0.88 everywhere at the start.

    With `heads`, the ridge of each is tuned beside it, as a factor exp(`log_factor`).
    """

    def __init__(self, positions: int, heads: int | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((positions,), 2.0))
        self.log_factor = None if heads is None else nn.Parameter(torch.zeros(heads))

    def forward(self, z: Tensor) -> Tensor:
        """[b, t, dim] -> [b, 1, t]."""
        return self.logits[: z.shape[1]].sigmoid().expand(len(z), 1, -1)


class FixedGate(nn.Module):
    """A given weight for every position."""

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, z: Tensor) -> Tensor:
        """[b, t, dim] -> [b, 1, t]."""
        return self.weights[: z.shape[1]].expand(len(z), 1, -1)


class GatedMesa(nn.Module):
    """A mesa layer, as it is, with a gate on the pairs that enter its sums.

    Args:
        layer: without forgetting.
        gate: from tokens [b, t, dim] to weights [b, heads or 1, t].
    """

    def __init__(self, layer: MesaLayer, gate: nn.Module) -> None:
        super().__init__()
        if layer.forget is not None:
            raise ValueError("layer: must not forget; a gate beside a decay is what MesaNetLayer has")
        self.layer, self.gate = layer, gate

    def forward(self, z: Tensor) -> Tensor:
        """[b, t, dim] -> the update, [b, t, dim]."""
        layer = self.layer
        q, k, v = (layer.heads_of(project(z)) for project in (layer.query, layer.key, layer.value))
        if layer.normalize:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        gate = self.gate(z).expand(-1, layer.heads, -1)
        factor = getattr(self.gate, "log_factor", None)
        ridge = layer.ridge if factor is None else layer.ridge * factor.exp()
        return layer.merge(mesa(q, k, v, ridge, input_gate=gate, method=layer.method))


class MaskedSoftmax(nn.Module):
    """A softmax layer that sees only some of the earlier tokens, and always itself.

    Args:
        layer: as it is.
        seen: [t] bool, which positions later ones may see.
    """

    seen: Tensor

    def __init__(self, layer: SoftmaxSelfAttention, seen: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("seen", seen)

    def forward(self, z: Tensor) -> Tensor:
        """[b, t, dim] -> the update, [b, t, dim]."""
        layer, count = self.layer, z.shape[1]
        q, k, v = (layer.heads_of(project(z)) for project in (layer.query, layer.key, layer.value))
        eye = torch.eye(count, dtype=torch.bool, device=z.device)
        mask = eye | self.seen[:count].expand(count, -1).tril()
        return layer.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def build(kind: str, plan: Plan, seed: int) -> SequenceRegressor:
    """An untrained model: "softmax" or "hybrid", with the frame of the paper's models of linear dynamics."""
    layers = ("softmax",) * plan.softmax_layers if kind == "softmax" else ("softmax", "mesa")
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = SequenceRegressor(
        RegressorConfig(
            layers=layers, dim=40, input_dim=DIM, heads=4, dim_head=20, init_std=0.05, positions="first_layer"
        )
    )
    torch.random.set_rng_state(state)
    return model.to(plan.device)


def gated(model: SequenceRegressor, gate: nn.Module) -> SequenceRegressor:
    """A copy of the model with `gate` in each of its mesa layers; without one, `MaskedSoftmax` after the first layer.

    Softmax layers take a `FixedGate` only, and see the positions where it is not zero.
    """
    model = copy.deepcopy(model)
    for index, block in enumerate(model.blocks):
        layer: Any = block.attn
        if isinstance(layer, MesaLayer):
            block.attn = GatedMesa(layer, gate)
        elif index > 0:
            if not isinstance(gate, FixedGate):
                raise ValueError("gate: softmax layers have no sums to weigh; only a FixedGate can mask them")
            block.attn = MaskedSoftmax(layer, gate.weights > 0)
    return model


def parity_gate(world: FewShotRegression) -> FixedGate:
    """1 where an answer stands, and so the pair (x_i, y_i) is bound; 0 elsewhere."""
    return FixedGate((world.sample(1, seed=0).kinds == Y).float())


def train_on_dynamics(kind: str, plan: Plan, seed: int, keep: Path | None) -> SequenceRegressor:
    """The model of `build`, trained to predict the next state of linear dynamics, or loaded from `keep`."""
    model, world = build(kind, plan, seed), LinearDynamics(dim=DIM, steps=plan.tokens, noise=plan.noise)
    steps = plan.steps[kind]

    def loss_at(step: int) -> Tensor:
        batch = world.sample(plan.batch_size, seed=seed * 10_000_000 + step, device=plan.device)
        return sequence_loss(model(batch.inputs), batch.targets)

    _fit(model, loss_at, plan, steps, {"kind": kind, "seed": seed}, keep)
    return model


class Tuned(nn.Module):
    """What is learned in front of frozen weights: an EOS token, a prefix, a gate, each absent if not asked for."""

    def __init__(
        self, world: FewShotRegression, *, gate: str = "none", dim: int = 40, heads: int = 4, seed: int = 0
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise ValueError(f"gate={gate!r}: choose one of {', '.join(GATES)}")
        draw = torch.Generator().manual_seed(seed)
        start = 0.3  # EOS starts at a norm of about 1, so that ending near zero is something it learned
        self.eos = nn.Parameter(start * torch.randn(DIM, generator=draw)) if world.eos else None
        self.prefix = nn.Parameter(start * torch.randn(world.prefix, DIM, generator=draw)) if world.prefix else None
        self.gate: nn.Module = nn.Identity()
        if gate in ("content", "squares"):
            self.gate = ContentGate(dim, heads, squares=gate == "squares")
        elif gate != "none":
            self.gate = PositionGate(world.steps, heads if gate == "position and ridge" else None)

    def tokens(self, prompts: RegressionSequences) -> Tensor:
        """The prompts with the learned tokens put in, [b, t, d]."""
        return prompts.with_tokens(self.eos, self.prefix)


def tune(
    model: SequenceRegressor, world: FewShotRegression, plan: Plan, *, gate: str, seed: int, keep: Path | None
) -> tuple[SequenceRegressor, Tuned]:
    """Tune tokens and gate on prompts of `world`, the weights of the model frozen.

    Returns:
        The model to use (a copy with the gate, if there is one) and what was tuned.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    tuned = Tuned(world, gate=gate, seed=seed).to(plan.device)
    torch.random.set_rng_state(state)
    user = model if gate == "none" else gated(model, nn.Identity())
    if gate != "none":
        for block in user.blocks:
            if isinstance(block.attn, GatedMesa):
                block.attn.gate = tuned.gate
    own = {id(p) for p in tuned.parameters()}
    frozen = [p for p in user.parameters() if id(p) not in own and p.requires_grad]
    if not own:
        return user, tuned
    for parameter in frozen:
        parameter.requires_grad_(False)

    def loss_at(step: int) -> Tensor:
        prompts = world.sample(plan.tune_batch, seed=TUNE_SEED + seed * 10_000_000 + step, device=plan.device)
        return prompts.pair_losses(user(tuned.tokens(prompts))).mean()

    rate = plan.tune_lr * {"none": 1, "content": 1, "squares": 5}.get(gate, 10)
    settings = {"plan": asdict(plan), "world": asdict(world), "gate": gate, "seed": seed, "model": model.config}
    train_kept(
        tuned,
        torch.optim.Adam(tuned.parameters(), lr=rate),
        loss_at,
        steps=plan.tune_steps,
        keep=checkpoint(keep, settings),
        rate=warmup_cosine(rate, warmup=0, steps=plan.tune_steps),
    )
    for parameter in frozen:
        parameter.requires_grad_(True)
    return user, tuned


def train_on_both(plan: Plan, seed: int, *, gate: str, keep: Path | None) -> tuple[SequenceRegressor, Tuned]:
    """A hybrid trained from the start on dynamics and on prompts with an EOS token, half the batch each, and a gate."""
    world, dynamics = plan.prompts(eos=True), LinearDynamics(dim=DIM, steps=plan.tokens, noise=plan.noise)
    model, tuned = build("hybrid", plan, seed), Tuned(world, gate=gate, seed=seed).to(plan.device)
    if gate != "none":
        model = gated(model, tuned.gate)
        tuned.gate = nn.Identity()  # trained as a part of the model
    whole = nn.ModuleDict({"model": model, "tuned": tuned})
    half = max(1, plan.batch_size // 2)

    def loss_at(step: int) -> Tensor:
        one = dynamics.sample(half, seed=seed * 10_000_000 + step, device=plan.device)
        two = world.sample(half, seed=TUNE_SEED + seed * 10_000_000 + step, device=plan.device)
        few_shot = two.pair_losses(model(tuned.tokens(two))).mean()
        return 0.5 * (sequence_loss(model(one.inputs), one.targets) + few_shot)

    _fit(whole, loss_at, plan, plan.steps["hybrid"], {"kind": "both", "gate": gate, "seed": seed}, keep)
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
        prompts = world.sample(min(128, count - start), seed=TEST_SEED + 7 + start, device=device)
        if shuffled:
            prompts = _shuffled(prompts, seed=start)
        tokens = prompts.tokens if tuned is None else tuned.tokens(prompts)
        part = prompts.pair_losses(model(tokens)) * len(tokens)
        sums = part if sums is None else sums + part
    assert sums is not None
    losses: list[float] = (sums / count).tolist()
    return losses


@torch.no_grad()
def dynamics_losses(model: nn.Module, plan: Plan, count: int) -> list[float]:
    """1/2 |error|^2 at every token of `count` held-out sequences of dynamics."""
    world = LinearDynamics(dim=DIM, steps=plan.tokens, noise=plan.noise)
    batch = world.sample(count, seed=TEST_SEED, device=plan.device)
    parts = [
        (model(x) - y).square().sum(-1) for x, y in zip(batch.inputs.split(128), batch.targets.split(128), strict=True)
    ]
    losses: list[float] = (0.5 * torch.cat(parts).mean(0)).tolist()
    return losses


def least_squares_losses(
    world: FewShotRegression, *, count: int, ridges: tuple[float, ...], overlapping: bool
) -> tuple[list[float], float]:
    """Ridge regression on the pairs seen, and the ridge, chosen on prompts of its own by the mean loss.

    Args:
        world: raw prompts.
        count: held-out prompts.
        ridges: to choose from.
        overlapping: use every two neighbouring tokens as a pair, (y_i, x_{i+1}) too, as a model of dynamics must.
    """

    def losses(seed: int, number: int, ridge: float) -> Tensor:
        prompts = world.sample(number, seed=seed, dtype=torch.float64)
        x, y = prompts.tokens[:, prompts.queries], prompts.answers
        keys, values = (prompts.tokens[:, :-1], prompts.tokens[:, 1:]) if overlapping else (x, y)
        zero = keys.new_zeros(number, 1, 1, DIM)

        def sums(left: Tensor) -> Tensor:  # before each pair: of everything that ended with or before the last answer
            total = torch.cat([zero.expand(-1, -1, DIM, -1), (left[..., None] * keys[:, :, None]).cumsum(1)], dim=1)
            # token 2i is x_i: pairs of neighbours 0 .. 2i - 1 are complete there, counted from 0
            return total[:, : 2 * world.pairs : 2] if overlapping else total[:, : world.pairs]

        gram = sums(keys) + ridge * torch.eye(DIM, dtype=x.dtype)
        maps = torch.linalg.solve(gram, sums(values).mT).mT
        return 0.5 * ((maps @ x[..., None])[..., 0] - y).square().sum(-1).mean(0)

    best = min(ridges, key=lambda ridge: float(losses(TUNE_SEED + 3, min(count, 256), ridge).mean()))
    return losses(TEST_SEED + 7, count, best).tolist(), best


def _shuffled(prompts: RegressionSequences, seed: int) -> RegressionSequences:
    generator = torch.Generator(prompts.tokens.device).manual_seed(seed)
    order = torch.rand(prompts.answers.shape[:2], generator=generator, device=prompts.tokens.device).argsort(1)
    tokens = prompts.tokens.clone()
    tokens[:, prompts.queries + 1] = prompts.answers.gather(1, order[..., None].expand_as(prompts.answers))
    return prompts._replace(tokens=tokens)


def _fit(model: nn.Module, loss_at: Any, plan: Plan, steps: int, which: dict[str, Any], keep: Path | None) -> None:
    train_kept(
        model,
        torch.optim.AdamW(model.parameters(), lr=plan.lr, weight_decay=0.05),
        loss_at,
        steps=steps,
        keep=checkpoint(keep, {"plan": asdict(plan), **which}),
        rate=warmup_cosine(plan.lr, warmup=max(1, steps // 10), steps=steps, floor=1e-5),
        clip_value=1.0,
    )
