"""A static site of the reports of studies: every claim, the paper's value, ours, the picture and the command.

Pages have no scripts; the filters of the index are radio buttons and CSS. Every link is relative, so the folder works
from a disk, below any address, and offline.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from unrolled.errors import CorruptFile, MissingData, UnsafeFile
from unrolled.figures.escaping import address, escape
from unrolled.reading import below, read_json, really_below
from unrolled.report import page
from unrolled.report.document import Claim, Fact, _write, slug
from unrolled.report.drawings import check_drawing
from unrolled.report.notes import Note, inline
from unrolled.report.provenance import Provenance

LINES_OF_WORK = {
    "crate": "White-box transformers",
    "mesa": "Mesa-optimisation",
    "platonic": "Platonic representations",
}
_OTHER = ("other", "Other")
_VERDICTS = {True: ("met", "met"), False: ("not-met", "not met"), None: ("unjudged", "not judged")}
_FILTERS = {
    "met": "with a claim met",
    "not-met": "with a claim not met",
    "unjudged": "with a claim not judged",
}


@dataclass(frozen=True)
class Study:
    """One study as committed: its name, its report as plain values and the folder of both."""

    name: str
    report: dict[str, Any]
    folder: Path

    @property
    def line(self) -> tuple[str, str]:
        """Key and title of the line of work, from the first word of the name."""
        key = self.name.split("-")[0]
        return (key, LINES_OF_WORK[key]) if key in LINES_OF_WORK else _OTHER

    @property
    def command(self) -> str:
        """The command that made it, with `DATA` for the folder of data it was run with."""
        return re.sub(r"(--data-dir) [^ ]+", r"\1 DATA", self.report["provenance"].get("command", ""))

    def figures(self) -> dict[tuple[int, int, int], Path]:
        """(section, block, panel) -> the committed drawing; those too large to be committed are missing."""
        found: dict[tuple[int, int, int], Path] = {}
        taken: set[str] = set()
        for i, section in enumerate(self.report["sections"]):
            for j, block in enumerate(section["blocks"]):
                if block["kind"] != "figure":
                    continue
                for k, panel in enumerate(block["panels"]):
                    # as `Report.write` names them
                    stem = block["name"] + (f"-{slug(panel['title'])}" if len(block["panels"]) > 1 else "")
                    unique, count = stem, 2
                    while unique in taken:
                        unique, count = f"{stem}-{count}", count + 1
                    taken.add(unique)
                    path = below(self.folder / "figures", f"{unique}.svg")
                    if os.path.lexists(path):
                        found[i, j, k] = really_below(self.folder.parent, path)
        return found


def read_studies(folder: Path) -> list[Study]:
    """All `NAME/report.json` below `folder`, by line of work, then name.

    Raises:
        MissingData: there is none.
        CorruptFile: a file is damaged, or a link to somewhere else.
        ValueError: a file is not a report of this package.
    """
    found = []
    for path in sorted(folder.glob("*/report.json")):
        report = read_json(really_below(folder, path))
        if not isinstance(report, dict) or report.get("format") != "unrolled.report/1":
            raise ValueError(f"{path}: is not a report of `unrolled study`; move it away or write it again")
        found.append(Study(path.parent.name, report, path.parent))
    if not found:
        raise MissingData(f"{folder}: holds no NAME/report.json; give --studies, the folder with reports of studies")
    order = [*LINES_OF_WORK, _OTHER[0]]
    return sorted(found, key=lambda study: (order.index(study.line[0]), study.name))


def write_gallery(
    studies: Sequence[Study], out: Path, *, notes: Sequence[Note] = (), pictures: Sequence[tuple[Path, str]] = ()
) -> Path:
    """Write `index.html` and a folder for each study and note below `out`; return the path of the index.

    Args:
        studies: see `read_studies`.
        out: where the site goes.
        notes: pages written by hand.
        pictures: screenshots for the front page, with captions.

    Raises:
        CorruptFile: a report is not whole, or a file that would be published is a link to somewhere else.
        UnsafeFile: a drawing does more than show.
        ValueError: a note and a study of one name.
    """
    twice = {note.name for note in notes} & {study.name for study in studies}
    if twice:
        raise ValueError(f"notes: {min(twice)} is also the name of a study; rename one of them")
    out.mkdir(parents=True, exist_ok=True)
    for study in studies:
        target = out / study.name
        try:
            figures, text = study.figures().values(), _study_page(study)
            _card(study)  # which the front page will have
        except (CorruptFile, UnsafeFile):
            raise
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise CorruptFile(
                f"{study.folder / 'report.json'}: is not a whole report ({type(error).__name__}: {error})"
            ) from error
        (target / "figures").mkdir(parents=True, exist_ok=True)
        for path in figures:
            check_drawing(path)
            shutil.copyfile(path, target / "figures" / path.name)
        shutil.copyfile(study.folder / "report.json", target / "report.json")
        _write(target / "index.html", text)
    for note in notes:
        _write(out / note.name / "index.html", _note_page(note, note.page(out / note.name)))
    for path, _ in pictures:
        (out / "pictures").mkdir(exist_ok=True)
        shutil.copyfile(path, out / "pictures" / path.name)
    _write(out / "index.html", _index(studies, notes, pictures))
    return out / "index.html"


def _document(title: str, description: str, body: str) -> str:
    style = files("unrolled.report").joinpath("page.css").read_text(encoding="utf-8")
    own = files("unrolled.report").joinpath("gallery.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta name="description" content="{escape(description)}"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{page._VARIABLES}{style}{own}</style></head>\n'
        f"<body><main>\n{body}</main></body></html>\n"
    )


def _index(studies: Sequence[Study], notes: Sequence[Note], pictures: Sequence[tuple[Path, str]]) -> str:
    claims = [claim["reproduced"] for study in studies for claim in study.report["claims"]]
    facts = [
        Fact(label="Studies", value=str(len(studies))),
        Fact(label="Claims met", value=str(claims.count(True)), detail="within the range declared for them"),
        Fact(label="Claims not met", value=str(claims.count(False)), detail="each report says the likely reason"),
        Fact(label="Claims not judged", value=str(claims.count(None)), detail="no range was declared"),
    ]
    lines = dict(study.line for study in studies)
    rules = "".join(f"main:has(#line-{key}:checked) .study:not(.{key}){{display:none}}" for key in lines)
    rules += "".join(f"main:has(#verdict-{key}:checked) .study:not(.{key}){{display:none}}" for key in _FILTERS)
    filters = _choices("line", "Line of work", lines) + _choices("verdict", "Studies", _FILTERS)
    cards = "".join(_card(study) for study in studies)
    return _document(
        "unrolled: what was claimed and what came out",
        f"{len(studies)} studies of published claims, run and judged.",
        f"<style>{rules}</style>"
        '<header><p class="over">unrolled gallery</p><h1>What was claimed, and what came out</h1>'
        '<p class="question">Published claims about transformers whose layers are optimiser steps, about models that '
        "learn in context, and about representations that converge, each run by one command.</p>"
        f"{page._facts(facts)}</header>\n{_front(notes, pictures)}"
        f'<form class="filters" aria-label="Filters">{filters}</form>\n{cards}',
    )


def _front(notes: Sequence[Note], pictures: Sequence[tuple[Path, str]]) -> str:
    """Screenshots, then the pages written by hand."""
    shots = "".join(
        f'<figure><a href="pictures/{address(path.name)}"><img src="pictures/{address(path.name)}" '
        f'alt="{escape(caption.replace("`", ""))}" loading="lazy"></a>'
        f"<figcaption>{page._inline(caption)}</figcaption></figure>"
        for path, caption in pictures
    )
    cards = ""
    for note in notes:
        link, shown = f"{address(note.name)}/index.html", note.picture()
        drawn = ""
        if shown is not None:
            source = f'src="{address(note.name)}/{address(shown[0])}" alt="{escape(shown[1])}"'
            drawn = f'<a class="picture" href="{link}"><img {source} loading="lazy"></a>'
        cards += (
            f'<article class="note" id="{escape(note.name)}"><h2><a href="{link}">{escape(note.title)}</a></h2>'
            f'<div class="{"with" if drawn else "without"}-picture"><p>{inline(note.lead, {})}</p>{drawn}</div>'
            "</article>\n"
        )
    return (f'<div class="shots">{shots}</div>\n' if shots else "") + cards


def _note_page(note: Note, body: str) -> str:
    return _document(
        note.title,
        note.title,
        '<nav aria-label="Gallery"><a href="../index.html">All studies</a></nav>'
        f"<header><h1>{escape(note.title)}</h1></header>\n<section>{body}</section>",
    )


def _choices(name: str, legend: str, options: dict[str, str]) -> str:
    items = [("all", "all"), *options.items()]
    inputs = "".join(
        f'<label><input type="radio" name="{name}" id="{name}-{key}"{" checked" if key == "all" else ""}>'
        f"<span>{escape(text)}</span></label>"
        for key, text in items
    )
    return f"<fieldset><legend>{legend}</legend>{inputs}</fieldset>"


def _card(study: Study) -> str:
    report, (key, line) = study.report, study.line
    verdicts = {_VERDICTS[claim["reproduced"]][0] for claim in report["claims"]}
    name, link = escape(study.name), address(study.name)  # an address: `javascript:` may be the name of a folder
    figures = study.figures()
    picture = ""
    if figures:
        place = min(figures)
        panel = report["sections"][place[0]]["blocks"][place[1]]["panels"][place[2]]
        picture = f'<a class="picture" href="{link}/index.html">{_image(figures[place], panel, f"{link}/")}</a>'
    claims = "".join(_claim(claim) for claim in report["claims"])
    return (
        f'<article class="study {" ".join([key, *sorted(verdicts)])}" id="{name}"><p class="over">{escape(line)}</p>'
        f'<h2><a href="{link}/index.html">{escape(report["title"])}</a></h2>'
        f'{page._notice(report.get("notice", ""))}<p class="question">{page._inline(report["question"])}</p>'
        f'<div class="{"with" if picture else "without"}-picture"><div><p>{page._inline(report["summary"])}</p></div>'
        f'{picture}</div><ul class="claims">{claims}</ul>'
        + (f"<pre><code>{escape(study.command)}</code></pre>" if study.command else "")
        + f'<p><a href="{link}/index.html">All tables and figures</a> · '
        f'<a href="{link}/report.json">Numbers</a></p></article>\n'
    )


def _claim(claim: dict[str, Any]) -> str:
    key, verdict = _VERDICTS[claim["reproduced"]]
    verdict = page.verdict_word(str(claim.get("verdict") or verdict))
    source = f'<span class="over">{page._inline(claim["source"])}</span>'
    return (
        f'<li><p class="statement">{page._inline(claim["statement"])} {source}</p>'
        f"<dl><div><dt>paper</dt><dd>{escape(claim['published'])}</dd></div>"
        f"<div><dt>here</dt><dd>{escape(claim['measured'])}</dd></div>"
        f'<div><dt>verdict</dt><dd class="{key}">{escape(verdict)}</dd></div></dl></li>'
    )


def _image(path: Path, panel: dict[str, Any], place: str = "") -> str:
    return (
        f'<img src="{place}figures/{address(path.name)}" alt="{escape(panel["description"])}" loading="lazy" '
        'width="400" height="262">'
    )


def _study_page(study: Study) -> str:
    report = study.report
    record = {item.name: report["provenance"][item.name] for item in fields(Provenance)} | {"command": study.command}
    record["config"] = {key: value for key, value in record["config"].items() if key != "data_dir"}
    provenance = Provenance(**record)
    figures = study.figures()
    sections = ""
    for i, section in enumerate(report["sections"]):
        blocks = "".join(_block(block, section["title"], i, j, figures) for j, block in enumerate(section["blocks"]))
        sections += f'<section><h2 id="section-{i}">{escape(section["title"])}</h2>{blocks}</section>\n'
    return _document(
        report["title"],
        report["summary"] or report["title"],
        '<nav aria-label="Gallery"><a href="../index.html">All studies</a></nav>'
        f'<header><p class="over">{escape(study.line[1])} · {escape(provenance.created[:10])}</p>'
        f"{page._notice(report.get('notice', ''))}<h1>{escape(report['title'])}</h1>"
        f'<p class="question">{page._inline(report["question"])}</p>'
        f'<p class="summary">{page._inline(report["summary"])}</p>'
        f"{page._facts([Fact(**fact) for fact in report['facts']])}</header>\n"
        f"{page._claims([Claim(**claim) for claim in report['claims']])}{sections}{page._provenance(provenance)}"
        '<p><a href="report.json">Every number of this page</a></p>',
    )


def _block(block: dict[str, Any], title: str, i: int, j: int, figures: dict[tuple[int, int, int], Path]) -> str:
    if block["kind"] == "text":
        return "".join(f"<p>{page._inline(part.strip())}</p>" for part in re.split(r"\n\s*\n", block["text"]))
    if block["kind"] == "table":
        return page._table(block["columns"], block["rows"], block["caption"], label=block["caption"] or title)
    drawn = ""
    for k, panel in enumerate(block["panels"]):
        if (i, j, k) in figures:
            drawn += f'<div class="panel">{_image(figures[i, j, k], panel)}</div>'
        else:
            said = f"{panel['title']}: this drawing is not kept here; the command below makes it."
            drawn += f'<p class="over">{escape(said)} {escape(panel["description"])}</p>'
    numbers = "".join(
        page._table(panel["columns"], panel["rows"], panel["title"], label=f"Numbers of {panel['title']}", tall=True)
        for panel in block["panels"]
        if panel["rows"]
    )
    return (
        f'<figure><div class="panels">{drawn}</div><figcaption><p>{page._inline(block["caption"])}</p>'
        f"<details><summary>The numbers</summary>{numbers}</details></figcaption></figure>"
    )
