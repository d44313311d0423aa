"""A `Report` as one HTML page without scripts: for a phone, print, light and dark, and a screen reader."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

from unrolled.figures.escaping import escape
from unrolled.figures.style import DARK_VARIABLES, FIGURE_CSS, LIGHT_VARIABLES
from unrolled.report.document import (
    Cell,
    Claim,
    Fact,
    Figure,
    Report,
    Section,
    Table,
    Text,
    cell_text,
    config_lines,
    slug,
)
from unrolled.report.provenance import Provenance

_DARK = "--paper:#14171a;--wash:#1d2126;--accent:#6cb8ee"
_VARIABLES = (
    f":root{{{LIGHT_VARIABLES}--paper:#fff;--wash:#f5f6f8;--accent:#0067a5}}\n"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{DARK_VARIABLES}{_DARK}}}}}\n"
)


_LONG = 32
_MANY = 8  # columns; tables with more are set smaller
_JUDGED = (
    "Expected: what the source says. Measured: what came out here. Met: within the range declared in the source code; "
    "not judged: no range was declared, or the run is only a trial."
)


def render(report: Report) -> str:
    """The page, complete: every address in it is a fragment or data."""
    style = files("unrolled.report").joinpath("page.css").read_text(encoding="utf-8")
    count = [0]
    sections = "".join(_section(section, count) for section in report.sections)
    question = f'<p class="question">{_inline(report.question)}</p>' if report.question else ""
    summary = f'<p class="summary">{_inline(report.summary)}</p>' if report.summary else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta name="description" content="{escape(f"{report.notice} {report.summary or report.title}".strip())}">'
        f"<title>{escape(report.title)}</title>"
        '<link rel="icon" href="data:,">'
        f"<style>{_VARIABLES}{style}{FIGURE_CSS}</style></head>\n<body><main>\n"
        f'<header><p class="over">{escape(_dateline(report.provenance))}</p>{_notice(report.notice)}'
        f"<h1>{escape(report.title)}</h1>"
        f"{question}{summary}{_facts(report.facts)}</header>\n"
        f"{_claims(report.claims)}{sections}{_provenance(report.provenance)}</main></body></html>\n"
    )


def _inline(text: str) -> str:
    """Escaped text in which `backticks` mark code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _dateline(provenance: Provenance) -> str:
    day = provenance.created[:10]
    return f"unrolled report · {day}" if day else "unrolled report"


def _notice(text: str) -> str:
    return f'<p class="notice" role="note">{_inline(text)}</p>' if text else ""


def _facts(facts: Sequence[Fact]) -> str:
    if not facts:
        return ""
    items = "".join(
        f'<div><dt>{_inline(fact.label)}</dt><dd class="value">{escape(fact.value)}</dd>'
        + (f'<dd class="detail">{_inline(fact.detail)}</dd>' if fact.detail else "")
        + "</div>"
        for fact in facts
    )
    return f'<dl class="facts">{items}</dl>'


def _claims(claims: Sequence[Claim]) -> str:
    if not claims:
        return ""
    marks = {True: ' class="yes"', False: ' class="no"', None: ""}
    rows = "".join(
        f'<tr><td class="wide">{_inline(claim.statement)}</td><td class="fit">{_inline(claim.source)}</td>'
        f'<td class="fit">{escape(claim.published)}</td><td class="fit">{escape(claim.measured)}</td>'
        f"<td{marks[claim.reproduced]}>{escape(verdict_word(claim.verdict))}</td></tr>"
        for claim in claims
    )
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Statement", "Source", "Expected", "Measured", "Verdict")
    )
    return (
        '<section aria-labelledby="claims"><h2 id="claims">Expected and measured</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Claims">'
        f"<table><caption>{_JUDGED}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>\n"
    )


def verdict_word(verdict: str) -> str:
    """A verdict as pages show it."""
    return {"reproduced": "met", "not reproduced": "not met"}.get(verdict, verdict)


