"""One trained linear layer, mixed with the construction of one gradient step: products of weights, and the cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.mesa.constructed import Constructed
from unrolled.studies.mesa.held_out import TEST_SEED, best_step_size, mean_loss
from unrolled.studies.mesa.weights import folded, products

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unrolled.layers.linear_attention import LinearSelfAttention


@dataclass(frozen=True, kw_only=True)
class Mixed(Cell):
    """One layer mixed with the construction and with random weights, at every look of its training."""

    network: Constructed
    test_sequences: int
    coefficients: int

    def compute(self, context: Context) -> Result:
        """`curve` of the losses halfway, and those of every share of the way at its end."""
        import torch

        world, clip = self.network.world, self.network.recipe.clip
        test = world.sample(self.test_sequences, seed=TEST_SEED)
        best = best_step_size(world)

        def loss(mixture: Products) -> float:
            return mean_loss(lambda x: mixture.predict(x, clip=clip), test.inputs, test.targets)

        curve = []
        for step in self.network.looks:
            layer: Any = self.network.load(context, step).blocks[0].attn
            trained = products_of(layer)
            target = construction(trained, best)
            noise = random_like(target, torch.Generator().manual_seed(self.network.seed))
            curve.append(
                {
                    "step": step,
                    "trained": loss(trained),
                    "mixed": loss(trained.mixed(target, 0.5)),
                    "constructed": loss(target),
                    "mixed with random": loss(trained.mixed(noise, 0.5)),
                }
            )
        shares = [place / (self.coefficients - 1) for place in range(self.coefficients)]
        return {
            "best_step_size": best,
            "curve": curve,
            "shares": shares,
            "to_construction": [loss(trained.mixed(target, share)) for share in shares],
            "to_random": [loss(trained.mixed(noise, share)) for share in shares],
            "zero_loss": mean_loss(lambda x: 0 * x, test.inputs, test.targets),
        }


@dataclass(frozen=True)
class Products:
    """What the weights of one linear layer do on constructed tokens, as products over (s_t, s_{t-1}).

    On tokens [0, s_t, s_t, s_{t-1}] the two copies of s_t act alike and are added up. What does not change the
    prediction, such as the basis of a head's keys, is gone; only each head's scale can still move between the two.

    Attributes:
        scores: W_q^T W_k of every head, [h, 2 d, 2 d].
        values: the rows of P W_v that the prediction is read off, [h, d, 2 d].
    """

    scores: Tensor
    values: Tensor

    def mixed(self, other: Products, share: float) -> Products:
        """(1 - share) of these products and `share` of the other's."""
        return Products(
            (1 - share) * self.scores + share * other.scores, (1 - share) * self.values + share * other.values
        )

    def predict(self, states: Tensor, *, clip: float) -> Tensor:
        """Predictions of s_{t+1} from states [b, t, d], clipped as the trained layer's."""
        import torch
        from torch.nn.functional import pad

        both = torch.cat([states, pad(states[..., :-1, :], (0, 0, 1, 0))], dim=-1)[..., None, :, :]  # [b, 1, t, 2 d]
        scores, values = self.scores.to(states), self.values.to(states)
        predictions: Tensor = ((both @ scores @ both.mT).tril() @ (both @ values.mT)).sum(-3)
        return predictions.clamp(-clip, clip)


def products_of(layer: LinearSelfAttention) -> Products:
    """The `Products` of a layer on tokens of four channels, float64."""
    return Products(*folded(*products(layer)))


def construction(like: Products, step_size: float) -> Products:
    """Proposition 1 with one step size, spread over as many heads as a trained layer has and scaled head by head alike.

    Each head here has the trained head's ratio of norms and its share of the whole step (`spread`).
    """
    import torch

    d = like.values.shape[1]
    score, value = torch.zeros(2 * d, 2 * d, dtype=torch.float64), torch.zeros(d, 2 * d, dtype=torch.float64)
    score[:d, d:] = value[:, :d] = torch.eye(d, dtype=torch.float64)
    return Products(*spread(like.scores, like.values, score, value, step_size))


def spread(scores: Tensor, values: Tensor, score: Tensor, value: Tensor, size: float = 1.0) -> tuple[Tensor, Tensor]:
    """One pair of products times a size, spread over the heads of a trained layer.

    A head contributes the product of its two matrices, so a factor can move from one to the other without changing
    anything, and an average of products would depend on it. Each head gets the trained head's ratio of norms, and that
    share of the size that the trained head has along the pair.

    Args:
        scores, values: products of the trained layer, [h, i, j] and [h, k, l].
        score, value: the pair, [i, j] and [k, l].
        size: of the product of the two.

    Returns:
        products of as many heads, [h, i, j] and [h, k, l]; added up, they do what the pair does.
    """
    import torch

    heads = len(scores)
    along_scores = (scores * score).sum((-2, -1)) / score.square().sum()
    along_values = (values * value).sum((-2, -1)) / value.square().sum()
    share = (along_scores * along_values).clamp_min(0)
    # before training nothing points anywhere
    share = share / share.sum() if share.sum() > 0 else torch.full((heads,), 1 / heads, dtype=torch.float64)
    ratio = values.norm(dim=(-2, -1)) / scores.norm(dim=(-2, -1)).clamp_min(1e-300)
    ratio = ratio * (score.norm() / value.norm())
    sign = torch.where(along_scores < 0, -1.0, 1.0)
    part = size * share
    return (sign * (part / ratio).sqrt())[:, None, None] * score, (sign * (part * ratio).sqrt())[:, None, None] * value


def random_like(like: Products, generator: torch.Generator) -> Products:
    """Random products with the norm of every matrix of `like`."""
    return Products(noise_like(like.scores, generator), noise_like(like.values, generator))


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random matrices [..., i, j] with the norm of every one of `x`."""
    import torch

    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return noise * (x.norm(dim=(-2, -1), keepdim=True) / noise.norm(dim=(-2, -1), keepdim=True))
