"""The white-box family side by side at equal data: accuracy, parameters, operations, speed and memory.

Claims: each of CRATE-alpha's three changes raises accuracy (arXiv 2405.20299); CRATE stays a little below the ViT of
its width with far fewer parameters (arXiv 2306.01129); ToST and CBT keep accuracy at linear cost (arXiv 2412.17810,
2509.16875); attention alone nearly suffices (arXiv 2506.03790).
"""

from unrolled.studies.crate.family import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-family",
    title="The white-box family at equal data",
    question="What does each member of the CRATE family gain over CRATE and a ViT, and what does it cost?",
    citation="Y. Yu et al., White-box transformers via sparse rate reduction, arXiv 2306.01129, and its successors",
    config=cells.FamilyConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
