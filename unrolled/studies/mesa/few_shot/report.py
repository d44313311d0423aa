"""The page of `mesa-few-shot`: the published prompts, what removes the spurious pairs, two tasks, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unrolled.studies.mesa.few_shot.cells import BOTH, GATED_WAYS, PUBLISHED_WAYS, FewShotConfig, TwoTasks
from unrolled.studies.mesa.few_shot.claims import CLEAN, MARK, OVERLAPPING, loss, rows_of, share_left
from unrolled.studies.mesa.few_shot.prompts import NOISE
from unrolled.studies.results import NOT_RUN, Results

if TYPE_CHECKING:
    from unrolled.report import LineChart, Report

PUBLISHED = {  # at pairs 10, 30 and 68
    "softmax, raw": ("1.43", "0.92", "0.77"),
    "softmax, EOS": ("1.16", "0.72", "0.59"),
    "softmax, EOS + prefix": ("1.00", "0.65", "0.55"),
    "hybrid, raw": ("1.59", "0.77", "0.65"),
    "hybrid, EOS": ("0.92", "0.59", "0.58"),
    "hybrid, EOS + prefix": ("0.88", "0.61", "0.59"),
    OVERLAPPING: ("1.37", "0.68", "0.53"),
}


def report(report: Report, config: FewShotConfig, results: Results[Any]) -> None:
    """Headline, the published prompts, gates, two tasks, limits."""
    from unrolled.report import Fact

    raw, best = loss(results, "hybrid, raw"), loss(results, "hybrid, EOS + prefix")
    gate = loss(results, "hybrid, raw, gate by position and ridge")
    floor = f"{loss(results, CLEAN):.4f}"
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "1 seed"
    report.headline(
        f"At pair {MARK} the hybrid loses {raw:.2f} on raw prompts and {best:.2f} with a tuned EOS token and prefix; "
        f"with a learned gate by position and a tuned ridge {gate:.4f}, where least squares on clean pairs loses "
        f"{floor}.",
        [
            Fact(label="Hybrid, raw prompt", value=f"{raw:.2f}", detail=f"{seeds}; published 0.77"),
            Fact(label="EOS and prefix", value=f"{best:.2f}", detail="published 0.61"),
            Fact(label="Gate by position, ridge tuned", value=f"{gate:.4f}", detail=seeds),
            Fact(label="Least squares, clean pairs", value=floor, detail="what is left is noise"),
        ],
    )
    _published(report, config, results)
    _beyond(report, config, results)
    _two_tasks(report, results)
    _limits(report, config)


def _extent(config: FewShotConfig) -> str:
    """Training and tuning in words, marked where they are below the paper's."""
    text = (
        f"Training: softmax ({config.softmax_layers} layers) {config.softmax_steps} steps, hybrid "
        f"{config.hybrid_steps}, of {config.batch_size} sequences of {config.tokens} tokens"
    )
    if min(config.softmax_steps, config.hybrid_steps) < 15_000 or config.batch_size < 128:
        text += " (paper: 7 layers, 15000 of 128, 224 tokens)"
    text += f"; tuning {config.tune_steps} steps of {config.tune_batch}"
    return text + (" (paper: 5000 of 64 to 256)." if config.tune_steps < 5000 else ".")


