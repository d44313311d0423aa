"""Untrained twins: either side with fresh weights against the other as it is, beside the score of the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from numpy import ndarray
    from torch import Tensor

    from unrolled.alignment import Metric
    from unrolled.commands.align.dependence import Dependence
    from unrolled.reading import Json
    from unrolled.subjects.subject import Subject

    Features = Mapping[str, Tensor | ndarray]


@dataclass(frozen=True, kw_only=True)
class Twin:
    """Scores of the best pairs of layers, a metric each, and their names."""

    side: Literal["A", "B"]
    scores: list[float]
    layers: list[tuple[str, str]]

    def record(self, metrics: Sequence[str]) -> Json:
        """For `report.json`."""
        rows = zip(metrics, self.scores, self.layers, strict=True)
        return {"side": self.side, "scores": [{"metric": m, "score": s, "best": list(pair)} for m, s, pair in rows]}


def untrained_twins(
    subjects: Mapping[int, Subject], sides: Sequence[Features], metrics: Sequence[Metric], *,
    folder: Path, dependence: Dependence, where: torch.device, seed: int, quiet: bool,
) -> tuple[list[Twin], list[str]]:  # fmt: skip
    """A twin of each side that is a model with trained weights, and why there is none of another.

    Args:
        subjects: the sides that are models, by number.
        sides: features of A and of B.
        metrics: to compare by.
        folder: where features are kept, so that they are computed once.
        dependence: of the rows.
        where: the device.
        seed: of the fresh weights.
        quiet: show no progress.
    """
    import torch

    from unrolled.alignment import layer_grid, prepare_layers
    from unrolled.alignment.dependence import Units
    from unrolled.alignment.layers import best_pair

    twins, notes = [], []
    for i, subject in subjects.items():
        name: Literal["A", "B"] = "B" if i else "A"
        if subject.random:
            continue
        try:
            fresh = subject.untrained(seed)
        except ValueError as error:
            notes.append(f"no untrained twin of {name}: {error}")
            continue
        untrained, _ = fresh.features(folder / f"{name.lower()}-untrained", quiet=quiet)
        pair = [untrained, sides[1]] if i == 0 else [sides[0], untrained]
        left, right = (
            prepare_layers({layer: torch.as_tensor(x).to(where) for layer, x in side.items()}, metrics) for side in pair
        )
        units = Units.of(left.n, dependence.groups, dependence.blocks)
        scores, layers = [], []
        for metric in (metric.for_units(units) for metric in metrics):
            grid = layer_grid(left, right, metric).scores
            row, column = best_pair(grid, metric)
            scores.append(float(grid[row, column]))
            layers.append((left.names[row], right.names[column]))
        twins.append(Twin(side=name, scores=scores, layers=layers))
    return twins, notes
