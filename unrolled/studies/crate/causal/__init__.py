"""What white-box layers buy when one acts on them: removing subspaces, heads and atoms, and seeing what falls.

A subspace U_k and an atom of D are named directions, R^c says what removing one should do, and arXiv 2308.16271 reads
meanings off the maps of heads. Here each is removed, beside random removals of the same size, and beside the heads of
ViTs about as accurate and with as many parameters: whether fewer classes and patches are hit, whether the objective
says how much is lost, and whether the class falls that the head attends to. No paper has these numbers; what counts is
fixed in `claims`.
"""

from unrolled.studies.crate.causal import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-causal",
    title="Acting on CRATE: what removing a subspace, a head or an atom does",
    question="Are the parts of a white-box layer more local in what they cause than random directions and the heads of "
    "a ViT, and does the objective predict what they cause?",
    citation="Y. Yu et al., White-box transformers via sparse rate reduction, arXiv 2306.01129; Emergence of "
    "segmentation with minimalistic white-box transformers, arXiv 2308.16271",
    config=cells.CausalConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
