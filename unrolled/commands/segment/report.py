"""What `unrolled segment` writes: contact sheets, the page, and what its columns mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unrolled.harness import Answer
from unrolled.reading import Json

if TYPE_CHECKING:
    from unrolled.commands.segment.options import SegmentOptions
    from unrolled.commands.segment.overlays import View
    from unrolled.report import Report

_ROWS = 100
"""Of pictures in one contact sheet, and in the report."""
_CAPTIONS = {
    "attention": "attention of the {query}, averaged over heads, dark to light over its own range; the line encloses "
    "{mass:.0%} of it",
    "pca": "first three principal components of the {facet} features as red, green and blue",
    "maskcut": "objects found one after another by normalised cuts of the {facet} features, tau {tau:g}",
    "cluster": "{clusters} k-means clusters of the {facet} features",
}


def write_sheets(folder: Path, views: Sequence[View], options: SegmentOptions) -> None:
    """Write `contact-sheet.png`, and further ones for every 100 rows."""
    from unrolled.commands.sheets import sheet

    for number, start in enumerate(range(0, len(views), _ROWS), 1):
        some = views[start : start + _ROWS]
        rows = [(_caption(view), [view.original, *view.overlays.values()]) for view in some]
        name = "contact-sheet.png" if number == 1 else f"contact-sheet-{number}.png"
        sheet(rows, ["picture", *options.methods]).save(folder / name)


def _caption(view: View) -> str:
    rows, columns = view.row["grid"]
    caption = f"{view.name}, layer {view.layer}, {rows} x {columns} patches"
    return caption + (", one colour: nothing to tell apart" if view.row["blank"] else "")


def numbers(result: Answer, options: SegmentOptions) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of all pictures."""
    columns = ["image", "layer", "patches", *(_COLUMNS[method].name for method in options.methods)]
    rows = [
        [
            Path(row["image"]).name + (f" #{row['frame']}" if "frame" in row else ""),
            str(row["layer"]),
            "{} x {}".format(*row["grid"]),
            *("-" if row["blank"] else _COLUMNS[method].cell(row) for method in options.methods),
        ]
        for row in result["images"]
    ]
    return columns, rows


class _Column(NamedTuple):
    name: str
    words: str
    cell: Callable[[Json], str]


_COLUMNS = {
    "attention": _Column(
        "attention peak / uniform",
        "the largest attention to a patch, mean of heads, over what each would get if all got the same",
        lambda row: f"{row['attention_peak']:.3g}",
    ),
    "pca": _Column(
        "variance in 3 components",
        "share of the features' variance that the three colours of pca show",
        lambda row: f"{sum(row['pca_explained']):.0%}",
    ),
    "maskcut": _Column(
        "objects (area)",
        "share of the picture that each object found by maskcut covers",
        lambda row: " ".join(f"{a:.0%}" for a in row["objects"]) or "none",
    ),
    "cluster": _Column("clusters", "how many groups k-means made", lambda row: str(len(row["clusters"]))),
}


def words(options: SegmentOptions) -> list[tuple[str, str]]:
    """Every column of `numbers` in a line."""
    first = [("layer", "counted from 0"), ("patches", "rows x columns of the grid")]
    return [*first, *(_COLUMNS[method][:2] for method in options.methods)]


def segment_report(result: Answer, views: Sequence[View], options: SegmentOptions) -> Report:
    """The page: contact sheet, heads, numbers."""
    from unrolled.commands.sheets import grid_section
    from unrolled.report import Report

    report = Report(f"What {result['model']} tells apart", question="Which parts of a picture does the model separate?")
    count = len({view.name for view in views})
    headline = f"{count} picture{'s' if count > 1 else ''}, layer {', '.join(str(v) for v in _layers(views))}. "
    if result["weights"] == "random":
        headline += "The weights are random: what these pictures show comes from the picture and the architecture, "
        headline += "nothing was learned."
    else:
        headline += f"Weights: {result['weights']}."
    report.headline(headline)
    total, views = len(views), _spread(views, _ROWS)
    query = next((view.row["attention_query"] for view in views if "attention_query" in view.row), "class token")
    sentences = [f"{name}: {_CAPTIONS[name].format(query=query, **vars(options))}" for name in options.methods]
    panels = [
        (_caption(view), f"{_caption(view)}: the picture and overlays of {', '.join(view.overlays)}.",
         [view.original, *view.overlays.values()], ["picture", *view.overlays])
        for view in views
    ]  # fmt: skip
    caption = (
        "; ".join(sentences) + ". Maps are enlarged smoothly from the grid of patches; the overlays lie in full size "
    )
    caption += "beside this report."
    if total > len(views):
        caption += f" {len(views)} of {total:,} rows, drawn evenly; all are in the contact sheets beside this report."
    grid_section(report, "Contact sheet", panels, caption, largest=196)
    with_heads = [
        (_caption(view), f"{_caption(view)}: attention of the {query} in every head.", view.heads,
         [str(head) for head in range(len(view.heads))])
        for view in views if view.heads
    ]  # fmt: skip
    if with_heads:
        of_heads = f"Attention of the {query} in every head, counted from 0; dark to light over each map's range."
        grid_section(report, "Attention by head", with_heads, of_heads, largest=128)
    meanings = " ".join(f"{name.capitalize()}: {meaning}." for name, meaning in words(options))
    report.section("Numbers").table(*numbers(result, options), caption=meanings)
    if result["skipped"]:
        report.section("Left out", "\n\n".join(result["skipped"]))
    return report


def _spread(views: Sequence[View], count: int) -> Sequence[View]:
    """At most `count`, drawn evenly."""
    from unrolled.data.sources import evenly

    return [views[place] for place in evenly(count, len(views))]


def _layers(views: Sequence[View]) -> list[int]:
    return sorted({view.layer for view in views})
