"""Instruments: activations in, records out. They know the objectives of `theory`, never a model class.

Nothing is imported until it is used. `trace` itself lives in `unrolled.instruments.trace` and at `unrolled.trace`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# public name -> module of this package that holds it
_EXPORTS = {
    "average_precision": "detection",
    "bootstrap_interval": "overlap",
    "bootstrap_intervals": "overlap",
    "boundary_counts": "boundaries",
    "boundary_f": "boundaries",
    "boundary_interval": "boundaries",
    "BoundaryCounts": "boundaries",
    "class_means": "overlap",
    "cluster_tokens": "spectral",
    "copy_segmentation": "semantics",
    "covering": "overlap",
    "Emergence": "emergence",
    "EmergenceScorer": "emergence",
    "emergence_baselines": "emergence",
    "emergence_scores": "emergence",
    "extract": "features",
    "FeatureSet": "features",
    "head_semantics": "semantics",
    "head_subspaces": "anatomy",
    "HeadSemantics": "semantics",
    "in_context_score": "context",
    "incoherence": "rates",
    "jaccard": "overlap",
    "label_boundary": "boundaries",
    "layer_sweep": "overlap",
    "layerwise": "rates",
    "maskcut": "spectral",
    "matched_boundary": "overlap",
    "matched_iou": "overlap",
    "Matches": "semantics",
    "mesa_descent": "context",
    "nearest_patches": "semantics",
    "normalized_cut": "spectral",
    "ObjectScorer": "detection",
    "Patches": "patches",
    "pca_colours": "segmentation",
    "PCAColours": "segmentation",
    "Photo": "emergence",
    "pool_labels": "semantics",
    "probe": "probes",
    "probe_model": "probes",
    "read_patches": "patches",
    "refine_mask": "segmentation",
    "region_scores": "overlap",
    "score_attention": "overlap",
    "score_masks": "overlap",
    "threshold_attention": "segmentation",
    "token_binding": "context",
    "token_pca": "segmentation",
    "TokenPCA": "segmentation",
    "Trace": "trace",
    "trace_report": "rates",
    "untrained_control": "control",
    "upsample": "segmentation",
}

__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from unrolled.instruments.anatomy import head_subspaces as head_subspaces
    from unrolled.instruments.boundaries import BoundaryCounts as BoundaryCounts
    from unrolled.instruments.boundaries import boundary_counts as boundary_counts
    from unrolled.instruments.boundaries import boundary_f as boundary_f
    from unrolled.instruments.boundaries import boundary_interval as boundary_interval
    from unrolled.instruments.boundaries import label_boundary as label_boundary
    from unrolled.instruments.context import in_context_score as in_context_score
    from unrolled.instruments.context import mesa_descent as mesa_descent
    from unrolled.instruments.context import token_binding as token_binding
    from unrolled.instruments.control import untrained_control as untrained_control
    from unrolled.instruments.detection import ObjectScorer as ObjectScorer
    from unrolled.instruments.detection import average_precision as average_precision
    from unrolled.instruments.emergence import Emergence as Emergence
    from unrolled.instruments.emergence import EmergenceScorer as EmergenceScorer
    from unrolled.instruments.emergence import Photo as Photo
    from unrolled.instruments.emergence import emergence_baselines as emergence_baselines
    from unrolled.instruments.emergence import emergence_scores as emergence_scores
    from unrolled.instruments.features import FeatureSet as FeatureSet
    from unrolled.instruments.features import extract as extract
    from unrolled.instruments.overlap import bootstrap_interval as bootstrap_interval
    from unrolled.instruments.overlap import bootstrap_intervals as bootstrap_intervals
    from unrolled.instruments.overlap import class_means as class_means
    from unrolled.instruments.overlap import covering as covering
    from unrolled.instruments.overlap import jaccard as jaccard
    from unrolled.instruments.overlap import layer_sweep as layer_sweep
    from unrolled.instruments.overlap import matched_boundary as matched_boundary
    from unrolled.instruments.overlap import matched_iou as matched_iou
    from unrolled.instruments.overlap import region_scores as region_scores
    from unrolled.instruments.overlap import score_attention as score_attention
    from unrolled.instruments.overlap import score_masks as score_masks
    from unrolled.instruments.patches import Patches as Patches
    from unrolled.instruments.patches import read_patches as read_patches
    from unrolled.instruments.probes import probe as probe
    from unrolled.instruments.probes import probe_model as probe_model
    from unrolled.instruments.rates import incoherence as incoherence
    from unrolled.instruments.rates import layerwise as layerwise
    from unrolled.instruments.rates import trace_report as trace_report
    from unrolled.instruments.segmentation import PCAColours as PCAColours
    from unrolled.instruments.segmentation import TokenPCA as TokenPCA
    from unrolled.instruments.segmentation import pca_colours as pca_colours
    from unrolled.instruments.segmentation import refine_mask as refine_mask
    from unrolled.instruments.segmentation import threshold_attention as threshold_attention
    from unrolled.instruments.segmentation import token_pca as token_pca
    from unrolled.instruments.segmentation import upsample as upsample
    from unrolled.instruments.semantics import HeadSemantics as HeadSemantics
    from unrolled.instruments.semantics import Matches as Matches
    from unrolled.instruments.semantics import copy_segmentation as copy_segmentation
    from unrolled.instruments.semantics import head_semantics as head_semantics
    from unrolled.instruments.semantics import nearest_patches as nearest_patches
    from unrolled.instruments.semantics import pool_labels as pool_labels
    from unrolled.instruments.spectral import cluster_tokens as cluster_tokens
    from unrolled.instruments.spectral import maskcut as maskcut
    from unrolled.instruments.spectral import normalized_cut as normalized_cut
    from unrolled.instruments.trace import Trace as Trace


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'unrolled.instruments' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unrolled.instruments.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
