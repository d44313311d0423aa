"""Regressors trained on constructed tokens: their recipes, and the trained network as a cell that studies share.

On tokens [0, s_t, s_t, s_{t-1}], as in arXiv 2309.05858; the prediction of s_{t+1} is read off the first.
The recipe is that of the published code: AdamW, constant rate, gradients clipped element by element. For fewer
steps `constructed_recipe` has another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from unrolled.studies.cells import Cell, Columns, Context, Result
from unrolled.studies.mesa.held_out import LOOK_SEED, Predictor, mean_loss
from unrolled.studies.study import Config, Count, Seeds
from unrolled.studies.training import Checkpoint, Log, train_resumable, warmup_cosine
from unrolled.tasks import LinearDynamics, constructed_tokens, sequence_loss
from unrolled.tasks.dynamics import Teacher
from unrolled.theory.in_context import gradient_descent_predictions

if TYPE_CHECKING:
    from unrolled.models import SequenceRegressor
    from unrolled.tasks import Sequences

PAPER_BATCH = 256
# of the models on constructed tokens by name: linear layers, or one mesa layer
PAPER_STEPS = {"1": 5000, "2": 5000, "4": 10_000, "6": 15_000, "mesa": 5000}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a regressor on constructed tokens is trained; defaults are the published code's.

    Attributes:
        steps: of AdamW.
        batch_size: new sequences per step.
        layers: of linear attention; with `kind` "mesa", of mesa layers.
        kind: "linear" or "mesa".
        heads, dim_head: of every layer.
        lr: learning rate; the highest with `warmup`.
        warmup: steps in which the rate rises, to fall as a cosine to a twentieth; None for a constant rate.
        weight_decay: of AdamW.
        init_std: standard deviation of the initial weights.
        clip: tokens are kept within [-clip, clip] after every layer.
        clip_value: gradients are clipped to it, element by element.
        optimizer: "adamw", or "muon" for all matrices, of which a regressor is made.
    """

    steps: int
    batch_size: int
    layers: int = 1
    kind: str = "linear"
    heads: int = 2
    dim_head: int = 20
    lr: float = 1e-4
    warmup: int | None = None
    weight_decay: float = 0.1
    init_std: float = 2e-4
    clip: float = 4.0
    clip_value: float = 1.0
    optimizer: Literal["adamw", "muon"] = "adamw"

    @property
    def name(self) -> str:
        """Of the model, as in `constructed_recipe`."""
        return "mesa" if self.kind == "mesa" else str(self.layers)

    @property
    def extent(self) -> str:
        """Steps and batch in words, marked where they are below the paper's or the rate is another."""
        full = PAPER_STEPS.get(self.name, 5000)
        text = f"{self.steps} steps of {self.batch_size}" + " by Muon" * (self.optimizer == "muon")
        if self.steps < full or self.batch_size < PAPER_BATCH:
            text += f" (paper: {full} of {PAPER_BATCH})"
        return text if self.warmup is None else f"{text}, rate {self.lr:g} with warm-up and cosine"


