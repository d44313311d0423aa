"""A `Report` as one HTML page without scripts: readable on a phone, in print, in light and dark, and by a screen reader."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from unrolled.report.charts import DARK_VARIABLES, FIGURE_CSS, LIGHT_VARIABLES
from unrolled.report.document import Cell, Claim, Fact, Figure, Report, Section, Table, Text, cell_text, config_lines, slug
from unrolled.report.provenance import Provenance

_CSS = (
    f":root{{{LIGHT_VARIABLES}--paper:#fff;--wash:#f5f6f8;--accent:#0067a5}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{DARK_VARIABLES}--paper:#14171a;--wash:#1d2126;--accent:#6cb8ee}}}}"
    """
:root{color-scheme:light dark}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.58;font-size:1rem;
font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;overflow-wrap:break-word}
main{max-width:56rem;margin:0 auto;padding:clamp(1.5rem,5vw,4rem) clamp(1.1rem,4vw,2rem) 4rem}
p,.prose{max-width:42rem}
p{margin:.7em 0}
h1{font-size:clamp(1.65rem,1.2rem + 2vw,2.35rem);line-height:1.16;letter-spacing:-.018em;font-weight:680;margin:.25rem 0 0;
max-width:44rem;text-wrap:balance}
h2{font-size:1.28rem;line-height:1.3;letter-spacing:-.008em;font-weight:650;margin:3.4rem 0 .5rem}
h3{font-size:.84rem;font-weight:600;color:var(--soft);margin:1.5rem 0 .35rem}
.over{color:var(--soft);font-size:.86rem;margin:0}
.question{color:var(--soft);font-size:1.04rem;margin:.65rem 0 0}
.summary{font-size:clamp(1.1rem,1rem + .5vw,1.28rem);line-height:1.48;margin:1.7rem 0 0;max-width:46rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:1.4rem 2rem;margin:2rem 0 0;padding:0}
.facts div{display:flex;flex-direction:column;border-top:2px solid var(--ink);padding-top:.6rem}
.facts dt{order:2;font-size:.92rem;font-weight:600;line-height:1.35}
.facts dd{margin:0}
.facts .value{order:1;font-size:1.72rem;font-weight:650;letter-spacing:-.02em;line-height:1.2;margin-bottom:.25rem;
font-variant-numeric:tabular-nums;white-space:nowrap}
.facts .detail{order:3;color:var(--soft);font-size:.86rem;line-height:1.4}
figure{margin:1.6rem 0 2.4rem}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1.7rem 2.2rem;align-items:start}
.panels svg{display:block;width:100%;height:auto;max-width:31rem}
figcaption{color:var(--soft);font-size:.88rem;line-height:1.5;margin-top:.9rem}
figcaption p{margin:0;max-width:46rem}
figcaption b{color:var(--ink);font-weight:600}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.scroll.tall{max-height:21rem;overflow-y:auto}
table{border-collapse:collapse;font-size:.92rem;line-height:1.4;font-variant-numeric:tabular-nums;width:100%}
caption{text-align:left;color:var(--soft);font-size:.88rem;padding:0 0 .5rem}
th{text-align:left;font-weight:600;font-size:.84rem;color:var(--soft);vertical-align:bottom}
th,td{padding:.46rem 1.3rem .46rem 0;border-bottom:1px solid var(--line)}
thead th{border-bottom:1px solid var(--soft)}
tbody th{color:var(--ink);font-size:inherit}
th:last-child,td:last-child{padding-right:.2rem}
td{white-space:nowrap}td.wide{white-space:normal;min-width:13rem}
.num{text-align:right}
details{margin:.55rem 0 0}
summary{cursor:pointer;color:var(--accent);width:fit-content}
summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:2px}
details table{font-size:.8rem}details th,details td{padding-top:.2rem;padding-bottom:.2rem}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace;font-size:.87em}
code{background:var(--wash);padding:.1em .32em;border-radius:3px}
pre{background:var(--wash);padding:.85rem 1rem;border-radius:5px;overflow-x:auto;line-height:1.5;margin:.4rem 0 0}
pre code{background:none;padding:0}
.record{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:0 2.4rem}
.record dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.16rem 1.1rem;margin:0;font-size:.9rem}
.record dt{color:var(--soft)}.record dd{margin:0;font-variant-numeric:tabular-nums}
.yes{color:var(--s2);font-weight:600}.no{color:var(--s1);font-weight:600}
@media (max-width:34rem){.facts{grid-template-columns:1fr 1fr;gap:1.2rem 1.3rem}.facts .value{font-size:1.4rem}
h2{margin-top:2.7rem}}
@media print{@page{margin:17mm 16mm}
html{font-size:10pt}main{max-width:none;padding:0}h2{margin-top:1.9rem;break-after:avoid}
.panels{grid-template-columns:1fr 1fr;gap:1rem 1.6rem}.panel,.facts div,tr,figcaption p{break-inside:avoid}
figure{margin:1rem 0 1.4rem}figure>figcaption{break-before:avoid}
.scroll,pre{overflow:visible}pre{white-space:pre-wrap}figcaption details{display:none}
svg,.fig *{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
).replace("\n", "")


def render(report: Report) -> str:
    """The page, complete: every address in it is a fragment or data."""
    count = [0]
    sections = "".join(_section(section, count) for section in report.sections)
    question = f'<p class="question">{_inline(report.question)}</p>' if report.question else ""
    summary = f'<p class="summary">{_inline(report.summary)}</p>' if report.summary else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta name="description" content="{escape(report.summary or report.title)}">'
        f"<title>{escape(report.title)}</title>"
        '<link rel="icon" href="data:,">'
        f"<style>{_CSS}{FIGURE_CSS}</style></head>\n<body><main>\n"
        f'<header><p class="over">{escape(_dateline(report.provenance))}</p><h1>{escape(report.title)}</h1>'
        f"{question}{summary}{_facts(report.facts)}</header>\n"
        f"{_claims(report.claims)}{sections}{_provenance(report.provenance)}</main></body></html>\n"
    )


