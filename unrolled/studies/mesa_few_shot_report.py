"""The report of `mesa-few-shot`: claims, tables and figures from the losses of its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from unrolled.report import Fact, LineChart, Provenance, Report, Series, mean_std
from unrolled.studies import mesa_few_shot as study

if TYPE_CHECKING:
    from unrolled.studies.mesa_few_shot import Config

Cells = Mapping[str, Sequence[Mapping[str, Any]]]

_CLEAN, _OVERLAPPING = "least squares on clean pairs", "least squares on overlapping pairs"
_MARK = 30  # the pair that claims are judged at
_RAW = {"softmax": "softmax, raw", "hybrid": "hybrid, raw"}


def build_report(config: Config, cells: Cells, duration: float) -> Report:
    """Claims, tables, figures and limits.

    Args:
        config: what was run.
        cells: results by cell, one for each seed.
        duration: seconds.
    """
    report = Report(
        "Few-shot regression by models of dynamics",
        question="How well does a model trained on linear dynamics alone learn regression from a prompt, and what "
        "removes the pairs that mean nothing?",
    )
    report.claims = _claims(cells)
    raw, best = _at(cells, "hybrid, raw"), _at(cells, "hybrid, EOS + prefix")
    gate = _at(cells, "hybrid, raw, gate by position and ridge")
    floor = cells[_CLEAN][0]["losses"][_MARK - 1]
    seeds = f"{len(config.seeds)} seeds" if len(config.seeds) > 1 else "1 seed"
    report.headline(
        f"At pair {_MARK} the hybrid loses {mean_std(raw, digits=2)} on raw prompts and {mean_std(best, digits=2)} "
        f"with a tuned EOS token and prefix; with a learned gate by position and a tuned ridge "
        f"{mean_std(gate, digits=4)}, where least squares on clean pairs loses {floor:.4f}.",
        [
            Fact(label="Hybrid, raw prompt", value=mean_std(raw, digits=2), detail=f"{seeds}; published 0.77"),
            Fact(label="EOS and prefix", value=mean_std(best, digits=2), detail="published 0.61"),
            Fact(label="Gate by position, ridge tuned", value=mean_std(gate, digits=4), detail=seeds),
            Fact(label="Least squares, clean pairs", value=f"{floor:.4f}", detail="what is left is noise"),
        ],
    )
    _published(report, config, cells)
    _beyond(report, config, cells)
    _two_tasks(report, cells)
    _limits(report, config)
    report.results = {"cells": dict(cells)}
    report.provenance = Provenance.collect(config=config, seeds=config.seeds, duration=duration)
    return report


def _at(cells: Cells, name: str, pair: int = _MARK, key: str = "losses") -> list[float]:
    """Loss at a pair, counted from 1, for every seed."""
    return [cell[key][pair - 1] for cell in cells.get(name, ())]


def share_left(cells: Cells, name: str) -> list[float]:
    """What is left at pair 30 of the same model's loss on raw prompts over the clean floor, for every seed."""
    floor = cells[_CLEAN][0]["losses"][_MARK - 1]
    raw = {cell["seed"]: cell["losses"][_MARK - 1] for cell in cells[_RAW[name.split(",")[0]]]}
    return [(c["losses"][_MARK - 1] - floor) / (raw[c["seed"]] - floor) for c in cells[name]]


def _peak(losses: Sequence[float]) -> tuple[int, float]:
    """The pair after the first at which the loss is largest, and the loss."""
    pair = max(range(1, len(losses)), key=losses.__getitem__)
    return pair + 1, losses[pair]


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(str(number) for number in sorted(set(numbers)))


