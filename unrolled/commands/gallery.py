"""`unrolled gallery`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unrolled.commands.options import verb
from unrolled.harness import OutputFlags, print_answer
from unrolled.locks import hold


@dataclass(frozen=True, kw_only=True)
class GalleryOptions(OutputFlags):
    """Flags of `unrolled gallery`."""

    studies: Path = Path("docs/studies")
    """Folder of NAME/report.json with NAME/figures, as `unrolled study` writes them. Beside a folder called studies,
    pages NAME.md with their pictures in NAME, and screenshots, go onto the front page."""
    out: Path = Path("site")
    """Where index.html and a folder for each study go."""


@verb
def gallery(options: GalleryOptions) -> None:
    """Build a static site from the reports of studies: each claim, the paper's value, ours, the picture, the command.

    The pages are files that need no server and no network, and can be put on any web host as they are.

        unrolled gallery
        unrolled gallery --studies runs --out site
    """
    from unrolled.report.gallery import read_studies, write_gallery
    from unrolled.report.notes import read_notes, screenshots

    studies, out = options.studies, options.out
    reports = read_studies(studies)
    if out.resolve() == studies.resolve():
        raise ValueError(f"--out {out}: holds the reports themselves; give another folder")
    hold(out)
    docs = studies.parent if studies.name == "studies" else None
    notes = [] if docs is None else read_notes(docs, without=studies)
    index = write_gallery(reports, out, notes=notes, pictures=[] if docs is None else screenshots(docs))
    if options.json or not options.quiet:
        facts = {"index": str(index), "studies": [study.name for study in reports]}
        print_answer("gallery", facts, f"{len(reports)} studies: {index}", json=options.json)
