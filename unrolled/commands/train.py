"""`unrolled train` and `unrolled finetune`; what all verbs that train do is `run_training`."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unrolled.commands.options import AsJson, RecipeName, verb
from unrolled.harness import answer
from unrolled.locks import hold
from unrolled.terminal import say
from unrolled.train.config import FinetuneConfig, RunConfig, TextConfig, TrainConfig
from unrolled.trust import consequence

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.train import TrainResult


@verb
def train(config: TrainConfig, *, recipe: RecipeName = None, json: AsJson = False) -> None:
    """Train an image classifier; everything about the run goes into one folder.

    Ctrl-C saves and stops; the same command with `--resume auto` goes on, bit for bit. Language models are trained with
    `--task lm` or `--task mlm`, which have flags of their own: `unrolled train --task lm --help`.

        unrolled train --data digits --epochs 20 --out runs/digits
        unrolled train --config runs/digits/config.yaml --seed 1 --out runs/digits-1
        unrolled train --model crate_nano_patch4_32 --data cifar10 --data-dir data --precision bf16
        unrolled train --task lm --data tinyshakespeare --data-dir texts --out runs/text
    """
    run_training("train", config, json=json)


@verb
def train_text(config: TextConfig, *, recipe: RecipeName = None, json: AsJson = False) -> None:
    """Train a language model on text, causal (`--task lm`) or masked (`--task mlm`).

    Everything about the run goes into one folder. Ctrl-C saves and stops; the same command with `--resume auto` goes
    on, bit for bit.

        unrolled train --task lm --data tinyshakespeare --data-dir texts --out runs/text
        unrolled train --task lm --model mesanet_nano --model-args.depth 2 --steps 2000 --warmup-steps 100 \
--eval-every 250 --data-dir texts
        unrolled train --task mlm --data folder --data-dir texts --held-out 0.1
    """
    run_training("train", config, json=json)


@verb
def finetune(config: FinetuneConfig, *, recipe: RecipeName = None, json: AsJson = False) -> None:
    """Fine-tune a trained classifier on another data set.

    The head is new, positions are resized, settings are chosen on a validation split, and the test split is looked at
    once, at the end.

        unrolled finetune --weights runs/big --data digits --out runs/small
    """
    run_training("finetune", config, json=json)


def run_training(name: str, config: RunConfig, *, json: bool) -> None:
    """Train as `config` says, write the report into the run folder, and print what came out.

    Args:
        name: of the verb, which is named when the run is interrupted.
        config: of the run.
        json: print it as JSON.
    """
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    import unrolled.train as training
    from unrolled.commands.train_report import add_next_commands, next_commands, summary

    began = time.perf_counter()
    with saying_how_to_resume(name, config.out, config.model):
        result = training.fit(config)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    hold(result.run_dir)
    report, scores = report_of(result, time.perf_counter() - began)
    steps = next_commands(result)
    add_next_commands(report, steps)
    page = report.write(result.run_dir).html
    if result.skipped:
        names = ", ".join(result.skipped[:5]) + (", ..." if len(result.skipped) > 5 else "")
        say(f"{len(result.skipped)} images could not be read and were left out: {names}")
    speed = f", {result.units_per_second:,.0f} {result.unit}/s" if result.units_per_second else ""
    text = (
        f"{result.config.model} on {result.config.data}: {scores}, {result.parameters:,} parameters, "
        f"{result.steps:,} steps{speed}; the model is in {result.run_dir}"
    )
    answer(name, page, summary(result), text, json=json, quiet=config.quiet)
    say(f"next: {steps[0][0]}", quiet=config.quiet)


@contextlib.contextmanager
def saying_how_to_resume(verb: str, out: Path, model: str) -> Iterator[None]:
    """Add the command that goes on with the run of `model` in `out` to what an interrupted one says."""
    from unrolled.train.signals import Interrupted

    try:
        yield
    except Interrupted as stop:
        command = f"unrolled {verb} --config {shlex.quote(str(out / 'config.yaml'))} --resume auto"
        if consequence("model", model) is not None:  # the file may not name code: the person does
            command += f" --model {shlex.quote(model)}"
        raise Interrupted(f"{stop}, or: {command}") from None


def report_of(result: TrainResult, seconds: float) -> tuple[Report, str]:
    """The report of a run, and its scores on the test part in words."""
    from unrolled.commands import pretrain_report, text_report
    from unrolled.commands.class_report import class_records, class_sections
    from unrolled.report import report_for_run

    config = result.config
    if isinstance(config, TextConfig):
        assert result.test is not None
        return text_report.run_report(result, seconds), f"test {text_report.words(result.test)}"
    if not isinstance(config, TrainConfig):
        scores = f"test {pretrain_report.words(config.task, result.test)}" if result.test else "no test split"
        return pretrain_report.run_report(result, seconds), scores
    notes = {}
    if result.load_report is not None:
        notes["Weights it started from"] = f"`{config.weights}`: {result.load_report}"
    if config.eval_samples is not None:
        notes["Validation"] = f"On {config.eval_samples:,} of the held-out images, drawn evenly; the test is on all."
    report = report_for_run(
        result.run_dir, parameters=result.parameters, speed=result.units_per_second, duration=seconds, notes=notes
    )
    if result.confusion is not None:
        class_sections(report, result.confusion, result.data.test)
        report.results |= class_records(result.confusion, result.data.test)
    return report, f"test accuracy {100 * result.test['accuracy']:.2f} %" if result.test else "no test split"
