"""Deeper linear attention and one mesa layer beside the algorithms they are read as, on constructed tokens.

Claim (arXiv 2309.05858, figure 4): more linear layers predict better, as more steps of an iteration that preconditions
the inputs do (Proposition 2), and one mesa layer beats them all. Least squares is solved here with every pair seen, and
once more without the newest pair, as in the published control.
"""

from unrolled.studies.mesa.depth import cells, report
from unrolled.studies.study import Study

STUDY = Study(
    name="mesa-depth",
    title="Depth and the mesa layer",
    question="What do more linear layers buy, what does one mesa layer, and how far are both from least squares?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=cells.DepthConfig,
    cells=cells.cells,
    claims=report.CLAIMS,
    report=report.report,
)
