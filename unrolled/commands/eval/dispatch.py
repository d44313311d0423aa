"""`unrolled eval`."""

from __future__ import annotations

from dataclasses import replace

from unrolled.commands.eval.language import evaluate_language_model, measures_language
from unrolled.commands.eval.options import EvalOptions
from unrolled.commands.options import verb
from unrolled.subjects.runs import run_settings
from unrolled.train.config import DistillConfig, MaskedConfig, TextConfig


@verb
def evaluate(options: EvalOptions) -> None:
    """Accuracy, loss and calibration of a model, or of the model a run ended with, on a data set.

    Preprocessing is the model's own; a folder with config.yaml, report.html and report.json says what was measured. Of
    a classifier's run that was interrupted it is the newest checkpoint. Of a run on text it is loss and bits per byte,
    with the tokenizer and context of the run, and so it is of any other language model on a corpus (`--data
    tinyshakespeare`); of a run of `unrolled pretrain`, its loss beside trivial guesses.

        unrolled eval runs/digits
        unrolled eval local:models/crate-small --data folder --data-dir val
        unrolled eval timm:vit_tiny_patch16_224 --pretrained --data imagenet --data-dir imagenet --labels real.json
        unrolled eval timm:vit_tiny_patch16_224 --pretrained --data folder --data-dir matched-frequency --split all
        unrolled eval runs/cifar10 --robustness
        unrolled eval runs/cifar10 --samples 1000
        unrolled eval runs/pets --data folder --data-dir other-pets
        unrolled eval models/smollm2-135m --data tinyshakespeare --data-dir data --samples 20
    """
    task = run_settings(options.model).get("task")
    if task in TextConfig.tasks:
        from unrolled.commands.eval.text import evaluate_text_run

        evaluate_text_run(options)
        return
    if measures_language(options):
        evaluate_language_model(options)
        return
    if options.stride is not None:
        raise ValueError("--stride: is for runs on text; leave it out")
    options = replace(options, batch_size=options.batch_size or 128)
    if options.weights is None and task in (*MaskedConfig.tasks, *DistillConfig.tasks):
        from unrolled.commands.eval.pretrained import evaluate_pretrained

        evaluate_pretrained(options)
    else:
        from unrolled.commands.eval.classifier import evaluate_classifier

        evaluate_classifier(options)
