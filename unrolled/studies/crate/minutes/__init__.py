"""What a core-minute of training buys: the family and a ViT with one stem, one optimiser, a rate tuned for each.

Other studies give every network as many images; here every one has as much time of a processor core, in which a
cheaper network sees more. Rates are chosen on held-out images by as many trials for each, the test images are looked
at once a network.
"""

from unrolled.studies.crate.minutes import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-minutes",
    title="Accuracy by core-minutes of training",
    question="On one processor core, which of CRATE, its family and a ViT classifies best after as many minutes, and "
    "what does ISTA add?",
    citation="Y. Yu et al., White-box transformers via sparse rate reduction, arXiv 2306.01129; the ViT of equal "
    "operations is a control that no paper has",
    config=cells.MinutesConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
