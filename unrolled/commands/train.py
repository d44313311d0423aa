"""`unrolled train` and `unrolled finetune`."""

from __future__ import annotations

import json as json_module
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unrolled.commands.common import say_where, saying_how_to_resume
from unrolled.commands.options import TRAIN_HEADINGS, AsJson, ConfigFiles, RecipeName, as_config, flags_of
from unrolled.commands.text import run_text
from unrolled.locks import hold
from unrolled.train.config import FinetuneConfig, TrainConfig

if TYPE_CHECKING:
    from unrolled.train import TrainResult

    TrainFlags = TrainConfig
    FinetuneFlags = FinetuneConfig
else:
    TrainFlags = flags_of(TrainConfig, TRAIN_HEADINGS)
    FinetuneFlags = flags_of(FinetuneConfig, TRAIN_HEADINGS)

_TRAIN = TrainFlags()
_FINETUNE = FinetuneFlags()


def train(
    *,
    settings: Annotated[TrainFlags, Parameter(name="*")] = _TRAIN,
    config: ConfigFiles = (),
    recipe: RecipeName = None,
    json: AsJson = False,
) -> None:
    """Train an image classifier, or with `--task` a language model; everything about the run goes into one folder.

    Ctrl-C saves and stops; the same command with `--resume auto` goes on, bit for bit.

        unrolled train --data digits --epochs 20 --out runs/digits
        unrolled train --config runs/digits/config.yaml --seed 1 --out runs/digits-1
        unrolled train --model crate_nano_patch4_32 --data cifar10 --data-dir data --precision bf16
        unrolled train --task lm --model crate_gpt_nano --data tinyshakespeare --data-dir texts --out runs/text
    """
    chosen = as_config(TrainConfig, settings)
    if chosen.task == "classify":
        run_training(chosen, json=json)
    else:
        run_text(chosen, json=json)


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
    from unrolled.report import report_for_run

    began = time.perf_counter()
    with saying_how_to_resume("finetune" if isinstance(config, FinetuneConfig) else "train", config.out, config.model):
        result = training.finetune(config) if isinstance(config, FinetuneConfig) else training.fit(config)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    hold(result.run_dir)
    config = training.load_config(result.run_dir / "config.yaml", type(config))  # with the model that "auto" stood for
    facts = summary(config, result)
    notes = (
        {} if result.load_report is None else {"Weights it started from": f"`{config.weights}`: {result.load_report}"}
    )
    if config.eval_samples is not None:
        notes["Validation"] = f"On {config.eval_samples:,} of the held-out images, drawn evenly; the test is on all."
    report = report_for_run(
        result.run_dir, parameters=facts["parameters"], duration=time.perf_counter() - began, notes=notes
    )
    page = report.write(result.run_dir).html
    say_where(page, quiet=config.quiet)
    if result.skipped:
        names = ", ".join(result.skipped[:5]) + (", ..." if len(result.skipped) > 5 else "")
        print(f"{len(result.skipped)} images could not be read and were left out: {names}", file=sys.stderr)
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
