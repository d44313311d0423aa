"""CRATE's ablations with layer curves, and whether a lower R^c predicts a higher accuracy.

Claims: tying the output and a large step cost accuracy, other steps and thresholds do not (arXiv 2306.01129, B/16); R^c
and the share of non-zero entries fall with depth (the same, figures 3 and 4); a lower R^c at the last layer goes with
a higher accuracy (arXiv 2509.16875).
"""

from unrolled.studies.crate.ablations import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-ablations",
    title="CRATE's ablations, layer by layer",
    question="Which of CRATE's choices matter for accuracy, and does a lower R^c predict a higher one?",
    citation="Y. Yu et al., White-box transformers via sparse rate reduction, arXiv 2306.01129",
    config=cells.AblationsConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
