"""Networks beside brains and human judgement: dissimilarities of 92 photographs, 1,854 things and 93 colours.

Claim (arXiv 2405.07987, section 2.4, citing others): representations of networks align with those of brains. Measured
by representational similarity analysis against inferior temporal (IT) cortex, with people's own agreement as ceiling.
"""

from unrolled.studies.platonic.brain import cells, report
from unrolled.studies.study import Study

STUDY = Study(
    name="platonic-brain",
    title="Networks beside brains and human judgement",
    question="Do networks find the same pictures, things and colours alike as brains and people do?",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987; N. Kriegeskorte et al., 2008",
    config=cells.BrainConfig,
    cells=cells.cells,
    claims=report.CLAIMS,
    report=report.report,
)
