"""Sequence models of several layers: kinds, worlds, recipes, and the trained stack as a cell that studies share.

Models of raw observations, as in arXiv 2309.05858: embedded tokens, sinusoidal positions beside what queries and keys
of the first layer read, no norm, and an MLP only in the nonlinear world (as in the published code; the text describes
GPT-2 blocks). Only the linear stack reads constructed tokens, since its published numbers are for those.

The paper's softmax stacks have 7 layers. Kind "softmax" has as many as the effort allows; "softmax-7" always has them,
and on a CPU is trained for fewer steps of smaller batches than the paper's, at the rate of the shallower stacks: in a
trial of 300 steps it came to 0.79 on validation sequences, 2e-3 to 1.40 and the paper's 8e-4 to 1.63.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unrolled.instruments import token_binding
from unrolled.models import RegressorConfig, SequenceRegressor
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.mesa.held_out import TUNE_SEED, position_losses
from unrolled.studies.study import Config, Count, Distinct, Seeds
from unrolled.studies.training import Checkpoint, Log, train_resumable, warmup_cosine
from unrolled.tasks import LinearDynamics, NonlinearDynamics, PartialDynamics, constructed_tokens, sequence_loss

RawKind = Literal["softmax", "softmax-7", "hybrid", "mesa"]
Kind = Literal[RawKind, "linear"]
Place = Literal["full", "partial", "nonlinear"]
Effort = Literal["quick", "cpu", "gpu"]
World = LinearDynamics | PartialDynamics | NonlinearDynamics

# those that are trained where none are named
KINDS: tuple[RawKind, ...] = ("softmax", "hybrid", "mesa")
PLACES: tuple[Place, ...] = ("full", "partial", "nonlinear")
# steps and batch of the published code, by world and kind
PAPER_STEPS: dict[Place, dict[Kind, int]] = {
    "full": {"softmax": 10_000, "softmax-7": 10_000, "hybrid": 20_000, "mesa": 20_000, "linear": 15_000},
    "partial": {"softmax": 20_000, "softmax-7": 20_000, "hybrid": 12_000, "mesa": 12_000},
    "nonlinear": {"softmax": 40_000, "softmax-7": 40_000, "hybrid": 40_000, "mesa": 40_000},
}
PAPER_BATCH = 256
TITLES: dict[str, str] = {
    "full": "Fully observed",
    "partial": "Partially observed",
    "nonlinear": "Nonlinear teacher",
}
# when the training looks at itself, as shares of its steps
LOOKS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
LAGS = 5
# sequences on which the training looks at itself: apart from every training step and from those of tests
_LOOK_SEED = TUNE_SEED + 2**40


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is built and trained.

    Attributes:
        kind: "softmax", "softmax-7" (the paper's depth), "hybrid" (softmax, then mesa), "mesa", or "linear" (on
            constructed tokens).
        world: "full", "partial" or "nonlinear".
        depth: number of layers.
        steps: of AdamW.
        batch_size: new sequences per step.
        lr: peak of the learning rate; warm-up, then a cosine to 1e-5.
        state: width of an observation; None for the paper's. Fully observed sequences are then four times as long.
        tokens: of a fully observed sequence; None for the paper's 50.
        dim: token width.
        heads, dim_head: of every layer.
        weight_decay: of AdamW.
        init_std: standard deviation of the initial weights.
        validation: sequences that the training looks at; 0 for none, and no looks.
    """

    kind: Kind
    world: Place
    depth: int
    steps: int
    batch_size: int
    lr: float
    state: int | None = None
    tokens: int | None = None
    dim: int = 40
    heads: int = 4
    dim_head: int = 20
    weight_decay: float = 0.05
    init_std: float = 0.05
    validation: int = 256

    floor: ClassVar[float] = 1e-5

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        if self.kind == "hybrid":
            return ("softmax", *("mesa",) * (self.depth - 1))
        return (self.kind.removesuffix("-7"),) * self.depth

    @property
    def label(self) -> str:
        """Kind and depth, such as "softmax-3"."""
        return f"{self.kind.removesuffix('-7')}-{self.depth}"

    @property
    def extent(self) -> str:
        """Steps and batch in words, marked where they are below the paper's."""
        full = PAPER_STEPS[self.world][self.kind]
        text = f"{self.steps} steps of {self.batch_size}"
        if self.steps < full or self.batch_size < PAPER_BATCH:
            text += f" (paper: {full} of {PAPER_BATCH})"
        return text


