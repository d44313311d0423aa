"""The table and the report of `unrolled trace`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unrolled.commands.trace_text import context_sentences
from unrolled.harness import Answer
from unrolled.terminal import table

if TYPE_CHECKING:
    from unrolled.report import Report, Section

# key of a row -> heading of its column, what it is with its unit, and which way it goes
_COLUMNS = {
    "rate": ("R", "coding rate of all tokens of a sample, at Z+half (nats)", "higher: the tokens fill more of space"),
    "subspace_rate": (
        "R^c",
        "coding rate in the subspaces of the layer's heads, heads summed, at Z+half (nats)",
        "lower: the tokens fit the subspaces better, that is what compression lowers",
    ),
    "nonzero": ("nonzero", "share of entries that are not zero, after the layer (0 to 1)", "lower: sparser"),
    "l1": ("l1", "mean absolute entry, after the layer (the tokens' own scale)", "lower: smaller or sparser"),
    "effective_rank": ("rank", "effective rank of the tokens, at Z+half (1 to the number of tokens)", "higher: richer"),
}
_LIMITS = (
    "R and R^c depend on the number of tokens and on their width: compare them with the untrained column and along the "
    "layers of one model, not between models of other widths or texts of other lengths. That a quantity falls does not "
    "show that the model was trained to lower it."
)


def legend() -> str:
    """What the columns of the table mean."""
    lines = [f"  {name}: {what}; {way}" for name, what, way in _COLUMNS.values()]
    return "\n".join([*lines, "  0: the same architecture with untrained weights, on the same samples"])


def table_of(result: Answer) -> str:
    """Of a terminal: a line for each layer."""
    columns = ["layer", *(name for heading, *_ in _COLUMNS.values() for name in (heading, f"{heading} 0"))]
    rows = []
    for row, control in zip(result["layers"], result["control"], strict=True):
        cells = [f"{r[key]:.4g}" for key in _COLUMNS for r in (row, control)]
        rows.append([f"{int(row['layer'])}", *cells])
    return table(columns, rows)


def image_report(result: Answer) -> Report:
    """Of a model of images."""
    return _report(
        result, f"{result['images']:,} images of {result['data']} ({result['split']} split)",
        f"images of the {result['split']} split",
    )  # fmt: skip


def text_report(result: Answer) -> Report:
    """Of a language model: also by position, and what its context does."""
    report = _report(result, f"{result['text']}, {result['tokens']:,} tokens", "texts")
    _by_position(report, result)
    _context(report, result)
    return report


def _report(result: Answer, seen: str, samples: str) -> Report:
    from unrolled.figures.words import number, with_error
    from unrolled.report import Report, trace_section

    layers, control = result["layers"], result["control"]
    report = Report(f"{result['model']}, layer by layer", question="What does every layer do to its objective?")
    random = "This model has random weights: nothing here was learned. " if result["weights"] == "random" else ""
    if "step" in result:
        random = f"The run was interrupted: this is its checkpoint of step {result['step']:,}. "
    stack = f" of its stack {result['stack']}" if "stack" in result else ""
    stack = f" of its {result['part']}" if "part" in result else stack
    apart = (
        " The halves of its blocks run in parallel: both read Z, which stands for Z+half."
        if "parallel" in result
        else ""
    )
    report.headline(
        f"{random}The layers{stack} measured on {seen}, {result['protocol']} protocol, beside the same architecture "
        f"with fresh weights.{apart} {_finding(layers, control)}"
    )
    trace_section(report, {"model": result}, images=samples)
    _explain(report.section("What the columns mean, and what they do not show", _LIMITS))
    single = result.get("images", result.get("sequences")) == 1  # of one sample the error is unknown, not 0
    what_of = "Of a single sample" if single else "Mean over samples ± standard error"
    numbers = report.section("Numbers", f"{what_of}, before the layer, between its halves, after.")

    def mean(row: dict[str, float], name: str) -> str:
        return number(row[name]) if single else with_error(row[name], row[f"{name}_se"])

    columns = ["layer", *(f"{point}{who}" for who in ("", ", untrained") for point in ("Z", "Z½", "Z+1"))]
    for key, (heading, what, way) in _COLUMNS.items():
        rows: list[list[int | str]] = [
            [
                int(a["layer"]),
                *(mean(r, f"{key}_{at}") for r in (a, b) for at in ("z", "half", "next")),
            ]
            for a, b in zip(layers, control, strict=True)
        ]
        numbers.table(columns, rows, caption=f"{heading}: {what.split(', at Z')[0].split(', after')[0]}; {way}")
    numbers.table(
        ["layer", "trained" if not random else "this model", "untrained"],
        [[int(a["layer"]), a["incoherence"], b["incoherence"]] for a, b in zip(layers, control, strict=True)],
        caption="Incoherence of the heads' subspaces: 1 when mutually orthogonal, 0 when they coincide",
    )
    return report


def _finding(layers: list[dict[str, float]], control: list[dict[str, float]]) -> str:
    """What was seen, before the numbers."""

    def along(rows: list[dict[str, float]], key: str) -> str:
        return f"{rows[-1][f'{key}_next'] - rows[0][f'{key}_z']:+.3g}"

    return (
        f"From what enters the first layer to what leaves the last R^c changes by {along(layers, 'subspace_rate')} "
        f"nats (untrained {along(control, 'subspace_rate')}), R by {along(layers, 'rate')} (untrained "
        f"{along(control, 'rate')}), the share of entries that are not zero by {along(layers, 'nonzero')} (untrained "
        f"{along(control, 'nonzero')})."
    )


def _explain(section: Section) -> None:
    rows = [list(each) for each in _COLUMNS.values()]
    rows.append(["0", "as the column before it, of the same architecture with untrained weights", "the control"])
    section.table(["column", "what it is (unit)", "direction"], rows)


def _by_position(report: Report, result: Answer) -> None:
    from unrolled.figures.lines import LineChart, Series

    count = len(result["layers"])
    shown = sorted({0, count // 2, count - 1})
    titles = {
        "subspace_rate": "Rᶜ of the tokens so far (nats)",
        "rate": "R of the tokens so far (nats)",
        "effective_rank": "Effective rank of the tokens so far",
        "nonzero": "Non-zero fraction since the position before",
    }

    def line(key: str, layer: int, color: int, control: bool) -> Series:
        rows = [row for row in result["positions_control" if control else "positions"] if row["layer"] == layer]
        return Series(
            label=f"layer {layer}{' untrained' if control else ''}", x=[row["position"] for row in rows],
            y=[row[key] for row in rows], error=[row[f"{key}_se"] for row in rows], color=color, dashed=control,
        )  # fmt: skip

    panels = [
        LineChart(
            title=title,
            x_label="tokens from the start",
            series=[line(key, layer, color, who) for color, layer in enumerate(shown) for who in (False, True)],
        )
        for key, title in titles.items()
    ]
    section = report.section(
        "By position",
        "R, Rᶜ and the rank are of the first so many tokens of a text: how much room the next ones still find.",
    )
    section.figure(
        panels, name="positions", caption="Mean over the texts that are long enough; bars are one standard error."
    )


def _context(report: Report, result: Answer) -> None:
    from unrolled.figures.lines import LineChart, Series

    section = report.section("What the context does", " ".join(f"{each}." for each in context_sentences(result)))
    for key, what in (("context", "The in-context score"), ("descent", "The descent on the mesa-objective")):
        if f"{key}_note" in result:
            section.text(f"{what} is not given: {result[f'{key}_note']}.")
    if "context" in result:
        curve = result["context"]["curve"]
        section.figure(
            LineChart(
                title="Loss by position (nats per token)", x_label="position",
                series=[Series(label="model", x=list(range(len(curve))), y=curve)],
            ),
            name="loss",
            caption=f"Mean over {result['context']['sequences']:,} windows; what falls along the context was learned "
            "from it, or from there being more of it.",
        )  # fmt: skip
    if "descent" in result:
        keys = ("context", "foreign", "in_context", "next", "optimum")
        section.table(
            ["layer", *keys],
            [[row["layer"], *(float(row[key]) for key in keys)] for row in result["descent"]],
            caption="The mesa-objective of its own context read off each layer, divided by the mean state's (1 knows "
            "nothing, 0 everything; lower is better): context; foreign, the same of another context, the control; "
            "in_context, foreign minus context, above 0 what the context taught; next, error of the next state; "
            "optimum, distance from the exact minimiser's prediction",
        )
