"""`unrolled brain`: a model beside brains and human judgement, and its place among the models measured here."""
