"""Do layers hold the next state and the preconditioned input? Probes by depth and position, scored on other sequences.

arXiv 2309.05858 fits and scores its probes on the same 256 sequences; that protocol stands here beside held-out scores,
shuffled targets and the untrained model, so that what a probe can memorise is seen apart from what a layer holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from unrolled.reading import Json
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.claim import AT_LEAST_0, AT_MOST_1, NOBODY, Claim
from unrolled.studies.mesa.held_out import TEST_SEED, TUNE_SEED, position_losses
from unrolled.studies.mesa.stacks import Kind, Stack, StacksConfig, tokens_of
from unrolled.studies.results import NOT_RUN, Results, Values
from unrolled.studies.study import AtLeast, Budgets, Count, Distinct, Study

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.report import Report

_FIGURE = "arXiv 2309.05858, figures 4 and 6, and its released results"
ProbedKind = Literal["softmax", "softmax-7", "linear"]
# of which both are claimed
KINDS: tuple[ProbedKind, ...] = ("softmax", "linear")
PUBLISHED = {
    "softmax": "1.61 -> .012 (7 layers)",
    "softmax-7": "1.61 -> .012",
    "linear": "1.53, .53, .31, .10, .048, .030, .009 (6 layers)",
}
TARGETS = {
    "next": "next state",
    "exact": "preconditioned input, exact",
    "chebyshev": "preconditioned input, 6 Chebyshev steps",
}
POSITION = 29


@dataclass(kw_only=True)
class ProbesConfig(StacksConfig):
    """Budgets change the effort of the trainings, which four studies share, and the numbers of seeds and sequences."""

    budgets: ClassVar[Budgets] = {
        "quick": {"effort": "quick", "seeds": (0,), "sequences": 512, "positions": (4, 14, 29, 49)},
        "cpu": {},
        "gpu": {"effort": "gpu", "seeds": (0, 1, 2, 3, 4), "device": "cuda"},
    }

    kinds: Annotated[tuple[ProbedKind, ...], Distinct()] = KINDS
    """Stacks to probe; softmax-7 is the softmax stack of the paper's depth at every effort."""
    sequences: Annotated[int, AtLeast(8)] = 2048
    """Sequences for the probes; a quarter of them scores."""
    paper_sequences: Annotated[int, AtLeast(8)] = 256
    """Sequences of the paper's protocol, which fits and scores on all of them."""
    positions: Annotated[tuple[int, ...], Distinct(), AtLeast(0)] = (1, 3, 5, 7, 9, 11, 14, 19, 24, 29, 34, 39, 44, 49)
    """Of the probed tokens, counted from 0; 29, the paper's, is always among them."""
    iterations: Count = 6
    """Chebyshev steps; the paper's 6."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.positions) >= 50:
            raise ValueError(f"positions={self.positions}: must lie between 0 and 49")
        self.positions = tuple(sorted({*self.positions, POSITION}))


@dataclass(frozen=True, kw_only=True)
class Probed(Cell):
    """Probes of one trained stack and of the same with its initial weights."""

    stack: Stack
    sequences: int
    paper_sequences: int
    positions: tuple[int, ...]
    iterations: int

    def compute(self, context: Context) -> Result:
        """`layers` by name; scores and errors of every target, `held_out`, `untrained` and by the `paper`'s protocol.

        By layer and position; the last two at the paper's position alone. `ridge` is that of the preconditioned input.
        """
        from unrolled.instruments import probe_model
        from unrolled.theory.in_context import chebyshev_inputs

        ridge, largest = best_interval(self.iterations)
        count = max(self.sequences, self.paper_sequences)
        states, following, _ = self.stack.world.sample(count, seed=TEST_SEED)
        wide = states.double()
        wanted = {
            "next": following,
            "exact": preconditioned(wide, ridge),
            "chebyshev": chebyshev_inputs(wide, ridge, self.iterations, largest)[-1],
        }
        trained, untrained = self.stack.load(context).cpu(), self.stack.untrained(context).cpu()

        def probes(model: Any, count: int, **options: Any) -> dict[str, list[Json]]:
            inputs = tokens_of(self.stack.recipe, states[:count])
            keys = ("layer", "position", "score", "error", "baseline", "control")
            return {
                name: [
                    {key: record[key] for key in keys}
                    for record in probe_model(model, inputs, target[:count], batch_size=512, **options)
                ]
                for name, target in wanted.items()
            }

        held_out = probes(trained, self.sequences, positions=self.positions)
        return {
            "loss": context.result(self.stack)["curve"][-1]["loss"],
            "ridge": ridge,
            "layers": list(dict.fromkeys(record["layer"] for record in held_out["next"])),
            "held_out": held_out,
            "untrained": probes(untrained, self.sequences, positions=[POSITION]),
            "paper": probes(trained, self.paper_sequences, positions=[POSITION], protocol="paper"),
        }


def cells(config: ProbesConfig) -> Iterator[Probed]:
    """The stacks of every kind for every seed."""
    for seed in config.seeds:
        for kind in config.kinds:
            yield Probed(
                stack=Stack(recipe=config.recipe(kind, "full"), seed=seed),
                sequences=config.sequences,
                paper_sequences=config.paper_sequences,
                positions=config.positions,
                iterations=config.iterations,
            )


def preconditioned(states: Tensor, ridge: float) -> Tensor:
    """(S_{t-1} S_{t-1}^T + ridge I)^-1 s_t by exact solves, [b, t, d].

    Args:
        states: [b, t, d].
        ridge: 1 / lambda > 0.
    """
    import torch

    outer = states[..., :, None] * states[..., None, :]
    before = outer.cumsum(1) - outer
    identity = torch.eye(states.shape[-1], dtype=states.dtype, device=states.device)
    solved: Tensor = torch.linalg.solve(before + ridge * identity, states[..., None])
    return solved[..., 0]


def best_interval(iterations: int) -> tuple[float, float]:
    """Ridge and largest eigenvalue with which Proposition 2's prediction is best, on sequences of its own."""
    from unrolled.studies.mesa.regression import steps_predictions
    from unrolled.tasks import LinearDynamics

    inputs, targets, _ = LinearDynamics().sample(256, seed=TUNE_SEED)
    grid = [(ridge, largest) for ridge in (0.3, 1.0, 3.0, 6.0, 10.0) for largest in (60.0, 80.0, 120.0, 170.0, 240.0)]

    def score(setting: tuple[float, float]) -> float:
        value = position_losses(lambda x: steps_predictions(x, x, *setting, iterations), inputs, targets).mean()
        return float(value.nan_to_num(float("inf")))

    return min(grid, key=score)


