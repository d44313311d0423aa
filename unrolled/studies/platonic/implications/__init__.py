"""What convergence would allow, and where it ends: translation without pairs, joint training, conditions, exceptions.

Claims (arXiv 2405.07987, sections 5 and 6): aligned representations can be translated without paired data, data of
another modality help, conditional prediction is easier than unconditional; specialists and what only one modality sees
are exceptions. Measured in the co-occurrence world and on small networks.
"""

from unrolled.studies.platonic.implications import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="platonic-implications",
    title="What convergence allows, and where it ends",
    question="Can representations be translated without pairs, do modalities help each other, and what breaks it?",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=cells.ImplicationsConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
