"""What the mesa studies share: a linear-attention regressor trained on constructed tokens, and what its weights say.

On tokens [0, s_t, s_t, s_{t-1}], as in arXiv 2309.05858; the prediction of s_{t+1} is read off the first.
The recipe is that of the published code: AdamW, constant rate, gradients clipped element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unrolled.models import RegressorConfig, SequenceRegressor
from unrolled.studies.cells import train_kept
from unrolled.tasks import LinearDynamics, constructed_tokens, sequence_loss
from unrolled.theory.in_context import gradient_descent_predictions

if TYPE_CHECKING:
    from unrolled.layers.linear_attention import LinearSelfAttention

PAPER = "arXiv 2309.05858"
PAPER_STEPS, PAPER_BATCH = {1: 5000, 2: 5000, 4: 10_000, 6: 15_000}, 256
# seeds of sampled batches: held-out sequences and those that step sizes are tuned on, apart from every training step
TEST_SEED, TUNE_SEED = 2**41, 2**42


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a regressor on constructed tokens is trained; defaults are the published code's.

    Attributes:
        steps: of AdamW.
        batch_size: new sequences per step.
        layers: linear-attention layers.
        heads, dim_head: of every layer.
        lr: constant learning rate.
        weight_decay: of AdamW.
        init_std: standard deviation of the initial weights.
        clip: tokens are kept within [-clip, clip] after every layer.
    """

    steps: int
    batch_size: int
    layers: int = 1
    heads: int = 2
    dim_head: int = 20
    lr: float = 1e-4
    weight_decay: float = 0.1
    init_std: float = 2e-4
    clip: float = 4.0

    @property
    def extent(self) -> str:
        """Steps and batch in words, marked where they are below the paper's."""
        full = PAPER_STEPS.get(self.layers, 5000)
        text = f"{self.steps} steps of {self.batch_size}"
        if self.steps < full or self.batch_size < PAPER_BATCH:
            text += f" (paper: {full} of {PAPER_BATCH})"
        return text


def train(
    world: LinearDynamics,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    keep: Path | None = None,
    look: Callable[[int, SequenceRegressor], dict[str, Any]] | None = None,
    look_at: Iterable[int] = (),
) -> tuple[SequenceRegressor, list[dict[str, Any]]]:
    """Train on sequences of `world`.

    Args:
        world: what the sequences are of; those of a step depend on `seed` and the step alone.
        recipe: how.
        seed: of the initial weights and the sequences.
        device: where.
        keep: a file that the training is saved to and goes on from.
        look: called with the number of steps done and the model; what it returns is logged.
        look_at: when.

    Returns:
        The model, and the log.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = SequenceRegressor(
        RegressorConfig(
            layers=("linear",) * recipe.layers,
            dim=4 * world.dim,
            input_dim=4 * world.dim,
            output_dim=world.dim,
            embedding="none",
            heads=recipe.heads,
            dim_head=recipe.dim_head,
            init_std=recipe.init_std,
            clip=recipe.clip,
        )
    ).to(device)
    torch.random.set_rng_state(state)

    def loss_at(step: int) -> Tensor:
        batch = world.sample(recipe.batch_size, seed=seed * 10_000_000 + step, device=device)
        return sequence_loss(model(constructed_tokens(batch.inputs)), batch.targets)

    log = train_kept(
        model,
        torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay),
        loss_at,
        steps=recipe.steps,
        settings={"world": asdict(world), "recipe": asdict(recipe), "seed": seed, "device": device},
        keep=keep,
        clip_value=1.0,
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
