"""One trained linear-attention layer beside one step of gradient descent on the sequence's own least squares.

Claim (arXiv 2309.05858): trained to predict the next state of linear systems that differ from sequence to sequence, one
linear self-attention layer ends at the loss, the step size and the weight structure of one gradient step. The paper
learns the step's initial weights W_0 too; here the step from zero is judged, and the one from the best W_0 stands
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import AT_LEAST_0, CORRELATION, Claim
from unrolled.studies.mesa.constructed import Constructed, Recipe, model_predictions, step_predictions
from unrolled.studies.mesa.held_out import TEST_SEED, best_gradient_step, best_step_size, mean_loss, position_losses
from unrolled.studies.mesa.weights import structure
from unrolled.studies.results import NOT_RUN, Results, Values
from unrolled.studies.study import AtLeast, Budgets, Config, Count, Seeds, Study

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import LineChart, Report

HEADS, DIM = 2, 10  # the paper's layer
_SOURCE = "arXiv 2309.05858, figures 3B and 4"


@dataclass(kw_only=True)
class OneStepConfig(Config):
    """Budgets change the number of steps, sequences and seeds, never the recipe, which is the published code's."""

    budgets: ClassVar[Budgets] = {
        "quick": {"seeds": (0,), "steps": 800, "batch_size": 64, "sizes": ((4, 10),), "test_sequences": 1024},
        "cpu": {},
        "gpu": {"seeds": (0, 1, 2, 3, 4), "sizes_batch_size": 256, "device": "cuda"},
    }

    seeds: Seeds = (0, 1)
    """One layer for each: initial weights and training sequences. Test sequences are always the same."""
    steps: Count = 5000
    """Training steps; the paper's 5000."""
    batch_size: Count = 256
    """Sequences per step; the paper's 256."""
    sizes_batch_size: Count = 64
    """Sequences per step for the further layers."""
    sizes: Annotated[tuple[tuple[int, int], ...], AtLeast(1)] = ((1, 10), (4, 10), (2, 5), (2, 20))
    """Further layers, one each with the first seed: heads and width of the state. The paper's is (2, 10)."""
    test_sequences: Count = 4096
    """Held-out sequences."""
    points: Count = 20
    """Looks at the held-out sequences during training: the points of the curves."""


@dataclass(frozen=True, kw_only=True)
class Layer(Cell):
    """One layer: tested and its weights read, at every look of its training."""

    network: Constructed
    test_sequences: int

    def compute(self, context: Context) -> Result:
        """Losses of the layer and of the gradient step, what the weights hold, and `curve`, both during training."""
        world = self.network.world
        test = world.sample(self.test_sequences, seed=TEST_SEED)
        inputs, targets = test.inputs.to(context.device), test.targets.to(context.device)
        curve = []
        for step in self.network.looks:
            model = self.network.load(context, step)
            losses = position_losses(model_predictions(model), inputs, targets)
            numbers = asdict(structure(model.blocks[0].attn, world.dim))  # type: ignore[arg-type]
            curve.append({"step": step, "loss": float(losses.mean()), **numbers})
        return {
            "loss": curve[-1]["loss"],
            **self.without_training(inputs, targets),
            "losses_by_position": losses.tolist(),
            "structure": numbers,
            "extent": self.network.recipe.extent,
            "curve": curve,
        }

    def without_training(self, inputs: Tensor, targets: Tensor) -> Result:
        """What needs no layer: the best gradient step, that from the best initial weights, the prediction of zero."""
        world, recipe = self.network.world, self.network.recipe
        best = best_step_size(world)
        gradient_step = position_losses(step_predictions(recipe, best), inputs, targets)
        size, initial = best_gradient_step(world)
        return {
            "gradient_step_loss": float(gradient_step.mean()),
            "initial_step_loss": mean_loss(step_predictions(recipe, size, initial.to(inputs)), inputs, targets),
            "best_initial": float(initial.norm()) / world.dim**0.5,
            "zero_loss": mean_loss(lambda x: 0 * x, inputs, targets),
            "best_step_size": best,
            "gradient_step_by_position": gradient_step.tolist(),
        }


