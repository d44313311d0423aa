"""Real language models beside image networks: does the better one agree more, and what else can it do?

Claim (arXiv 2405.07987): the better a language model predicts text, the more its representation of captions agrees with
image networks' representation of the photos; such models also do better at other tasks. And (arXiv 2309.05858) a model
that learns in context may do so by descending the objective of that context.
"""

from unrolled.studies.platonic.language import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="platonic-language",
    title="Language models of several sizes beside image networks",
    question="Do better language models agree more with vision, better image networks more with language, and does "
    "agreement go with what else a language model can do?",
    citation="M. Huh et al., The Platonic Representation Hypothesis, arXiv 2405.07987",
    config=cells.LanguageConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
