"""The sequence models that four mesa studies share: kinds, worlds, recipes, and training into one folder.

Models of raw observations, as in arXiv 2309.05858: embedded tokens, sinusoidal positions beside what queries and keys
of the first layer read, no norm, and an MLP only in the nonlinear world (as in the published code; the text describes
GPT-2 blocks). Only the linear stack reads constructed tokens, since its published numbers are for those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from unrolled.instruments import token_binding
from unrolled.models import RegressorConfig, SequenceRegressor
from unrolled.studies.mesa_train import TUNE_SEED, position_losses
from unrolled.studies.processes import finished
from unrolled.studies.remembered import checkpoint
from unrolled.studies.training import train_kept, warmup_cosine
from unrolled.tasks import LinearDynamics, NonlinearDynamics, PartialDynamics, constructed_tokens, sequence_loss

Kind = Literal["softmax", "hybrid", "mesa", "linear"]
Place = Literal["full", "partial", "nonlinear"]
Effort = Literal["quick", "cpu", "gpu"]
World = LinearDynamics | PartialDynamics | NonlinearDynamics

KINDS: tuple[Kind, ...] = ("softmax", "hybrid", "mesa")
PLACES: tuple[Place, ...] = ("full", "partial", "nonlinear")
# steps and batch of the published code, by world and kind
PAPER_STEPS: dict[Place, dict[Kind, int]] = {
    "full": {"softmax": 10_000, "hybrid": 20_000, "mesa": 20_000, "linear": 15_000},
    "partial": {"softmax": 20_000, "hybrid": 12_000, "mesa": 12_000},
    "nonlinear": {"softmax": 40_000, "hybrid": 40_000, "mesa": 40_000},
}
PAPER_BATCH = 256
# when the training looks at itself, as shares of its steps
LOOKS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
LAGS = 5
# sequences on which the training looks at itself: apart from every training step and from those of tests
_LOOK_SEED = TUNE_SEED + 2**40


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is built and trained.

    Attributes:
        kind: "softmax", "hybrid" (softmax, then mesa), "mesa", or "linear" (on constructed tokens).
        world: "full", "partial" or "nonlinear".
        depth: number of layers.
        steps: of AdamW.
        batch_size: new sequences per step.
        lr: peak of the learning rate; warm-up, then a cosine to 1e-5.
        state: width of an observation; None for the paper's. Fully observed sequences are then four times as long.
        dim: token width.
        heads, dim_head: of every layer.
        weight_decay: of AdamW.
        init_std: standard deviation of the initial weights.
        validation: sequences that the training looks at.
    """

    kind: Kind
    world: Place
    depth: int
    steps: int
    batch_size: int
    lr: float
    state: int | None = None
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
        return (self.kind,) * self.depth

    @property
    def label(self) -> str:
        """Kind and depth, such as "softmax-3"."""
        return f"{self.kind}-{self.depth}"

    @property
    def extent(self) -> str:
        """Steps and batch in words, marked where they are below the paper's."""
        full = PAPER_STEPS[self.world][self.kind]
        text = f"{self.steps} steps of {self.batch_size}"
        if self.steps < full or self.batch_size < PAPER_BATCH:
            text += f" (paper: {full} of {PAPER_BATCH})"
        return text

    def file(self, seed: int) -> str:
        """Name of the file in the shared folder."""
        size = "" if self.state is None else f"-state{self.state}"
        return f"{self.world}{size}-{self.label}-steps{self.steps}x{self.batch_size}-seed{seed}.pt"


def world_of(recipe: Recipe) -> World:
    """The world that a recipe's sequences are of."""
    if recipe.world == "full":
        return LinearDynamics() if recipe.state is None else LinearDynamics(dim=recipe.state, steps=4 * recipe.state)
    return PartialDynamics() if recipe.world == "partial" else NonlinearDynamics()


# depth and peak rate by effort. Those of "cpu" were compared in short trials on validation sequences: with few steps,
# rates several times the published ones (3e-4 to 1e-3) get further, and a third hybrid layer costs more than it gains
_SIZES: dict[Effort, dict[Kind, tuple[int, float]]] = {
    "quick": {"softmax": (2, 5e-3), "hybrid": (2, 5e-3), "mesa": (2, 5e-3), "linear": (2, 2e-3)},
    "cpu": {"softmax": (3, 5e-3), "hybrid": (2, 5e-3), "mesa": (2, 5e-3), "linear": (4, 2e-3)},
    "gpu": {"softmax": (7, 8e-4), "hybrid": (7, 3e-4), "mesa": (7, 3e-4), "linear": (6, 1e-4)},
}
_QUICK_STEPS = 40
# what two cores train in thirteen minutes, two seeds of the fully observed world and one of the others
_CPU_STEPS: dict[Place, dict[Kind, int]] = {
    "full": {"softmax": 1500, "hybrid": 600, "mesa": 600, "linear": 1000},
    "partial": {"softmax": 4000, "hybrid": 2000, "mesa": 1200},
    "nonlinear": {"softmax": 2400, "hybrid": 1400, "mesa": 1000},
}
_WIDTHS: dict[Place, int] = {"full": 40, "partial": 80, "nonlinear": 60}