def _published(report: Report, config: FewShotConfig, results: Results[Any]) -> None:
    table: list[list[str]] = []
    for name, published in PUBLISHED.items():
        here = [f"{loss(results, name, pair):.2f}" for pair in (1, 10, MARK)]
        rows = rows_of(results, name)
        last = f"{loss(results, name, -1):.2f} ({len(rows.first('losses'))})" if rows else NOT_RUN
        controls = ["", ""]
        if name in PUBLISHED_WAYS:
            controls = [f"{loss(results, name, key=key):.2f}" for key in ("shuffled", "untrained")]
        table.append([name, " / ".join(published), *here, last, *controls])
    report.section(
        "The published prompts",
        "Half the squared error, summed over the ten coordinates. Pair n is answered with n - 1 pairs before it. EOS "
        "and prefix are tuned on prompts; the weights stay as dynamics left them. Controls at pair 30: the answers of "
        "a prompt dealt out anew among its pairs, and the model before training with the same tuned tokens. Predicting "
        "zero loses 1.67; a model can lose more at pair 1, where the hybrid has bound nothing but x itself.",
    ).table(
        ["prompt", "published 10 / 30 / 68", "1", "10", "30", "last pair", "shuffled", "untrained"],
        table,
        caption=f"{_over(config)}, {config.test_prompts} held-out prompts. {_extent(config)} Ridge of least squares: "
        f"{rows_of(results, OVERLAPPING).values('ridge', 'pairs'):g}.",
    )
    panels: list[LineChart] = []
    for kind in ("hybrid", "softmax"):
        names = {f"{kind}, raw": "raw", f"{kind}, EOS": "EOS", f"{kind}, EOS + prefix": "+ prefix"}
        panels += _chart(f"loss, {kind}", results, names)
    if panels:
        report.sections[-1].figure(
            panels,
            name="published",
            caption=f"{_over(config)}. Dotted: least squares on all neighbouring tokens and on clean pairs.",
        )


def _beyond(report: Report, config: FewShotConfig, results: Results[Any]) -> None:
    table: list[list[str]] = []
    floor = loss(results, CLEAN).mean
    for name, way in (*GATED_WAYS.items(), *BOTH.items()):
        here = loss(results, name)
        if not here:
            table.append([name, *[NOT_RUN] * 7])
            continue
        tuned = "nothing" if way.gate == "parity" else f"{config.tune_steps} steps"
        if name in BOTH:
            tuned = f"{config.hybrid_steps} steps, all weights"
        losses = [f"{loss(results, name, pair):.4f}" for pair in (12, 20, MARK)]
        left = f"{100 * share_left(results, name):.1f}"
        over = f"{here.mean / floor:.0f}"
        table.append([name, tuned, *losses, left, over, f"{loss(results, name, key='shuffled'):.2f}"])
    table.append([CLEAN, "", *(f"{loss(results, CLEAN, pair):.4f}" for pair in (12, 20, MARK)), "0", "1", ""])
    section = report.section(
        "What removes the spurious pairs",
        "A model of dynamics takes (y_i, x_{i+1}) for an example. In the hybrid, the pair bound at a token enters the "
        "sums of the mesa layer once, and a gate can leave it out: by hand at every second token, by a learned weight "
        "for each position, or by a sigmoid of what the token holds, as in MesaNet. The softmax model is masked "
        "instead: after its first layer no token sees another x. The last column but two is what is left of the loss "
        "of raw prompts over the clean floor at pair 30; the next, the loss as a multiple of the floor.\n\n"
        "Reading: " + _reading(results),
    )
    section.table(
        ["cell", "tuned", "12", "20", "30", "% left", "x floor", "shuffled"],
        table,
        caption=f"{_over(config)}; trained on both: {config.both_seeds} of them. Losses at pairs 12, 20 and 30; with "
        "EOS a prompt of as many tokens holds fewer pairs, so cells are compared at equal pairs.",
    )
    _gates(report, config, results)
    late = {kind: f"{rows_of(results, f'{kind}, raw').values('dynamics.-1'):.4f}" for kind in ("hybrid", "softmax")}
    section.text(
        f"How well the models do what they were trained for, at the last token of held-out dynamics: hybrid "
        f"{late['hybrid']}, softmax {late['softmax']}; the noise alone costs {0.5 * 10 * NOISE**2:.4f}. No gate can "
        "make a model better at regression than it is at that."
    )