def _claims(cells: Cells) -> list[Any]:
    overlapping = cells[_OVERLAPPING][0]["losses"][_MARK - 1]
    first = _at(cells, "hybrid, raw", 1)
    rise = [max(cell["losses"]) / cell["losses"][0] for cell in cells["hybrid, raw"]]
    peaks = [_peak(cell["losses"]) for cell in cells["hybrid, raw"]]
    theirs = _peak(cells[_OVERLAPPING][0]["losses"])
    norms = [cell["eos_norm"] for kind in ("hybrid", "softmax") for cell in cells[f"{kind}, EOS"]]
    helps = [a / b for a, b in zip(_at(cells, "softmax, EOS"), _at(cells, "softmax, raw"), strict=True)]
    switched = [cell["losses"][cell["switch"] - 1] for cell in cells["two tasks, hybrid"]]
    after = [cell["losses"][-1] for cell in cells["two tasks, hybrid"]]
    later = [len(cell["losses"]) - cell["switch"] + 1 for cell in cells["two tasks, hybrid"]]

    def shown(name: str) -> str:
        return mean_std(_at(cells, name), digits=2)

    def share(expectation: Any, name: str) -> Any:
        left = share_left(cells, name)
        return expectation.judge(
            fmean(left), f"{mean_std(left, digits=4)}; loss {mean_std(_at(cells, name), digits=4)}"
        )

    return [
        study.OVERLAPPING.judge(overlapping, f"{overlapping:.2f}"),
        study.RAW.judge(
            fmean(_at(cells, "hybrid, raw")), f"{shown('hybrid, raw')}, from {mean_std(first, digits=2)} at pair 1"
        ),
        study.ASCENT.judge(
            fmean(rise),
            f"{mean_std(rise, digits=2)}; after pair 1 ({mean_std(first, digits=2)}) the largest is "
            f"{mean_std([loss for _, loss in peaks], digits=2)} at pair {_listed(pair for pair, _ in peaks)}; of least "
            f"squares on all neighbouring tokens {theirs[1]:.2f} at pair {theirs[0]}",
        ),
        study.EOS.judge(fmean(_at(cells, "hybrid, EOS")), shown("hybrid, EOS")),
        study.PREFIX.judge(fmean(_at(cells, "hybrid, EOS + prefix")), shown("hybrid, EOS + prefix")),
        study.ZERO.judge(max(norms), f"{min(norms):.3f} to {max(norms):.3f} over both models"),
        study.SOFTMAX.judge(fmean(helps), mean_std(helps, digits=2)),
        study.SWITCH.judge(
            fmean(switched),
            f"{mean_std(switched, digits=2)}, then {mean_std(after, digits=2)} at pair {later[0]} after it",
        ),
        share(study.MASKED, "hybrid, raw, gated by hand"),
        share(study.LEARNED, "hybrid, raw, gate by position and ridge"),
        share(study.CONTENT, "hybrid, EOS, gate by squares"),
    ]


def _extent(config: Config) -> str:
    """Training and tuning in words, marked where they are below the paper's."""
    text = (
        f"Training: softmax ({config.softmax_layers} layers) {config.softmax_steps} steps, hybrid "
        f"{config.hybrid_steps}, of {config.batch_size} sequences of {config.tokens} tokens"
    )
    if min(config.softmax_steps, config.hybrid_steps) < 15_000 or config.batch_size < 128:
        text += " (paper: 7 layers, 15000 of 128, 224 tokens)"
    text += f"; tuning {config.tune_steps} steps of {config.tune_batch}"
    return text + (" (paper: 5000 of 64 to 256)." if config.tune_steps < 5000 else ".")


