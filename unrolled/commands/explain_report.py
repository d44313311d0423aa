"""What `unrolled explain` writes: the evidence on the picture, the terms in a table, and what they mean in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled.commands.explain_removed import add_removed
from unrolled.harness import Answer
from unrolled.reading import Json

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.instruments.causal import Removed
    from unrolled.instruments.explain import Explanation, HalfEvidence
    from unrolled.report import ImageRow, Report
    from unrolled.subjects.pictures import Pixels

_FOR, _AGAINST = (230, 159, 0), (0, 114, 178)  # Okabe and Ito's orange and blue
_KINDS = {"attn": "attention", "mlp": "MLP", "ista": "ISTA"}


@dataclass(frozen=True)
class View:
    """A picture of the contact sheet."""

    name: str
    pixels: Pixels


def paint(explanation: Explanation, original: Pixels) -> list[View]:
    """The picture, the evidence of all terms on it, and that of every layer on one scale."""
    layers = sorted({half.layer for half in explanation.halves})
    each = [explanation.evidence(layer) for layer in layers]
    scale = max(float(values.abs().max()) for values in each)
    whole = explanation.evidence()
    return [
        View("picture", original),
        View("all layers", _evidence(whole, original, float(whole.abs().max()))),
        *(View(f"layer {n}", _evidence(values, original, scale)) for n, values in zip(layers, each, strict=True)),
    ]


def write_pictures(folder: Path, views: Sequence[View]) -> None:
    """Every overlay in full size, and `contact-sheet.png` with all of them."""
    from PIL import Image

    from unrolled.commands.sheets import sheet

    folder.mkdir(parents=True, exist_ok=True)
    for view in views[1:]:
        Image.fromarray(view.pixels).save(folder / f"{view.name.replace(' ', '-')}.png")
    rows = [views[:2], *(views[i : i + 4] for i in range(2, len(views), 4))]
    named = [(" · ".join(view.name for view in row), [view.pixels for view in row]) for row in rows]
    sheet(named, []).save(folder / "contact-sheet.png")


def _evidence(values: Tensor, original: Pixels, scale: float) -> Pixels:
    from unrolled.commands.segment.overlays import blend, faded
    from unrolled.instruments import upsample

    size = (original.shape[0], original.shape[1])
    # patch by patch: what is between them was not measured
    large = upsample(values.flatten().float(), (values.shape[0], values.shape[1]), size, smooth=False).numpy()
    colours = np.where(large[..., None] > 0, np.array(_FOR, np.float64), np.array(_AGAINST, np.float64))
    return blend(faded(original, 0.7), colours, 0.85 * np.abs(large) / (scale or 1.0))


def layer_table(explanation: Explanation, *, text: bool = False) -> tuple[list[str], list[list[Any]]]:
    """A row for each layer: its heads, the rest of its attention, its second half."""
    by_layer: dict[int, dict[str, HalfEvidence]] = {}
    for half in explanation.halves:
        by_layer.setdefault(half.layer, {})["attn" if half.kind == "attn" else "second"] = half
    heads = max((len(half.heads) for half in explanation.halves if half.heads is not None), default=0)
    second = next((_KINDS[half.kind] for half in explanation.halves if half.kind != "attn"), "")
    columns = ["layer", *(f"head {k}" for k in range(heads)), "bias", "attention", *([second] if second else []), "sum"]
    rows: list[list[Any]] = [["embedding", *[None] * (len(columns) - 2), float(explanation.embed.sum())]]
    for layer, halves in by_layer.items():
        attention, other = halves.get("attn"), halves.get("second")
        row: list[Any] = [str(layer)]
        if attention is None or attention.heads is None:
            row += [None] * (heads + 1)
        else:
            row += [*attention.heads.tolist(), attention.bias]
        row.append(None if attention is None else attention.total)
        if second:
            row.append(None if other is None else other.total)
        total = sum(half.total for half in halves.values())
        rows.append([*row, total])
    rows.append(["constant", *[None] * (len(columns) - 2), explanation.constant])
    rows.append(["logit", *[None] * (len(columns) - 2), explanation.logit])
    if text:
        rows = [[cell if isinstance(cell, str) else "" if cell is None else f"{cell:+.3f}" for cell in r] for r in rows]
    return columns, rows


_FEW, _UNSURE = 0.05, 0.3  # share of the data's images below which, and probability under which, it is said


def among_sentence(result: Answer) -> str:
    """That probably nothing like the picture is among the classes, in a paragraph; nothing where that is not to see.

    The sign is the highest probability: against those of the data's own test images where they are at hand (the
    baseline of arXiv 1610.02136), else by itself: 4 % of CIFAR-10's test images get less than 0.3 from the weights that
    ship.
    """
    among = result["among"]
    if result["weights"] == "random":
        return ""
    highest = f"the {among['classes']:,} classes of this model: the highest probability is {among['probability']:.1%}"
    advice = "; what follows explains the best of wrong answers then, not the picture.\n\n"
    if among["lower"] is not None:
        if among["lower"] > _FEW:
            return ""
        more = f"of {among['images']:,} test images of {among['data']} {1 - among['lower']:.0%} get as much or more"
        return f"Probably nothing like the picture is among {highest}, and {more}{advice}"
    return f"Perhaps nothing like the picture is among {highest}{advice}" if among["probability"] < _UNSURE else ""


def decision_sentence(result: Answer) -> str:
    """Which class is explained, where its logit stands among all, and its probability."""
    target = result["target"]
    place = "the highest logit" if target["rank"] == 1 else f"logit number {target['rank']}"
    of = result["among"]["classes"]
    return f"Class {target['name']}: {place} of {of:,}, probability {target['probability']:.1%}. "


def explain_report(result: Answer, explanation: Explanation, views: Sequence[View], removed: Removed | None) -> Report:
    """The page of one decision."""
    from unrolled.report import Fact, HeatMap, ImageGrid, LineChart, Report, Series

    report: Report = Report(
        f"Why {result['model'].rstrip('/').rsplit('/', 1)[-1]} says what it says",
        question=f"Which layers, heads and patches is the logit of {_what(result)} made of?",
    )
    removals = result["removals"]
    summary = decision_sentence(result)
    if result["weights"] == "random":
        summary += "The weights are random: nothing here was learned."
    else:
        summary += f"Weights: {result['weights']}. {among_sentence(result)}".rstrip()
    attention = sum(half.total for half in explanation.halves if half.kind == "attn")
    second = sum(half.total for half in explanation.halves if half.kind != "attn")
    random = removals["random"]
    facts = [
        Fact(
            label="Logit explained",
            value=f"{explanation.logit:.3f}",
            detail=f"the terms sum to it within {_bound(explanation)}",
        ),
        Fact(label="From attention", value=f"{attention:+.3f}", detail="all layers and heads, through the final norm"),
        Fact(
            label="Change without the patches most for it",
            value=f"{removals['most for']:+.3f}",
            detail=f"{removals['patches']} patches; as many random ones: {random['mean']:+.3f} ± {random['std']:.3f}",
        ),
    ]
    report.headline(summary, facts)
    panels: list[Any] = [
        ImageGrid(
            title="All layers",
            rows=[_row(views[:2])],
            alt="The picture and the evidence of all layers on it.",
            largest=196,
        ),
        ImageGrid(
            title="By layer", rows=[_row(views[2:])], alt="The evidence of each layer on the picture.", largest=128
        ),
    ]
    report.section("Evidence on the picture").figure(
        panels,
        caption=f"Orange: for {_what(result)}; blue: against it; strength is the share of the largest patch, of all "
        "layers together above, of any layer below. Attention counts where it looked, other terms on "
        f"their own token. On the patches lie {explanation.logit - result['elsewhere']:+.3f} of the logit; "
        f"{result['elsewhere']:+.3f} lie on no patch: class token, registers and biases.",
    )
    columns, cells = layer_table(explanation, text=True)
    section = report.section("By layer and head").table(columns, cells, caption=_table_words(columns))
    by_head = [half for half in explanation.halves if half.heads is not None]
    panels = []
    if by_head:
        panels.append(
            HeatMap(
                title="Attention, by layer and head",
                values=np.array([half.heads.tolist() for half in by_head if half.heads is not None]),
                rows=[str(half.layer) for half in by_head],
                columns=[str(k) for k in range(len(by_head[0].heads if by_head[0].heads is not None else []))],
                row_label="layer",
                column_label="head",
                signed=True,
            )
        )
    series = []
    for kind in dict.fromkeys(half.kind for half in explanation.halves):
        halves = [half for half in explanation.halves if half.kind == kind]
        series.append(Series(label=_KINDS[kind], x=[half.layer for half in halves], y=[half.total for half in halves]))
    panels.append(LineChart(title="Term of each half", x_label="layer", series=series))
    section.figure(
        panels,
        caption="Contributions to the logit: above zero (orange) for the class, below it (blue) against it.",
    )
    add_removed(report, removed)
    section = report.section("When patches are removed")
    section.table(
        ["patches made the mean colour", "change of the logit", "± (draws)"],
        [
            ["most for", removals["most for"], None],
            ["most against", removals["most against"], None],
            ["random", random["mean"], random["std"]],
        ],
        caption=f"{removals['patches']} of {explanation.embed.numel() - explanation.prefix} patches at a time become "
        "the mean colour, and the network runs again. Most for, most against: the patches with the highest and the "
        f"lowest evidence above. Random: mean and standard deviation over {random['draws']} draws. This is one "
        "picture.",
    )
    section.text(removals_sentence(removals))
    many = result["faithfulness"]
    section.text(faithfulness_sentence(many))
    if many is not None:
        section.table(
            ["patches", "share", "by evidence", "at random", "difference", "95 %", "images where evidence does better"],
            [
                [row["what"], f"{row['share']:.0%}", row["evidence"], row["random"], row["difference"],
                 f"{row['low']:+.3f} to {row['high']:+.3f}", f"{row['agree']:.0%}"]
                for row in many["rows"]
            ],
            caption=f"{many['images']} test images of {many['data']}, each for its predicted class: mean change of its "
            "logit when patches become the mean colour. By evidence: the patches with the most evidence for it. At "
            "random: as many random ones, four draws an image. Difference: of the two, with its bootstrap interval "
            "over images. Removed: evidence does better where the logit falls more; kept alone: where it falls less.",
        )  # fmt: skip
    report.section("What is exact and what is not", _words(explanation, second))
    return report


def removals_sentence(removals: Json) -> str:
    """Whether this picture's evidence is worth more than as many other patches: by two standard deviations of them."""
    random = removals["random"]
    if removals["most for"] < random["mean"] - 2 * random["std"]:
        return "These patches are worth more than others, by over two standard deviations of the draws."
    return "These patches are not shown to be worth more than others (two standard deviations of the draws)."


