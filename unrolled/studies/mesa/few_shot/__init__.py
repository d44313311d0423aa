"""Few-shot regression by models of dynamics: what EOS tokens and prefixes repair, and what removes the spurious pairs.

Claim (arXiv 2309.05858): a Transformer trained on linear dynamics alone learns linear regression from prompts
x_1, y_1, x_2, y_2, ...; a tuned EOS token between pairs and a tuned prefix help. Its plateau is that of pairs
(y_i, x_{i+1}) which mean nothing. Beyond the paper: gates that keep such pairs out of a mesa layer's sums.
"""

from unrolled.studies.mesa.few_shot import cells, claims, report
from unrolled.studies.study import Study

STUDY = Study(
    name="mesa-few-shot",
    title="Few-shot regression by models of dynamics",
    question="How well does a model trained on linear dynamics alone learn regression from a prompt, and what removes "
    "the pairs that mean nothing?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=cells.FewShotConfig,
    cells=cells.cells,
    claims=claims.CLAIMS,
    report=report.report,
)
