"""Do ISTA's own codes make a sparse autoencoder unnecessary?

What leaves a layer of CRATE is a sparse code, by the layer's own dictionary; to find such codes in other transformers
one fits a sparse autoencoder to their tokens (arXiv 2406.04093). Here both are asked the same questions at equal size
and sparsity: how much of the tokens they rebuild, how much of the loss comes back when what they rebuild is put in
the tokens' place, what classes say of their atoms, and whether other seeds and other models find the same atoms. No
paper has these numbers; what counts is fixed in `claims`.
"""

from unrolled.studies.crate.codes import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-codes",
    title="ISTA's codes against a sparse autoencoder's",
    question="Do CRATE's own codes make a sparse autoencoder unnecessary?",
    citation="Y. Yu et al., White-box transformers via sparse rate reduction, arXiv 2306.01129; L. Gao et al., Scaling "
    "and evaluating sparse autoencoders, arXiv 2406.04093",
    config=cells.CodesConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