def recipe(kind: str, world: str, effort: str, *, steps: int | None = None, batch_size: int | None = None) -> Recipe:
    """The recipe of a model.

    Args:
        kind: of model; "linear" is for the fully observed world alone.
        world: where.
        effort: "quick" and "cpu" are cut to minutes; "gpu" has the published steps and batch.
        steps, batch_size: instead of the effort's.

    Raises:
        ValueError: no such kind, world or effort, or a linear stack in another world than the fully observed one.
    """
    for argument, value, known in (
        ("kind", kind, (*KINDS, "linear")),
        ("world", world, PLACES),
        ("effort", effort, _SIZES),
    ):
        if value not in known:
            raise ValueError(f"{argument}={value!r}: choose one of {', '.join(known)}")
    kind, world, effort = cast(Kind, kind), cast(Place, world), cast(Effort, effort)
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
        return replace(made, lr=3e-3 if world == "nonlinear" else lr)
    return replace(made, lr=1e-3 if (kind, world) == ("softmax", "nonlinear") else 4e-4)


def untrained(recipe: Recipe, seed: int, device: str = "cpu") -> SequenceRegressor:
    """The model with its initial weights, a function of recipe and seed."""
    dim = world_of(recipe).dim
    constructed = recipe.kind == "linear"
    nonlinear = recipe.world == "nonlinear"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SequenceRegressor(
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
    return model.to(device)


def tokens_of(recipe: Recipe, states: Tensor) -> Tensor:
    """What the model of a recipe reads for observations [b, t, d]."""
    return constructed_tokens(states) if recipe.kind == "linear" else states


def predictor(recipe: Recipe, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model as a function of observations [b, t, d]."""
    return lambda states: model(tokens_of(recipe, states))


def trained(
    recipe: Recipe,
    *,
    seed: int,
    folder: Path,
    device: str = "cpu",
) -> tuple[SequenceRegressor, list[dict[str, Any]]]:
    """The trained model, loaded from `folder` if any study has trained it with these settings before.

    At moments of the training it looks at sequences of its own: the loss, and for models of raw observations how well
    the first layer's last token yields earlier ones, and how sensitive it is to them.

    Args:
        recipe: of the model.
        seed: of the initial weights and the training sequences.
        folder: shared by the studies.
        device: where.

    Returns:
        The model in evaluation mode, and the log: "step", "loss", "late" (loss of the last position), "binding" (error
        of a coordinate, for 0, 1, ... tokens back), "sensitivity" (the same), each [lags + 1].
    """
    world = world_of(recipe)
    model = untrained(recipe, seed, device)
    sample = world.sample(recipe.validation, seed=_LOOK_SEED)
    inputs, targets = sample.inputs.to(device), sample.targets.to(device)

    def look(_: int) -> dict[str, Any]:
        losses = position_losses(predictor(recipe, model), inputs, targets)
        entry: dict[str, Any] = {"loss": float(losses.mean()), "late": float(losses[-1])}
        if recipe.kind != "linear":
            found = token_binding(model, inputs, lags=min(LAGS, inputs.shape[1] - 1))
            entry["binding"] = [record["error"] for record in found]
            entry["sensitivity"] = [record["sensitivity"] for record in found]
        return entry

    def loss_at(step: int) -> Tensor:
        batch = world.sample(recipe.batch_size, seed=seed * 10_000_000 + step, device=device)
        return sequence_loss(model(tokens_of(recipe, batch.inputs)), batch.targets)

    steps = recipe.steps
    log = train_kept(
        model,
        torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay),
        loss_at,
        steps=steps,
        keep=checkpoint(
            folder / recipe.file(seed),
            {"world": asdict(world), "recipe": asdict(recipe), "seed": seed, "device": device},
        ),
        rate=warmup_cosine(recipe.lr, warmup=min(1000, max(1, steps // 10)), steps=steps, floor=recipe.floor),
        clip_value=1.0,
        look=look,
        look_at={round(share * steps) for share in LOOKS},
    )
    return model.eval(), log


def train_all(
    jobs: Iterable[tuple[Recipe, int]],
    *,
    folder: Path,
    device: str = "cpu",
    workers: int = 1,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Train every (recipe, seed) into `folder`, `workers` at a time with one thread each; finished ones cost nothing.

    Small models gain little from a second thread, so two cores are used best by two trainings.
    """
    todo = [(each, seed, folder, device) for each, seed in jobs]
    for done, ((each, seed, _, _), log) in enumerate(finished(_train_one, todo, workers=workers), 1):
        if on_progress is not None:
            place = f"{done} of {len(todo)}: {each.world}, {each.label}, seed {seed}"
            on_progress(f"{place}: validation loss {log[-1]['loss']:.4f}, last position {log[-1]['late']:.4f}")


def _train_one(recipe: Recipe, seed: int, folder: Path, device: str) -> list[dict[str, Any]]:
    return trained(recipe, seed=seed, folder=folder, device=device)[1]
