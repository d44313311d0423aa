"""What the reports of runs say alike: parameters and speed, and all that came out as plain values."""

from __future__ import annotations

from unrolled.reading import Json
from unrolled.report import Fact
from unrolled.train import TrainResult


def size_and_speed(result: TrainResult) -> list[Fact]:
    """Parameters of the model, and units a second; a run that was finished before has no speed."""
    facts = [Fact(label="Parameters", value=f"{result.parameters:,}")]
    if result.units_per_second:
        speed = f"{result.units_per_second:,.0f} {result.unit}/s"
        facts.append(Fact(label="Training speed", value=speed, detail=f"{result.steps:,} steps"))
    return facts


def summary(result: TrainResult) -> Json:
    """What came out of a run, for `report.json` and `--json`."""
    return {
        "run": str(result.run_dir),
        "task": result.config.task,
        "model": result.config.model,
        "data": result.config.data,
        "parameters": result.parameters,
        "steps": result.steps,
        "chosen_step": result.chosen_step,
        f"{result.unit}_per_second": result.units_per_second,
        "test": result.test,
        "validation": result.validation,
        "skipped": result.skipped,
    }
