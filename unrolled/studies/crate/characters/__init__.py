"""nanoGPT's run of minutes on a CPU, and white boxes beside it: Shakespeare, at equal characters and at equal time.

`crate-bytes` compares the same families at a quarter of the parameters after five times the text, of several books.
"""

from unrolled.studies.crate.characters import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-characters",
    title="White boxes in nanoGPT's run on a CPU",
    question="With the text, the split and the budget of nanoGPT's run on a CPU, how do CRATE, MesaNet and their kin "
    "predict characters beside GPT-2, after as many characters and after as much processor time?",
    citation="nanoGPT (Karpathy 2022); arXiv 2306.01129, 2405.20299, 2412.17810, 2506.05233; 2302.13971 as a control",
    config=cells.CharactersConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
