"""Contrastive learners of two modalities end at one kernel, the pointwise mutual information of events.

Claim (arXiv 2405.07987, section 4): trained on which observations occur together, f(a)^T f(b) converges to K_PMI plus a
constant, and modalities that observe events bijectively therefore end at the same kernel.
"""

from unrolled.studies.platonic.pmi import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="platonic-pmi",
    title="Contrastive kernels and pointwise mutual information",
    question="Do contrastive learners end at K_PMI, and do two modalities end at the same kernel?",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=cells.PmiConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
