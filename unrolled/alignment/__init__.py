"""Measure how far two representations agree, and whether that is more than chance.

`unrolled.alignment.cka(x, y)`: metrics (`registry`), grids over layers (`layers`) and models (`models`), nulls and
corrections (`chance`, `significance`), intervals (`interval`), dependent rows (`dependence`), brains and people
(`beside`), repeated measurements (`repetitions`).
"""

from unrolled.alignment import registry as _metrics
from unrolled.alignment.beside import BesidePeople, beside_people
from unrolled.alignment.chance import (
    Comparison,
    HeldOut,
    chance_level,
    compare,
    held_out,
    null_of_best,
)
from unrolled.alignment.dependence import Units, relabellings
from unrolled.alignment.interval import score_interval
from unrolled.alignment.layers import Grid, Layers, layer_grid, prepare_layers
from unrolled.alignment.losses import cka_loss, cosine_loss, procrustes_loss, rsa_loss, soft_knn_loss
from unrolled.alignment.people import noise_ceiling
from unrolled.alignment.registry import *  # noqa: F403
from unrolled.alignment.repetitions import crossnobis_rdm, mahalanobis_rdm, noise_covariance
from unrolled.alignment.scale import SampledScore, mutual_knn_curve, mutual_knn_sampled
from unrolled.alignment.significance import benjamini_hochberg, calibrate, p_text, permutation_p_value
from unrolled.alignment.streaming import StreamingCKA, StreamingMetric

__all__ = [
    *_metrics.__all__,
    "BesidePeople", "Comparison", "Grid", "HeldOut", "Layers", "SampledScore", "StreamingCKA", "StreamingMetric",
    "Units", "benjamini_hochberg", "beside_people", "calibrate", "chance_level", "cka_loss", "compare",
    "cosine_loss", "crossnobis_rdm", "held_out", "layer_grid", "mahalanobis_rdm", "mutual_knn_curve",
    "mutual_knn_sampled", "noise_ceiling", "noise_covariance", "null_of_best", "p_text", "permutation_p_value",
    "prepare_layers", "procrustes_loss", "relabellings", "rsa_loss", "score_interval", "soft_knn_loss",
]  # fmt: skip
