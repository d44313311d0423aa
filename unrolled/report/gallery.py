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
from pathlib import Path
from typing import Any

from markupsafe import Markup

from unrolled.errors import CorruptFile, MissingData, UnsafeFile
from unrolled.figures.escaping import address
from unrolled.reading import below, read_json, really_below
from unrolled.report.document import write_text
from unrolled.report.drawings import check_drawing, size_of_drawing
from unrolled.report.html import made, page
from unrolled.report.notes import Note, inline
from unrolled.report.parts import Claim, Fact, slug
from unrolled.report.provenance import Provenance

LINES_OF_WORK = {
    "crate": "White-box transformers",
    "mesa": "Mesa-optimisation",
    "platonic": "Platonic representations",
}
_OTHER = ("other", "Other")
_SHEETS = ("page.css", "gallery.css")
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
        drawings: dict[tuple[int, int, int], Path] = {}
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
                        drawings[i, j, k] = really_below(self.folder.parent, path)
        return drawings


def read_studies(folder: Path) -> list[Study]:
    """All `NAME/report.json` below `folder`, by line of work, then name.

    Raises:
        MissingData: there is none.
        CorruptFile: a file is damaged, or a link to somewhere else.
        ValueError: a file is not a report of this package.
    """
    studies = []
    for path in sorted(folder.glob("*/report.json")):
        report = read_json(really_below(folder, path))
        if not isinstance(report, dict) or report.get("format") != "unrolled.report/1":
            raise ValueError(f"{path}: is not a report of `unrolled study`; move it away or write it again")
        studies.append(Study(path.parent.name, report, path.parent))
    if not studies:
        raise MissingData(f"{folder}: holds no NAME/report.json; give studies=, the folder with reports of studies")
    order = [*LINES_OF_WORK, _OTHER[0]]
    return sorted(studies, key=lambda study: (order.index(study.line[0]), study.name))


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
            _entry(study)  # which the front page will have
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
        write_text(target / "index.html", text)
    for note in notes:
        body = Markup(note.page(out / note.name))
        text = page("note.html.j2", title=note.title, description=note.title, sheets=_SHEETS, body=body)
        write_text(out / note.name / "index.html", text)
    for path, _ in pictures:
        (out / "pictures").mkdir(exist_ok=True)
        shutil.copyfile(path, out / "pictures" / path.name)
    write_text(out / "index.html", _index(studies, notes, pictures))
    return out / "index.html"


def _index(studies: Sequence[Study], notes: Sequence[Note], pictures: Sequence[tuple[Path, str]]) -> str:
    claims = [claim["reproduced"] for study in studies for claim in study.report["claims"]]
    facts = [
        Fact(label="Studies", value=str(len(studies))),
        Fact(label="Claims met", value=str(claims.count(True)), detail="within the range declared for them"),
        Fact(label="Claims not met", value=str(claims.count(False)), detail="each report says the likely reason"),
        Fact(
            label="Claims open", value=str(claims.count(None)), detail="undecided, not judged, or controls do the same"
        ),
    ]
    lines = dict(study.line for study in studies)
    filters = [
        (name, legend, [("all", "all"), *options.items()])
        for name, legend, options in (("line", "Line of work", lines), ("verdict", "Studies", _FILTERS))
    ]
    rules = [(f"#line-{key}:checked", f".{key}") for key in lines]
    rules += [(f"#verdict-{key}:checked", f".{key}") for key in _FILTERS]
    return page(
        "index.html.j2",
        title="unrolled: what was claimed and what came out",
        description=f"{len(studies)} studies of published claims, run and judged.",
        sheets=_SHEETS,
        rules=Markup(
            "".join(f"main:has({chosen}) :is(.study,.asked):not({kind}){{display:none}}" for chosen, kind in rules)
        ),
        facts=facts,
        filters=filters,
        lines=[(title, [_entry(s) for s in studies if s.line[0] == key]) for key, title in lines.items()],
        notes=[_note(note) for note in notes],
        shots=[
            {"address": f"pictures/{address(path.name)}", "alt": caption.replace("`", ""), "caption": caption}
            for path, caption in pictures
        ],
    )


def _note(note: Note) -> dict[str, Any]:
    """A page written by hand on the front page."""
    shown = note.picture()
    picture = None
    if shown is not None:
        picture = {"address": f"{address(note.name)}/{address(shown[0])}", "alt": shown[1]}
    link, lead = f"{address(note.name)}/index.html", Markup(inline(note.lead))
    return {"name": note.name, "title": note.title, "link": link, "lead": lead, "picture": picture}


def _entry(study: Study) -> dict[str, Any]:
    """A study on the front page: its question, its verdicts, and its claims when it is opened."""
    claims = [
        {**claim, "key": key, "verdict": claim.get("verdict") or word}
        for claim in study.report["claims"]
        for key, word in [_VERDICTS[claim["reproduced"]]]
    ]
    figures = study.figures()
    drawing = None
    if figures:
        i, j, k = min(figures)
        panel = study.report["sections"][i]["blocks"][j]["panels"][k]
        drawing = _drawing(figures[i, j, k], panel, f"{address(study.name)}/")
    return {
        "name": study.name,
        "link": address(study.name),  # `javascript:` may be the name of a folder
        "classes": " ".join([study.line[0], *sorted({claim["key"] for claim in claims})]),
        "report": {"notice": "", **study.report},
        "claims": claims,
        "command": study.command,
        "drawing": drawing,
    }


def _drawing(path: Path, panel: dict[str, Any], place: str = "") -> dict[str, Any]:
    width, height = size_of_drawing(path)
    source = f"{place}figures/{address(path.name)}"
    return {"address": source, "alt": panel["description"], "width": width, "height": height}


def _study_page(study: Study) -> str:
    report = study.report
    record = {item.name: report["provenance"][item.name] for item in fields(Provenance)} | {"command": study.command}
    record["config"] = {key: value for key, value in record["config"].items() if key != "data_dir"}
    provenance = Provenance(**record)
    figures = study.figures()
    sections = [
        {
            "title": section["title"],
            "blocks": [_block(block, i, j, figures) for j, block in enumerate(section["blocks"])],
        }
        for i, section in enumerate(report["sections"])
    ]
    shown = {
        "notice": report.get("notice", ""),
        "title": report["title"],
        "question": report["question"],
        "summary": report["summary"],
        "facts": [Fact(**fact) for fact in report["facts"]],
        "claims": [Claim(**claim) for claim in report["claims"]],
        "sections": sections,
    }
    return page(
        "study.html.j2",
        title=report["title"],
        description=report["summary"] or report["title"],
        sheets=_SHEETS,
        report=shown,
        line=study.line[1],
        day=provenance.created[:10],
        provenance=made(provenance),
    )


def _block(block: dict[str, Any], i: int, j: int, figures: dict[tuple[int, int, int], Path]) -> dict[str, Any]:
    if block["kind"] != "figure":
        return block
    panels = [
        {**panel, "drawing": _drawing(figures[i, j, k], panel) if (i, j, k) in figures else None}
        for k, panel in enumerate(block["panels"])
    ]
    return {**block, "panels": panels}
