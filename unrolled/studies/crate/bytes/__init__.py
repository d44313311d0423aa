"""Language models of bytes after one pass over several books: tuned, at equal parameters, beside counting and packing.

`crate-text` compares them after a tenth of this, on one play; here they have seen enough to come near counting, which
there was far ahead, and the rivals that decide are there: softmax attention in a frame of today, with and without
MesaNet's convolution.
"""

from unrolled.studies.crate.bytes import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-bytes",
    title="White-box language models after megabytes of text",
    question="With text enough, equal parameters and tuned rates, how do CRATE, CRATE-alpha, ToST, the delta rule and "
    "MesaNet predict bytes beside softmax attention and counting, and is MesaNet's lead that of its convolution?",
    citation="arXiv 2306.01129, 2405.20299, 2412.17810, 2506.05233; the LLaMA frame (2302.13971) is a control",
    config=cells.BytesConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
