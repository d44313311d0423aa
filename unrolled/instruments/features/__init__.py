"""Features of samples: pooled while a model runs (`extraction`), of texts, in parts by several processes, on disk."""

from unrolled.instruments.features.extraction import FeatureSet, extract, feature_key, layer_names, read_descriptors

__all__ = ["FeatureSet", "extract", "feature_key", "layer_names", "read_descriptors"]