def cells(config: OneStepConfig) -> Iterator[Layer]:
    """The paper's layer for every seed, then the other sizes with the first."""
    layers = [(seed, HEADS, DIM, config.batch_size) for seed in config.seeds]
    layers += [(config.seeds[0], *size, config.sizes_batch_size) for size in config.sizes]
    for seed, heads, dim, batch in layers:
        recipe = Recipe(steps=config.steps, batch_size=batch, heads=heads, dim_head=2 * dim)
        network = Constructed(recipe=recipe, seed=seed, dim=dim, points=config.points, moments=True)
        yield Layer(network=network, test_sequences=config.test_sequences)


def papers(results: Results[Layer], config: OneStepConfig) -> Results[Layer]:
    """The rows of the paper's layer."""
    return results.where(heads=HEADS, dim=DIM, batch_size=config.batch_size)


def loss_ratio(results: Results[Layer], config: OneStepConfig) -> Values:
    """Loss of the paper's layer over that of the gradient step."""
    rows = papers(results, config)
    return rows.values("loss") / rows.values("gradient_step_loss")


def step_ratio(results: Results[Layer], config: OneStepConfig) -> Values:
    """Step size in the weights over the best one."""
    rows = papers(results, config)
    return rows.values("structure.step_size") / rows.values("best_step_size")


def differences(results: Results[Layer], config: OneStepConfig) -> Values:
    """Distance of the ratio of losses from one, by shape of the layer, the mean over seeds; none of a single shape."""
    shapes: dict[tuple[int, int], list[float]] = {}
    for row in results if config.sizes else ():
        shape = (row.cell.network.recipe.heads, row.cell.network.dim)
        shapes.setdefault(shape, []).append(abs(row.result["loss"] / row.result["gradient_step_loss"] - 1))
    return Values({shape: fmean(distances) for shape, distances in shapes.items()}, "shape")


def shares(results: Results[Layer], config: OneStepConfig) -> str:
    """How sparse the weights are, in words."""
    names = ("nonzero", "for_90_percent", "above_tenth")
    nonzero, heavy, loud = (100 * papers(results, config).values(f"structure.{name}").mean for name in names)
    return (
        f" of 1 are non-zero ({nonzero:.0f} %); {heavy:.1f} % hold 90 % of the squared weight and {loud:.1f} % exceed "
        "a tenth of the largest; of the construction's, 0.6 % are non-zero"
    )


CLAIMS = (
    Claim(
        statement="One trained linear layer predicts as well as one gradient step (ratio of their losses)",
        source=f"{_SOURCE}; means of the released results",
        published="0.894 / 0.900 = 0.993",
        value=loss_ratio,
        low=0.97,
        high=1.02,
        outside="an untrained layer, 1.8, or two layers, 0.47",
    ),
    Claim(
        statement="The step size in its weights is the best one for a gradient step (ratio of the two)",
        source=f"{_SOURCE}; 0.0336 is what a retrained layer has here against a best of about 0.033",
        published="about 1",
        value=step_ratio,
        low=0.92,
        high=1.08,
        outside="a layer before training, 0, or one that does not step along the gradient",
    ),
    Claim(
        statement="Its weights compute the map of Proposition 1 (cosine between the two maps)",
        source="arXiv 2309.05858, figure 4: products of the weights are block-diagonal",
        published="shown, no number",
        value=lambda results, config: papers(results, config).values("structure.cosine"),
        low=0.95,
        within=CORRELATION,
        outside="an untrained layer, 0, or one that knows its only teacher, -0.26",
    ),
    Claim(
        statement="Under 1 % of the weights are non-zero",
        source="press reports on the first version of arXiv 2309.05858",
        published="< 1 %",
        unjudged="said by the press, not by the paper",
        value=lambda results, config: papers(results, config).values("structure.nonzero"),
        detail=shares,
    ),
    Claim(
        statement="That holds whatever the number of heads and the width of the state (|ratio of losses - 1|, mean "
        "over shapes)",
        source="arXiv 2309.05858",
        published="stated, no number",
        value=differences,
        high=0.03,
        within=AT_LEAST_0,
        outside="a second layer: 0.5",
        detail=lambda results, config: f", largest {max(differences(results, config)):.3f}",
    ),
)


