"""Weights between those of a trained linear layer and the construction's: does the loss stay as low on the way?

Claim (arXiv 2309.05858): averaging the trained weights with those of one gradient step, product by product, predicts as
well as either. Two layers that computed the same by different means would not survive being averaged; neither would a
layer averaged with random weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import CONTROL, Claim
from unrolled.studies.mesa.constructed import Constructed, Recipe
from unrolled.studies.mesa.held_out import TEST_SEED, best_step_size, mean_loss
from unrolled.studies.mesa.weights import folded, products
from unrolled.studies.results import Results, Values
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Seeds, Study

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unrolled.layers.linear_attention import LinearSelfAttention
    from unrolled.report import Report, Series

_SOURCE = "arXiv 2309.05858, figure 4; means of the released results"
_ELSEWHERE = "random weights as large as the construction's: 2 and more"
PUBLISHED = {"trained": "0.892", "mixed": "0.892", "constructed": "0.890 to 0.898", "mixed with random": "no value"}


@dataclass(kw_only=True)
class InterpolationConfig(Config):
    """Budgets change the number of steps, sequences and seeds; the rate is the paper's for this experiment."""

    budgets: ClassVar[Budgets] = {
        "quick": {"seeds": (0,), "steps": 1000, "batch_size": 32, "test_sequences": 1024, "points": 10},
        "cpu": {},
        "gpu": {"seeds": (0, 1, 2, 3, 4), "batch_size": 512, "device": "cuda"},
    }

    seeds: Seeds = (0, 1, 2)
    """One layer for each: initial weights and training sequences. Test sequences are always the same."""
    steps: Count = 2500
    """Training steps; the paper's 2500."""
    batch_size: Count = 128
    """Sequences per step; the paper's 512."""
    test_sequences: Count = 4096
    """Held-out sequences."""
    points: Count = 20
    """Looks at the held-out sequences during training: the points of the curves."""
    coefficients: Annotated[int, AtLeast(2)] = 11
    """Mixing coefficients from 0 (trained) to 1 (constructed)."""


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


