"""Trained linear layers replaced by 16 + 16 numbers a head, the means of the diagonals of their weights' blocks.

Claim (arXiv 2309.05858): a model of which only these means are kept predicts as well as the trained one, so the trained
weights hold a few numbers and no more: its "CompressedAlg", at one layer and at six.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import AT_LEAST_0, CONTROL, Claim
from unrolled.studies.mesa.constructed import Constructed, ModelsConfig, columns_of, model_predictions
from unrolled.studies.mesa.held_out import TEST_SEED, Predictor, mean_loss
from unrolled.studies.mesa.weights import products
from unrolled.studies.results import NOT_RUN, Results, Values
from unrolled.studies.study import Budgets, Count, Distinct, Study

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.models import SequenceRegressor
    from unrolled.report import Report

_SOURCE = "arXiv 2309.05858, figure 4 and text"
_ELSEWHERE = "the same numbers in other places: 1.9 and more"
Depth = Literal["1", "2", "6"]
DEPTHS: tuple[Depth, ...] = ("1", "2", "6")


@dataclass(kw_only=True)
class CompressedConfig(ModelsConfig):
    """The trained models are those of `mesa-depth`; where that study has not run with equal settings they are trained.

    Settings of models that both studies use are equal at every budget.
    """

    budgets: ClassVar[Budgets] = {
        "quick": {
            "seeds": (0,),
            "models": ("1", "2"),
            "steps": (400, 500),
            "test_sequences": 512,
            "retraining": 50,
            "batch_size": (32,),
        },
        "cpu": {},
        "gpu": {
            "seeds": (0, 1, 2, 3, 4),
            "steps": (5000, 5000, 15_000),
            "batch_size": (256,),
            "published": True,
            "retraining": 1000,
            "device": "cuda",
        },
    }

    models: Annotated[tuple[Depth, ...], Distinct()] = DEPTHS
    """Numbers of linear layers."""
    steps: tuple[Count, ...] = (1500, 1000, 2500)
    """Training steps of each; the paper's are 5000, 5000 and 15000."""
    batch_size: tuple[Count, ...] = (32, 256, 32)
    """Sequences in a step of each, or one number for all; the paper's 256."""
    retraining: Count = 150
    """Steps of training the numbers alone, starting from the means."""


@dataclass(frozen=True, kw_only=True)
class Compressed(Cell):
    """One model, compressed: as it is, with its numbers retrained and permuted, and with random weights as large."""

    network: Constructed
    retraining: int
    test_sequences: int

    def compute(self, context: Context) -> Result:
        """Losses of every variant, shares of the squared norm that are `kept`, and the numbers themselves."""
        import torch

        world, seed = self.network.world, self.network.seed
        test = world.sample(self.test_sequences, seed=TEST_SEED)
        inputs, targets = test.inputs.to(context.device), test.targets.to(context.device)

        def loss(predict: Predictor) -> float:
            return mean_loss(predict, inputs, targets)

        model = self.network.load(context)
        numbers = compressed(model, world.dim)
        result = {
            "trained": loss(model_predictions(model)),
            "compressed": loss(numbers.predict),
            "permuted": loss(permuted(numbers, seed).predict),
            "retrained": loss(retrained(numbers, self.network, self.retraining, context.device).predict),
            "zero": loss(lambda x: 0 * x),
            "numbers": numbers.scores.numel() + numbers.values.numel(),
            "weights": sum(p.numel() for p in model.parameters()),
            "kept": kept_share(model, numbers, world.dim),
            "extent": self.network.recipe.extent,
            "scores": numbers.scores.tolist(),
            "values": numbers.values.tolist(),
        }
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # the model is not needed any more
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.copy_(noise * weight.norm() / noise.norm())
        return {
            **result,
            "random": loss(model_predictions(model)),
            "random_compressed": loss(compressed(model, world.dim).predict),
            "random_kept": kept_share(model, compressed(model, world.dim), world.dim),
        }


def cells(config: CompressedConfig) -> Iterator[Compressed]:
    """Every model of every seed."""
    for network in config.networks:
        yield Compressed(network=network, retraining=config.retraining, test_sequences=config.test_sequences)


