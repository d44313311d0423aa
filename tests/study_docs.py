"""Commit numbers of studies: `python -m tests.study_docs runs/NAME ...` copies reports and rewrites their pages.

Without arguments it only rewrites, from the reports beside them, docs/studies.md, docs/studies/NAME/README.md, the
number of studies in README.md, and the table of models that `unrolled brain` gives places in. First it judges what the
reports measured by the present rule and ranges: a report keeps the interval of every claim and of its control, so
nothing is computed for that.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.brain_places import places
from unrolled import studies
from unrolled.commands.brain.places import FILE
from unrolled.report.gallery import LINES_OF_WORK
from website.fill import cell, verdict

ROOT = Path(__file__).resolve().parents[1]
README, STUDIES, PAGE = ROOT / "README.md", ROOT / "docs/studies", ROOT / "docs/studies.md"
COUNT = re.compile(r"(Of these, )\d+( are \[written up\])")
_LARGEST = 600_000  # bytes of a figure; larger ones stay in the report that the command writes
INTRODUCTION = """# Studies

Published claims, run here: a page for each study, written by `python -m tests.study_docs` from the `report.json` beside
it, with every claim, the published value, ours, and the command that repeats it. `DATA` is a folder with the data sets
the study names.

A claim is judged if its value could have come out outside its range (its source, `outside`, says by what, and which
value that has where no control measures it), if somebody else published it, and by a 95 % interval over seeds, images
or models; by a wider one if it is one of several trends that are looked at, where the page says so. *Reproduced*: the
interval lies inside the range; *not reproduced*: outside it, which at the `cpu` budget often means fewer training steps
than the paper's: the report says how many. *Undecided*: it reaches across an end, or there is none, as of one seed.
*Controls do the same*: an untrained network, shuffled labels or a guess lies in the range too. *Not judged*: nobody
else said it, or not so that it could fail; the page says whether it came out as was expected before. Where a source
says something and has no number (*stated*, *shown*), the range is this project's reading of it.

Layers and heads of maps (`crate-emergence`, `crate-hour`) are numbered as `unrolled.edit` names them, from 0; a table
or an axis that begins with a layer 1 counts from 1, as the papers do.

Ranges stood in the studies' sources before the runs, but for those changed after a review: the mesa layer's of
`mesa-depth` began below the exact solution's loss, MesaNet's of `crate-text` had no lower end, and those of
`mesa-language` (level), `mesa-worlds` (fully and partially observed), `platonic-vision` (metrics), `crate-family`
(ToST), `crate-bytes` (LLaMA), `platonic-downstream` (MiniLM) and `platonic-language` (bits on captions) are gone; the
share of networks whose heads keep to their parts, of `crate-emergence`, must be half, where it had to be all; the loss
after a switch of tasks, of `mesa-few-shot`, must be above the prediction of zero's; its tuned EOS token must be below
the published 0.01, where 0.1 was enough; the gains by layer of `mesa-probes` are judged beside untrained stacks; the
shapes of `mesa-one-step` count once each; the trend of `platonic-vision` is judged as one of six, those of
`platonic-language` as one of seven; pairs of models are counted by the models they share in `platonic-captions`,
`platonic-saturation`, `platonic-language` and `platonic-vision-language`; the claims of `platonic-samples` are judged
beside its untrained pair, the bits that a match saves in `platonic-implications` beside untrained modalities, signs of
`crate-text` beside a wider GPT-2, and CRATE beside a ViT in `crate-transfer` beside both from scratch;
`crate-characters` judges CRATE-GPT beside GPT-2, which it did not. About half of the reports were written before claims
kept intervals: these were computed afterwards from the values that the reports hold, and all verdicts are by the
present rule, as the end of each page says ([LOG.md](../LOG.md)).

At the `cpu` budget, by the clocks of the reports and in processes of one thread beside other work, a mesa study took up
to 45 minutes, `mesa-language` two hours; a Platonic one up to 20 minutes, but `platonic-measures` an hour and
`platonic-language` and `platonic-translation` about five each. Of white-box transformers seven took about 155 minutes
together, of which transfer and text 125, without the training of the models that studies share; eight others took two
to seven hours each, and `crate-minutes` more than eleven. Reports were written again when their text changed, from kept
cells and trained models: threads, machine and revision at the end of a page are then those of the last writing, and
what was computed earlier or elsewhere is in [LOG.md](../LOG.md). `--budget gpu` has the papers' own steps; no study has
run with it yet.
"""
_ROWS = 24  # of a table; the report has them all


def add(folder: Path) -> None:
    """Copy a study's report and figures from the folder it ran in."""
    target = STUDIES / folder.name
    report = without_paths(json.loads((folder / "report.json").read_text()))
    shutil.rmtree(target, ignore_errors=True)
    (target / "figures").mkdir(parents=True)
    (target / "report.json").write_text(json.dumps(report, separators=(",", ":"), ensure_ascii=False) + "\n")
    for figure in sorted((folder / "figures").glob("*.svg")):
        if figure.stat().st_size <= _LARGEST:
            shutil.copy(figure, target / "figures" / figure.name)


def without_paths(value: Any) -> Any:
    """A report that names no folder of the machine it was made on: DATA in their place."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]+(?=$|\s)", "DATA", value)
    return value


def judged_again(name: str, claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims of a report by the present rule; one that is not made any more, or otherwise, is not judged."""
    present = {claim.statement: claim for claim in studies.load(name).claims}
    gone = {"verdict": "not judged", "why": "claimed otherwise now", "reproduced": None}
    return [
        present[claim["statement"]].judged_again(claim) if claim["statement"] in present else claim | gone
        for claim in claims
    ]


