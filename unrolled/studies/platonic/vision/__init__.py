"""Alignment against competence over a zoo of vision models: do better models represent images more alike?

Claim (arXiv 2405.07987, figure 2): models that solve more transfer tasks agree more with one another.
"""

from unrolled.studies.platonic.vision import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="platonic-vision",
    title="Do better vision models represent images more alike?",
    question="Over many small models, good and bad: does alignment between models rise with what they can do?",
    citation="M. Huh, B. Cheung, T. Wang, P. Isola, The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=cells.VisionConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
