"""`unrolled eval`: of classifiers, of runs of pretraining and of runs on text."""