def _published(report: Report, config: Config, cells: Cells) -> None:
    rows: list[list[str]] = []
    for name, published in study.PUBLISHED.items():
        last = len(cells[name][0]["losses"])
        here = [mean_std(_at(cells, name, pair), digits=2) for pair in (1, 10, _MARK, last)]
        controls = ["", ""]
        if name in study.PROMPTS:
            controls = [mean_std(_at(cells, name, key=key), digits=2) for key in ("shuffled", "untrained")]
        rows.append([name, " / ".join(published), *here[:3], f"{here[3]} ({last})", *controls])
    report.section(
        "The published prompts",
        "Half the squared error, summed over the ten coordinates. Pair n is answered with n - 1 pairs before it. EOS "
        "and prefix are tuned on prompts; the weights stay as dynamics left them. Controls at pair 30: the answers of "
        "a prompt dealt out anew among its pairs, and the model before training with the same tuned tokens. Predicting "
        "zero loses 1.67; a model can lose more at pair 1, where the hybrid has bound nothing but x itself.",
    ).table(
        ["prompt", "published 10 / 30 / 68", "1", "10", "30", "last pair", "shuffled", "untrained"],
        rows,
        caption=f"{_over(config)}, {config.test_prompts} held-out prompts. {_extent(config)} Ridge of least squares: "
        f"{cells[_OVERLAPPING][0]['ridge']:g}.",
    ).figure(
        [
            _chart(
                "loss, hybrid", cells, {"hybrid, raw": "raw", "hybrid, EOS": "EOS", "hybrid, EOS + prefix": "+ prefix"}
            ),
            _chart(
                "loss, softmax",
                cells,
                {"softmax, raw": "raw", "softmax, EOS": "EOS", "softmax, EOS + prefix": "+ prefix"},
            ),
        ],
        name="published",
        caption=f"{_over(config)}. Dashed: least squares on all neighbouring tokens and on clean pairs.",
    )


def _beyond(report: Report, config: Config, cells: Cells) -> None:
    own = [name for name in study.PROMPTS if "gate" in name or "masked" in name]
    floor = cells[_CLEAN][0]["losses"]
    rows: list[list[str]] = []
    for name in own:
        here = [mean_std(_at(cells, name, pair), digits=4) for pair in (12, 20, _MARK)]
        left = share_left(cells, name)
        tuned = "nothing" if study.PROMPTS[name][3] == "parity" else f"{config.tune_steps} steps"
        over = f"{fmean(_at(cells, name)) / floor[_MARK - 1]:.0f}"
        shuffled = mean_std(_at(cells, name, key="shuffled"), digits=2)
        rows.append([name, tuned, *here, mean_std([100 * x for x in left], digits=1), over, shuffled])
    for name in study.BOTH:
        if name not in cells:
            rows.append([name, *["not run"] * 7])
            continue
        here = [mean_std(_at(cells, name, pair), digits=4) for pair in (12, 20, _MARK)]
        raw = fmean(_at(cells, "hybrid, raw")) - floor[_MARK - 1]
        left_both = 100 * (fmean(_at(cells, name)) - floor[_MARK - 1]) / raw
        over = f"{fmean(_at(cells, name)) / floor[_MARK - 1]:.0f}"
        shuffled = mean_std(_at(cells, name, key="shuffled"), digits=2)
        extent = f"{config.hybrid_steps} steps, all weights"
        rows.append([name, extent, *here, f"{left_both:.1f}", over, shuffled])
    rows.append([_CLEAN, "", *(f"{floor[pair - 1]:.4f}" for pair in (12, 20, _MARK)), "0", "1", ""])
    section = report.section(
        "What removes the spurious pairs",
        "A model of dynamics takes (y_i, x_{i+1}) for an example. In the hybrid, the pair bound at a token enters the "
        "sums of the mesa layer once, and a gate can leave it out: by hand at every second token, by a learned weight "
        "for each position, or by a sigmoid of what the token holds, as in MesaNet. The softmax model is masked "
        "instead: after its first layer no token sees another x. The last column but two is what is left of the loss "
        "of raw prompts over the clean floor at pair 30; the next, the loss as a multiple of the floor.\n\n"
        "Reading: " + _reading(cells),
    )
    section.table(
        ["cell", "tuned", "12", "20", "30", "% left", "x floor", "shuffled"],
        rows,
        caption=f"{_over(config)}; trained on both: {config.both_seeds} of them. Losses at pairs 12, 20 and 30; with "
        "EOS a prompt of as many tokens holds fewer pairs, so cells are compared at equal pairs.",
    )
    shown = {
        "hybrid, raw": "raw",
        "hybrid, raw, gated by hand": "by hand",
        "hybrid, raw, gate by position": "by position",
        "hybrid, raw, gate by position and ridge": "and ridge",
        "hybrid, EOS, gate by squares": "EOS, by squares",
    }
    gates = [cell["gate"] for cell in cells["hybrid, raw, gate by position"]]
    report.sections[-1].figure(
        [
            _chart("loss, hybrid (log scale)", cells, shown, log=True),
            LineChart(
                title="learned weight of a position",
                x_label="position",
                series=[_series("weight", range(1, 25), [gate[:24] for gate in gates], 0)],
                y_range=(0.0, 1.0),
            ),
        ],
        name="gates",
        caption=f"{_over(config)}. Right: the gate by position, tuned on raw prompts, first 24 tokens; answers stand "
        "at even positions.",
    )
    late = {kind: mean_std([c["dynamics"][-1] for c in cells[_RAW[kind]]], digits=4) for kind in _RAW}
    section.text(
        f"How well the models do what they were trained for, at the last token of held-out dynamics: hybrid "
        f"{late['hybrid']}, softmax {late['softmax']}; the noise alone costs {0.5 * 10 * 0.01**2:.4f}. No gate can "
        "make a model better at regression than it is at that."
    )


