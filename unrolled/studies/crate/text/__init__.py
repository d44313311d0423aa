"""CRATE-GPT, CRATE-alpha, ToST and MesaNet as language models beside GPT-2's frame, at equal parameters and bytes.

A second GPT-2, wider, has CRATE-GPT's operations instead of its parameters.

Claims (the CRATE book's language-model tables; arXiv 2506.05233): white-box language models work, behind GPT-2 in loss;
the overcomplete dictionary of CRATE-alpha recovers a part of what CRATE loses; MesaNet is level with softmax attention.
The published models differ in size, so that a smaller one and a worse one cannot be told apart; here they are of one
size. A second, smaller table compares CRATE-BERT with BERT on masked bytes.
"""

from unrolled.studies.crate.text import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="crate-text",
    title="White-box language models and GPT-2 at equal parameters",
    question="How well do CRATE, CRATE-alpha, ToST and MesaNet layers predict text beside GPT-2's, at one size?",
    citation="S. Buchanan, D. Pai, P. Wang, Y. Ma, Learning Deep Representations of Data Distributions, 2025; "
    "J. von Oswald et al., MesaNet, arXiv 2506.05233",
    config=cells.CrateTextConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
