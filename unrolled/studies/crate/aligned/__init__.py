"""Which layer of a small CRATE to align with a trained network, and what that buys beside its logits, or no teacher.

Representation alignment (REPA, arXiv 2410.06940) was published for diffusion transformers: a projector maps the patches
of an early layer onto a trained encoder's, and training needs fewer steps. Here the student classifies, on few labelled
images, and the teacher's time counts. Settings are chosen on held-out images, by as many trials for every way of
learning; the control is aligned in the same way with a network that was never trained.
"""

from unrolled.studies.crate.aligned import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-aligned",
    title="Which layer to align with a trained network",
    question="Does a small CRATE learn more in a core-minute from {images:,} labelled images when one of its layers "
    "is aligned with a trained network, which layer, and is it more than from that network's logits?",
    citation="S. Yu et al., Representation alignment for generation, arXiv 2410.06940; G. Hinton et al., Distilling "
    "the knowledge in a neural network, arXiv 1503.02531",
    config=cells.AlignedConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
