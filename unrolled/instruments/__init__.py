"""Instruments: activations in, records out. They know the objectives of `theory`, never a model class.

Nothing is imported until it is used. `trace` itself lives in `unrolled.instruments.trace` and at `unrolled.trace`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# public name -> module of this package that holds it
_EXPORTS = {
    "attention_map": "attention_rollout",
    "average_precision": "regions.detection",
    "bootstrap_interval": "regions.overlap",
    "bootstrap_intervals": "regions.overlap",
    "boundary_counts": "regions.boundaries",
    "boundary_f": "regions.boundaries",
    "boundary_interval": "regions.boundaries",
    "BoundaryCounts": "regions.boundaries",
    "class_means": "regions.overlap",
    "cluster_tokens": "regions.spectral",
    "copy_segmentation": "regions.semantics",
    "covering": "regions.overlap",
    "Emergence": "regions.emergence",
    "EmergenceScorer": "regions.emergence",
    "emergence_baselines": "regions.emergence",
    "emergence_scores": "regions.emergence",
    "extract": "features.extraction",
    "FeatureSet": "features.extraction",
    "from_transformer_lens": "naming",
    "head_semantics": "regions.semantics",
    "head_subspaces": "anatomy",
    "HeadSemantics": "regions.semantics",
    "in_context_score": "sequences.context",
    "incoherence": "rates",
    "jaccard": "regions.overlap",
    "label_boundary": "regions.boundaries",
    "layer_sweep": "regions.overlap",
    "layerwise": "rates",
    "maskcut": "regions.spectral",
    "matched_boundary": "regions.overlap",
    "matched_iou": "regions.overlap",
    "Matches": "regions.semantics",
    "mesa_descent": "sequences.context",
    "module_places": "naming",
    "nearest_patches": "regions.semantics",
    "normalized_cut": "regions.spectral",
    "ObjectScorer": "regions.detection",
    "Patches": "regions.patches",
    "pca_colours": "regions.segmentation",
    "PCAColours": "regions.segmentation",
    "Photo": "regions.emergence",
    "pool_labels": "regions.semantics",
    "probe": "readouts.probes",
    "probe_model": "readouts.probes",
    "read_patches": "regions.patches",
    "refine_mask": "regions.segmentation",
    "region_scores": "regions.overlap",
    "rollout": "attention_rollout",
    "score_attention": "regions.overlap",
    "score_masks": "regions.overlap",
    "threshold_attention": "regions.segmentation",
    "to_transformer_lens": "naming",
    "token_binding": "sequences.context",
    "token_pca": "regions.segmentation",
    "TokenPCA": "regions.segmentation",
    "Trace": "trace",
    "trace_report": "rates",
    "untrained_control": "control",
    "upsample": "regions.segmentation",
}

__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from unrolled.instruments.anatomy import head_subspaces as head_subspaces
    from unrolled.instruments.attention_rollout import attention_map as attention_map
    from unrolled.instruments.attention_rollout import rollout as rollout
    from unrolled.instruments.control import untrained_control as untrained_control
    from unrolled.instruments.features.extraction import FeatureSet as FeatureSet
    from unrolled.instruments.features.extraction import extract as extract
    from unrolled.instruments.naming import from_transformer_lens as from_transformer_lens
    from unrolled.instruments.naming import module_places as module_places
    from unrolled.instruments.naming import to_transformer_lens as to_transformer_lens
    from unrolled.instruments.rates import incoherence as incoherence
    from unrolled.instruments.rates import layerwise as layerwise
    from unrolled.instruments.rates import trace_report as trace_report
    from unrolled.instruments.readouts.probes import probe as probe
    from unrolled.instruments.readouts.probes import probe_model as probe_model
    from unrolled.instruments.regions.boundaries import BoundaryCounts as BoundaryCounts
    from unrolled.instruments.regions.boundaries import boundary_counts as boundary_counts
    from unrolled.instruments.regions.boundaries import boundary_f as boundary_f
    from unrolled.instruments.regions.boundaries import boundary_interval as boundary_interval
    from unrolled.instruments.regions.boundaries import label_boundary as label_boundary
    from unrolled.instruments.regions.detection import ObjectScorer as ObjectScorer
    from unrolled.instruments.regions.detection import average_precision as average_precision
    from unrolled.instruments.regions.emergence import Emergence as Emergence
    from unrolled.instruments.regions.emergence import EmergenceScorer as EmergenceScorer
    from unrolled.instruments.regions.emergence import Photo as Photo
    from unrolled.instruments.regions.emergence import emergence_baselines as emergence_baselines
    from unrolled.instruments.regions.emergence import emergence_scores as emergence_scores
    from unrolled.instruments.regions.overlap import bootstrap_interval as bootstrap_interval
    from unrolled.instruments.regions.overlap import bootstrap_intervals as bootstrap_intervals
    from unrolled.instruments.regions.overlap import class_means as class_means
    from unrolled.instruments.regions.overlap import covering as covering
    from unrolled.instruments.regions.overlap import jaccard as jaccard
    from unrolled.instruments.regions.overlap import layer_sweep as layer_sweep
    from unrolled.instruments.regions.overlap import matched_boundary as matched_boundary
    from unrolled.instruments.regions.overlap import matched_iou as matched_iou
    from unrolled.instruments.regions.overlap import region_scores as region_scores
    from unrolled.instruments.regions.overlap import score_attention as score_attention
    from unrolled.instruments.regions.overlap import score_masks as score_masks
    from unrolled.instruments.regions.patches import Patches as Patches
    from unrolled.instruments.regions.patches import read_patches as read_patches
    from unrolled.instruments.regions.segmentation import PCAColours as PCAColours
    from unrolled.instruments.regions.segmentation import TokenPCA as TokenPCA
    from unrolled.instruments.regions.segmentation import pca_colours as pca_colours
    from unrolled.instruments.regions.segmentation import refine_mask as refine_mask
    from unrolled.instruments.regions.segmentation import threshold_attention as threshold_attention
    from unrolled.instruments.regions.segmentation import token_pca as token_pca
    from unrolled.instruments.regions.segmentation import upsample as upsample
    from unrolled.instruments.regions.semantics import HeadSemantics as HeadSemantics
    from unrolled.instruments.regions.semantics import Matches as Matches
    from unrolled.instruments.regions.semantics import copy_segmentation as copy_segmentation
    from unrolled.instruments.regions.semantics import head_semantics as head_semantics
    from unrolled.instruments.regions.semantics import nearest_patches as nearest_patches
    from unrolled.instruments.regions.semantics import pool_labels as pool_labels
    from unrolled.instruments.regions.spectral import cluster_tokens as cluster_tokens
    from unrolled.instruments.regions.spectral import maskcut as maskcut
    from unrolled.instruments.regions.spectral import normalized_cut as normalized_cut
    from unrolled.instruments.sequences.context import in_context_score as in_context_score
    from unrolled.instruments.sequences.context import mesa_descent as mesa_descent
    from unrolled.instruments.sequences.context import token_binding as token_binding
    from unrolled.instruments.trace import Trace as Trace


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'unrolled.instruments' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unrolled.instruments.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
