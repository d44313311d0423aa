"""The report of the study of depth: trained models beside the algorithms they are read as."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from unrolled.studies.base import Expectation
from unrolled.studies.mesa_depth import CHEBYSHEV, DEPTH, EXACT, LOSSES, MESA, SHIFTED, Config

if TYPE_CHECKING:
    from unrolled.report import Claim, Report

# of the released results where there are any
_PUBLISHED = {
    "zero": "1.677 (recomputed)",
    "exact ridge": EXACT.published,
    "without newest pair": SHIFTED.published,
    "Chebyshev 1": "0.900",
    "Chebyshev by position 6": CHEBYSHEV.published,
}


def build(config: Config, cells: dict[str, list[dict[str, Any]]], references: dict[str, Any], began: float) -> Report:
    """The report of trained `cells` by model, and of the algorithms of `mesa_depth.algorithms`."""
    from unrolled.report import Fact, Provenance, Report, mean_std

    losses = {name: [cell["loss"] for cell in done] for name, done in cells.items()}
    known = references["losses"]
    report = Report(
        "Depth and the mesa layer",
        question="What do more linear layers buy, what does one mesa layer, and how far are both from least squares?",
    )
    for name, expected in LOSSES.items():
        if name in losses:
            report.claims.append(expected.judge(fmean(losses[name]), mean_std(losses[name], digits=3)))
        else:
            report.claims.append(_not_run(expected))
    linear = sorted((name for name in losses if name != "mesa"), key=int)
    report.claims += [_depth(linear, losses), _mesa(linear, losses)]
    report.claims += [
        CHEBYSHEV.judge(
            known["Chebyshev by position 6"],
            f"{known['Chebyshev by position 6']:.3f} with every pair; {known['Chebyshev 6']:.3f} tuned for all alike",
        ),
        EXACT.judge(known["exact ridge"], f"{known['exact ridge']:.4f}"),
        SHIFTED.judge(known["without newest pair"], f"{known['without newest pair']:.4f}"),
    ]
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "1 seed"
    best = min(losses, key=lambda name: fmean(losses[name]))
    report.headline(
        f"Exact ridge regression in context reaches {known['exact ridge']:.3f}, one gradient step "
        f"{known['Chebyshev 1']:.3f}. The best trained model, {label(best)}, is at {mean_std(losses[best], digits=3)}.",
        [
            Fact(label=label(name), value=mean_std(losses[name], digits=3), detail=f"{seeds}, {done[0]['extent']}")
            for name, done in cells.items()
        ],
    )
    _table(report, config, cells, references, seeds)
    _figures(report, config, cells, references, linear)
    report.results = {"models": cells, "algorithms": references}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=time.perf_counter() - began)
    return report


def label(name: str) -> str:
    """The name of a model in words."""
    return "1 mesa layer" if name == "mesa" else f"{name} linear layer{'' if name == '1' else 's'}"


def _not_run(expected: Expectation) -> Claim:
    from unrolled.report import Claim

    return Claim(
        statement=expected.statement,
        source=expected.source,
        published=expected.published,
        measured="not run",
        reproduced=None,
    )


def _depth(linear: list[str], losses: dict[str, list[float]]) -> Claim:
    pairs = list(pairwise(linear))
    if not pairs:
        return _not_run(DEPTH)
    ratios = [fmean(losses[deep]) / fmean(losses[flat]) for flat, deep in pairs]
    words = [f"{fmean(losses[deep]):.3f} / {fmean(losses[flat]):.3f}" for flat, deep in pairs]
    return DEPTH.judge(max(ratios), ", ".join(words))


def _mesa(linear: list[str], losses: dict[str, list[float]]) -> Claim:
    if "mesa" not in losses or not linear:
        return _not_run(MESA)
    mesa, deepest = fmean(losses["mesa"]), fmean(losses[linear[-1]])
    note = "" if linear[-1] == "6" else f" ({label(linear[-1])}; 6 not run)"
    return MESA.judge(mesa / deepest, f"{mesa:.3f} / {deepest:.3f} = {mesa / deepest:.2f}{note}")


def _table(
    report: Report, config: Config, cells: dict[str, list[dict[str, Any]]], references: dict[str, Any], seeds: str
) -> None:
    from unrolled.report import mean_std

    rows: list[list[str]] = []
    for name, expected in LOSSES.items():
        if name not in cells:
            rows.append([label(name), "not run", expected.published, "not run", "not run", "not run"])
            continue
        done = cells[name]
        late = mean_std([cell["losses_by_position"][-1] for cell in done], digits=4)
        fresh = mean_std([cell["untrained_loss"] for cell in done], digits=3)
        loss = mean_std([cell["loss"] for cell in done], digits=4)
        rows.append([label(name), done[0]["extent"], expected.published, loss, late, fresh])
    for name, loss in references["losses"].items():
        setting, late = references["chosen"][name], f"{references['by_position'][name][-1]:.4f}"
        shown = f"{name} step{'' if name.endswith(' 1') else 's'}" if name[-1].isdigit() else name
        rows.append([shown, setting, _PUBLISHED.get(name, "no value"), f"{loss:.4f}", late, "none"])
    recipe = (
        "The paper's recipe: a constant learning rate of 1e-4, for the mesa layer 4e-4."
        if config.published
        else "The learning rate is not the paper's constant 1e-4 (mesa layer: 4e-4), which moves the weights too "
        "little in so few steps, but rises to the value in the table and falls as a cosine; models of several layers "
        "also have their gradients clipped to 0.02 instead of 1, element by element, and start from weights of "
        "standard deviation 0.02 instead of 0.0002. All this was chosen on sequences that are not tested on."
    )
    report.section(
        "Every predictor",
        "Losses are half the squared error, summed over the state, averaged over positions and held-out sequences. "
        f"{recipe} Chebyshev and Richardson iterations precondition the inputs of one gradient step (Proposition "
        "2; one step of either is a plain gradient step). Their two settings are the same at all positions, or, by "
        "position, chosen for each; all settings and the ridge were tuned on other sequences. Their "
        "predictions are clipped as those of the trained models. Early and late contexts differ so much in "
        "their largest eigenvalue that one setting for all serves neither.",
    ).table(
        ["predictor", "training or setting", "published", "here", "here, last position", "untrained"],
        rows,
        caption=f"Mean ± standard deviation over {seeds}, {config.test_sequences} held-out sequences. Untrained: the "
        "same model with its initial weights, which are small: it predicts about zero.",
    )


def _figures(
    report: Report,
    config: Config,
    cells: dict[str, list[dict[str, Any]]],
    references: dict[str, Any],
    linear: list[str],
) -> None:
    from unrolled.report import LineChart, Series

    over = f"Means over {len(config.seeds)} seeds; bars are one standard deviation." if len(config.seeds) > 1 else ""
    steps, known = ["1", "2", "4", "6"], references["losses"]

    def iterated(name: str, color: int) -> Series:
        found = [known[f"{name} {k}"] for k in steps]
        return Series(label=name, x=[int(k) for k in steps], y=found, color=color, dashed=True)

    def flat(text: str, value: float, color: int) -> Series:
        return Series(label=text, x=[1, 6], y=[value, value], color=color, dashed=True)

    by_depth: list[Series] = []
    if linear:
        runs = [[cell["loss"] for cell in cells[name]] for name in linear]
        error = [stdev(run) for run in runs] if len(config.seeds) > 1 else None
        by_depth.append(
            Series(label="trained", x=[int(n) for n in linear], y=[fmean(r) for r in runs], error=error, color=0)
        )
    published = [float(LOSSES[k].published) for k in steps]
    by_depth += [
        Series(label="published", x=[int(k) for k in steps], y=published, color=5, dashed=True),
        iterated("Chebyshev", 1),
        iterated("Chebyshev by position", 4),
        flat("exact ridge", known["exact ridge"], 2),
    ]
    if "mesa" in cells:
        by_depth.append(flat("1 mesa layer", fmean(cell["loss"] for cell in cells["mesa"]), 3))
    report.section("By depth").figure(
        LineChart(title="held-out loss", x_label="linear layers, or steps", series=by_depth, log_y=True),
        name="depth",
        caption=f"{over} Solid: trained linear layers. Mesa layer and exact ridge have no depth.".strip(),
    )
    count = len(references["by_position"]["zero"])
    positions = list(range(1, count + 1))
    curves = []
    for place, (name, done) in enumerate(cells.items()):
        columns = zip(*[cell["losses_by_position"] for cell in done], strict=True)
        curves.append(Series(label=label(name), x=positions, y=[fmean(c) for c in columns], color=place))
    curves.append(Series(label="exact ridge", x=positions, y=references["by_position"]["exact ridge"], dashed=True))
    report.section("By position and during training").figure(
        [
            LineChart(title="held-out loss", x_label="states seen", series=curves, log_y=True),
            LineChart(
                title="loss during training",
                x_label="share of the training, %",
                series=[_training(name, done, place) for place, (name, done) in enumerate(cells.items())],
                log_y=True,
            ),
        ],
        name="positions",
        caption=f"{over} The loss during training is taken on 1024 sequences apart from those of the test.".strip(),
    )


def _training(name: str, done: list[dict[str, Any]], color: int) -> Any:
    from unrolled.report import Series

    last = done[0]["curve"][-1]["step"]
    means = [fmean(cell["curve"][i]["loss"] for cell in done) for i in range(len(done[0]["curve"]))]
    shares = [100 * point["step"] / last for point in done[0]["curve"]]
    return Series(label=label(name), x=shares, y=[m if math.isfinite(m) else math.nan for m in means], color=color)
