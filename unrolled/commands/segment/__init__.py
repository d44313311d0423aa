"""`unrolled segment` and `unrolled segment-eval`: which parts of pictures a model tells apart."""