@dataclass(frozen=True)
class Numbers:
    """What is left of a model of linear layers: two 4 x 4 matrices of numbers a head.

    Attributes:
        scores: means of the diagonals of the blocks of W_q^T W_k, [layers, heads, 4, 4].
        values: the same of P W_v.
        clip: tokens are kept within [-clip, clip] after every layer.
    """

    scores: Tensor
    values: Tensor
    clip: float

    def predict(self, states: Tensor) -> Tensor:
        """Predictions of s_{t+1} from states [b, t, d], in the dtype of the states; differentiable in the numbers."""
        import torch

        from unrolled.tasks import constructed_tokens

        z = constructed_tokens(states)
        for scores, values in zip(self.scores.to(states), self.values.to(states), strict=True):
            channels = z.unflatten(-1, (4, -1))  # [b, t, 4, d]
            queries = torch.einsum("btid,hij->bhtjd", channels, scores).flatten(-2)
            weighted = torch.einsum("btjd,hij->bhtid", channels, values).flatten(-2)
            z = z + ((queries @ z[:, None].mT).tril() @ weighted).sum(1)
            z = z.clamp(-self.clip, self.clip)
        return z[..., : states.shape[-1]]


def compressed(model: SequenceRegressor, state_dim: int) -> Numbers:
    """The `Numbers` of a model of linear layers on tokens of four channels of width `state_dim`."""
    import torch

    def means(matrices: Tensor) -> Tensor:
        blocks = matrices.unflatten(-1, (4, state_dim)).unflatten(-3, (4, state_dim))  # [h, 4, d, 4, d]
        return blocks.diagonal(dim1=-3, dim2=-1).mean(-1)

    layers = [products(block.get_submodule("attn")) for block in model.blocks]  # type: ignore[arg-type]
    scores, values = (torch.stack([means(pair[place]) for pair in layers]) for place in (0, 1))
    return Numbers(scores, values, float(model.config.clip))


