"""Translation between the feature spaces of two models, from samples that nobody has paired."""

from unrolled.alignment.translation.fitting import Recipe
from unrolled.alignment.translation.parts import thirds
from unrolled.alignment.translation.record import Scores, Translation
from unrolled.alignment.translation.translating import translate, translate_paired

__all__ = ["Recipe", "Scores", "Translation", "thirds", "translate", "translate_paired"]
