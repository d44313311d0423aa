"""Transfer to CIFAR-10 and Fashion-MNIST of networks pretrained on Tiny-ImageNet, with labels and by masking.

Claims: pretraining helps CRATE (arXiv 2306.01129, transfer table) and CRATE-MAE (the book on deep representation
learning, MAE chapter). Every network is fine-tuned and probed beside the same network untrained, at equal budgets.
"""

from unrolled.studies.crate.transfer import cells, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-transfer",
    title="Transfer of CRATE and CRATE-MAE",
    question="Does pretraining on {source}, with labels or by masking, help on other images, and whom?",
    citation="Y. Yu et al., White-Box Transformers via Sparse Rate Reduction, arXiv 2306.01129; D. Pai et al., Masked "
    "Completion via Structured Diffusion with White-Box Transformers, arXiv 2404.02446",
    config=cells.TransferConfig,
    cells=cells.cells,
    claims=report.CLAIMS,
    report=report.report,
)
