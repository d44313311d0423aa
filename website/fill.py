"""Numbers of pages are filled in, not typed: `python -m website.fill` writes every block between its marks anew.

A block begins with `<!-- KIND words -->` and ends with `<!-- end -->`. Kinds: `found` (rows of found.yml), `floors`
(packages, a line each), `claims LINE` (every claim of a line of work), `summary STUDY`, `table STUDY: SECTION` (with
`: 1, 3` for these columns only, counted from 1), `benchmark FILE` and `weights` (what ships, with what its card
measured). All read the reports in docs/studies, the records in docs/benchmarks, the cards, or the code.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
STUDIES, BENCHMARKS = ROOT / "docs/studies", ROOT / "docs/benchmarks"
_BLOCK = re.compile(
    r"(<!-- (found|floors|claims|summary|table|benchmark|weights)(?: ([^\n]*?))? -->\n).*?(<!-- end -->)", re.DOTALL
)
_MEASURED = {
    "accuracy": "accuracy",
    "mean squared error on the removed patches": "squared error of removed patches",
    "mean": "bits a byte",
}
"""What a card measured first, in the words of the table of weights."""
FLOORS = {
    "theory": "the objectives, in their plainest form; everything else is tested against them",
    "ops": "solvers and kernels: exact, with gradients, each beside a slow twin",
    "layers": "one step of an optimiser on an objective, each",
    "models": "CRATE, ToST, CBT, CRATE-MAE, CRATE-GPT, MesaNet: registered with timm",
    "tasks": "synthetic worlds with something to learn in context",
    "data": "images, texts and sounds, from folders, hubs and shards",
    "instruments": "what a layer does: traces, coding rates, edits, probes, explanations",
    "alignment": "how far two representations agree, and whether that is chance",
    "train": "one visible loop; a killed run resumes to the same bits",
    "subjects": "a model by one string, the samples it is shown, its features of them",
    "studies": "published claims, measured and judged",
    "commands": "one verb a file, over the same functions as Python",
}


def fill(text: str, page: Path) -> str:
    """A page's text with every block written anew."""

    def block(match: re.Match[str]) -> str:
        made = {"found": _found, "floors": _floors, "claims": _claims, "summary": _summary}
        made |= {"table": _table, "benchmark": _benchmark, "weights": _weights}
        return f"{match[1]}\n{made[match[2]](match[3] or '', page.parent)}\n\n{match[4]}"

    return _BLOCK.sub(block, text)


def pages() -> list[Path]:
    """Pages that have a block."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if _BLOCK.search(page.read_text(encoding="utf-8"))]


def verdict(claim: dict[str, Any]) -> str:
    """How a claim came out, in words, and why neither one way nor the other."""
    word = f"**{claim['verdict']}**" if claim["verdict"] == "not reproduced" else claim["verdict"]
    return f"{word}: {claim['why']}" if claim["why"] else word


def cell(text: object) -> str:
    """Text that does not end a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


@cache
def report(study: str) -> dict[str, Any]:
    return json.loads((STUDIES / study / "report.json").read_text(encoding="utf-8"))


def _link(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder)


def _rows(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def _found(_: str, folder: Path) -> str:
    rows = []
    for entry in yaml.safe_load((Path(__file__).parent / "found.yml").read_text(encoding="utf-8")):
        study, start = entry["study"], entry["statement"]
        claims = [claim for claim in report(study)["claims"] if claim["statement"].startswith(start)]
        if len(claims) != 1:
            raise ValueError(f"found.yml: {len(claims)} claims of {study} begin with {start!r}")
        page = f"[{study}]({_link(STUDIES / study / 'README.md', folder)})"
        rows.append([entry["claim"], claims[0]["published"], claims[0]["measured"], verdict(claims[0]), page])
    return _rows(["claim", "published", "here", "", "study"], rows)


def _floors(_: str, folder: Path) -> str:
    return _rows(
        ["floor", "what lives there"],
        [[f"[`{name}`]({_link(ROOT / 'unrolled' / name, folder)})", what] for name, what in FLOORS.items()],
    )


def _claims(line: str, folder: Path) -> str:
    rows = []
    for path in sorted(STUDIES.glob(f"{line}-*/report.json")):
        study = path.parent.name
        page = f"[{study.removeprefix(line + '-')}]({_link(path.parent / 'README.md', folder)})"
        rows += [
            [claim["statement"], claim["published"], claim["measured"], verdict(claim), page]
            for claim in report(study)["claims"]
        ]
    return _rows(["claim", "published", "here", "", "study"], rows)


def _summary(study: str, folder: Path) -> str:
    page = _link(STUDIES / study / "README.md", folder)
    said = report(study)
    return f"**[{said['title']}]({page})** {said['question']} {said['summary']}"


def _table(words: str, folder: Path) -> str:
    study, section, *columns = (part.strip() for part in words.split(":"))
    tables = [
        block
        for each in report(study)["sections"]
        if each["title"] == section
        for block in each["blocks"]
        if block["kind"] == "table"
    ]
    if not tables:
        raise ValueError(f"{study} has no table under {section!r}")
    kept = [int(number) - 1 for number in columns[0].split(",")] if columns else range(len(tables[0]["columns"]))
    rows = [[row[i] for i in kept] for row in tables[0]["rows"]]
    caption = f"\n\n{tables[0]['caption']}" if tables[0]["caption"] else ""
    return _rows([tables[0]["columns"][i] for i in kept], rows) + caption


def _benchmark(name: str, folder: Path) -> str:
    record = json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))
    parts = [f"`{record['command']}`, {record['machine']}. {record['note']}"]
    for table in record["tables"]:
        parts.append(_rows(table["columns"], table["rows"]))
        parts += [table["caption"]] if table.get("caption") else []
    return "\n\n".join(parts)


def _weights(_: str, folder: Path) -> str:
    from unrolled.catalogue import card_of, known_names, matching

    rows = []
    for name in known_names():
        if (card := card_of(name)) is None:
            continue
        measured = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|", card.read_text(encoding="utf-8"), re.MULTILINE))
        if (what := next((key for key in _MEASURED if key in measured), None)) is None:
            raise ValueError(f"{card.name}: no row of its table begins with {' or '.join(_MEASURED)}")
        corrupted = next((value for key, value in measured.items() if key.startswith("mean error under nine")), "-")
        weights = card.with_suffix(".safetensors") if card.parent.name == "weights" else card.parent
        size = sum(file.stat().st_size for file in ([weights] if weights.is_file() else weights.glob("*.safetensors")))
        rows.append(
            [
                f"[`{name}`]({_link(card, folder)})", f"{matching(name)[0].parameters:,}", f"{size / 1e6:.1f}",
                f"{_MEASURED[what]} {measured[what]}", corrupted.partition(";")[0],
            ]
        )  # fmt: skip
    return _rows(["weights", "parameters", "MB", "measured on test data", "error on corrupted images"], rows)


if __name__ == "__main__":
    for each in pages():
        each.write_text(fill(each.read_text(encoding="utf-8"), each), encoding="utf-8")
