"""What the mesa studies share: regressors trained on constructed tokens, and what the weights of a linear layer say.

On tokens [0, s_t, s_t, s_{t-1}], as in arXiv 2309.05858; the prediction of s_{t+1} is read off the first.
The recipe is that of the published code: AdamW, constant rate, gradients clipped element by element. For fewer
steps `constructed_recipe` has another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unrolled.models import RegressorConfig, SequenceRegressor
from unrolled.studies.remembered import checkpoint
from unrolled.studies.training import Checkpoint, train_kept, warmup_cosine
from unrolled.tasks import LinearDynamics, constructed_tokens, sequence_loss
from unrolled.theory.in_context import gradient_descent_predictions

if TYPE_CHECKING:
    from unrolled.layers.linear_attention import LinearSelfAttention

PAPER = "arXiv 2309.05858"
PAPER_BATCH = 256
# of the models on constructed tokens by name: linear layers, or one mesa layer
PAPER_STEPS = {"1": 5000, "2": 5000, "4": 10_000, "6": 15_000, "mesa": 5000}
# seeds of sampled batches, apart from every training step: held-out sequences, those that step sizes are tuned on, and
# those that losses during training are taken on
TEST_SEED, TUNE_SEED, LOOK_SEED = 2**41, 2**42, 2**43


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

    @property
    def extent(self) -> str:
        """Steps and batch in words, marked where they are below the paper's or the rate is another."""
        full = PAPER_STEPS.get("mesa" if self.kind == "mesa" else str(self.layers), 5000)
        text = f"{self.steps} steps of {self.batch_size}"
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
    mesa = name == "mesa"
    layers = 1 if mesa else int(name)
    shape: dict[str, Any] = {"layers": layers, "kind": "mesa" if mesa else "linear", "heads": 2 if name == "1" else 4}
    if published:
        return Recipe(steps=steps, batch_size=batch_size, lr=4e-4 if mesa else 1e-4, **shape)
    lr, clip_value, init_std = FAST[name]
    return Recipe(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=max(1, steps // 10),
        clip_value=clip_value,
        init_std=init_std,
        **shape,
    )


# highest rate, element-wise bound on gradients, standard deviation of the initial weights. Deep linear attention has
# spikes of the gradient that a bound of 1 lets through, and from near zero it stays long where its layers act alike
FAST = {
    "1": (3e-3, 1.0, 2e-4),
    "2": (1.5e-3, 0.02, 0.02),
    "4": (1.5e-3, 0.02, 0.02),
    "6": (1.5e-3, 0.02, 0.02),
    "mesa": (6e-3, 1.0, 2e-4),
}


def constructed_model(
    world: LinearDynamics, name: str, recipe: Recipe, *, seed: int, device: str, folder: Path
) -> tuple[SequenceRegressor, list[dict[str, Any]]]:
    """The trained model of a name, taken from `folder` if a study has trained it with the same recipe.

    Args:
        world: what the sequences are of.
        name: as in `constructed_recipe`.
        recipe: how to train it.
        seed: of the initial weights and the sequences.
        device: where.
        folder: that studies share.

    Returns:
        The model, and its loss on 1024 sequences of their own at 20 moments of the training.
    """
    sample = world.sample(1024, seed=LOOK_SEED)
    inputs, targets = sample.inputs.to(device), sample.targets.to(device)

    def look(step: int, model: SequenceRegressor) -> dict[str, Any]:
        return {"loss": float(position_losses(model_predictions(model), inputs, targets).mean())}

    return train(
        world,
        recipe,
        seed=seed,
        device=device,
        keep=checkpoint(
            folder / f"constructed-{world.teacher}-{name}-seed{seed}.pt",
            {"world": asdict(world), "recipe": asdict(recipe), "seed": seed, "device": device},
        ),
        look=look,
        look_at={round(recipe.steps * point / 20) for point in range(21)},
    )


def new_model(world: LinearDynamics, recipe: Recipe, *, seed: int) -> SequenceRegressor:
    """The regressor of a recipe with the initial weights of a seed, untrained."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = SequenceRegressor(
        RegressorConfig(
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
    )
    torch.random.set_rng_state(state)
    return model


def train(
    world: LinearDynamics,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    keep: Checkpoint | None = None,
    look: Callable[[int, SequenceRegressor], dict[str, Any]] | None = None,
    look_at: Iterable[int] = (),
) -> tuple[SequenceRegressor, list[dict[str, Any]]]:
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

    log = train_kept(
        model,
        torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay),
        loss_at,
        steps=recipe.steps,
        keep=keep,
        rate=rate,
        clip_value=recipe.clip_value,
        look=None if look is None else lambda step: look(step, model),
        look_at=look_at,
    )
    return model, log


@torch.no_grad()
def position_losses(predict: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """1/2 |error|^2 of a predictor of states [b, t, d], averaged over the sequences: [t]."""
    losses = [
        0.5 * (predict(x) - y).square().sum(-1) for x, y in zip(inputs.split(512), targets.split(512), strict=True)
    ]
    return torch.cat(losses).mean(0)


def model_predictions(model: SequenceRegressor) -> Callable[[Tensor], Tensor]:
    """The model as a function of states [b, t, d]."""

    def predict(states: Tensor) -> Tensor:
        out: Tensor = model(constructed_tokens(states))
        return out

    return predict


def best_step_size(world: LinearDynamics, *, sequences: int = 2048) -> float:
    """The step size with which one gradient step from zero predicts best, in closed form on sequences of its own.

    The prediction is linear in the step size, so the best one is a ratio of inner products.
    """
    sample = world.sample(sequences, seed=TUNE_SEED)
    direction = gradient_descent_predictions(sample.inputs, 1.0)
    return float((direction * sample.targets).sum() / direction.square().sum())


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What the weights of one linear layer compute, gauge-free, beside Proposition 1.

    A layer maps a query token, and a context token as key and as value, to an update by the trilinear map
    sum_h (P_h W_v,h) x (W_q,h^T W_k,h). On constructed tokens only its restriction to (s_t, s_{t-1}) acts, since two
    channels are equal and one is zero; its output is read off the first channel.

    Attributes:
        step_size: the multiple of Proposition 1's map closest to the layer's.
        cosine: between the two maps; 1 for one gradient step of any step size.
        query_key_on_diagonals: share of the squared entries of all W_q,h^T W_k,h on the diagonals of their d x d
            blocks; 1 / d for random weights.
        output_value_on_diagonals: the same for the rows of P_h W_v,h that are read off.
        nonzero: share of entries of both products that are not exactly zero.
        above_tenth: share of entries above a tenth of the largest of their product.
        for_90_percent: smallest share of entries holding 90 % of the squared weight, products scaled alike.
    """

    step_size: float
    cosine: float
    query_key_on_diagonals: float
    output_value_on_diagonals: float
    nonzero: float
    above_tenth: float
    for_90_percent: float


@torch.no_grad()
def structure(layer: LinearSelfAttention, state_dim: int) -> Structure:
    """Read `Structure` off the weights of a layer on tokens of four channels of width `state_dim`.

    Raises:
        ValueError: the layer is not four channels wide.
    """
    if layer.dim != 4 * state_dim:
        raise ValueError(f"layer: tokens must have 4 channels of {state_dim}, not width {layer.dim}")
    query_key, output_value = products(layer)
    d = state_dim
    eye = torch.eye(d, dtype=torch.float64)
    fold = torch.zeros(4 * d, 2 * d, dtype=torch.float64)  # (s_t, s_{t-1}) -> token
    fold[d : 2 * d, :d] = fold[2 * d : 3 * d, :d] = fold[3 * d :, d:] = eye
    values = (output_value[:, :d] @ fold).flatten(1)
    scores = (fold.mT @ query_key @ fold).flatten(1)
    target_value = torch.cat([eye, 0 * eye], dim=1).flatten()
    target_score = torch.cat([torch.cat([0 * eye, eye], 1), torch.zeros(d, 2 * d, dtype=torch.float64)]).flatten()
    along = float(((values @ target_value) * (scores @ target_score)).sum())
    own = float(((values @ values.mT) * (scores @ scores.mT)).sum()) ** 0.5
    entries = [query_key.flatten(), output_value.flatten()]
    scaled = torch.cat([x.square() / x.square().sum().clamp_min(1e-300) for x in entries]).sort(descending=True).values
    total = scaled.numel()
    return Structure(
        # Proposition 1's map is I x I, of squared norm d^2
        step_size=along / d**2,
        cosine=along / (d * own) if own else 0.0,
        query_key_on_diagonals=_on_diagonals(query_key, d),
        output_value_on_diagonals=_on_diagonals(output_value[:, :d], d),
        nonzero=sum(int((x != 0).sum()) for x in entries) / total,
        above_tenth=sum(int((x.abs() > 0.1 * x.abs().max()).sum()) for x in entries) / total,
        for_90_percent=(int((scaled.cumsum(0) < 0.9 * scaled.sum()).sum()) + 1) / total,
    )


@torch.no_grad()
def products(layer: LinearSelfAttention) -> tuple[Tensor, Tensor]:
    """W_q,h^T W_k,h and P_h W_v,h of every head, float64 [h, dim, dim] each: what a layer's weights do, gauge apart."""

    def heads_of(weight: Any) -> Tensor:
        split: Tensor = weight.detach().double().cpu().unflatten(0, (layer.heads, -1))
        return split

    query_key = heads_of(layer.query.weight).mT @ heads_of(layer.key.weight)
    output_value = heads_of(layer.output.weight.mT).mT @ heads_of(layer.value.weight)
    return query_key, output_value


def _on_diagonals(products: Tensor, width: int) -> float:
    """Share of the squared entries on the diagonals of the width x width blocks of [h, rows, columns]."""
    blocks = products.unflatten(-1, (-1, width)).unflatten(-3, (-1, width))  # [h, i, width, j, width]
    diagonal = blocks.diagonal(dim1=-3, dim2=-1)
    return float(diagonal.square().sum() / products.square().sum().clamp_min(1e-300))