def _inline(text: str) -> str:
    """Escaped text in which `backticks` mark code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _dateline(provenance: Provenance) -> str:
    day = provenance.created[:10]
    return f"unrolled report · {day}" if day else "unrolled report"


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
    verdicts = {True: '<td class="yes">reproduced</td>', False: '<td class="no">not reproduced</td>', None: "<td>not judged</td>"}
    rows = "".join(
        f'<tr><td class="wide">{_inline(claim.statement)}</td><td class="wide">{_inline(claim.source)}</td>'
        f"<td>{escape(claim.published)}</td><td>{escape(claim.measured)}</td>{verdicts[claim.reproduced]}</tr>"
        for claim in claims
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Claim", "Source", "There", "Here", "Verdict"))
    return (
        '<section aria-labelledby="claims"><h2 id="claims">Beside the source</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Claims">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>\n"
    )


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
    return f'<section aria-labelledby="{ident}"><h2 id="{ident}">{escape(section.title)}</h2>{"".join(blocks)}</section>\n'


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
        f'<th scope="col"{_number_class(right)}>{_inline(name)}</th>' for name, right in zip(columns, numeric, strict=True)
    )
    body = ""
    for row in rows:
        first, *rest = (escape(_cell(cell)) for cell in row)
        body += f'<tr><th scope="row"{_number_class(numeric[0])}>{first}</th>'
        body += "".join(f"<td{_number_class(right)}>{cell}</td>" for cell, right in zip(rest, numeric[1:], strict=True)) + "</tr>"
    title = f"<caption>{_inline(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll{" tall" if tall else ""}" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _number_class(right: bool) -> str:
    return ' class="num"' if right else ""


def _cell(cell: Cell) -> str:
    return "–" if isinstance(cell, float) and cell != cell else cell_text(cell)


def _is_numeric(cells: Sequence[Cell]) -> bool:
    def numeric(cell: Cell) -> bool:
        return cell is None or isinstance(cell, int | float) or re.match(r"^[−-]?\d", cell) is not None

    return bool(cells) and all(numeric(cell) for cell in cells)


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
