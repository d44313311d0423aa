"""Reports: numbers, tables and figures with their provenance -> `report.json` and one self-contained `report.html`."""

from unrolled.figures.heatmap import HeatMap
from unrolled.figures.images import ImageGrid, ImageRow, heat
from unrolled.figures.lines import LineChart, Series
from unrolled.figures.scatter import Scatter
from unrolled.figures.tree import Tree
from unrolled.report.document import Claim, Fact, Report, ReportPaths, Section, mean_std
from unrolled.report.layers import trace_section
from unrolled.report.provenance import Provenance
from unrolled.report.runs import learning_curves, report_for_run

__all__ = [
    "Claim",
    "Fact",
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
    "mean_std",
    "report_for_run",
    "trace_section",
]
