"""What pretraining without labels does on one core: masked autoencoders and two other objectives at equal operations.

Claims of arXiv 2404.02446 (CRATE-MAE completes images about as well as a ViT-MAE, its decoder raises R^c), beside what
nobody measured: SIGReg (arXiv 2511.08544), a coding rate (after arXiv 2502.10385) and masks on one CRATE. Rates are
chosen by as many trials for each on held-out training images; the test images are looked at once a network.
"""

from unrolled.studies.crate.pretrain import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-pretrain",
    title="Pretraining without labels: completion, the decoder, and three objectives on one CRATE",
    question="Does a CRATE-MAE complete images better than inpainting that learns nothing, when does its decoder raise "
    "R^c, and which objective makes the best features at equal operations?",
    citation="D. Pai et al., Masked Completion via Structured Diffusion with White-Box Transformers, arXiv 2404.02446; "
    "R. Balestriero and Y. LeCun, LeJEPA, arXiv 2511.08544; Z. Wu et al., Simplifying DINO via Coding Rate "
    "Regularization, arXiv 2502.10385",
    config=cells.PretrainConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
