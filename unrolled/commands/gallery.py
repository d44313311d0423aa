"""`unrolled gallery`."""

from __future__ import annotations

import json as json_module
from pathlib import Path

from unrolled.commands.settings import AsJson, ConfigFiles, Quiet
from unrolled.locks import hold


def gallery(
    *,
    studies: Path = Path("docs/studies"),
    out: Path = Path("site"),
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build a static site from the reports of studies: each claim, the paper's value, ours, the picture, the command.

    The pages are files that need no server and no network, and can be put on any web host as they are.

        unrolled gallery
        unrolled gallery --studies runs --out site

    Parameters
    ----------
    studies
        Folder of NAME/report.json with NAME/figures, as `unrolled study` writes them. Beside a folder called studies,
        pages NAME.md with their pictures in NAME, and screenshots, go onto the front page.
    out
        Where index.html and a folder for each study go.
    """
    from unrolled.report.gallery import read_studies, write_gallery
    from unrolled.report.notes import read_notes, screenshots

    found = read_studies(studies)
    if out.resolve() == studies.resolve():
        raise ValueError(f"--out {out}: holds the reports themselves; give another folder")
    hold(out)
    docs = studies.parent if studies.name == "studies" else None
    notes = [] if docs is None else read_notes(docs, without=studies)
    index = write_gallery(found, out, notes=notes, pictures=[] if docs is None else screenshots(docs))
    if json:
        print(json_module.dumps({"index": str(index), "studies": [study.name for study in found]}, indent=2))
    elif not quiet:
        print(f"{len(found)} studies: {index}")
