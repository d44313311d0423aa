"""CRATE-MAE layer by layer, by size, and by what it reconstructs, beside a ViT-MAE of equal parameters.

Claims (arXiv 2404.02446): R^c and the share of non-zeros fall through the encoder, and R^c rises again through the
decoder; the model needs about 30 % of the parameters of a ViT-MAE and completes images about as well.
"""

from unrolled.studies.crate.mae_layers import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-mae-layers",
    title="CRATE-MAE by layer, by size, and by what it reconstructs",
    question="Does R^c fall through the encoder and rise through the decoder, how large is the model, and how well "
    "does it complete images?",
    citation="D. Pai et al., Masked Completion via Structured Diffusion with White-Box Transformers, arXiv 2404.02446",
    config=cells.MaeLayersConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
