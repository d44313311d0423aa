"""Reports: numbers, tables and figures with their provenance -> `report.json` and one self-contained `report.html`."""

from unrolled.report.charts import LineChart, Series
from unrolled.report.document import Claim, Fact, Report, ReportPaths, Section, mean_std
from unrolled.report.images import ImageGrid, ImageRow, heat
from unrolled.report.provenance import Provenance

__all__ = [
    "Claim",
    "Fact",
    "ImageGrid",
    "ImageRow",
    "LineChart",
    "Provenance",
    "Report",
    "ReportPaths",
    "Section",
    "Series",
    "heat",
    "mean_std",
]
