"""Does the first layer join each token with the ones before it? Probes, attention maps, and sensitivity in training.

Least squares on raw observations needs pairs of neighbours in one token (arXiv 2309.05858, figures 2, 14 to 17 and 21
to 23). Probes are scored on other sequences than they were fitted on, beside shuffled targets and the untrained layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import AT_LEAST_0, Claim
from unrolled.studies.mesa.held_out import TEST_SEED
from unrolled.studies.mesa.stacks import LAGS, TITLES, Kind, Place, Stack, WorldsConfig
from unrolled.studies.results import NOT_RUN, Results, Values
from unrolled.studies.study import AtLeast, Budgets, Distinct, Study

if TYPE_CHECKING:
    from unrolled.report import Report

_RELEASED = "released results of arXiv 2309.05858"
_ABSENT = "a token that the layer has not copied: its mean is as good, 1"
PUBLISHED = {
    ("full", "softmax", 1): "0.0004",
    ("full", "softmax", 2): "0.151",
    ("full", "hybrid", 1): "0.005",
    ("full", "hybrid", 2): "0.11",
    ("full", "mesa", 1): "0.21",
    ("full", "softmax-7", 1): "0.0004",
    ("full", "softmax-7", 2): "0.151",
    ("partial", "softmax", 3): "0.026",
    ("partial", "softmax-7", 3): "0.026",
    ("partial", "hybrid", 4): "0.046",
}


@dataclass(kw_only=True)
class BindingConfig(WorldsConfig):
    """Budgets change the effort of the trainings, which four studies share, and the numbers of seeds and sequences."""

    budgets: ClassVar[Budgets] = {
        "quick": {"effort": "quick", "seeds": (0,), "sequences": 256},
        "cpu": {},
        "gpu": {"effort": "gpu", "seeds": (0, 1, 2, 3, 4), "one_seed": (), "device": "cuda"},
    }

    worlds: Annotated[tuple[Place, ...], Distinct()] = ("full", "partial")
    """Where: full, partial or nonlinear."""
    sequences: Annotated[int, AtLeast(16)] = 2048
    """Sequences for probes and maps; a quarter of them scores the probes."""


@dataclass(frozen=True, kw_only=True)
class FirstLayer(Cell):
    """The first layer of one trained stack, and of the same with its initial weights."""

    stack: Stack
    sequences: int

    def compute(self, context: Context) -> Result:
        """What the last token holds of earlier ones, `trained` and `untrained`, a record a lag; also in `training`.

        And `attention`, the maps of every head; None of a mesa layer.
        """
        from unrolled.instruments import token_binding

        model, inputs = self.stack.load(context).cpu(), self.stack.world.sample(self.sequences, seed=TEST_SEED).inputs
        keys = ("lag", "score", "error", "baseline", "control", "before", "sensitivity")
        trained, untrained = (
            [{key: record[key] for key in keys} for record in token_binding(each, inputs, lags=LAGS, batch_size=512)]
            for each in (model, self.stack.untrained(context).cpu())
        )
        curve = context.result(self.stack)["curve"]
        return {
            "loss": curve[-1]["loss"],
            "trained": trained,
            "untrained": untrained,
            "attention": attention_maps(model, inputs) if self.stack.recipe.layers[0] == "softmax" else None,
            "training": [{key: entry[key] for key in ("step", "loss", "binding", "sensitivity")} for entry in curve],
        }


def cells(config: BindingConfig) -> Iterator[FirstLayer]:
    """Every stack's."""
    for stack in config.stacks:
        yield FirstLayer(stack=stack, sequences=config.sequences)


def attention_maps(model: Any, inputs: Any) -> list[list[list[float]]]:
    """Attention weights of the first layer, mean over sequences, [heads, t, t] rounded to four digits."""
    import torch

    from unrolled.instruments.trace import trace

    sums: list[Any] = []
    parts = inputs.split(256)
    with (
        torch.no_grad(),
        trace(model, patterns="block00/attention", attention=True, reduce=lambda _, w: sums.append(w.sum(0))),
    ):
        for part in parts:
            model(part)
    mean = torch.stack(sums).sum(0) / len(inputs)
    maps: list[list[list[float]]] = (mean * 1e4).round().div(1e4).double().tolist()
    return maps


