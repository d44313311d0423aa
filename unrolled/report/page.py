"""A document as one HTML page without scripts: for a phone, print, light and dark, and a screen reader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unrolled.figures.addresses import data_address
from unrolled.figures.images import ImageGrid, ImageRow
from unrolled.report.html import made, page
from unrolled.report.parts import Document, Figure, Panel, Section, Table, Text, slug

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CRISP = 120  # pixels: smaller pictures show their pixels


def render(report: Document) -> str:
    """The page, complete: every address in it is a fragment or data."""
    day = report.provenance.created[:10]
    count = [0]
    return page(
        "report.html.j2",
        title=report.title,
        description=f"{report.notice} {report.summary or report.title}".strip(),
        dateline=f"unrolled report · {day}" if day else "unrolled report",
        report=report,
        sections=[_section(section, count) for section in report.sections],
        provenance=made(report.provenance),
    )


def _section(section: Section, count: list[int]) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = []
    for block in section.blocks:
        if isinstance(block, Text):
            blocks.append({"kind": "text", "text": block.text})
        elif isinstance(block, Table):
            blocks.append({"kind": "table", "columns": block.columns, "rows": block.rows, "caption": block.caption})
        else:
            count[0] += 1
            blocks.append(_figure(block, count[0]))
    return {"title": section.title, "ident": f"section-{slug(section.title)}-{count[0]}", "blocks": blocks}


def _figure(figure: Figure, number: int) -> dict[str, Any]:
    panels = [_panel(panel, f"f{number}p{place}") for place, panel in enumerate(figure.panels)]
    return {"kind": "figure", "caption": figure.caption, "number": number, "panels": panels}


def _panel(panel: Panel, ident: str) -> dict[str, Any]:
    from markupsafe import Markup

    columns, rows = panel.data()
    shown: dict[str, Any] = {"title": panel.title, "columns": columns, "rows": rows, "grid": None}
    if isinstance(panel, ImageGrid):
        shown |= {"description": panel.description(), "grid": [_row(row) for row in panel.rows]}
        shown["most"] = max(len(row.images) for row in panel.rows)
    else:
        shown["svg"] = Markup(panel.svg(ident))
    return shown


def _row(row: ImageRow) -> dict[str, Any]:
    """Pictures are elements of the page, not of a drawing, so that they use the width there is."""
    count = len(row.images)
    named = zip(row.images, row.names or [""] * count, strict=True)
    return {
        "label": row.label,
        "size": "few" if count <= 6 else "some" if count <= 12 else "many",
        "pictures": [_picture(image, name, row.label, place) for place, (image, name) in enumerate(named)],
    }


def _picture(image: NDArray[Any], name: str, label: str, place: int) -> dict[str, Any]:
    height, width = image.shape[:2]
    return {
        "address": data_address(image),
        "alt": " ".join(word for word in (label, name or str(place + 1)) if word),
        "name": name,
        "width": width,
        "height": height,
        "small": max(height, width) < _CRISP,
    }
