"""What a head's exact linear term has to do with what happens when the head is removed: by layer, in CRATE and ViTs.

`unrolled explain` splits a logit into terms that sum to it exactly, with everything behind a head held fixed. Whether a
term says what the model needs the head for is another question: each head is really removed, and the logit it loses is
compared with the term, beside a random change as large, with later attention held as it was, and in untrained networks.
No paper has these numbers; what counts is fixed in `claims`.
"""

from unrolled.studies.crate.attribution import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-attribution",
    title="What a term of a logit says about removing the head",
    question="Do the exact linear terms of heads rank them as removing them does, by layer, in CRATE and in ViTs?",
    citation="Y. Yu et al., White-box transformers via sparse rate reduction, arXiv 2306.01129",
    config=cells.AttributionConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