def rows_of(results: Results[Any], world: str, kind: str) -> Results[FirstLayer]:
    """Of one kind of stack in one world, one a seed."""
    return results.of(FirstLayer, world=world, kind=kind)


def _bound(world: Place, kind: Kind, lag: int, statement: str, published: str, **limit: Any) -> Claim:
    """Error of a token so many back over that of its mean."""

    def value(results: Results[Any], config: BindingConfig) -> Values:
        return error("trained", results)

    def error(state: str, results: Results[Any]) -> Values:
        record, rows = f"{state}.{lag}", rows_of(results, world, kind)
        return rows.values(f"{record}.error") / rows.values(f"{record}.baseline")

    def detail(results: Results[Any], config: BindingConfig) -> str:
        return f" (error {rows_of(results, world, kind).values(f'trained.{lag}.error'):.4f})"

    def control(results: Results[Any], config: BindingConfig) -> Values:
        """Before training: a token must not be there yet, and one that is absent says nothing if none is there."""
        return error("untrained", results)

    return Claim(
        statement=statement, source=_RELEASED, published=published, value=value, within=AT_LEAST_0, detail=detail,
        control=control, asked=lambda config: kind != "softmax-7" or kind in config.kinds, **limit,
    )  # fmt: skip


CLAIMS = (
    _bound(
        *("full", "softmax", 1),
        "Fully observed, softmax: error of the previous token over that of its mean, after layer 1",
        "0.0004 / 0.26 = 0.002",
        high=0.1,
        outside=_ABSENT,
    ),
    _bound(
        *("full", "softmax", 2),
        "Fully observed, softmax: the same of the token two back, which a pair does not need",
        "0.151 / 0.26 = 0.58",
        low=0.3,
        outside="a layer that copies more than a pair needs, as of the previous token: 0.02",
    ),
    _bound(
        *("full", "hybrid", 1),
        "Fully observed, hybrid: error of the previous token over that of its mean, after layer 1",
        "0.005 / 0.26 = 0.02",
        high=0.1,
        outside=_ABSENT,
    ),
    _bound(
        *("full", "mesa", 1),
        "Fully observed, all mesa: error of the previous token over that of its mean, after layer 1",
        "0.21 / 0.26 = 0.8 (weak)",
        low=0.5,
        outside="a first layer of softmax attention: 0.02",
    ),
    _bound(
        *("partial", "softmax", 3),
        "Partially observed, softmax: the same of the token three back",
        "error 0.026",
        high=0.2,
        outside=_ABSENT,
    ),
    _bound(
        *("partial", "hybrid", 4),
        "Partially observed, hybrid: the same of the token four back",
        "error 0.046",
        high=0.2,
        outside=_ABSENT,
    ),
    _bound(
        *("full", "softmax-7", 1),
        "Fully observed, softmax of 7 layers: error of the previous token over that of its mean, after layer 1",
        "0.0004 / 0.26 = 0.002",
        high=0.1,
        outside=_ABSENT,
    ),
    _bound(
        *("full", "softmax-7", 2),
        "Fully observed, softmax of 7 layers: the same of the token two back, which a pair does not need",
        "0.151 / 0.26 = 0.58",
        low=0.3,
        outside="a layer that copies more than a pair needs, as of the previous token: 0.02",
    ),
    _bound(
        *("partial", "softmax-7", 3),
        "Partially observed, softmax of 7 layers: the same of the token three back",
        "error 0.026",
        high=0.2,
        outside=_ABSENT,
    ),
)


