"""Translation without pairs: can features of one network be turned into another's by a map fitted to no pair?

Claims: sentence encoders are turned into each other almost perfectly by a linear map that is fitted to tens of
thousands of unpaired texts (mini-vec2vec, arXiv 2510.02348); classes of images find their names by similarities alone
in many instances ("It's a (Blind) Match!", arXiv 2503.24129). Here with networks that train or run on a laptop and
thousands of samples: two seeds of a CRATE, CRATE and ViT, two networks of ImageNet, two sentence encoders, images and
captions; beside each an untrained control, chance, the map fitted to all pairs, and maps fitted to a few of them. The
first claim is not judged, since encoders and numbers of texts are far from the paper's; the second is reproduced where
trained image networks have more names right than untrained ones.
"""

from unrolled.studies.platonic.translation import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="platonic-translation",
    title="Translation without pairs",
    question="Can features of one network be turned into another's by a map that is fitted without a single pair?",
    citation="G. Dar, arXiv 2510.02348; D. Schnaus et al., arXiv 2503.24129",
    config=cells.TranslationConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
