"""Can a trained softmax layer be replaced by a linear one? Distilled layer by layer, by width of the state.

One linear self-attention layer learns the update of one trained softmax layer from what that layer reads, and takes its
place (arXiv 2309.05858, figure 5A). Beside it, without training (figure 5B), regression with a linear and a softmax
kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import truediv
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import Claim
from unrolled.studies.mesa.held_out import TEST_SEED, position_losses
from unrolled.studies.mesa.stacks import Stack, StacksConfig
from unrolled.studies.results import NOT_RUN, Estimate, Results, Values
from unrolled.studies.study import AtLeast, Budgets, Count, Distinct, Rate, Seeds, Study

if TYPE_CHECKING:
    from torch import nn

    from unrolled.report import Report

_FIVE = "arXiv 2309.05858, figure 5, and its released results"
WIDTHS = (4, 6, 10, 20, 40, 60)


@dataclass(kw_only=True)
class LineariseConfig(StacksConfig):
    """Budgets change the widths, the effort of the trainings, and the steps of distillation."""

    budgets: ClassVar[Budgets] = {
        "quick": {"effort": "quick", "widths": (4, 6), "distil_steps": 60, "test_sequences": 256},
        "cpu": {},
        "gpu": {
            "effort": "gpu",
            "seeds": (0, 1, 2, 3, 4),
            "widths": WIDTHS,
            "distil_steps": 5000,
            "device": "cuda",
        },
    }

    widths: Annotated[tuple[int, ...], Distinct(), AtLeast(2)] = (4, 6, 10)
    """Widths n of the state; sequences have 4 n tokens. The paper's are 4, 6, 10, 20, 40, 60."""
    kind: Literal["softmax", "softmax-7"] = "softmax"
    """Stacks whose layers are replaced; softmax-7 has the paper's 7 at every effort."""
    seeds: Seeds = (0,)
    """One softmax stack of each width for each."""
    distil_steps: Count = 800
    """Steps of each distillation."""
    distil_rate: Rate = 3e-3
    """Peak learning rate of each distillation."""
    test_sequences: Count = 1024
    """Held-out sequences; as many again, at most 256, choose the settings of the regressions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.widths = tuple(sorted(self.widths))

    @property
    def depth(self) -> int:
        """Layers of every stack."""
        return self.recipe(self.kind, "full").depth


@dataclass(frozen=True, kw_only=True)
class Linearised(Cell):
    """One trained stack, each of its layers replaced by a distilled linear one, or left out."""

    stack: Stack
    distil_steps: int
    distil_rate: float
    test_sequences: int

    def compute(self, context: Context) -> Result:
        """Losses of the stack, `untrained` and of `zero`; of each of `layers` the ratios and what was unexplained."""
        from unrolled.studies.mesa.distil import distil, silent

        model, recipe = self.stack.load(context), self.stack.recipe
        test = self.stack.world.sample(self.test_sequences, seed=TEST_SEED)
        inputs, targets = test.inputs.to(context.device), test.targets.to(context.device)

        def loss_with(index: int, layer: nn.Module) -> float:
            block: Any = model.blocks[index]
            original, block.attn = block.attn, layer
            try:
                return float(position_losses(model, inputs, targets).mean())
            finally:
                block.attn = original

        loss = float(position_losses(model, inputs, targets).mean())
        layers = []
        for index in range(recipe.depth):
            student, error = distil(
                model,
                recipe,
                index,
                seed=self.stack.seed,
                steps=self.distil_steps,
                rate=self.distil_rate,
                device=context.device,
                keep=self.checkpoint(context, f"layer{index + 1}"),
            )
            replaced = loss_with(index, student)
            left_out = loss_with(index, silent(student))
            layers.append(
                {
                    "layer": index + 1,
                    "loss": replaced,
                    "ratio": replaced / loss,
                    "left_out_ratio": left_out / loss,
                    "unexplained": error,
                }
            )
        return {
            "loss": loss,
            "untrained": float(position_losses(self.stack.untrained(context), inputs, targets).mean()),
            "zero": float(position_losses(lambda x: 0 * x, inputs, targets).mean()),
            "layers": layers,
        }


@dataclass(frozen=True, kw_only=True)
class Kernels(Cell):
    """Regression with a linear and a softmax kernel at one width of the state."""

    width: int
    sequences: int

    def compute(self, context: Context) -> dict[str, float]:
        """As `kernel_errors` gives them."""
        from unrolled.studies.mesa.regression import kernel_errors

        return kernel_errors(self.width, self.sequences)


def cells(config: LineariseConfig) -> Iterator[Cell]:
    """Every seed's stacks by width, then the kernels at the paper's widths."""
    base = config.recipe(config.kind, "full")
    for seed in config.seeds:
        for width in config.widths:
            recipe = replace(base, state=width, dim=4 * width, dim_head=2 * width)
            yield Linearised(
                stack=Stack(recipe=recipe, seed=seed),
                distil_steps=config.distil_steps,
                distil_rate=config.distil_rate,
                test_sequences=config.test_sequences,
            )
    for width in WIDTHS:
        yield Kernels(width=width, sequences=min(config.test_sequences, 512))


def ratio_of(results: Results[Any], width: int, place: int) -> Values:
    """Loss with the layer at `place` replaced over that of the whole stack."""
    return results.of(Linearised, state=width).values(f"layers.{place}.ratio")


def _others(results: Results[Any], config: LineariseConfig) -> list[Values]:
    """The ratios of layers 2 on at the widest state."""
    return [ratio_of(results, config.widths[-1], place) for place in range(1, config.depth)]


def _first(results: Results[Any], config: LineariseConfig) -> tuple[Values, Values]:
    """The ratio of layer 1 at the widest and the narrowest state."""
    return ratio_of(results, config.widths[-1], 0), ratio_of(results, config.widths[0], 0)


def _over(ratios: list[Values], combine: Callable[[list[float]], float]) -> Values:
    """The ratios of several layers, combined in each seed."""
    return Values({seed: combine([ratio.by[seed] for ratio in ratios]) for seed in ratios[0].by})


def _by_width_words(results: Results[Any], config: LineariseConfig) -> str:
    wide, narrow = _first(results, config)
    return f" ({wide.mean:.2f} / {narrow.mean:.2f}, {config.widths[0]} to {config.widths[-1]})"


def _beside_others(results: Results[Any], config: LineariseConfig) -> tuple[Values, Values]:
    """The ratio of layer 1 at the widest state, and the mean of the others there."""
    return _first(results, config)[0], _over(_others(results, config), fmean)


def _beside_others_words(results: Results[Any], config: LineariseConfig) -> str:
    first, others = _beside_others(results, config)
    return f" ({first.mean:.2f} / {others.mean:.2f}, width {config.widths[-1]})"


def _kernel_ends(results: Results[Any]) -> list[Results[Kernels]]:
    return [results.of(Kernels, width=width) for width in (WIDTHS[-1], WIDTHS[0])]


def _kernel_value(results: Results[Any], name: str) -> Estimate | Values:
    """The error at the widest state over that at the narrowest."""
    ends = _kernel_ends(results)
    if not all(ends):
        return Values()
    large, small = (rows.first(name) for rows in ends)
    shares = [rows.first(f"{name}_standard_error") / rows.first(name) for rows in ends]
    ratio = large / small
    half = 1.96 * ratio * sum(share**2 for share in shares) ** 0.5
    return Estimate(ratio, ratio - half, ratio + half, "standard error over sequences")


def _kernel_ratio(name: str, words: str, published: str, control: str, **judged: Any) -> Claim:
    def detail(results: Results[Any], config: LineariseConfig) -> str:
        large, small = (rows.first(name) for rows in _kernel_ends(results))
        return f" ({large:.4f} / {small:.4f})"

    return Claim(
        statement=f"{words}: error at width 60 over that at width 4",
        source=_FIVE,
        published=published,
        value=lambda results, config: _kernel_value(results, name),
        control=lambda results, config: _kernel_value(results, control),
        spec=".2f",
        detail=detail,
        **judged,
    )


CLAIMS = (
    Claim(
        statement="Layer 1: loss ratio of the widest state over that of the narrowest",
        source=_FIVE,
        published="3.6 / 2.1 = 1.7 (4 to 60)",
        value=lambda results, config: truediv(*_first(results, config)),
        low=1.0,
        outside="a layer that is linearised better where the state is wider, as layers 3 on are: below 1",
        spec=".2f",
        detail=_by_width_words,
        unless=lambda config: "" if len(config.widths) > 1 else f"{NOT_RUN}: one width",
    ),
    Claim(
        statement="Layers 3 on: largest loss ratio of a replaced layer at the widest state",
        source=_FIVE,
        published="1.21 (4), 1.08 (60)",
        value=lambda results, config: _over(_others(results, config)[1:], max),
        high=1.3,
        outside="layer 1: 2 and more",
        control=lambda results, config: _first(results, config)[0],
        spec=".2f",
        detail=lambda results, config: f" (width {config.widths[-1]})",
        unless=lambda config: "" if config.depth > 2 else f"{NOT_RUN}: stacks of {config.depth} layers",
    ),
    Claim(
        statement="Loss ratio of layer 1 over the mean of the others, at the widest state",
        source=_FIVE,
        published="3.6 / 1.07 (width 60)",
        value=lambda results, config: truediv(*_beside_others(results, config)),
        low=1.0,
        outside="layers that are all as linear: 1",
        spec=".2f",
        detail=_beside_others_words,
    ),
    _kernel_ratio(
        *("least_squares", "Least squares", "0.022 / 0.033 = 0.67", "softmax_kernel"),
        outside="regression by a softmax kernel, which gets worse",
        high=1.0,
    ),
    _kernel_ratio(
        *("softmax_kernel", "Softmax-kernel regression", "0.115 / 0.080 = 1.44", "least_squares"),
        outside="least squares, which gets better",
        low=1.0,
    ),
)


def report(report: Report, config: LineariseConfig, results: Results[Any]) -> None:
    """What replacing costs at the widest state, every layer, and the kernels."""
    from unrolled.report import Fact

    wide = config.widths[-1]
    rows = results.of(Linearised, state=wide)
    first, others = ratio_of(results, wide, 0), _others(results, config)
    if rows:
        recipe = rows[0].cell.stack.recipe
        report.headline(
            f"At width {wide}, replacing layer 1 multiplies the loss by {first.mean:.2f}; the other layers by "
            f"{', '.join(f'{ratio.mean:.2f}' for ratio in others)}.",
            [
                Fact(
                    label=f"Layer 1, width {wide}",
                    value=f"{first:.2f}",
                    detail=f"loss ratio; {recipe.label}, {recipe.extent}",
                ),
                Fact(
                    label=f"Last layer, width {wide}",
                    value=f"{others[-1]:.2f}",
                    detail=f"{config.distil_steps} steps of distillation",
                ),
            ],
        )
    else:
        report.headline(f"Stacks of width {wide} were {NOT_RUN}.", [])
    _layers(report, config, results)
    _kernels(report, results)


def _layers(report: Report, config: LineariseConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart, Series

    published = {1: "2.1 (4) to 3.6 (60)", 2: "1.58 (4) to 1.15 (60)"}
    table: list[list[Any]] = []
    for width in sorted({*WIDTHS, *config.widths}):
        rows = results.of(Linearised, state=width)
        if not rows:
            table.append([width, *[NOT_RUN] * 8])
            continue
        whole = [rows[0].cell.stack.recipe.extent, f"{rows.values('loss'):.4f}", f"{rows.values('untrained'):.3f}"]
        for place in range(config.depth):
            layer = f"layers.{place}"
            table.append(
                [
                    width,
                    *whole,
                    place + 1,
                    published.get(place + 1, "1.12 to 1.21 (4), 1.03 to 1.08 (60)"),
                    f"{rows.values(f'{layer}.ratio'):.3f}",
                    f"{rows.values(f'{layer}.left_out_ratio'):.2f}",
                    f"{rows.values(f'{layer}.unexplained'):.4f}",
                ]
            )
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "1 seed"
    section = report.section(
        "Every layer",
        "Each layer alone is replaced; the loss is half the squared error summed over the state, averaged over "
        "positions and held-out sequences. The control leaves the layer out, adding nothing in its place: a ratio near "
        "one means little where leaving the layer out costs little too.",
    )
    section.table(
        [
            *("width", "training", "loss", "untrained", "layer", "published ratio"),
            *("loss ratio", "ratio, left out", "unexplained update"),
        ],
        table,
        caption=f"{seeds}, {config.test_sequences} held-out sequences of 4 n tokens, {config.distil_steps} steps of "
        "distillation. Unexplained: squared error of the update over its energy. Published ratios are of stacks of 7.",
    )
    widths = [width for width in config.widths if results.of(Linearised, state=width)]
    if widths:
        section.figure(
            LineChart(
                title="loss ratio of a replaced layer",
                x_label="width of the state",
                series=[
                    Series(
                        label=f"layer {place + 1}",
                        x=widths,
                        y=[ratio_of(results, width, place).mean for width in widths],
                    )
                    for place in range(config.depth)
                ],
            ),
            name="ratios",
            caption=f"Mean over {seeds}.",
        )


def _kernels(report: Report, results: Results[Any]) -> None:
    from unrolled.report import LineChart, Series

    rows = results.of(Kernels)
    if not rows:
        return
    section = report.section(
        "Kernels without training",
        "Regression on the pairs of the context, the newest among them: exactly with the linear kernel, and as a "
        "weighted mean with the softmax kernel. Ridge and inverse temperature are the best on other sequences.",
    )
    section.table(
        ["width", "least squares", "ridge", "softmax kernel", "inverse temperature"],
        [
            [cell.width, f"{k['least_squares']:.4f}", f"{k['ridge']:g}", f"{k['softmax_kernel']:.4f}", f"{k['beta']:g}"]
            for cell, k, _ in rows
        ],
        caption="Mean squared error of a coordinate, averaged over positions. Published, on a scale not stated: "
        "0.033 to 0.022 and 0.080 to 0.115 from width 4 to 60.",
    )
    section.figure(
        LineChart(
            title="error of a coordinate",
            x_label="width of the state",
            series=[
                Series(label=label, x=[row.cell.width for row in rows], y=[row.result[key] for row in rows])
                for label, key in (("least squares", "least_squares"), ("softmax kernel", "softmax_kernel"))
            ],
        ),
        name="kernels",
        caption=f"{rows[0].cell.sequences} held-out sequences a width.",
    )


STUDY = Study(
    name="mesa-linearise",
    title="Softmax layers made linear",
    question="How much is lost when one layer of a trained softmax stack is replaced by linear attention?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=LineariseConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
