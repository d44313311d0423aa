"""Where a score stands among the models that the studies measured: `places.json`, written from their reports."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from unrolled.reading import read_object

FILE = Path(__file__).with_name("places.json")
"""Written by `python -m tests.study_docs`, from docs/studies/platonic-brain/report.json; never by hand."""
UNTRAINED, CONTROL, RECORDED = "untrained", "control", "recorded"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model in the table: what it is called, its group, and its score."""

    name: str
    group: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a score stands.

    Attributes:
        rank: from 1, among the trained models and the one that is asked about.
        of: how many these are; 1 where none was measured.
        above, below: the trained models next to it.
        untrained: best of the models with random weights; None where there are none.
        control: best of the controls without a model, such as the pixels.
        same: the model itself, where it is in the table; it is not counted twice.
    """

    rank: int
    of: int
    above: Measured | None
    below: Measured | None
    untrained: Measured | None
    control: Measured | None
    same: Measured | None

    def sentence(self) -> str:
        """The same in words."""
        if self.of == 1:
            return "No other model has been measured on this here."
        beside = [f"after {self.above.name} ({self.above.score:.3f})"] if self.above else []
        beside += [f"ahead of {self.below.name} ({self.below.score:.3f})"] if self.below else []
        floors = [f"{each.name}, {each.group}, {each.score:.3f}" for each in (self.untrained, self.control) if each]
        words = f"Place {self.rank} of {self.of} among the trained models measured here, {', '.join(beside)}"
        words += f"; the best without training: {'; '.join(floors)}" if floors else ""
        return words + (f". The table has this model at {self.same.score:.3f}." if self.same else ".")


@cache
def measured() -> dict[str, list[Measured]]:
    """Key of a target -> the models in the table, best first."""
    table: dict[str, Any] = read_object(FILE)["targets"]
    return {key: sorted((Measured(**row) for row in rows), key=lambda each: -each.score) for key, rows in table.items()}


def place(target: str, score: float, model: str) -> Place:
    """The place of a model's best layer.

    Args:
        target: key, of `subjects.people.Target`.
        score: of the best layer.
        model: by its string, which may be one of the table.
    """
    everything = measured().get(target, [])
    name = model.rpartition(":")[2]
    same = next((each for each in everything if each.name == name and each.group not in (UNTRAINED, CONTROL)), None)

    def best(group: str) -> Measured | None:
        return next((each for each in everything if each.group == group), None)

    trained = [each for each in everything if each.group not in (UNTRAINED, CONTROL, RECORDED) and each is not same]
    index = bisect_left([-each.score for each in trained], -score)
    return Place(
        rank=index + 1, of=len(trained) + 1, above=trained[index - 1] if index else None,
        below=trained[index] if index < len(trained) else None, untrained=best(UNTRAINED), control=best(CONTROL),
        same=same,
    )  # fmt: skip
