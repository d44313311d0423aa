"""No committed figure has a text that is cut off or lies over another, and none does more than show."""

from __future__ import annotations

from pathlib import Path

from tests.figures.drawing import faults
from unrolled.report.drawings import check_drawing

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_committed_figures_are_legible() -> None:
    paths = sorted(DOCS.rglob("*.svg"))
    assert len(paths) > 100
    found = {str(path.relative_to(DOCS)): faults(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    for path in paths:
        check_drawing(path)
