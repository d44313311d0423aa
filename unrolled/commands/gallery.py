"""`unrolled gallery`."""

from __future__ import annotations

import json as json_module
from pathlib import Path

from unrolled.commands.settings import AsJson, ConfigFiles, Quiet


def gallery(
    *,
    studies: Path = Path("docs/studies"),
    out: Path = Path("site"),
    config: ConfigFiles = (),
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build a static site from the reports of studies: each claim, the paper's value, ours, the picture, the command.

        unrolled gallery
        unrolled gallery --studies runs --out site

    Parameters
    ----------
    studies
        Folder of NAME/report.json with NAME/figures, as `unrolled study` writes them.
    out
        Where index.html and a folder for each study go.
    """
    from unrolled.report.gallery import read_studies, write_gallery

    found = read_studies(studies)
    if out.resolve() == studies.resolve():
        raise ValueError(f"--out {out}: holds the reports themselves; give another folder")
    index = write_gallery(found, out)
    if json:
        print(json_module.dumps({"index": str(index), "studies": [study.name for study in found]}, indent=2))
    elif not quiet:
        print(f"{len(found)} studies: {index}")
