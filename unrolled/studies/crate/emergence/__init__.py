"""Segmentation that nobody taught: whether objects and parts appear in small CRATEs, and what makes them appear.

Claims (arXiv 2308.16271): trained to classify, a CRATE's class token attends to objects, its heads to their parts, and
MaskCut finds objects in its keys, where a ViT's does not. Layer and head are chosen on photos of COCO's training set
and scored on others.
"""

from unrolled.studies.crate.emergence import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-emergence",
    title="Segmentation that nobody taught",
    question="Do objects and parts appear in the layers of small CRATEs, more than in ViTs and than by chance, and "
    "what strengthens it?",
    citation="Y. Yu et al., Emergence of Segmentation with Minimalistic White-Box Transformers, arXiv 2308.16271",
    config=cells.EmergenceConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