def scores(
    result: Mapping[str, Any], group: str, name: str, key: str = "score", position: int = POSITION
) -> list[float]:
    """One number a layer, at one position."""
    return [record[key] for record in result[group][name] if record["position"] == position]


def _values(rows: Results[Probed], of: Callable[[Mapping[str, Any]], float]) -> Values:
    return Values({seed: of(row.result) for seed, row in rows.by().items()})


def _layer(rows: Results[Probed], group: str, name: str, key: str, place: int, position: int = POSITION) -> Values:
    """One number of a layer, at the paper's position unless another is given."""
    return _values(rows, lambda result: scores(result, group, name, key, position)[place])


def _of_both(
    results: Results[Any], combine: Callable[[list[float]], float], of: Callable[[Mapping[str, Any]], float]
) -> Values:
    """What both stacks give, combined by seed."""
    softmax, linear = (_values(results.of(Probed, kind=kind), of) for kind in KINDS)
    return Values({seed: combine([softmax.by[seed], linear.by[seed]]) for seed in softmax.by if seed in linear.by})


def _smallest_gain(result: Mapping[str, Any], group: str = "held_out") -> float:
    return min(after - before for before, after in pairwise(scores(result, group, "next")))


def _gain_untrained(result: Mapping[str, Any]) -> float:
    return _smallest_gain(result, "untrained")


def _best_error_ratio(result: Mapping[str, Any], group: str = "held_out") -> float:
    """Of the best layer to the tokens that enter the first."""
    errors = scores(result, group, "exact", "error")
    return min(errors[1:]) / errors[0]


def _optimism(result: Mapping[str, Any]) -> float:
    held_out, paper = (scores(result, group, "next", "error")[0] for group in ("held_out", "paper"))
    return held_out / paper


def _ratios(results: Results[Any], config: ProbesConfig) -> str:
    each = {kind: _values(results.of(Probed, kind=kind), _best_error_ratio).mean for kind in KINDS}
    return f" ({', '.join(f'{kind} {ratio:.2f}' for kind, ratio in each.items())})"