def report(report: Report, config: BindingConfig, results: Results[Any]) -> None:
    """What the first stack's layer binds, then every stack by world."""
    from unrolled.report import Fact

    places = [
        (world, rows) for world in config.worlds for kind in config.kinds if (rows := rows_of(results, world, kind))
    ]
    facts = []
    for world, rows in places:
        lag = 1 if world == "full" else 3
        recipe = rows[0].cell.stack.recipe
        facts.append(
            Fact(
                label=f"{TITLES[world]}, {recipe.label}: R^2 of the token {lag} back",
                value=f"{rows.values(f'trained.{lag}.score'):.3f}",
                detail=f"untrained {rows.values(f'untrained.{lag}.score').mean:.2f}; {recipe.extent}",
            )
        )
    if places:
        world, rows = places[0]
        error, mean = rows.values("trained.1.error").mean, rows.values("trained.1.baseline").mean
        answer = (
            f"{TITLES[world]}, {rows[0].cell.stack.recipe.label}: after layer 1 the previous token is read off the "
            f"last one with an error of {error:.4f} a coordinate, against {mean:.2f} without reading and "
            f"{rows.values('untrained.1.error').mean:.2f} in the untrained layer."
        )
    else:
        answer = f"No stack was looked into: {NOT_RUN}."
    report.headline(answer, facts)
    for world in config.worlds:
        mine = [rows for place, rows in places if place == world]
        if mine:
            _section(report, config, world, mine)
    report.section(
        "What this does not show",
        "That earlier tokens can be read off a token does not mean that later layers use them. In the partially "
        "observed world an observation is partly a linear function of its neighbours, so that probes score above zero "
        "for tokens that were not copied. A mesa layer has no attention weights, hence no map. The published baseline "
        "of the fully observed world, 0.26 a coordinate, is not the variance of its states; ratios use the table's.",
    )


def _section(report: Report, config: BindingConfig, world: Place, mine: Sequence[Results[FirstLayer]]) -> None:
    import numpy as np

    from unrolled.report import HeatMap, LineChart, Series

    recipes = [rows[0].cell.stack.recipe for rows in mine]
    columns = (
        *(("trained.{}.error", ".4f"), ("trained.{}.baseline", ".2f"), ("trained.{}.score", ".3f")),
        *(("trained.{}.control", ".3f"), ("untrained.{}.score", ".3f"), ("trained.{}.before", ".3f")),
        *(("trained.{}.sensitivity", ".3f"), ("untrained.{}.sensitivity", ".3f")),
    )
    table = [
        [
            recipe.label,
            lag,
            PUBLISHED.get((world, recipe.kind, lag), ""),
            *(f"{rows.values(path.format(lag)):{spec}}" for path, spec in columns),
        ]
        for recipe, rows in zip(recipes, mine, strict=True)
        for lag in range(LAGS + 1)
    ]
    seeds = mine[0].values("loss").count
    section = report.section(TITLES[world], "; ".join(f"{recipe.label}: {recipe.extent}" for recipe in recipes) + ".")
    section.table(
        [
            *("model", "tokens back", "published error", "error", "of the mean", "R^2"),
            *("R^2, shuffled", "R^2, untrained", "R^2 before layer 1", "sensitivity", "untrained"),
        ],
        table,
        caption=f"Last token (t = 49) after layer 1, {seeds}; mean squared error of a coordinate of the token so many "
        f"back, read by ridge probes fitted on three quarters of {config.sequences} sequences and scored on the rest. "
        "Sensitivity: root mean square norm of the derivative of the last token after layer 1 by that token before it.",
    )
    first = [rows[0] for rows in mine]
    section.figure(
        [
            LineChart(
                title=f"{row.cell.stack.recipe.label}: sensitivity",
                x_label="training step",
                series=[
                    Series(
                        label=f"{lag} back",
                        x=[entry["step"] for entry in row.result["training"]],
                        y=[entry["sensitivity"][lag] for entry in row.result["training"]],
                        color=lag,
                    )
                    for lag in range(1, 5)
                ],
            )
            for row in first
        ],
        name=f"{world}-sensitivity",
        caption=f"During training, seed {config.seeds[0]}.",
    )
    maps = [
        HeatMap(
            title=f"{row.cell.stack.recipe.label}: attention of layer 1, head {head + 1}",
            values=np.array(weights)[:20, :20],
            rows=[str(place) for place in range(20)],
            columns=[str(place) for place in range(20)],
            row_label="query",
            column_label="key",
        )
        for row in first
        for head, weights in enumerate(row.result["attention"] or ())
    ]
    if maps:
        section.figure(
            maps,
            name=f"{world}-attention",
            caption=f"Mean over {config.sequences} sequences, seed {config.seeds[0]}, the first 20 tokens: queries run "
            "downwards, keys to the right. A diagonal below the main one is attention to so many tokens back.",
        )


STUDY = Study(
    name="mesa-binding",
    title="Token binding in the first layer",
    question="After one layer, does a token hold the tokens that the regression in later layers needs beside it?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=BindingConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