def report(report: Report, config: OneStepConfig, results: Results[Layer]) -> None:
    """The answer, every layer, the curves during training, the losses by position."""
    from unrolled.report import Fact

    rows = papers(results, config)
    gradient_step = f"{rows.first('gradient_step_loss'):.3f}" if rows else NOT_RUN
    seeds = rows.values("loss").count
    loss, cosine = rows.values("loss"), rows.values("structure.cosine")
    report.headline(
        f"One trained linear layer ends at a loss of {loss:.3f}, one gradient step of the best size at "
        f"{gradient_step}; the weights hold a step size of {rows.values('structure.step_size'):.4f}.",
        [
            Fact(label="Loss of the layer", value=f"{loss:.3f}", detail=f"{seeds}, {rows.first('extent')}"),
            Fact(label="Loss of one gradient step", value=gradient_step),
            Fact(label="Cosine to Proposition 1", value=f"{cosine:.3f}", detail=seeds),
        ],
    )
    report.section(
        "Every layer",
        "Losses are half the squared error, summed over the state and averaged over positions and held-out sequences. "
        "The gradient step starts from zero; its size is the best one on sequences of its own, and its predictions are "
        "clipped as the layer's. Beside it the step from "
        "the best initial weights W_0, learned together with its size on the same sequences; of these systems no W_0 "
        "but zero is better in the mean.",
    ).table(
        [
            *("heads", "width", "seed", "training", "loss", "gradient step", "from W_0", "learned step", "best step"),
            *("cosine", "with W_0", "size of that W_0", "of the best"),
        ],
        [
            [
                *(cell.network.recipe.heads, cell.network.dim, cell.network.seed, result["extent"]),
                *(f"{result[name]:.4f}" for name in ("loss", "gradient_step_loss", "initial_step_loss")),
                *(f"{result['structure']['step_size']:.4f}", f"{result['best_step_size']:.4f}"),
                *(f"{result['structure'][name]:.3f}" for name in ("cosine", "cosine_with_initial", "initial")),
                f"{result['best_initial']:.3f}",
            ]
            for cell, result, _ in results
        ],
        caption="The cosine is between the map that the weights of all heads compute and that of Proposition 1; with "
        "W_0, that of a gradient step from the initial weights that are closest. Size: Frobenius norm over the root of "
        "the width, 1 for a rotation.",
    )
    over = f"Mean over {seeds}; bars are one standard deviation." if len(rows) > 1 else "One seed."
    if rows:
        _training(report, config, rows, over)
        _positions(report, rows, over)


def _training(report: Report, config: OneStepConfig, rows: Results[Layer], over: str) -> None:
    from unrolled.report import LineChart, Series

    def panel(title: str, *lines: tuple[str, str], flat: tuple[str, str] | None = None, **style: Any) -> LineChart:
        series = [rows.curve(label, "curve", key, color=place) for place, (label, key) in enumerate(lines)]
        if flat is not None:
            x, (label, path) = series[0].x, flat
            series.append(Series(label=label, x=x, y=[rows.first(path)] * len(x), dashed=True))
        return LineChart(title=title, x_label="training step", series=series, **style)

    report.section("During training").figure(
        [
            panel("held-out loss", ("layer", "loss"), flat=("gradient step", "gradient_step_loss")),
            panel("step size in the weights", ("layer", "step_size"), flat=("best", "best_step_size")),
            panel(
                "share of the squared weight",
                ("W_q^T W_k", "query_key_on_diagonals"),
                ("P W_v", "output_value_on_diagonals"),
                ("cosine to Prop. 1", "cosine"),
                y_range=(0.0, 1.05),
            ),
        ],
        name="training",
        caption=f"{over} The third panel: share on the diagonals of the blocks of both products of weights, where all "
        f"of Proposition 1's lies and a tenth of random weights'. {config.test_sequences} held-out sequences.",
    )


def _positions(report: Report, rows: Results[Layer], over: str) -> None:
    from unrolled.report import LineChart, Series

    reference = rows.first("gradient_step_by_position")
    x = list(range(1, len(reference) + 1))
    report.section("By position").figure(
        LineChart(
            title="held-out loss",
            x_label="states seen",
            series=[
                rows.curve("layer", "losses_by_position", x=x, color=0),
                Series(label="gradient step", x=x, y=reference, dashed=True),
            ],
        ),
        name="positions",
        caption=f"{over} A fixed step size is too small for short contexts and too large for long ones: that is why "
        "the loss rises again.",
    )


STUDY = Study(
    name="mesa-one-step",
    title="One linear-attention layer and one gradient step",
    question="Does a trained linear layer do what one step of gradient descent on the sequence itself does?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=OneStepConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
