"""Weights between those of a trained linear layer and the construction's: does the loss stay as low on the way?

Claim (arXiv 2309.05858): averaging the trained weights with those of one gradient step, product by product, predicts as
well as either. Two layers that computed the same by different means would not survive being averaged; neither would a
layer averaged with random weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from unrolled.studies.base import Budget, Expectation, Study, StudyConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unrolled.layers.linear_attention import LinearSelfAttention
    from unrolled.report import Report, Series

_SOURCE = "arXiv 2309.05858, figure 4; means of the released results"
TRAINED = Expectation(statement="Loss of the trained layer", source=_SOURCE, published="0.892", low=0.86, high=0.93)
MIXED = Expectation(
    statement="Halfway to the construction: loss over that of the trained layer",
    source=_SOURCE,
    published="0.892 / 0.892 = 1.000",
    low=0.98,
    high=1.02,
)
CONSTRUCTED = Expectation(
    statement="The construction with its one tuned step size: loss over that of the trained layer",
    source=_SOURCE,
    published="0.890 to 0.898 over 0.892",
    low=0.98,
    high=1.03,
)
RANDOM = Expectation(
    statement="Control: halfway to random weights of the construction's norm, loss over that of the trained layer",
    source="follows from the claim; no published value",
    published="far above 1",
    low=1.2,
)


@dataclass(kw_only=True)
class Config(StudyConfig):
    """Budgets change the number of steps, sequences and seeds; the rate is the paper's for this experiment."""

    budgets: ClassVar[dict[Budget, dict[str, Any]]] = {
        "quick": {"seeds": (0,), "steps": 1000, "batch_size": 32, "test_sequences": 1024, "points": 10},
        "cpu": {},
        "gpu": {"seeds": (0, 1, 2, 3, 4), "batch_size": 512, "device": "cuda"},
    }

    seeds: tuple[int, ...] = (0, 1, 2)
    """One layer for each: initial weights and training sequences. Test sequences are always the same."""
    steps: int = 2500
    """Training steps; the paper's 2500."""
    batch_size: int = 128
    """Sequences per step; the paper's 512."""
    test_sequences: int = 4096
    """Held-out sequences."""
    points: int = 20
    """Looks at the held-out sequences during training: the points of the curves."""
    coefficients: int = 11
    """Mixing coefficients from 0 (trained) to 1 (constructed)."""
    device: str = "cpu"
    """Where to train."""
    out: Path = Path("runs/mesa-interpolation")
    """Where the report goes, and the trained cells, which a second run takes from there."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must name at least one, and none twice")
        if min(self.steps, self.batch_size, self.test_sequences, self.points) < 1:
            raise ValueError("steps, batch_size, test_sequences and points must be at least 1")
        if self.coefficients < 2:
            raise ValueError("coefficients must be at least 2: those of the trained and the constructed weights")


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
        found: Tensor = ((both @ scores @ both.mT).tril() @ (both @ values.mT)).sum(-3)
        return found.clamp(-clip, clip)


def products_of(layer: LinearSelfAttention, state_dim: int) -> Products:
    """The `Products` of a layer on tokens of four channels of width `state_dim`, float64."""
    import torch

    from unrolled.studies.mesa_train import products

    d = state_dim
    query_key, output_value = products(layer)
    fold = torch.zeros(4 * d, 2 * d, dtype=torch.float64)  # (s_t, s_{t-1}) -> token
    eye = torch.eye(d, dtype=torch.float64)
    fold[d : 2 * d, :d] = fold[2 * d : 3 * d, :d] = fold[3 * d :, d:] = eye
    return Products(fold.mT @ query_key @ fold, output_value[:, :d] @ fold)


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


def run(config: Config, *, on_progress: Callable[[str], None] | None = None) -> Report:
    """Train, mix, compare; the report is also written to `config.out`.

    Args:
        config: what to run.
        on_progress: given a line of text when each layer is trained.
    """
    from unrolled.studies.remembered import remembered

    began = time.perf_counter()
    cells: list[dict[str, Any]] = []
    names = ("steps", "batch_size", "test_sequences", "points", "coefficients", "device")
    shared = {name: getattr(config, name) for name in names}
    for seed in config.seeds:

        def compute(seed: int = seed) -> dict[str, Any]:
            return run_one(config, seed)

        cells.append(remembered(config.out / "cells", f"seed{seed}", shared, compute))
        last = cells[-1]["curve"][-1]
        if on_progress is not None:
            on_progress(f"seed {seed}: trained {last['trained']:.4f}, mixed {last['mixed']:.4f}")
    report = _report(config, cells, began)
    report.write(config.out)
    return report


def run_one(config: Config, seed: int) -> dict[str, Any]:
    """One layer: trained, and at `config.points` moments of the training mixed with the construction."""
    import torch

    from unrolled.studies.mesa_train import TEST_SEED, Recipe, best_step_size, position_losses, train
    from unrolled.studies.remembered import checkpoint
    from unrolled.tasks import LinearDynamics

    began = time.perf_counter()
    world = LinearDynamics()
    test = world.sample(config.test_sequences, seed=TEST_SEED)
    best = best_step_size(world)
    recipe = Recipe(steps=config.steps, batch_size=config.batch_size, lr=2e-4)

    def loss(products: Products) -> float:
        return float(position_losses(lambda x: products.predict(x, clip=recipe.clip), *test[:2]).mean())

    def look(step: int, model: Any) -> dict[str, Any]:
        own = products_of(model.blocks[0].attn, world.dim)
        target = construction(own, best)
        noise = random_like(target, torch.Generator().manual_seed(seed))
        return {
            "trained": loss(own),
            "mixed": loss(own.mixed(target, 0.5)),
            "constructed": loss(target),
            "mixed with random": loss(own.mixed(noise, 0.5)),
        }

    model, curve = train(
        world,
        recipe,
        seed=seed,
        device=config.device,
        keep=checkpoint(
            config.out / "models" / f"seed{seed}.pt",
            {"world": asdict(world), "recipe": asdict(recipe), "seed": seed, "device": config.device},
        ),
        look=look,
        look_at={round(config.steps * point / config.points) for point in range(config.points + 1)},
    )
    own = products_of(model.blocks[0].attn, world.dim)  # type: ignore[arg-type]
    target = construction(own, best)
    noise = random_like(target, torch.Generator().manual_seed(seed))
    shares = [place / (config.coefficients - 1) for place in range(config.coefficients)]
    return {
        "seed": seed,
        "best_step_size": best,
        "curve": curve,
        "shares": shares,
        "to_construction": [loss(own.mixed(target, share)) for share in shares],
        "to_random": [loss(own.mixed(noise, share)) for share in shares],
        "zero_loss": float(position_losses(lambda x: 0 * x, *test[:2]).mean()),
        "extent": _extent(config),
        "seconds": time.perf_counter() - began,
    }


def _extent(config: Config) -> str:
    text = f"{config.steps} steps of {config.batch_size}"
    return text if config.steps >= 2500 and config.batch_size >= 512 else f"{text} (paper: 2500 of 512)"


def _report(config: Config, cells: list[dict[str, Any]], began: float) -> Report:
    from unrolled.report import Fact, LineChart, Provenance, Report, mean_std

    ends = [cell["curve"][-1] for cell in cells]
    shown = {key: mean_std([end[key] for end in ends], digits=3) for key in ends[0] if key != "step"}
    seeds = f"{len(cells)} seeds" if len(cells) > 1 else "1 seed"

    def ratio(key: str) -> tuple[float, str]:
        found = [end[key] / end["trained"] for end in ends]
        return fmean(found), f"{shown[key]} / {shown['trained']} = {mean_std(found, digits=3)}"

    report = Report(
        "Between trained and constructed weights",
        question="Are the weights of a trained linear layer those of one gradient step, or do they only act alike?",
    )
    report.claims = [
        TRAINED.judge(fmean(end["trained"] for end in ends), shown["trained"]),
        MIXED.judge(*ratio("mixed")),
        CONSTRUCTED.judge(*ratio("constructed")),
        RANDOM.judge(*ratio("mixed with random")),
    ]
    report.headline(
        f"Halfway between trained and constructed weights the loss is {shown['mixed']}, that of the trained layer "
        f"{shown['trained']}; halfway to random weights of the same norm it is {shown['mixed with random']}.",
        [
            Fact(label="Trained", value=shown["trained"], detail=f"{seeds}, {cells[0]['extent']}"),
            Fact(label="Halfway to the construction", value=shown["mixed"], detail=seeds),
            Fact(label="Constructed", value=shown["constructed"], detail="one step size, tuned on other sequences"),
        ],
    )
    published = {"trained": "0.892", "mixed": "0.892", "constructed": "0.890 to 0.898", "mixed with random": "no value"}
    rows = [
        [f"{cell['seed']}", cell["extent"], *(f"{end[key]:.4f}" for key in published)]
        for cell, end in zip(cells, ends, strict=True)
    ]
    report.section(
        "Every layer",
        "Losses are half the squared error, summed over the state and averaged over positions and held-out sequences. "
        "The layers have two heads. What is averaged are the products of weights of every head, `W_q^T W_k` and "
        "`P W_v`, as they act on (s_t, s_{t-1}); the construction has as many heads and, head by head, the trained "
        f"ratio of norms of the two products. Its one step size is the best one on other sequences, "
        f"{cells[0]['best_step_size']:.4f}; that of the average is not tuned.",
    ).table(
        ["seed", "training", "trained", "mixed", "constructed", "mixed with random"],
        [["published", "2500 steps of 512", *published.values()], *rows],
        caption=f"{config.test_sequences} held-out sequences; predicting zero costs {cells[0]['zero_loss']:.3f}.",
    )
    steps = [point["step"] for point in cells[0]["curve"]]
    over = f"Means over {len(cells)} seeds; bars are one standard deviation." if len(cells) > 1 else "One seed."
    report.section("During training and along the way").figure(
        [
            LineChart(
                title="held-out loss",
                x_label="training step",
                series=[
                    _series(key, steps, [[p[key] for p in cell["curve"]] for cell in cells], place, key in _DASHED)
                    for place, key in enumerate(published)
                ],
            ),
            LineChart(
                title="held-out loss after training",
                x_label="share of the other weights",
                series=[
                    _series("to construction", cells[0]["shares"], [cell["to_construction"] for cell in cells], 1),
                    _series("to random", cells[0]["shares"], [cell["to_random"] for cell in cells], 3, dashed=True),
                ],
            ),
        ],
        name="interpolation",
        caption=f"{over} At share 0 stand the trained weights, at 1 the others; random ones have the norm of the "
        "construction's in every head.",
    )
    report.results = {"layers": cells}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


_DASHED = ("constructed", "mixed with random")


def _series(label: str, x: list[float], runs: list[list[float]], color: int, dashed: bool = False) -> Series:
    from statistics import stdev

    from unrolled.report import Series

    columns = list(zip(*runs, strict=True))
    error = [stdev(values) for values in columns] if len(runs) > 1 else None
    return Series(label=label, x=x, y=[fmean(values) for values in columns], error=error, color=color, dashed=dashed)


STUDY = Study(
    name="mesa-interpolation",
    title="Averaging trained weights with those of a gradient step costs nothing",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=Config,
    run=run,
    expectations=(TRAINED, MIXED, CONSTRUCTED, RANDOM),
)
