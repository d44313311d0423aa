"""What `crate-aligned` is asked: whether a teacher helps, by what, and at which layer, on test images in points."""

from __future__ import annotations

from typing import Any

from unrolled.studies.claim import NOBODY, Claim
from unrolled.studies.crate.aligned.cells import DEPTH, AlignedConfig, Lesson, Scored, Trial, lessons
from unrolled.studies.results import Results, Values

ALONE, LONGER, LOGITS, UNTRAINED = "labels alone", "labels alone, longer", "logits", "aligned, untrained teacher"
_REPA = "arXiv 2410.06940"


def accuracy(results: Results[Any], way: str) -> Values:
    """On the test images, per cent, by seed."""
    return 100 * results.of(Scored, way=way).values("accuracy")


def tried(results: Results[Any], lesson: Lesson) -> float | None:
    """Held-out accuracy of a trial; None where it was not run or diverged."""
    rows = [row for row in results.of(Trial) if row.cell.lesson == lesson]
    return rows[0].result["accuracy"] if rows else None


def best(results: Results[Any], among: tuple[Lesson, ...]) -> Lesson | None:
    """The lesson with the best held-out accuracy; None where none was tried."""
    scores = {lesson: score for lesson in among if (score := tried(results, lesson)) is not None}
    return max(scores, key=lambda lesson: scores[lesson]) if scores else None


def aligned(results: Results[Any], config: AlignedConfig, among: tuple[int, ...] | None = None) -> Values:
    """Test accuracy with the layer that is best on held-out images, of all that were tried or some."""
    layers = config.layers if among is None else among
    chosen = best(results, tuple(each for each in lessons(config)["aligned"] if each.layer in layers))
    return Values() if chosen is None else accuracy(results, f"layer {chosen.layer}")


def _earlier(results: Results[Any], config: AlignedConfig) -> Values:
    last = max(config.layers)
    if last != DEPTH - 1:
        return Values()
    before = aligned(results, config, tuple(layer for layer in config.layers if layer < last))
    return before - accuracy(results, f"layer {last}")


CLAIMS = (
    Claim(
        statement="A layer aligned with a trained network, as many images (aligned less labels alone)",
        source=f"{_REPA}, abstract and Table 2: for generating images",
        published="training needs fewer steps; no number for classifying",
        low=0.0,
        outside="a teacher that knows nothing, or a projector that learns what the student need not",
        value=lambda results, config: aligned(results, config) - accuracy(results, ALONE),
        control=lambda results, config: accuracy(results, UNTRAINED) - accuracy(results, ALONE),
        spec="+.1f",
    ),
    Claim(
        statement="The same in as much core-time, the teacher's and the projector's included (aligned less labels "
        "alone for longer)",
        source="a question of this package",
        published="none",
        low=0.0,
        unjudged=NOBODY,
        value=lambda results, config: aligned(results, config) - accuracy(results, LONGER),
        spec="+.1f",
    ),
    Claim(
        statement="An earlier layer is better to align than the last (best of the earlier ones on held-out images less "
        "the last)",
        source=f"{_REPA}, section 4.2 and Table 2: for generating images",
        published="layers 6 or 8 are best, later ones worse",
        low=0.0,
        outside="a student that classifies by what its last layer has: below 0",
        value=_earlier,
        spec="+.1f",
    ),
    Claim(
        statement="The teacher's logits, as many images (logits less labels alone)",
        source="G. Hinton et al., arXiv 1503.02531, section 3",
        published="a distilled network is more accurate than one of labels alone; no number for these images",
        low=0.0,
        outside="a teacher whose mistakes outweigh what its probabilities tell: below 0",
        value=lambda results, config: accuracy(results, LOGITS) - accuracy(results, ALONE),
        spec="+.1f",
        detail=lambda results, config: (
            f"; labels alone, longer {accuracy(results, LONGER) - accuracy(results, ALONE):+.1f}"
        ),
    ),
    Claim(
        statement="Alignment beside logits, as many images and trials (aligned less logits)",
        source="a question of this package",
        published="none",
        unjudged=NOBODY,
        value=lambda results, config: aligned(results, config) - accuracy(results, LOGITS),
        spec="+.1f",
    ),
)
