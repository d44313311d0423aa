"""What the reports of runs say alike: parameters, speed, all that came out as plain values, and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path

from unrolled.reading import Json
from unrolled.report import Fact, Report
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


def next_commands(result: TrainResult) -> list[tuple[str, str]]:
    """Commands that look at what a run of this kind made, the first to try first, and what each shows."""
    run, task = shlex.quote(str(result.run_dir)), result.config.task
    layers = (f"unrolled trace {run}", "what every layer does, beside the untrained control")
    probe = (f"unrolled probe {run}", "how well a simple classifier reads the classes off every layer")
    if task == "lm":
        return [(f'unrolled generate {run} --prompt "The "', "what it writes"), layers]
    if task == "mlm":
        return [layers]
    if task == "mae":
        tuned = f"unrolled finetune --weights {run} --data {shlex.quote(result.config.data)}"
        return [
            (f"unrolled complete PHOTO.jpg --model {run}", "what it puts where patches were removed"), probe,
            (tuned, "how good a classifier is that starts from it"),
        ]  # fmt: skip
    if task == "simdino":
        return [probe, (f"unrolled segment PHOTO.jpg --model {run}", "which parts of a picture it tells apart")]
    explain = f"unrolled explain {_worst_image(result)} --model {run}"
    return [
        layers,
        (f"unrolled eval {run} --robustness", "how far its probabilities can be relied on, and errors on worse images"),
        (explain, "which layers, heads and patches one decision is made of"),
    ]


def _worst_image(result: TrainResult) -> str:
    """The file of the surest error, where images are files."""
    worst = [] if result.confusion is None else result.confusion.worst
    name = result.data.test.name(worst[0].index) if worst else ""
    return shlex.quote(name) if name and Path(name).is_file() else "PHOTO.jpg"


def add_next_commands(report: Report, commands: list[tuple[str, str]]) -> None:
    """Say on a page what to type next."""
    report.section("What to try next", "\n\n".join(f"`{command}` shows {what}." for command, what in commands))