def cells(config: InterpolationConfig) -> Iterator[Mixed]:
    """One layer for every seed."""
    recipe = Recipe(steps=config.steps, batch_size=config.batch_size, lr=2e-4)
    for seed in config.seeds:
        network = Constructed(recipe=recipe, seed=seed, points=config.points, moments=True)
        yield Mixed(network=network, test_sequences=config.test_sequences, coefficients=config.coefficients)


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

    A head contributes the product of its two matrices, so a factor can move from one to the other without changing
    anything, and an average of products would depend on it. Each head here has the trained head's ratio of norms
    and its share of the whole step.
    """
    import torch

    heads, d = like.values.shape[:2]
    score, value = torch.zeros(2 * d, 2 * d, dtype=torch.float64), torch.zeros(d, 2 * d, dtype=torch.float64)
    score[:d, d:] = value[:, :d] = torch.eye(d, dtype=torch.float64)
    along_scores = (like.scores * score).sum((-2, -1)) / d
    along_values = (like.values * value).sum((-2, -1)) / d
    share = (along_scores * along_values).clamp_min(0)
    # before training nothing points anywhere
    share = share / share.sum() if share.sum() > 0 else torch.full((heads,), 1 / heads, dtype=torch.float64)
    ratio = like.values.norm(dim=(-2, -1)) / like.scores.norm(dim=(-2, -1)).clamp_min(1e-300)
    sign = torch.where(along_scores < 0, -1.0, 1.0)
    size = step_size * share
    return Products(
        (sign * (size / ratio).sqrt())[:, None, None] * score, (sign * (size * ratio).sqrt())[:, None, None] * value
    )


def random_like(like: Products, generator: torch.Generator) -> Products:
    """Random products with the norm of every matrix of `like`."""
    import torch

    def drawn(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return noise * (x.norm(dim=(-2, -1), keepdim=True) / noise.norm(dim=(-2, -1), keepdim=True))

    return Products(drawn(like.scores), drawn(like.values))


def _over_trained(key: str, **claim: Any) -> Claim:
    """About a loss over that of the trained layer."""

    def detail(results: Results[Mixed], config: InterpolationConfig) -> str:
        return f" ({results.values(f'curve.-1.{key}'):.3f} / {results.values('curve.-1.trained'):.3f})"

    return Claim(value=lambda results, config: _ratio(results, key), detail=detail, **claim)


def _ratio(results: Results[Mixed], key: str) -> Values:
    return results.values(f"curve.-1.{key}") / results.values("curve.-1.trained")


def _random(results: Results[Mixed], config: InterpolationConfig) -> Values:
    """Halfway to random weights as large."""
    return _ratio(results, "mixed with random")


CLAIMS = (
    Claim(
        statement="Loss of the trained layer",
        source=_SOURCE,
        published="0.892",
        value=lambda results, config: results.values("curve.-1.trained"),
        low=0.86,
        high=0.93,
        outside="an untrained layer: 1.68",
    ),
    _over_trained(
        "mixed",
        statement="Halfway to the construction: loss over that of the trained layer",
        source=_SOURCE,
        published="0.892 / 0.892 = 1.000",
        low=0.98,
        high=1.02,
        outside=_ELSEWHERE,
        control=_random,
    ),
    _over_trained(
        "constructed",
        statement="The construction with its one tuned step size: loss over that of the trained layer",
        source=_SOURCE,
        published="0.890 to 0.898 over 0.892",
        low=0.98,
        high=1.03,
        outside=_ELSEWHERE,
        control=_random,
    ),
    _over_trained(
        "mixed with random",
        statement="Control: halfway to random weights of the construction's norm, loss over that of the trained layer",
        source="follows from the claim; no published value",
        published="far above 1",
        low=1.2,
        unjudged=CONTROL,
    ),
)


def report(report: Report, config: InterpolationConfig, results: Results[Mixed]) -> None:
    """The losses halfway, every layer, the curves during training and along the way."""
    from unrolled.report import Fact, LineChart

    shown = {key: f"{results.values(f'curve.-1.{key}'):.3f}" for key in PUBLISHED}
    seeds = f"{len(results)} seed{'s' * (len(results) != 1)}"
    extent = f"{config.steps} steps of {config.batch_size}"
    if config.steps < 2500 or config.batch_size < 512:
        extent += " (paper: 2500 of 512)"
    report.headline(
        f"Halfway between trained and constructed weights the loss is {shown['mixed']}, that of the trained layer "
        f"{shown['trained']}; halfway to random weights of the same norm it is {shown['mixed with random']}.",
        [
            Fact(label="Trained", value=shown["trained"], detail=f"{seeds}, {extent}"),
            Fact(label="Halfway to the construction", value=shown["mixed"], detail=seeds),
            Fact(label="Constructed", value=shown["constructed"], detail="one step size, tuned on other sequences"),
        ],
    )
    if not results:
        return
    report.section(
        "Every layer",
        "Losses are half the squared error, summed over the state and averaged over positions and held-out sequences. "
        "The layers have two heads. What is averaged are the products of weights of every head, `W_q^T W_k` and "
        "`P W_v`, as they act on (s_t, s_{t-1}); the construction has as many heads and, head by head, the trained "
        f"ratio of norms of the two products. Its one step size is the best one on other sequences, "
        f"{results.first('best_step_size'):.4f}; that of the average is not tuned.",
    ).table(
        ["seed", "training", *PUBLISHED],
        [
            ["published", "2500 steps of 512", *PUBLISHED.values()],
            *(
                [f"{cell.network.seed}", extent, *(f"{result['curve'][-1][key]:.4f}" for key in PUBLISHED)]
                for cell, result, _ in results
            ),
        ],
        caption=f"{config.test_sequences} held-out sequences; predicting zero costs {results.first('zero_loss'):.3f}.",
    )
    over = f"Means over {seeds}; bars are one standard deviation." if len(results) > 1 else "One seed."

    def during(key: str, color: int) -> Series:
        return results.curve(key, "curve", key, color=color, dashed=key in ("constructed", "mixed with random"))

    shares = results.first("shares")
    report.section("During training and along the way").figure(
        [
            LineChart(
                title="held-out loss",
                x_label="training step",
                series=[during(key, place) for place, key in enumerate(PUBLISHED)],
            ),
            LineChart(
                title="held-out loss after training",
                x_label="share of the other weights",
                series=[
                    results.curve("to construction", "to_construction", x=shares, color=1),
                    results.curve("to random", "to_random", x=shares, color=3, dashed=True),
                ],
            ),
        ],
        name="interpolation",
        caption=f"{over} At share 0 stand the trained weights, at 1 the others; random ones have the norm of the "
        "construction's in every head.",
    )


STUDY = Study(
    name="mesa-interpolation",
    title="Between trained and constructed weights",
    question="Are the weights of a trained linear layer those of one gradient step, or do they only act alike?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=InterpolationConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
