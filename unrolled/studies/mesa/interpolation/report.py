"""Claims and report of `mesa-interpolation`: one layer, judged, and stacks, of which nothing is published."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from unrolled.studies.claim import AT_LEAST_0, CONTROL, Claim
from unrolled.studies.mesa.interpolation.cells import InterpolationConfig
from unrolled.studies.mesa.interpolation.deep import MixedStack
from unrolled.studies.mesa.interpolation.one_layer import Mixed
from unrolled.studies.results import Results, Values

if TYPE_CHECKING:
    from unrolled.report import Report, Series

_SOURCE = "arXiv 2309.05858, figure 4; means of the released results"
_ELSEWHERE = "random weights as large as the construction's: 2 and more"
_DEEP = "arXiv 2309.05858 mixes stacks too; its released results of them are empty"
_ASKED = "a question of this package: no loss is published for more than one layer"
PUBLISHED = {"trained": "0.892", "mixed": "0.892", "constructed": "0.890 to 0.898", "mixed with random": "no value"}
WAYS = {
    "to_steps": "gradient steps of as many layers, tuned",
    "to_random": "random weights as large as those",
    "to_numbers": "its own 32 numbers a head",
    "to_shuffled": "these numbers in other places",
    "to_other": "the stack of another seed",
}


def _over_trained(key: str, **claim: Any) -> Claim:
    """About a loss over that of the trained layer."""

    def detail(results: Results[Any], config: InterpolationConfig) -> str:
        rows = results.of(Mixed)
        return f" ({rows.values(f'curve.-1.{key}'):.3f} / {rows.values('curve.-1.trained'):.3f})"

    return Claim(value=lambda results, config: _ratio(results, key), detail=detail, **claim)


def _ratio(results: Results[Any], key: str) -> Values:
    rows = results.of(Mixed)
    return rows.values(f"curve.-1.{key}") / rows.values("curve.-1.trained")


def _random(results: Results[Any], config: InterpolationConfig) -> Values:
    """Halfway to random weights as large."""
    return _ratio(results, "mixed with random")


def stacks_of(results: Results[Any], name: str) -> Results[MixedStack]:
    """The rows of stacks of so many layers, one a seed."""
    return results.of(MixedStack, layers=int(name))


def halfway(results: Results[Any], name: str, way: str) -> Values:
    """Loss halfway along one of `WAYS` over that of the trained stack."""
    rows = stacks_of(results, name)
    return rows.values(f"halfway.{way}") / rows.values(f"{way}.0")


def _of_stacks(name: str) -> Iterator[Claim]:
    """What is asked of stacks of so many layers."""

    def claim(way: str, control: str = "", **claim: Any) -> Claim:
        def detail(results: Results[Any], config: InterpolationConfig) -> str:
            rows = stacks_of(results, name)
            return f" ({rows.values(f'halfway.{way}'):.3f} / {rows.values(f'{way}.0'):.3f})"

        return Claim(
            source=_DEEP,
            published="no number",
            value=lambda results, config: halfway(results, name, way),
            control=(lambda results, config: halfway(results, name, control)) if control else None,
            within=AT_LEAST_0,
            detail=detail,
            asked=lambda config: name in config.deep,
            **claim,
        )

    yield claim(
        *("to_steps", "to_random"),
        statement=f"{name} layers, halfway to {name} tuned gradient steps: loss over that of the trained stack",
        unjudged=_ASKED,
    )
    yield claim(
        *("to_numbers", "to_shuffled"),
        statement=f"{name} layers, halfway to their own 32 numbers a head: loss over that of the trained stack",
        low=0.95,
        high=1.1,
        unjudged=_ASKED,
    )
    yield claim(
        "to_other",
        statement=f"Control: {name} layers, halfway to another seed's stack: loss over that of the trained stack",
        unjudged=CONTROL,
    )


CLAIMS = (
    Claim(
        statement="Loss of the trained layer",
        source=_SOURCE,
        published="0.892",
        value=lambda results, config: results.of(Mixed).values("curve.-1.trained"),
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
    *(claim for name in ("2", "4", "6") for claim in _of_stacks(name)),
)


def report(report: Report, config: InterpolationConfig, results: Results[Any]) -> None:
    """The losses halfway, every layer, the curves during training and along the way; then the stacks."""
    from unrolled.report import Fact

    one = results.of(Mixed)
    shown = {key: f"{one.values(f'curve.-1.{key}'):.3f}" for key in PUBLISHED}
    seeds = f"{len(one)} seed{'s' * (len(one) != 1)}"
    stacks = {name: rows for name in config.deep if (rows := stacks_of(results, name))}
    times = [
        f"{name} layers, {halfway(results, name, 'to_steps').mean:.2f} halfway to gradient steps and "
        f"{halfway(results, name, 'to_numbers').mean:.2f} halfway to their own 32 numbers a head"
        for name in stacks
    ]
    report.headline(
        f"Halfway between trained and constructed weights the loss is {shown['mixed']}, that of the trained layer "
        f"{shown['trained']}; halfway to random weights of the same norm it is {shown['mixed with random']}."
        + f" As a multiple of the trained stack's loss it is, with {'; with '.join(times)}."
        * bool(times),
        [
            Fact(label="Trained", value=shown["trained"], detail=f"{seeds}, {_extent(config)}"),
            Fact(label="Halfway to the construction", value=shown["mixed"], detail=seeds),
            Fact(label="Constructed", value=shown["constructed"], detail="one step size, tuned on other sequences"),
        ],
    )
    if one:
        _one_layer(report, config, one)
    for name, rows in stacks.items():
        _stack(report, name, rows)


def _extent(config: InterpolationConfig) -> str:
    extent = f"{config.steps} steps of {config.batch_size}"
    if config.steps < 2500 or config.batch_size < 512:
        extent += " (paper: 2500 of 512)"
    return extent


def _one_layer(report: Report, config: InterpolationConfig, results: Results[Mixed]) -> None:
    from unrolled.report import LineChart

    extent = _extent(config)
    seeds = f"{len(results)} seed{'s' * (len(results) != 1)}"
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


def _highest(way: str, result: Any) -> float:
    return float(max(result[way]))


def _stack(report: Report, name: str, rows: Results[MixedStack]) -> None:
    from unrolled.report import LineChart

    seeds = f"{len(rows)} seed{'s' * (len(rows) != 1)}"
    sizes = rows.first("step_sizes")
    learned, forgotten = (", ".join(f"{size:.3f}" for size in sizes[key]) for key in ("learned", "forgotten"))
    section = report.section(
        f"{name} layers",
        f"{rows.first('extent')}; 4 heads. Gradient steps: each layer adds its step to the prediction and takes from "
        f"one copy of s_t what the step has left of it; step sizes of the prediction {learned}, of the copy "
        f"{forgotten}, tuned on other sequences. They are spread over the heads and scaled as the trained ones, the "
        "two copies of s_t exchanged where that is nearer. Numbers: the means of the diagonals of the blocks of each "
        "head's products, as in `mesa-compressed`. The other seed's heads are in the order, with the scales and signs, "
        "in which they are most like these.",
    )
    table = []
    for way, words in WAYS.items():
        highest = rows.values(partial(_highest, way))
        cosine = [rows.values(f"cosine.{way}.{layer}").mean for layer in range(int(name))]
        table.append(
            [
                words,
                *(f"{values:.3f}" for values in (rows.values(f"{way}.-1"), rows.values(f"halfway.{way}"), highest)),
                ", ".join(f"{each:.2f}" for each in cosine),
            ]
        )
    section.table(
        ["on the way to", "loss there", "halfway", "highest on the way", "cosine, by layer"],
        table,
        caption=f"{seeds}; the trained stack's loss is {rows.values('to_steps.0'):.3f}, predicting zero costs "
        f"{rows.first('zero_loss'):.3f}. Cosine: between what the heads of a layer add up to, here and there. Nothing "
        "is published of stacks but that they were mixed.",
    )
    shares = rows.first("shares")
    section.figure(
        LineChart(
            title="held-out loss",
            x_label="share of the other weights",
            series=[
                rows.curve(words, way, x=shares, color=place, dashed=way in ("to_random", "to_shuffled", "to_other"))
                for place, (way, words) in enumerate(WAYS.items())
            ],
        ),
        name=f"stack-{name}",
        caption=f"Mean over {seeds}. At share 0 stands the trained stack, at 1 what a line is named after; dotted are "
        "the controls.",
    )
