"""What the reports of runs say alike: parameters and speed."""

from __future__ import annotations

from unrolled.report import Fact
from unrolled.train import TrainResult


def size_and_speed(result: TrainResult) -> list[Fact]:
    """Parameters of the model, and units a second; a run that was finished before has no speed."""
    count = sum(parameter.numel() for parameter in result.model.parameters())
    facts = [Fact(label="Parameters", value=f"{count:,}")]
    if result.units_per_second:
        speed = f"{result.units_per_second:,.0f} {result.unit}/s"
        facts.append(Fact(label="Training speed", value=speed, detail=f"{result.steps:,} steps"))
    return facts