def _reading(cells: Cells) -> str:
    """Which cells reach the floor, in words, from the numbers."""

    def verdict(name: str) -> str:
        left = 100 * fmean(share_left(cells, name))
        return f"{name} leaves {left:.1f} % of the excess"

    names = [n for n in study.PROMPTS if "gate" in n or "masked" in n]
    best = sorted(names, key=lambda n: fmean(share_left(cells, n)))
    within = [verdict(n) for n in best if fmean(share_left(cells, n)) <= 0.05]
    without = [verdict(n) for n in best if fmean(share_left(cells, n)) > 0.05]
    text = "within 5 % of the floor: " + ("; ".join(within) if within else "none") + "."
    return text + (" Not: " + "; ".join(without) + "." if without else "")


def _two_tasks(report: Report, cells: Cells) -> None:
    switch = cells["two tasks, hybrid"][0]["switch"]
    pairs = range(1, len(cells["two tasks, hybrid"][0]["losses"]) + 1)
    report.section(
        "Two tasks in one prompt",
        f"Raw prompts whose map changes at pair {switch}. The models have no way to forget: the pairs of the first "
        "task stay in their sums.",
    ).figure(
        LineChart(
            title="loss",
            x_label="pair",
            series=[
                _series(kind, pairs, [cell["losses"] for cell in cells[f"two tasks, {kind}"]], color)
                for color, kind in enumerate(("softmax", "hybrid"))
            ],
        ),
        name="two-tasks",
        caption="The paper has the switch at token 81 of 228; here it stands at the same share of the prompt, so fewer "
        "pairs follow it.",
    )


def _limits(report: Report, config: Config) -> None:
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


def _over(config: Config) -> str:
    if len(config.seeds) == 1:
        return "One seed"
    return f"Mean over {len(config.seeds)} seeds, ± one standard deviation"


def _chart(title: str, cells: Cells, names: Mapping[str, str], *, log: bool = False) -> LineChart:
    def curve(name: str, label: str, color: int, *, dashed: bool = False) -> Series:
        runs = [cell["losses"] for cell in cells[name]]
        return _series(label, range(1, len(runs[0]) + 1), runs, color, dashed=dashed)

    series = [curve(name, label, color) for color, (name, label) in enumerate(names.items())]
    series += [
        curve(_OVERLAPPING, "LSQ, all", len(names), dashed=True),
        curve(_CLEAN, "LSQ, clean", len(names) + 1, dashed=True),
    ]
    return LineChart(title=title, x_label="pair", series=series, log_y=log)


def _series(
    label: str, x: Sequence[int], runs: Sequence[Sequence[float]], color: int, *, dashed: bool = False
) -> Series:
    means = [fmean(values) for values in zip(*runs, strict=True)]
    error = [stdev(values) for values in zip(*runs, strict=True)] if len(runs) > 1 else None
    return Series(label=label, x=list(x), y=means, error=error, color=color, dashed=dashed)
