"""Image networks against language models on captioned photos: does agreement rise with the quality of either side?

Claim (arXiv 2405.07987): vision and language models that were never trained together arrange the same samples alike,
the more so the better they are at their own task.
"""

from unrolled.studies.platonic.vision_language import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="platonic-vision-language",
    title="Image networks and language models on the same captioned photos",
    question="Do image networks and text models that never met arrange the same samples alike, and do better ones "
    "agree more?",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=cells.VisionLanguageConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
