"""`Report`: numbers, tables and figures with their provenance, written as `report.json` and one `report.html`."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

from unrolled.report.page import render
from unrolled.report.parts import Document, Figure, Panel, ReportPaths, slug


class Report(Document):
    """A document that is written: a page, `report.json`, and its figures as files.

    Arguments and attributes are those of `Document`.
    """

    def to_html(self) -> str:
        """The whole report as one page that needs nothing else."""
        return render(self)

    def write(self, folder: str | Path) -> ReportPaths:
        """Write `report.html`, `report.json` and `figures/*.svg` with `*.csv` below `folder`, which is made if need be.

        Each file appears whole or not at all; files of other names are left alone.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        taken: set[str] = set()
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Figure):
                    for panel in block.panels:
                        written += _write_panel(folder / "figures", block, panel, taken)
        json_path, html_path = folder / "report.json", folder / "report.html"
        write_text(json_path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_text(html_path, self.to_html())
        return ReportPaths(html=html_path, json=json_path, figures=tuple(written))


def _write_panel(folder: Path, figure: Figure, panel: Panel, taken: set[str]) -> list[Path]:
    stem = figure.name if len(figure.panels) == 1 else f"{figure.name}-{slug(panel.title)}"
    unique, count = stem, 2
    while unique in taken:
        unique, count = f"{stem}-{count}", count + 1
    taken.add(unique)
    folder.mkdir(exist_ok=True)
    svg_path, csv_path = folder / f"{unique}.svg", folder / f"{unique}.csv"
    write_text(svg_path, panel.svg(unique, standalone=True) + "\n")
    columns, rows = panel.data()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(csv_path, text.getvalue())
    return [svg_path, csv_path]


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))  # names of files need not be text
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
