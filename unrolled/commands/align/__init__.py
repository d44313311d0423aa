"""`unrolled align` and `unrolled align-grid`: how far representations agree, of two models and of many."""