def world_of(recipe: Recipe) -> World:
    """The world that a recipe's sequences are of."""
    if recipe.world == "full":
        dim = recipe.state or LinearDynamics.dim
        steps = recipe.tokens or (LinearDynamics.steps if recipe.state is None else 4 * recipe.state)
        return LinearDynamics(dim=dim, steps=steps)
    return PartialDynamics() if recipe.world == "partial" else NonlinearDynamics()


# depth and peak rate by effort. Those of "cpu" were compared in short trials on validation sequences: with few steps,
# rates several times the published ones (3e-4 to 1e-3) get further, and a third hybrid layer costs more than it gains
_SIZES: dict[Effort, dict[Kind, tuple[int, float]]] = {
    "quick": {
        "softmax": (2, 5e-3),
        "softmax-7": (7, 5e-3),
        "hybrid": (2, 5e-3),
        "mesa": (2, 5e-3),
        "linear": (2, 2e-3),
    },
    "cpu": {"softmax": (3, 5e-3), "softmax-7": (7, 5e-3), "hybrid": (2, 5e-3), "mesa": (2, 5e-3), "linear": (4, 2e-3)},
    "gpu": {"softmax": (7, 8e-4), "softmax-7": (7, 8e-4), "hybrid": (7, 3e-4), "mesa": (7, 3e-4), "linear": (6, 1e-4)},
}
_QUICK_STEPS = 40
# what two cores train in thirteen minutes, two seeds of the fully observed world and one of the others; softmax-7 apart
_CPU_STEPS: dict[Place, dict[Kind, int]] = {
    "full": {"softmax": 1500, "softmax-7": 4000, "hybrid": 600, "mesa": 600, "linear": 1000},
    "partial": {"softmax": 4000, "softmax-7": 4000, "hybrid": 2000, "mesa": 1200},
    "nonlinear": {"softmax": 2400, "softmax-7": 2400, "hybrid": 1400, "mesa": 1000},
}
_WIDTHS: dict[Place, int] = {"full": 40, "partial": 80, "nonlinear": 60}


def recipe(
    kind: Kind, world: Place, effort: Effort, *, steps: int | None = None, batch_size: int | None = None
) -> Recipe:
    """The recipe of a model.

    Args:
        kind: of model; "linear" is for the fully observed world alone.
        world: where.
        effort: "quick" and "cpu" are cut to minutes; "gpu" has the published steps and batch.
        steps, batch_size: instead of the effort's.

    Raises:
        ValueError: a linear stack in another world than the fully observed one.
    """
    if kind == "linear" and world != "full":
        raise ValueError(f"kind='linear' reads constructed tokens of the fully observed world, not world={world!r}")
    depth, lr = _SIZES[effort][kind]
    small = effort != "gpu"
    if steps is None:
        steps = _QUICK_STEPS if effort == "quick" else (_CPU_STEPS if small else PAPER_STEPS)[world][kind]
    made = Recipe(
        kind=kind,
        world=world,
        depth=depth,
        steps=steps,
        batch_size=batch_size or (64 if small else PAPER_BATCH),
        lr=lr,
        dim=_WIDTHS[world],
        validation=64 if effort == "quick" else 256,
    )
    if kind == "linear":
        return replace(made, init_std=0.02 if small else 2e-4, weight_decay=0.1)
    if world == "full":
        return made
    if small:
        return replace(made, lr=min(3e-3, lr) if world == "nonlinear" else lr)
    return replace(made, lr=1e-3 if "softmax" in kind and world == "nonlinear" else 4e-4)


def new_model(recipe: Recipe, seed: int) -> SequenceRegressor:
    """The model with its initial weights, a function of recipe and seed."""
    dim = world_of(recipe).dim
    constructed = recipe.kind == "linear"
    nonlinear = recipe.world == "nonlinear"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SequenceRegressor(
            RegressorConfig(
                layers=recipe.layers,
                dim=4 * dim if constructed else recipe.dim,
                input_dim=4 * dim if constructed else dim,
                output_dim=dim,
                embedding="none" if constructed else "linear",
                positions="none" if constructed else "first_layer",
                heads=recipe.heads,
                dim_head=recipe.dim_head,
                init_std=recipe.init_std,
                clip=4.0 if constructed else None,
                second="mlp" if nonlinear else "none",
                mlp_ratio=5.0,
                layer_args={"mesa": {"normalize": True}} if nonlinear and "mesa" in recipe.layers else {},
            )
        )


def tokens_of(recipe: Recipe, states: Tensor) -> Tensor:
    """What the model of a recipe reads for observations [b, t, d]."""
    return constructed_tokens(states) if recipe.kind == "linear" else states