def _section(section: Section, count: list[int]) -> str:
    blocks = []
    for block in section.blocks:
        if isinstance(block, Text):
            blocks += [f"<p>{_inline(part.strip())}</p>" for part in re.split(r"\n\s*\n", block.text) if part.strip()]
        elif isinstance(block, Table):
            blocks.append(_table(block.columns, block.rows, block.caption, label=block.caption or section.title))
        else:
            count[0] += 1
            blocks.append(_figure(block, count[0]))
    ident = f"section-{slug(section.title)}-{count[0]}"
    return (
        f'<section aria-labelledby="{ident}"><h2 id="{ident}">{escape(section.title)}</h2>{"".join(blocks)}</section>\n'
    )


def _figure(figure: Figure, place: int) -> str:
    panels = "".join(f'<div class="panel">{panel.svg(f"f{place}p{i}")}</div>' for i, panel in enumerate(figure.panels))
    tables = ""
    for panel in figure.panels:
        columns, rows = panel.data()
        tables += _table(columns, rows, panel.title, label=f"Numbers of {panel.title}", tall=True)
    return (
        f'<figure><div class="panels">{panels}</div><figcaption><p><b>Figure {place}.</b> {_inline(figure.caption)}</p>'
        f"<details><summary>The numbers</summary>{tables}</details></figcaption></figure>"
    )


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str, *, label: str, tall: bool = False
) -> str:
    numeric = [_is_numeric([row[i] for row in rows]) for i in range(len(columns))]
    head = "".join(
        f'<th scope="col"{_number_class(right)}>{_inline(name)}</th>'
        for name, right in zip(columns, numeric, strict=True)
    )
    body = ""
    for row in rows:
        first, *rest = (escape(_cell(cell)) for cell in row)
        body += f'<tr><th scope="row"{_number_class(numeric[0])}>{first}</th>'
        body += (
            "".join(f"<td{_cell_class(cell, right)}>{cell}</td>" for cell, right in zip(rest, numeric[1:], strict=True))
            + "</tr>"
        )
    dense = ' class="dense"' if len(columns) > _MANY else ""
    title = f"<caption>{_inline(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll{" tall" if tall else ""}" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table{dense}>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number_class(right: bool) -> str:
    return ' class="num"' if right else ""


def _cell_class(text: str, right: bool) -> str:
    """Numbers stand to the right; long texts wrap."""
    return ' class="fit"' if len(text) > _LONG else _number_class(right)


def _cell(cell: Cell) -> str:
    return "–" if isinstance(cell, float) and cell != cell else cell_text(cell)


def _is_numeric(cells: Sequence[Cell]) -> bool:
    def numeric(cell: Cell) -> bool:
        return cell is None or isinstance(cell, int | float) or re.match(r"(< )?[−+-]?\d", cell) is not None

    known = [cell for cell in cells if cell not in ("", "-", "–")]
    return bool(known) and all(numeric(cell) for cell in known)


def _provenance(record: Provenance) -> str:
    run = [("date", record.created), ("seeds", ", ".join(map(str, record.seeds)))]
    if record.duration is not None:
        run.append(("duration", duration(record.duration)))
    groups = [("Run", run), ("Hardware", list(record.hardware.items())), ("Versions", list(record.versions.items()))]
    lists = ""
    for title, pairs in groups:
        items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs if value)
        if items:
            lists += f"<div><h3>{title}</h3><dl>{items}</dl></div>"
    command = f"<h3>Command</h3><pre><code>{escape(record.command)}</code></pre>" if record.command else ""
    config = ""
    if record.config:
        lines = "\n".join(f"{name}: {value}" for name, value in config_lines(record.config))
        config = f"<details><summary>Configuration</summary><pre><code>{escape(lines)}</code></pre></details>"
    if not (lists or command or config):
        return ""
    return (
        '<section aria-labelledby="provenance"><h2 id="provenance">How this was made</h2>'
        f'{command}{config}<div class="record">{lists}</div></section>\n'
    )


def duration(seconds: float) -> str:
    """`8.2 s`, `1 min 24 s`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