def _last_layer(kind: Kind, **claim: Any) -> Claim:
    return Claim(
        statement=f"Next state, {kind} stack, t = 29: held-out R^2 of the last layer",
        source=_FIGURE,
        value=lambda results, config: _layer(results.of(Probed, kind=kind), "held_out", "next", "score", -1),
        low=0.8,
        within=AT_MOST_1,
        outside="the tokens that enter the first layer, or an untrained stack",
        control=lambda results, config: _layer(results.of(Probed, kind=kind), "untrained", "next", "score", -1),
        detail=lambda results, config: f" after {config.recipe(kind, 'full').label}",
        **claim,
    )


def _seven(config: ProbesConfig) -> bool:
    return "softmax-7" in config.kinds


def _of_seven(of: Callable[[Mapping[str, Any]], float]) -> Callable[[Results[Any], ProbesConfig], Values]:
    return lambda results, config: _values(results.of(Probed, kind="softmax-7"), of)


CLAIMS = (
    _last_layer("softmax", published="error 1.61 to 0.012 (7 layers)"),
    _last_layer("linear", published="error 1.53 to 0.009 (6 layers)"),
    Claim(
        statement="Next state: smallest gain of held-out R^2 from one layer to the next, both stacks, t = 29",
        source=_FIGURE,
        published="error falls at every layer",
        value=lambda results, config: _of_both(results, min, _smallest_gain),
        low=-0.01,
        outside="a layer after which less can be read",
        control=lambda results, config: _of_both(results, min, _gain_untrained),
    ),
    Claim(
        statement="Preconditioned input, t = 29: held-out error of the best layer over that of the tokens entering the "
        "first, worse of the two stacks",
        source=_FIGURE,
        published="0.06 (linear), 0.34 (softmax)",
        value=lambda results, config: _of_both(results, max, _best_error_ratio),
        high=0.7,
        within=AT_LEAST_0,
        outside="layers that compute nothing: 1",
        control=lambda results, config: _of_both(results, max, lambda result: _best_error_ratio(result, "untrained")),
        spec=".2f",
        detail=_ratios,
    ),
    Claim(
        statement="Next state at the input, t = 29: held-out error over that of the paper's protocol",
        source="the paper does not report it",
        published="not reported",
        unjudged=NOBODY,
        value=lambda results, config: _of_both(results, fmean, _optimism),
        spec=".2f",
    ),
    _last_layer("softmax-7", published="error 1.61 to 0.012", asked=_seven),
    Claim(
        statement="Next state: smallest gain of held-out R^2 from one layer to the next, softmax-7, t = 29",
        source=_FIGURE,
        published="error falls at every layer",
        value=_of_seven(_smallest_gain),
        low=-0.01,
        outside="a layer after which less can be read",
        control=_of_seven(_gain_untrained),
        asked=_seven,
    ),
    Claim(
        statement="Preconditioned input, t = 29: held-out error of the best layer over that of the tokens entering the "
        "first, softmax-7",
        source=_FIGURE,
        published="0.34",
        value=_of_seven(_best_error_ratio),
        high=0.7,
        within=AT_LEAST_0,
        outside="layers that compute nothing: 1",
        control=_of_seven(lambda result: _best_error_ratio(result, "untrained")),
        spec=".2f",
        asked=_seven,
    ),
)


def report(report: Report, config: ProbesConfig, results: Results[Any]) -> None:
    """How the next state and the preconditioned input emerge in the softmax stack, then every layer of both."""
    from unrolled.report import Fact

    facts = {}
    for kind in config.kinds:
        if rows := results.of(Probed, kind=kind):
            recipe = rows[0].cell.stack.recipe
            first, last = (_layer(rows, "held_out", "next", "score", place) for place in (0, -1))
            facts[kind] = Fact(
                label=f"{recipe.label}: R^2 of the next state",
                value=f"{first:.2f} to {last:.3f}",
                detail=f"input to last layer, t = {POSITION}, held out; {recipe.extent}",
            )
    chosen: ProbedKind = "softmax" if "softmax" in facts else "softmax-7"
    if softmax := results.of(Probed, kind=chosen):
        exact = _layer(softmax, "held_out", "exact", "score", 0)
        best = _values(softmax, lambda result: max(scores(result, "held_out", "exact")[1:]))
        answer = (
            f"In {softmax[0].cell.stack.recipe.label} the held-out R^2 of the next state goes from "
            f"{facts[chosen].value}; that of the preconditioned input is {exact.mean:.2f} at the input and "
            f"{best.mean:.2f} in the best layer."
        )
    else:
        answer = f"The softmax stack was {NOT_RUN}."
    report.headline(answer, list(facts.values()))
    for kind in config.kinds:
        if rows := results.of(Probed, kind=kind):
            _section(report, config, kind, rows)
    report.section(
        "What this does not show",
        "That a quantity can be read off a layer does not mean that later layers use it. A part of the preconditioned "
        "input is a multiple of the input, which is why the tokens entering layer 1 already yield some of it. Errors "
        "fall with context also because the preconditioned input shrinks; R^2 does not have that confound. The "
        "published models are deeper and were trained longer.",
    )


