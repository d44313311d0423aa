"""`unrolled train` and `unrolled finetune`."""

from __future__ import annotations

import json as json_module
import time
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unrolled.commands.common import say_where
from unrolled.commands.settings import AsJson, ConfigFiles, RecipeName, as_config, flags_of
from unrolled.train.config import FinetuneConfig, TrainConfig

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.train import TrainResult

    TrainFlags = TrainConfig
    FinetuneFlags = FinetuneConfig
else:
    TrainFlags = flags_of(TrainConfig)
    FinetuneFlags = flags_of(FinetuneConfig)

_TRAIN = TrainFlags()
_FINETUNE = FinetuneFlags()


def train(
    *,
    settings: Annotated[TrainFlags, Parameter(name="*")] = _TRAIN,
    config: ConfigFiles = (),
    recipe: RecipeName = None,
    json: AsJson = False,
) -> None:
    """Train an image classifier; everything about the run goes into one folder.

    Ctrl-C saves and stops; the same command with `--resume auto` goes on, bit for bit.

        unrolled train --data digits --epochs 20 --out runs/digits
        unrolled train --config runs/digits/config.yaml --seed 1 --out runs/digits-1
        unrolled train --data cifar10 --data-dir data --precision bf16
    """
    run_training(as_config(TrainConfig, settings), json=json)


def finetune(
    *,
    settings: Annotated[FinetuneFlags, Parameter(name="*")] = _FINETUNE,
    config: ConfigFiles = (),
    recipe: RecipeName = None,
    json: AsJson = False,
) -> None:
    """Fine-tune a trained classifier on another data set.

    The head is new, positions are resized, settings are chosen on a validation split, and the test split is looked at
    once, at the end.

        unrolled finetune --weights runs/big --data digits --out runs/small
    """
    run_training(as_config(FinetuneConfig, settings), json=json)


def run_training(config: TrainConfig, *, json: bool) -> None:
    """Train or fine-tune, write the report into the run folder, and print what came out."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    import unrolled.train as training

    began = time.perf_counter()
    result = training.finetune(config) if isinstance(config, FinetuneConfig) else training.fit(config)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    facts = summary(config, result)
    page = report(config, result, facts, time.perf_counter() - began).write(result.run_dir).html
    say_where(page, quiet=config.quiet)
    if json:
        print(json_module.dumps({**facts, "report": str(page)}, indent=2))
        return
    score = f"test accuracy {100 * facts['test']['accuracy']:.2f} %" if facts["test"] else "no test split"
    print(
        f"{config.model} on {config.data}: {score}, {facts['parameters']:,} parameters, {facts['steps']:,} steps, "
        f"{facts['images_per_second']:,.0f} images/s; the model is in {result.run_dir}"
    )


def summary(config: TrainConfig, result: TrainResult) -> dict[str, Any]:
    """What came out of a run, as plain values."""
    return {
        "run": str(result.run_dir),
        "model": config.model,
        "data": config.data,
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "steps": result.steps,
        "chosen_step": result.chosen_step,
        "images_per_second": result.images_per_second,
        "test": result.test,
        "validation": [entry for entry in result.metrics if entry["split"] == "val"],
        "skipped": result.skipped,
    }


def report(config: TrainConfig, result: TrainResult, facts: dict[str, Any], seconds: float) -> Report:
    """The run's report: the score, the curves, and what could not be loaded or read."""
    from unrolled.report import Fact, LineChart, Provenance, Report, Series

    verb = "fine-tuned" if isinstance(config, FinetuneConfig) else "trained"
    page = Report(f"{config.model} {verb} on {config.data}", question="How well does it classify images it never saw?")
    shown = [
        Fact(label="Parameters", value=f"{facts['parameters']:,}"),
        Fact(label="Training", value=f"{facts['images_per_second']:,.0f} images/s", detail=f"{facts['steps']:,} steps"),
    ]
    headline = "There is no test split, so the model was not tested."
    if result.test is not None:
        accuracy = f"{100 * result.test['accuracy']:.2f} %"
        headline = f"{accuracy} of {result.test['images']:,} test images are classified correctly."
        shown.insert(0, Fact(label="Test accuracy", value=accuracy, detail=f"{result.test['images']:,} images"))
    page.headline(headline, shown)

    def curve(split: str, key: str, label: str, scale: float = 1.0) -> list[Series]:
        points = [
            (e["epoch"], scale * e[key]) for e in result.metrics if e["split"] == split and e.get(key) is not None
        ]
        if not points:
            return []
        x, y = zip(*points, strict=True)
        return [Series(label=label, x=x, y=y)]

    charts = [
        ("Loss (nats)", curve("train", "loss", "training") + curve("val", "loss", "validation")),
        ("Accuracy (%)", curve("val", "accuracy", "validation", 100.0)),
        ("Learning rate", curve("train", "lr", "learning rate")),
    ]
    panels = [LineChart(title=title, x_label="epoch", series=series) for title, series in charts if series]
    if panels:
        page.section("Learning curves").figure(panels, name="curves")
    if result.load_report is not None:
        page.section("Weights it started from", f"`{config.weights}`: {result.load_report}")
    if result.skipped:
        page.section("Images that could not be read", ", ".join(f"`{name}`" for name in result.skipped[:50]))
    page.results = facts
    page.provenance = Provenance.collect(config=config, seeds=[config.seed], duration=seconds)
    return page
