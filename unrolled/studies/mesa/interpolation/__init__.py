"""Weights between those of trained linear layers and the construction's: does the loss stay as low on the way?

Claim (arXiv 2309.05858): averaging the trained weights with those of one gradient step, product by product, predicts as
well as either. Two layers that computed the same by different means would not survive being averaged; neither would a
layer averaged with random weights.

Of stacks of several layers no loss is published (the released results of that experiment are empty), so what they do is
measured and not judged: on the way to gradient steps of as many layers, to their own 32 numbers a head, and as controls
to another seed's stack, to the numbers in other places and to random weights. Departures: 4 heads of key width 20, not
40, fewer steps and smaller batches; mixed after training, not all through it.
"""

from unrolled.studies.mesa.interpolation import cells, report
from unrolled.studies.study import Study

STUDY = Study(
    name="mesa-interpolation",
    title="Between trained and constructed weights",
    question="Are the weights of a trained linear layer those of one gradient step, or do they only act alike?",
    citation="J. von Oswald et al., Uncovering mesa-optimization algorithms in Transformers, arXiv 2309.05858",
    config=cells.InterpolationConfig,
    cells=cells.cells,
    claims=report.CLAIMS,
    report=report.report,
)
