"""What places in a model cause: ablations and patches of many places, attribution and path patching, the logit lens."""

from __future__ import annotations

from unrolled.instruments.causal import scores
from unrolled.instruments.causal.attending import Attending, marked
from unrolled.instruments.causal.effects import Effect, Effects
from unrolled.instruments.causal.paths import attribution, logit_lens, path_patching
from unrolled.instruments.causal.store import ScoreStore
from unrolled.instruments.causal.sweeps import Score, ablate, patching
from unrolled.instruments.causal.terms import Removed, removed

__all__ = [
    "Attending",
    "Effect",
    "Effects",
    "Removed",
    "Score",
    "ScoreStore",
    "ablate",
    "attribution",
    "logit_lens",
    "marked",
    "patching",
    "path_patching",
    "removed",
    "scores",
]
