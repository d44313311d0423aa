"""Colour from three sources: which pixels are neighbours, which words are used alike, and what people say.

Claim (arXiv 2405.07987, section 4.1): distances learnt from co-occurring pixels, and from language alone, both mirror
the perceptual layout of colours. Distances are embedded in three dimensions and laid over CIELAB.
"""

from unrolled.studies.platonic.colour import cells, report
from unrolled.studies.study import Study

STUDY = Study(
    name="platonic-colour",
    title="Colours laid out by pixels, words and people",
    question="Do co-occurring pixels and language alone give the layout of colours that people perceive?",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=cells.ColourConfig,
    cells=cells.cells,
    claims=report.CLAIMS,
    report=report.report,
)
