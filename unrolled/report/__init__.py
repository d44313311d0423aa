"""Reports: numbers, tables and figures with their provenance -> `report.json` and one self-contained `report.html`."""

from unrolled.figures import (
    Forest,
    HeatMap,
    ImageGrid,
    ImageRow,
    LineChart,
    Scatter,
    Series,
    Tree,
    heat,
    learning_curves,
)
from unrolled.report.document import Report
from unrolled.report.layers import trace_section
from unrolled.report.parts import Claim, Fact, ReportPaths, Section
from unrolled.report.provenance import Provenance
from unrolled.report.runs import report_for_run

__all__ = [
    "Claim",
    "Fact",
    "Forest",
    "HeatMap",
    "ImageGrid",
    "ImageRow",
    "LineChart",
    "Provenance",
    "Report",
    "ReportPaths",
    "Scatter",
    "Section",
    "Series",
    "Tree",
    "heat",
    "learning_curves",
    "report_for_run",
    "trace_section",
]
