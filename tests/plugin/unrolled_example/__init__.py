"""A package that adds a model, a metric, a data set and a study to `unrolled`, without a line of it changed."""
