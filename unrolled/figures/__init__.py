"""Figures: data with a title, drawn by Matplotlib on any axes, or as SVG in one style for light and dark pages."""

from unrolled.figures.forest import Forest
from unrolled.figures.heatmap import HeatMap
from unrolled.figures.images import ImageGrid, ImageRow, heat
from unrolled.figures.lines import LineChart, Series
from unrolled.figures.panel import Panel
from unrolled.figures.scatter import Scatter
from unrolled.figures.training import learning_curves, plot_metrics
from unrolled.figures.tree import Tree

__all__ = [
    "Forest",
    "HeatMap",
    "ImageGrid",
    "ImageRow",
    "LineChart",
    "Panel",
    "Scatter",
    "Series",
    "Tree",
    "heat",
    "learning_curves",
    "plot_metrics",
]