def faithfulness_sentence(many: Json | None) -> str:
    """What removal does on many images, in a sentence."""
    if many is None:
        return "Over many images: not run; --data NAME --data-dir DIR measures it."
    row = next(row for row in many["rows"] if row["what"] == "removed")
    return (
        f"Over {many['images']} test images of {many['data']}, without the {row['share']:.0%} of patches with the most "
        f"evidence for the predicted class its logit changes by {row['evidence']:+.3f}, without as many random ones by "
        f"{row['random']:+.3f} (difference {row['low']:+.3f} to {row['high']:+.3f}; evidence does better on "
        f"{row['agree']:.0%} of them)."
    )


def _table_words(columns: Sequence[str]) -> str:
    """Rows and columns of `layer_table` in words."""
    second = columns[-2] if columns[-2] != "attention" else ""
    return (
        "Terms of the logit. Rows: layers, counted from 0, between what the embedding brings and what no token does "
        "(constant); the last is their sum. Head: what this attention head wrote. Bias: of the attention's output. "
        "Attention: heads and bias. "
        + (f"{second}: what the second half of the layer wrote. " if second else "")
        + "Sum: the whole layer."
    )


def _bound(explanation: Explanation) -> str:
    return f"{max(abs(explanation.error), 1e-12):.0e}"