def predictor(recipe: Recipe, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model as a function of observations [b, t, d]."""
    return lambda states: model(tokens_of(recipe, states))


@dataclass(kw_only=True)
class StacksConfig(Config):
    """Settings of studies of trained stacks; equal ones mean the same stacks, which the studies share."""

    seeds: Seeds = (0, 1)
    """One model of each kind and world for each."""
    effort: Effort = "cpu"
    """Depth, steps and rate of the trainings: quick, cpu or gpu, which is the paper's."""
    steps: Count | None = None
    """Training steps, instead of the effort's."""
    batch_size: Count | None = None
    """Sequences per step, instead of the effort's."""

    def recipe(self, kind: Kind, world: Place) -> Recipe:
        """Of one model."""
        return recipe(kind, world, self.effort, steps=self.steps, batch_size=self.batch_size)


@dataclass(kw_only=True)
class WorldsConfig(StacksConfig):
    """The same of stacks in several worlds."""

    kinds: Annotated[tuple[RawKind, ...], Distinct()] = KINDS
    """Stacks to train in every world; softmax-7 is the softmax stack of the paper's depth at every effort."""
    worlds: Annotated[tuple[Place, ...], Distinct()] = PLACES
    """Fully observed, partially observed, or with a nonlinear teacher: full, partial, nonlinear."""
    one_seed: tuple[Place, ...] = ("partial", "nonlinear")
    """Worlds that get the first seed alone, for longer trainings in the same time."""

    @property
    def stacks(self) -> list[Stack]:
        """Every kind in every world, of every seed that the world gets."""
        return [
            Stack(recipe=self.recipe(kind, world), seed=seed)
            for world in self.worlds
            for kind in self.kinds
            for seed in (self.seeds[:1] if world in self.one_seed else self.seeds)
        ]


@dataclass(frozen=True, kw_only=True)
class Stack(Cell):
    """One stack and its training.

    Attributes:
        recipe: its shape, world and training.
        seed: of the initial weights and the training sequences.
    """

    recipe: Recipe
    seed: int

    @property
    def world(self) -> World:
        """What the sequences are of."""
        return world_of(self.recipe)

    def compute(self, context: Context) -> Result:
        """`curve`: at moments of the training, on sequences of its own, "step", "loss", "late" (of the last position).

        For models of raw observations also how well the first layer's last token yields earlier ones, and how sensitive
        it is to them: "binding" (error of a coordinate, for 0, 1, ... tokens back) and "sensitivity" (the same).
        """
        return {"curve": self._trained(context)[1]}

    def untrained(self, context: Context) -> SequenceRegressor:
        """The stack with its initial weights."""
        return new_model(self.recipe, self.seed).to(context.device)

    def load(self, context: Context) -> SequenceRegressor:
        """The stack in evaluation mode, from the store if it was trained before."""
        return self._trained(context)[0].eval()

    def _trained(self, context: Context) -> tuple[SequenceRegressor, Log]:
        recipe, world, device = self.recipe, self.world, context.device
        model = self.untrained(context)
        sample = world.sample(recipe.validation, seed=_LOOK_SEED)
        inputs, targets = sample.inputs.to(device), sample.targets.to(device)

        def look(_: int) -> Result:
            losses = position_losses(predictor(recipe, model), inputs, targets)
            entry: Result = {"loss": float(losses.mean()), "late": float(losses[-1])}
            if recipe.kind != "linear":
                records = token_binding(model, inputs, lags=min(LAGS, inputs.shape[1] - 1))
                entry["binding"] = [record["error"] for record in records]
                entry["sensitivity"] = [record["sensitivity"] for record in records]
            return entry

        def loss_at(step: int) -> Tensor:
            batch = world.sample(recipe.batch_size, seed=self.seed * 10_000_000 + step, device=device)
            return sequence_loss(model(tokens_of(recipe, batch.inputs)), batch.targets)

        log = fit(
            model,
            recipe,
            loss_at,
            self.checkpoint(context),
            look=look,
            look_at={round(share * recipe.steps) for share in LOOKS} if recipe.validation else (),
        )
        return model, log


def fit(
    model: nn.Module, recipe: Recipe, loss_at: Callable[[int], Tensor], keep: Checkpoint | None = None, **looks: Any
) -> Log:
    """Train in place as a recipe says; arguments and what is returned are those of `train_resumable`."""
    steps = recipe.steps
    return train_resumable(
        model,
        torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay),
        loss_at,
        steps=steps,
        keep=keep,
        rate=warmup_cosine(recipe.lr, warmup=min(1000, max(1, steps // 10)), steps=steps, floor=recipe.floor),
        clip_value=1.0,
        **looks,
    )