def _section(report: Report, config: ProbesConfig, kind: str, rows: Results[Probed]) -> None:
    import numpy as np

    from unrolled.report import HeatMap, LineChart, Series

    layers = rows.first("layers")
    names = ["input", *(f"layer {place}" for place in range(1, len(layers)))]
    read = "constructed tokens" if kind == "linear" else "embedded observations"
    recipe = rows[0].cell.stack.recipe

    def over(group: str, name: str, key: str, place: int) -> Values:
        return _layer(rows, group, name, key, place)

    # half the sum over ten coordinates, the scale of the published errors
    table = [
        [
            layer,
            TARGETS[name],
            f"{over('held_out', name, 'score', place):.3f}",
            f"{over('held_out', name, 'control', place):.3f}",
            f"{over('untrained', name, 'score', place):.3f}",
            f"{5 * over('held_out', name, 'error', place):.4f}",
            f"{5 * over('paper', name, 'error', place):.4f}",
        ]
        for name in TARGETS
        for place, layer in enumerate(names)
    ]
    seeds = rows.values("loss").count
    section = report.section(
        recipe.label,
        f"On {read}; {recipe.extent}. Published errors of the next state: {PUBLISHED[kind]}. The preconditioned "
        f"input is (S S^T + {rows.first('ridge'):g})^-1 s over the earlier states; its ridge is the one with which "
        f"{config.iterations} Chebyshev steps predict best on other sequences. The scale of the published errors of "
        "the preconditioned input is not known, so only their ratios compare.",
    )
    section.table(
        [
            "tokens",
            "probed for",
            "R^2, held out",
            "shuffled",
            "untrained",
            "error, held out",
            "error, paper's protocol",
        ],
        table,
        caption=f"t = {POSITION}, counted from 0; {seeds}. Held out: {config.sequences} sequences, three quarters fit. "
        f"Paper's protocol: fitted and scored on the same {config.paper_sequences}. Errors are half the squared error "
        "summed over ten coordinates.",
    )
    maps = []
    for name in ("next", "exact"):
        values = [
            [_layer(rows, "held_out", name, "score", place, position).mean for position in config.positions]
            for place in range(len(layers))
        ]
        maps.append(
            HeatMap(
                title=f"{TARGETS[name]}: held-out R^2",
                values=np.clip(np.array(values), 0, 1),
                rows=names,
                columns=[str(position) for position in config.positions],
                column_label="position, from 0",
            )
        )
    section.figure(
        maps, name=f"{kind}-maps", caption=f"Mean over {seeds}. Values below 0, where a probe only overfits, show as 0."
    )
    series: list[Series] = []
    for name in ("next", "exact"):
        line, flat = (
            [over(group, name, "score", place).mean for place in range(len(layers))]
            for group in ("held_out", "untrained")
        )
        color = len(series) // 2
        series.append(Series(label=TARGETS[name].split(",")[0], x=range(len(layers)), y=line, color=color))
        series.append(Series(label="untrained", x=range(len(layers)), y=flat, color=color, dashed=True))
    section.figure(
        LineChart(title=f"held-out R^2 at t = {POSITION}", x_label="layers passed", series=series),
        name=f"{kind}-depth",
        caption=f"Mean over {seeds}; dotted, the same model with its initial weights.",
    )


STUDY = Study(
    name="mesa-probes",
    title="What each layer holds",
    question="Can the next state, and the input preconditioned by the context, be read off the layers of trained "
    "stacks, on sequences that the probes have not seen?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=ProbesConfig,
    cells=cells,
    claims=CLAIMS,
    report=report,
)