def rejudge() -> None:
    """Write the verdicts of the present rule into the reports that have others, with the revision that has the rule."""
    for path in sorted(STUDIES.glob("*/report.json")):
        report = json.loads(path.read_text())
        claims = judged_again(path.parent.name, report["claims"])
        if claims != report["claims"]:
            decided = [claim["reproduced"] for claim in claims if claim["reproduced"] is not None]
            report |= {"claims": claims, "reproduced": all(decided) if decided else None}
            head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
            report["provenance"]["judged"] = head.stdout[:12]
            path.write_text(json.dumps(report, separators=(",", ":"), ensure_ascii=False) + "\n")


def pages() -> dict[Path, str]:
    """Every file written from the reports, with its text: README's count, the index, the pages, `brain`'s table."""
    reports = {path.parent.name: json.loads(path.read_text()) for path in sorted(STUDIES.glob("*/report.json"))}
    written = {STUDIES / name / "README.md": entry(name, reports[name]) for name in reports}
    readme = COUNT.sub(lambda match: f"{match[1]}{len(reports)}{match[2]}", README.read_text())
    measured = {FILE: places(reports["platonic-brain"])} if "platonic-brain" in reports else {}
    return {README: readme, PAGE: index(reports)} | written | measured


def index(reports: dict[str, dict[str, Any]]) -> str:
    """The text of docs/studies.md: what each study asks, and how its claims came out."""
    parts = [INTRODUCTION]
    for prefix, title in LINES_OF_WORK.items():
        rows = [
            f"| [{name}](studies/{name}/README.md) | {cell(report['question'])} | {counted(report)} |"
            for name, report in reports.items()
            if name.startswith(f"{prefix}-")
        ]
        parts += [f"## {title}\n", "| study | question | claims |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def counted(report: dict[str, Any]) -> str:
    """How many claims of a study came out how."""
    counts = Counter(claim["verdict"] for claim in report["claims"])
    return ", ".join(f"{count} {word}" for word, count in counts.most_common()) or "none"


def entry(name: str, report: dict[str, Any]) -> str:
    """The page of one study: what came out, claim by claim, all that its report says, and how to run it."""
    record = report["provenance"]
    # what the numbers do not depend on is left out
    command = re.sub(r" --(?:(?:out|kept|workers) [^ ]+|quiet|json|only-kept)", "", record["command"])
    command = re.sub(r"(--data-dir) [^ ]+", r"\1 DATA", command)
    hardware = f"{record['hardware'].get('cores', '?')} cores of {record['hardware'].get('processor', '?')}"
    lines = [f"# {report['title']}\n", f"`{name}`: {report['question']} {report['summary']}\n"]
    if report["claims"]:
        lines += ["| claim | published | here | |", "|---|---|---|---|"]
        lines += [
            f"| {' | '.join(cell(claim[key]) for key in ('statement', 'published', 'measured'))} | {verdict(claim)} |"
            for claim in report["claims"]
        ]
        lines.append("")
    drawn = figures(name, report)
    for section in report["sections"]:
        lines.append(f"## {section['title']}\n")
        for block in section["blocks"]:
            lines += shown(block, drawn)
    lines.append("## How it was run\n")
    lines.append(
        f"`{command}`; written with {record['hardware'].get('threads', '?')} thread(s), {hardware}, "
        f"torch {record['versions']['torch']}, revision {record['versions'].get('revision', '?')}"
        + (f"; judged again by the rule and ranges of revision {record['judged']}" if "judged" in record else "")
        + ". [All numbers](report.json).\n"
    )
    return "\n".join(lines)


def shown(block: dict[str, Any], drawn: list[Path]) -> list[str]:
    """One block of a report as Markdown: a text, a table, or the committed drawings of a figure."""
    if block["kind"] == "text":
        return [f"{block['text']}\n"]
    if block["kind"] == "table":
        rows = [f"| {' | '.join(map(cell, row))} |" for row in block["rows"][:_ROWS]]
        left = len(block["rows"]) - len(rows)
        caption = f"{block['caption']} " * bool(block["caption"]) + f"{left} more rows in report.json." * bool(left)
        head = [f"| {' | '.join(map(cell, block['columns']))} |", "|---" * len(block["columns"]) + "|"]
        return [*head, *rows, "", *([f"{caption.strip()}\n"] if caption else [])]
    if block["kind"] != "figure":
        return []
    files = [path for path in drawn if re.fullmatch(rf"{re.escape(block['name'])}(-.*)?", path.stem)]
    pictures = [f"![{cell(path.stem)}](figures/{path.name})\n" for path in files]
    return [*pictures, *([f"{block['caption']}\n"] if pictures and block["caption"] else [])]


def figures(name: str, report: dict[str, Any]) -> list[Path]:
    """The figures of a study, in the order of its report."""
    names = [
        block["name"] for section in report["sections"] for block in section["blocks"] if block["kind"] == "figure"
    ]

    def place(path: Path) -> tuple[int, str]:
        return next((i for i, figure in enumerate(names) if path.stem.startswith(figure)), len(names)), path.stem

    return sorted((STUDIES / name / "figures").glob("*.svg"), key=place)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        add(Path(each))
    rejudge()
    for page, text in pages().items():
        page.write_text(text)
