"""Measure how far two representations agree, and whether that is more than chance.

This module gathers the public names of `unrolled.instruments`, so that `unrolled.alignment.cka(x, y)` works: metrics
(`alignment`), layer grids (`alignment_grid`), nulls and corrections (`calibration`), intervals (`alignment_interval`).
"""

from unrolled.instruments import alignment as _metrics
from unrolled.instruments.alignment import *  # noqa: F403
from unrolled.instruments.alignment_grid import Grid, Layers, layer_grid, prepare_layers
from unrolled.instruments.alignment_interval import bootstrap_interval
from unrolled.instruments.alignment_losses import cka_loss, procrustes_loss, rsa_loss, soft_knn_loss
from unrolled.instruments.alignment_scale import SampledScore, mutual_knn_curve, mutual_knn_sampled
from unrolled.instruments.alignment_streaming import StreamingCKA, StreamingMetric
from unrolled.instruments.calibration import (
    Comparison,
    HeldOut,
    chance_level,
    compare,
    held_out,
    null_of_best,
)
from unrolled.instruments.dependence import Units, relabellings
from unrolled.instruments.significance import benjamini_hochberg, calibrate, p_text, permutation_p_value

__all__ = [
    *_metrics.__all__,
    "Comparison", "Grid", "HeldOut", "Layers", "SampledScore", "StreamingCKA", "StreamingMetric", "Units",
    "benjamini_hochberg", "bootstrap_interval", "calibrate", "chance_level", "cka_loss", "compare", "held_out",
    "layer_grid", "mutual_knn_curve", "mutual_knn_sampled", "null_of_best", "p_text", "permutation_p_value",
    "prepare_layers", "procrustes_loss", "relabellings", "rsa_loss", "soft_knn_loss",
]  # fmt: skip
