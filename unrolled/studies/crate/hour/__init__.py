"""What networks of small studies were asked, asked again of networks that learnt for a core-hour.

Claims of arXiv 2306.01129 (compression and sparsity by layer) and arXiv 2308.16271 (segmentation that nobody taught),
and questions of this package (transfer, calibration, corrupted images, faithfulness), each beside fresh weights of
the same network. Nothing is trained but the trials of `crate-minutes` and the networks of `crate-aligned`, where they
are not kept.
"""

from unrolled.studies.crate.hour import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-hour",
    title="What an hour of training changes, and four: layers, segmentation, transfer, calibration and explanations",
    question="Do layers compress, maps find things, features transfer and explanations hold in a CRATE that learnt for "
    "a core-hour, beside its ViT and beside fresh weights?",
    citation="Y. Yu et al., White-Box Transformers via Sparse Rate Reduction, arXiv 2306.01129; Y. Yu et al., "
    "Emergence of Segmentation with Minimalistic White-Box Transformers, arXiv 2308.16271",
    config=cells.HourConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