def permuted(numbers: Numbers, seed: int) -> Numbers:
    """The same numbers, in another order in every head and product: the means after exchanging blocks."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def shuffled(x: Tensor) -> Tensor:
        order = torch.rand(*x.shape[:2], 16, generator=generator).argsort(-1).to(x.device)
        return x.flatten(-2).gather(-1, order).unflatten(-1, (4, 4))

    return Numbers(shuffled(numbers.scores), shuffled(numbers.values), numbers.clip)


def kept_share(model: SequenceRegressor, numbers: Numbers, state_dim: int) -> float:
    """Share of the squared norm of all products of weights that the numbers stand for."""
    layers: list[Any] = [block.get_submodule("attn") for block in model.blocks]
    whole = float(sum(matrices.square().sum() for layer in layers for matrices in products(layer)))
    within = state_dim * float(numbers.scores.square().sum() + numbers.values.square().sum())
    return within / max(whole, 1e-300)


def retrained(numbers: Numbers, network: Constructed, steps: int, device: str) -> Numbers:
    """The numbers after `steps` of AdamW on nothing but them, on sequences that no training saw."""
    import torch

    from unrolled.studies.training import warmup_cosine
    from unrolled.tasks import sequence_loss

    free = [x.to(device, torch.float32).clone().requires_grad_() for x in (numbers.scores, numbers.values)]
    current = Numbers(free[0], free[1], numbers.clip)
    optimizer = torch.optim.AdamW(free, lr=3e-3, weight_decay=0.0)
    rate = warmup_cosine(3e-3, warmup=max(1, steps // 10), steps=steps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        seed = 2**44 + network.seed * 10_000_000 + step
        batch = network.world.sample(network.recipe.batch_size, seed=seed, device=device)
        optimizer.zero_grad()
        sequence_loss(current.predict(batch.inputs), batch.targets).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_value_(free, 0.05)
        optimizer.step()
    return Numbers(free[0].detach(), free[1].detach(), numbers.clip)


def rows_of(results: Results[Compressed], name: str) -> Results[Compressed]:
    """The rows of a model, one a seed."""
    return results.where(**columns_of(name))


def ratio(results: Results[Compressed], name: str, numbers: str = "compressed") -> Values:
    """Loss with 32 numbers a head over that of the trained model."""
    rows = rows_of(results, name)
    return rows.values(numbers) / rows.values("trained")


def least_permuted(results: Results[Compressed], config: CompressedConfig) -> float:
    """Smallest ratio of a loss with permuted numbers to the trained one, over all models; NaN of none."""
    return min((row.result["permuted"] / row.result["trained"] for row in results), default=float("nan"))


def _layers(name: str) -> str:
    return f"{name} layer{'s' * (name != '1')}"


def _coincide(name: str) -> Claim:
    def detail(results: Results[Compressed], config: CompressedConfig) -> str:
        rows = rows_of(results, name)
        return f" ({rows.values('compressed'):.3f} / {rows.values('trained'):.3f})"

    return Claim(
        statement=f"{name} linear layer{'s' * (name != '1')}: loss with 32 numbers a head over the trained",
        source=_SOURCE,
        published="about 1: losses coincide; no number" if name != "2" else "no number",
        value=lambda results, config: ratio(results, name),
        low=0.95,
        high=1.1,
        within=AT_LEAST_0,
        control=lambda results, config: ratio(results, name, "permuted"),
        detail=detail,
        unjudged="said of one and of six layers" if name == "2" else "",
        outside="" if name == "2" else _ELSEWHERE,
    )


CLAIMS = (
    *(_coincide(name) for name in DEPTHS),
    Claim(
        statement="Control: the same numbers in other places, smallest loss over the trained one",
        source="follows from the claim; no published value",
        published="far above 1",
        value=least_permuted,
        low=1.3,
        unjudged=CONTROL,
        point=True,
        spec=".2f",
    ),
)


def report(report: Report, config: CompressedConfig, results: Results[Compressed]) -> None:
    """The ratios, every depth, the control of untrained layers, the numbers of one layer."""
    from unrolled.report import Fact

    models: dict[str, Results[Compressed]] = {name: rows for name in config.models if (rows := rows_of(results, name))}
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "1 seed"
    times = [f"{ratio(results, name):.2f} times at {_layers(name)}" for name in models]
    report.headline(
        f"With 32 numbers a head in place of all weights the loss is {', '.join(times) or NOT_RUN} what it was.",
        [
            Fact(
                label=f"{_layers(name)}: compressed / trained",
                value=f"{ratio(results, name):.3f}",
                detail=f"{seeds}, {rows.first('numbers')} numbers for {rows.first('weights')} weights",
            )
            for name, rows in models.items()
        ],
    )
    if not models:
        return
    report.section(
        "Every depth",
        "Losses are half the squared error, summed over the state and averaged over positions and held-out sequences. "
        "Compressed: every d x d block of `W_q^T W_k` and `P W_v` of every head becomes its mean diagonal entry times "
        f"the identity. Retrained: {config.retraining} further steps on these numbers alone. Permuted: the same "
        "numbers of every head in random places.",
    ).table(
        [*("layers", "training", "numbers", "trained", "compressed", "retrained", "permuted"), "of the squared norm"],
        [_row(name, rows_of(results, name)) for name in (*models, *(name for name in DEPTHS if name not in models))],
        caption=f"Mean ± standard deviation over {seeds}; predicting zero costs {results.first('zero'):.3f}. The last "
        "column: how much of the squared norm of all products the numbers stand for.",
    )
    report.section(
        "Untrained layers",
        "Random weights as large as the trained ones, compressed in the same way. With the small weights that training "
        "starts from, a model and its compression both predict zero, and their equal losses would mean nothing.",
    ).table(
        ["layers", "random weights", "compressed", "of the squared norm"],
        [
            [
                *(name, *(f"{rows.values(key):.3f}" for key in ("random", "random_compressed"))),
                f"{100 * rows.values('random_kept').mean:.1f} %",
            ]
            for name, rows in models.items()
        ],
        caption=f"{seeds}. Of random weights about 1 / d^2 = 1 % of the squared norm is left.",
    )
    _figure(report, *next(iter(models.items())))


def _row(name: str, rows: Results[Compressed]) -> list[str]:
    """Of the table of depths."""
    count = f"{rows.first('numbers')} of {rows.first('weights')}" if rows else ""
    share = f"{100 * rows.values('kept').mean:.0f} %" if rows else ""
    losses = [f"{rows.values(key):.4f}" for key in ("trained", "compressed", "retrained", "permuted")]
    return [name, rows.first("extent", NOT_RUN), count, *losses, share]


def _figure(report: Report, name: str, rows: Results[Compressed]) -> None:
    import numpy as np

    from unrolled.report import HeatMap

    channels = ["0", "s_t", "s_t again", "s_t-1"]
    panels = [
        HeatMap(
            title=f"{product}, head {head + 1}",
            values=np.array(rows.first(key)[0][head]),
            rows=channels,
            columns=channels,
            row_label=row,
            column_label=column,
        )
        for head in range(len(rows.first("scores")[0]))
        for key, product, row, column in (
            ("scores", "W_q^T W_k", "query", "key"),
            ("values", "P W_v", "written to", "read from"),
        )
    ]
    layers = "1 linear layer" if name == "1" else f"layer 1 of {name}"
    report.section("The numbers").figure(
        panels,
        name="numbers",
        caption=f"All numbers of {layers}, seed {rows[0].cell.network.seed}. One gradient step is: queries from s_t, "
        "keys from s_t-1, and s_t written to the first channel; the two copies of s_t may share the work.",
    )


STUDY = Study(
    name="mesa-compressed",
    title="Trained linear layers as 32 numbers a head",
    question="How much of a trained model is in the means of the diagonals of its weights' blocks?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=CompressedConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
