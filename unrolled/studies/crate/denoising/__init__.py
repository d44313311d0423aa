"""Compression as denoising: MSSA beside the true score, stacks of it, and the decoder that runs them backwards.

Claim (arXiv 2404.02446 and 2306.01129): the encoder's compression steps are approximately steps along the score of the
tokens' distribution, a mixture of noisy low-dimensional Gaussians, so layers denoise; the decoder's steps are their
reversal in time.
"""

from unrolled.studies.crate.denoising import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-denoising",
    title="Compression as denoising",
    question="Does CRATE's attention (MSSA) move tokens along the score, the direction in which noisy tokens become "
    "more likely, so that layers denoise, and do the decoder's steps bring tokens back?",
    citation="D. Pai et al., Masked Completion via Structured Diffusion with White-Box Transformers, arXiv 2404.02446",
    config=cells.DenoisingConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