def constructed_recipe(name: str, *, steps: int, batch_size: int, published: bool = False) -> Recipe:
    """The recipe of a model on constructed tokens: "1", "2", "4", "6" linear layers or "mesa", one mesa layer.

    The published one has a constant rate of 1e-4 (mesa: 4e-4), with which AdamW moves no weight further than that in a
    step: too little for far fewer steps than the paper's. The other one starts higher and ends lower; rates were chosen
    on sequences that no study tests on.

    Args:
        name: of the model.
        steps: of training.
        batch_size: sequences per step.
        published: take the paper's recipe.

    Raises:
        ValueError: no such model.
    """
    if name not in PAPER_STEPS:
        raise ValueError(f"name={name!r}: choose one of {', '.join(PAPER_STEPS)}")
    shape: Columns = {**columns_of(name), "heads": 2 if name == "1" else 4}
    if published:
        return Recipe(steps=steps, batch_size=batch_size, lr=4e-4 if name == "mesa" else 1e-4, **shape)
    wide = batch_size >= PAPER_BATCH and name in WIDE
    lr, clip_value, init_std = (WIDE if wide else FAST)[name]
    return Recipe(
        optimizer="muon" if wide else "adamw",
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=max(1, steps // 10),
        clip_value=clip_value,
        init_std=init_std,
        **shape,
    )


def columns_of(name: str) -> Columns:
    """The columns in which rows of a model differ from those of the others."""
    return {"kind": "mesa", "layers": 1} if name == "mesa" else {"kind": "linear", "layers": int(name)}


def words(name: str) -> str:
    """The name of a model as tables have it."""
    return "1 mesa layer" if name == "mesa" else f"{name} linear layer{'s' * (name != '1')}"


# highest rate, element-wise bound on gradients, standard deviation of the initial weights. Deep linear attention has
# spikes of the gradient that a bound of 1 lets through, and from near zero it stays long where its layers act alike
FAST = {
    "1": (3e-3, 1.0, 2e-4),
    "2": (1.5e-3, 0.02, 0.02),
    "4": (1.5e-3, 0.02, 0.02),
    "6": (1.5e-3, 0.02, 0.02),
    "mesa": (6e-3, 1.0, 2e-4),
}
# the same with Muon, for batches of 256 and more and 1,000 to 1,200 steps: with 32 neither depth comes to the published
# loss
WIDE = {"2": (1e-2, 0.1, 0.02), "4": (1e-2, 0.1, 0.02)}


@dataclass(kw_only=True)
class ModelsConfig(Config):
    """Settings of studies that train several models on the world of the paper; equal ones mean the same networks."""

    seeds: Seeds = (0, 1)
    """One model of each kind for each: initial weights and training sequences. Test sequences are always the same."""
    models: tuple[str, ...]
    """What to train."""
    steps: tuple[Count, ...]
    """Training steps of each model."""
    batch_size: tuple[Count, ...] = (32,)
    """Sequences in a step of each model, or one number for all; the paper's 256."""
    published: bool = False
    """Train with the paper's constant learning rates."""
    test_sequences: Count = 4096
    """Held-out sequences."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.steps) != len(self.models):
            raise ValueError(f"steps must have one number for each of {len(self.models)} models, not {len(self.steps)}")
        if len(self.batch_size) not in (1, len(self.models)):
            raise ValueError(
                f"batch_size must have one number, or one for each of {len(self.models)} models, not "
                f"{len(self.batch_size)}"
            )

    @property
    def networks(self) -> list[Constructed]:
        """Every model of every seed."""
        sizes = self.batch_size * (len(self.models) // len(self.batch_size))
        recipes = [
            constructed_recipe(name, steps=steps, batch_size=batch_size, published=self.published)
            for name, steps, batch_size in zip(self.models, self.steps, sizes, strict=True)
        ]
        return [Constructed(recipe=recipe, seed=seed) for seed in self.seeds for recipe in recipes]


@dataclass(frozen=True, kw_only=True)
class Constructed(Cell):
    """One regressor on constructed tokens and its training.

    Attributes:
        recipe: its shape, and how it is trained.
        seed: of the initial weights and the sequences.
        teacher: of the sequences, as in `LinearDynamics`.
        dim: width of their states.
        points: looks at the loss during training, besides the one before it.
        moments: keep the weights of every look, which `load` then has too.
    """

    recipe: Recipe
    seed: int
    teacher: Teacher = "orthogonal"
    dim: int = 10
    points: int = 20
    moments: bool = False

    @property
    def name(self) -> str:
        """The model, its world and its training in words."""
        return f"{words(self.recipe.name)}, {self.teacher} {self.dim}, {self.recipe.extent}, seed {self.seed}"

    @property
    def world(self) -> LinearDynamics:
        """What the sequences are of."""
        return LinearDynamics(dim=self.dim, teacher=self.teacher)

    @property
    def looks(self) -> list[int]:
        """Numbers of steps done at each look."""
        return sorted({round(self.recipe.steps * point / self.points) for point in range(self.points + 1)})

    @property
    def looked_at(self) -> Sequences:
        """The 1024 sequences that losses during training are taken on."""
        return self.world.sample(1024, seed=LOOK_SEED)

    def compute(self, context: Context) -> Result:
        """`curve`, its loss on 1024 sequences of their own at every look, and the number of `parameters`."""
        model, curve = self._trained(context, self.checkpoint(context))
        return {"curve": curve, "parameters": sum(parameter.numel() for parameter in model.parameters())}

    def untrained(self, context: Context) -> SequenceRegressor:
        """The network with its initial weights."""
        return new_model(self.world, self.recipe, seed=self.seed).to(context.device)

    def load(self, context: Context, step: int | None = None) -> SequenceRegressor:
        """The network, from the store if it was trained before; as it was at the look of `step` if one is given."""
        if step is None:
            return self._trained(context, self.checkpoint(context))[0]
        path = self._moment(context, step)
        if not path.is_file():
            self._trained(context, None)
        model = self.untrained(context)
        model.load_state_dict(torch.load(path, map_location=context.device, weights_only=True))
        return model

    def _moment(self, context: Context, step: int) -> Path:
        return self.file(context, f"-{step}.pt")

    def _trained(self, context: Context, keep: Checkpoint | None) -> tuple[SequenceRegressor, Log]:
        sample = self.looked_at
        inputs, targets = sample.inputs.to(context.device), sample.targets.to(context.device)

        def look(step: int, model: SequenceRegressor) -> Result:
            if self.moments:
                path = self._moment(context, step)
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(model.state_dict(), path)
            return {"loss": mean_loss(model_predictions(model), inputs, targets)}

        return train(
            self.world, self.recipe, seed=self.seed, device=context.device, keep=keep, look=look, look_at=self.looks
        )


def new_model(world: LinearDynamics, recipe: Recipe, *, seed: int) -> SequenceRegressor:
    """The regressor of a recipe with the initial weights of a seed, untrained."""
    from unrolled.models import RegressorConfig, SequenceRegressor

    config = RegressorConfig(
        layers=(recipe.kind,) * recipe.layers,
        dim=4 * world.dim,
        input_dim=4 * world.dim,
        output_dim=world.dim,
        embedding="none",
        heads=recipe.heads,
        dim_head=recipe.dim_head,
        init_std=recipe.init_std,
        clip=recipe.clip,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SequenceRegressor(config)


def train(
    world: LinearDynamics,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    keep: Checkpoint | None = None,
    look: Callable[[int, SequenceRegressor], Result] | None = None,
    look_at: Iterable[int] = (),
) -> tuple[SequenceRegressor, Log]:
    """Train on sequences of `world`.

    Args:
        world: what the sequences are of; those of a step depend on `seed` and the step alone.
        recipe: how.
        seed: of the initial weights and the sequences.
        device: where.
        keep: where the training is saved to and goes on from.
        look: called with the number of steps done and the model; what it returns is logged.
        look_at: when.

    Returns:
        The model, and the log.
    """
    model = new_model(world, recipe, seed=seed).to(device)
    rate = None
    if recipe.warmup is not None:
        rate = warmup_cosine(recipe.lr, warmup=recipe.warmup, steps=recipe.steps, floor=recipe.lr / 20)

    def loss_at(step: int) -> Tensor:
        batch = world.sample(recipe.batch_size, seed=seed * 10_000_000 + step, device=device)
        return sequence_loss(model(constructed_tokens(batch.inputs)), batch.targets)

    log = train_resumable(
        model,
        _optimizer(model, recipe),
        loss_at,
        steps=recipe.steps,
        keep=keep,
        rate=rate,
        clip_value=recipe.clip_value,
        look=None if look is None else lambda step: look(step, model),
        look_at=look_at,
    )
    return model, log


def _optimizer(model: SequenceRegressor, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    from unrolled.train.muon import Muon

    groups = [{"params": list(model.parameters()), "muon": True}]
    return Muon(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)


def model_predictions(model: SequenceRegressor) -> Callable[[Tensor], Tensor]:
    """The model as a function of states [b, t, d]."""

    def predict(states: Tensor) -> Tensor:
        out: Tensor = model(constructed_tokens(states))
        return out

    return predict


def step_predictions(recipe: Recipe, step_size: float, initial: Tensor | None = None) -> Predictor:
    """One gradient step as a function of states [b, t, d], clipped as what the recipe's models predict.

    A layer that keeps its predictions within bounds has an advantage of 0.7 % of the loss over a step that does not,
    from the two in ten thousand that lie beyond.

    Args:
        recipe: of the model that the step stands beside.
        step_size: of the step.
        initial: weights [d, d] that it starts from; zero without.
    """

    def predict(states: Tensor) -> Tensor:
        return gradient_descent_predictions(states, step_size, initial).clamp(-recipe.clip, recipe.clip)

    return predict