def _gates(report: Report, config: FewShotConfig, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    shown = {
        "hybrid, raw": "raw",
        "hybrid, raw, gated by hand": "by hand",
        "hybrid, raw, gate by position": "by position",
        "hybrid, raw, gate by position and ridge": "and ridge",
        "hybrid, EOS, gate by squares": "EOS, by squares",
    }
    panels = _chart("loss, hybrid (log scale)", results, shown, log=True)
    if gates := rows_of(results, "hybrid, raw, gate by position"):
        weight = gates.curve("weight", lambda result: result["weights"][:24], x=range(1, 25), color=0)
        panels.append(
            LineChart(title="learned weight of a position", x_label="position", series=[weight], y_range=(0.0, 1.0))
        )
    if panels:
        report.sections[-1].figure(
            panels,
            name="gates",
            caption=f"{_over(config)}. Right: the gate by position, tuned on raw prompts, first 24 tokens; answers "
            "stand at even positions.",
        )


def _reading(results: Results[Any]) -> str:
    """Which ways reach the floor, in words, from the numbers."""
    left = {name: share for name in GATED_WAYS if (share := share_left(results, name))}
    within: list[str] = []
    without: list[str] = []
    for name in sorted(left, key=lambda name: left[name].mean):
        verdict = f"{name} leaves {100 * left[name].mean:.1f} % of the excess"
        (within if left[name].mean <= 0.05 else without).append(verdict)
    text = "within 5 % of the floor: " + ("; ".join(within) if within else "none") + "."
    return text + (" Not: " + "; ".join(without) + "." if without else "")


def _two_tasks(report: Report, results: Results[Any]) -> None:
    from unrolled.report import LineChart

    rows = {kind: measured for kind in ("softmax", "hybrid") if (measured := results.of(TwoTasks, kind=kind))}
    switch = results.of(TwoTasks).first("switch", NOT_RUN)
    section = report.section(
        "Two tasks in one prompt",
        f"Raw prompts whose map changes at pair {switch}. The models have no way to forget: the pairs of the first "
        "task stay in their sums.",
    )
    if rows:
        section.figure(
            LineChart(
                title="loss",
                x_label="pair",
                series=[
                    each.curve(kind, "losses", x=range(1, len(each.first("losses")) + 1), color=color)
                    for color, (kind, each) in enumerate(rows.items())
                ],
            ),
            name="two-tasks",
            caption="The paper has the switch at token 81 of 228; here it stands at the same share of the prompt, so "
            "fewer pairs follow it.",
        )


def _limits(report: Report, config: FewShotConfig) -> None:
    report.section(
        "Limits",
        f"Models and prompts are smaller than the paper's: {config.tokens} tokens (224), {config.softmax_layers} "
        f"softmax layers (7), {config.softmax_steps} steps of {config.batch_size} sequences (15000 of 128). Where a "
        "model is short of converged, its numbers do not stand for the paper's: see its loss on dynamics above. "
        "Answers carry the noise of the dynamics, 0.01.\n\n"
        "A gate by hand or by position knows where answers stand, and fails on prompts of another layout; only a gate "
        "that reads tokens could follow them. Tuning sees prompts like those of the test, of other maps; raw prompts "
        "are answered by a model that never saw any.",
    )


def _over(config: FewShotConfig) -> str:
    if len(config.seeds) == 1:
        return "One seed"
    return f"Mean over {len(config.seeds)} seeds, ± one standard deviation"


def _chart(title: str, results: Results[Any], names: Mapping[str, str], *, log: bool = False) -> list[LineChart]:
    """A line for each way and both of least squares; no chart where none was run."""
    from unrolled.report import LineChart

    series = []
    for color, (name, label) in enumerate({**names, OVERLAPPING: "LSQ, all", CLEAN: "LSQ, clean"}.items()):
        if rows := rows_of(results, name):
            x = range(1, len(rows.first("losses")) + 1)
            series.append(rows.curve(label, "losses", x=x, color=color, dashed=name not in names))
    return [LineChart(title=title, x_label="pair", series=series, log_y=log)] if series else []