def _row(views: Sequence[View]) -> ImageRow:
    from unrolled.commands.sheets import thumbnail
    from unrolled.report import ImageRow

    return ImageRow(images=[thumbnail(view.pixels) for view in views], names=[view.name for view in views])


def _words(explanation: Explanation, second: float) -> str:
    paragraphs = [
        f"The classifier reads the {explanation.read}. It is linear once the scale of every norm on the way is frozen "
        "at its value in this forward pass, so what each half of a layer added to the tokens is a term of the logit, "
        "and the terms sum to it. All is computed in float64."
    ]
    if any(half.replaces for half in explanation.halves):
        paragraphs.append(
            "ISTA has no skip around it: it replaces the tokens by a piecewise linear function of them. Earlier terms "
            "are followed through every later ISTA with the entries it left non-zero and the scale of its norm frozen. "
            f"ISTA then adds only the constants of its threshold and of its norm ({second:+.3f} over all layers); what "
            "it does to the class is in how it weighs and erases what passes, not in a term of its own."
        )
    else:
        paragraphs.append(
            "Terms are direct: what a half wrote, read by the classifier. What later layers made of it is theirs."
        )
    known = [half for half in explanation.halves if half.kind == "attn"]
    if all(half.sources is not None for half in known):
        paragraphs.append(
            "Attention is split further into attention weight times value (bias of the value included), which is exact "
            "for softmax attention with the weights as they were."
        )
    else:
        paragraphs.append(
            "Attention of this kind is no sum over attended tokens here: its terms lie on the token that received them"
            + ("." if all(half.heads is not None for half in known) else ", and its heads are not told apart.")
        )
    paragraphs.append(
        "Not linear, and therefore held fixed: norm scales, attention weights, ISTA's zeros"
        + (", what is inside an MLP" if any(half.kind == "mlp" for half in explanation.halves) else "")
        + ". Remove a patch and all of these change, so the logit does not change by that patch's term; the tables "
        "above say by how much it does, and whether evidence tells more than chance which patches matter. A patch of a "
        "deeper layer is a place in the grid: its token holds what earlier layers mixed into it. The same number added "
        "to every logit changes no decision, so a single logit has "
        "an arbitrary zero; `--against` explains a difference, which has none."
    )
    return "\n\n".join(paragraphs)


def _what(result: Answer) -> str:
    target, against = result["target"]["name"], result["against"]
    return f"class {target}" if against is None else f"class {target} against class {against['name']}"
