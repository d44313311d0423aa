"""What a report is made of: text, tables and figures in sections, facts, claims, and how it came to be."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unrolled.figures.forest import Forest
from unrolled.figures.heatmap import HeatMap
from unrolled.figures.images import ImageGrid
from unrolled.figures.lines import LineChart
from unrolled.figures.scatter import Scatter
from unrolled.figures.tree import Tree
from unrolled.figures.words import number
from unrolled.report.provenance import Provenance, plain, plain_config

Panel = Forest | LineChart | ImageGrid | HeatMap | Scatter | Tree
Cell = str | int | float | None


@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by blank lines; `code` in backticks."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; numbers are aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """One or more panels under one caption; `name` is what its files start with."""

    name: str
    panels: tuple[Panel, ...]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A number worth reading first: `98.1 ± 0.3 %`, what it is, and on how much it rests."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a source says beside what came out here; `reproduced` is None where nothing is judged or decided.

    Attributes:
        verdict: "reproduced", "not reproduced", "undecided", "controls do the same", "not run" or "not judged".
        why: why it is none of the first two.
        interval: what the verdict rests on, 95 %; None where there is none.
        over: what it is over, or what there was one of.
        control: the same of what must not have the value.
    """

    statement: str
    source: str
    published: str
    measured: str
    reproduced: bool | None = None
    verdict: str = ""
    why: str = ""
    interval: tuple[float, float] | None = None
    over: str = ""
    control: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.verdict:
            verdicts = {True: "reproduced", False: "not reproduced", None: "not judged"}
            object.__setattr__(self, "verdict", verdicts[self.reproduced])


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where a report was written."""

    html: Path
    json: Path
    figures: tuple[Path, ...] = ()


@dataclass
class Section:
    """A heading with text, tables and figures below it. Every method returns the section, so calls chain."""

    title: str
    blocks: list[Text | Table | Figure] = field(default_factory=list)

    def text(self, text: str) -> Section:
        """Add paragraphs."""
        self.blocks.append(Text(text))
        return self

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str = "") -> Section:
        """Add a table; every row must have one cell per column."""
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"rows must have {len(columns)} cells like columns, not {len(row)}: {list(row)!r}")
        self.blocks.append(Table(tuple(columns), tuple(tuple(row) for row in rows), caption))
        return self

    def figure(self, panels: Panel | Sequence[Panel], *, caption: str = "", name: str = "") -> Section:
        """Add charts or image grids; the caption says what the reader sees and over how many seeds or images.

        A chart of a dot or two, as of a run of two steps, becomes a table.
        """
        panels = (panels,) if isinstance(panels, Panel) else tuple(panels)
        if not panels:
            raise ValueError("panels is empty: give at least one LineChart, HeatMap or ImageGrid")
        drawn = tuple(panel for panel in panels if not (isinstance(panel, LineChart) and panel.lone))
        for panel in panels:
            if isinstance(panel, LineChart) and panel.lone:
                columns, rows = panel.data()
                self.table(columns[:3], [row[:3] for row in rows], caption="" if drawn else caption)
        if drawn:
            self.blocks.append(Figure(slug(name or self.title), drawn, caption))
        return self


class Document:
    """What was asked, what came out, next to what the paper says, with seed, versions, hardware and duration.

    Args:
        title: the heading, in words.
        question: one sentence on what was asked, shown below it.

    Attributes:
        notice: what a reader must know before anything else, such as that the run was only a trial; mostly empty.
        summary: the answer in one or two sentences.
        facts: the few numbers to read first.
        results: everything measured, by name; goes to `report.json` as it is.
        provenance: how the report came to be; set it once everything is measured, so that the duration is right.
    """

    def __init__(self, title: str, *, question: str = "") -> None:
        self.title = title
        self.question = question
        self.notice = ""
        self.summary = ""
        self.facts: list[Fact] = []
        self.sections: list[Section] = []
        self.claims: list[Claim] = []
        self.results: dict[str, Any] = {}
        self.provenance = Provenance()

    def headline(self, summary: str, facts: Sequence[Fact] = ()) -> None:
        """Set the answer and the numbers to read first."""
        self.summary, self.facts = summary, list(facts)

    def section(self, title: str, text: str = "") -> Section:
        """Start a section, with an optional first paragraph."""
        section = Section(title)
        if text:
            section.text(text)
        self.sections.append(section)
        return section

    @property
    def reproduced(self) -> bool | None:
        """Whether every claim with a tolerance was met; None if none has one."""
        judged = [claim.reproduced for claim in self.claims if claim.reproduced is not None]
        return all(judged) if judged else None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the drawings, as plain values."""
        return {
            "format": "unrolled.report/1",
            "title": self.title,
            "question": self.question,
            "notice": self.notice,
            "summary": self.summary,
            "facts": [plain_config(fact) for fact in self.facts],
            "claims": [plain_config(claim) for claim in self.claims],
            "reproduced": self.reproduced,
            "results": plain(self.results),
            "sections": [
                {"title": s.title, "blocks": [_block_dict(block) for block in s.blocks]} for s in self.sections
            ],
            "provenance": plain_config(self.provenance),
        }


def slug(text: str) -> str:
    """A file name made of the words of `text`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "figure"


def _block_dict(block: Text | Table | Figure) -> dict[str, Any]:
    if isinstance(block, Text):
        return {"kind": "text", "text": block.text}
    if isinstance(block, Table):
        rows = plain([list(row) for row in block.rows])
        return {"kind": "table", "columns": list(block.columns), "rows": rows, "caption": block.caption}
    panels = []
    for panel in block.panels:
        columns, rows = panel.data()
        panels.append(
            {"title": panel.title, "description": panel.description(), "columns": columns, "rows": plain(rows)}
        )
    return {"kind": "figure", "name": block.name, "caption": block.caption, "panels": panels}


def cell_text(cell: Cell) -> str:
    """How a cell reads: whole numbers with thin spaces between thousands, others short, None as a dash."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}".replace(",", "\u202f") if abs(cell) >= 10_000 else str(cell)
    return number(cell) if isinstance(cell, float) else cell


def column_texts(cells: Sequence[Cell]) -> list[str]:
    """How the cells of a column read: fractions with one number of decimals, so that they can be compared by eye.

    A column whose small entries would then read as zero keeps short numbers, unless some are below 0 and some above.
    """
    texts = ["–" if isinstance(cell, float) and cell != cell else cell_text(cell) for cell in cells]
    values = [cell for cell in cells if isinstance(cell, float) and math.isfinite(cell)]
    largest = max(map(abs, values), default=0.0)
    if not 1e-4 <= largest < 1e6:
        return texts
    wanted = max(len(number(value).partition(".")[2]) for value in values if "e" not in number(value))
    digits = min(wanted, max(0, 3 - math.floor(math.log10(largest))))
    vanish = any(value and abs(value) < 0.5 * 10**-digits for value in values)
    if vanish and not min(values) < 0 < max(values):
        return texts
    return [
        f"{cell + 0.0:.{digits}f}" if isinstance(cell, float) and math.isfinite(cell) else text
        for cell, text in zip(cells, texts, strict=True)
    ]


def config_lines(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of a configuration, nested names joined by dots."""
    lines: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            lines += [(f"{name}.{key}", text) for key, text in config_lines(value)]
        else:
            lines.append((name, value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)))
    return lines
