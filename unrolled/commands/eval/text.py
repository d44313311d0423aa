"""`unrolled eval` of runs on text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unrolled.commands.eval.options import EvalOptions, drawn, of_all
from unrolled.harness import Run, Settings
from unrolled.subjects.models import choose_device
from unrolled.subjects.runs import run_settings
from unrolled.terminal import say
from unrolled.train.config import TextConfig


def evaluate_text_run(options: EvalOptions) -> None:
    """Loss of the model a run on text ended with, with the run's own tokenizer, task and context."""
    from unrolled.commands.text_report import context_sentence, facts_of, words
    from unrolled.data.tokens import load_tokenizer
    from unrolled.models.encoder import load_language_model
    from unrolled.report import Report
    from unrolled.train import load_config
    from unrolled.train.text import check_excerpts, evaluate_text, open_corpus

    options.refuse_images()
    options.refuse("pretrained", "model_args", "weights")
    folder = Path(options.model.removeprefix("local:")).expanduser()
    changes: Settings = {"accumulate": 1, "devices": 1, "num_nodes": 1, "eval_every": None}
    given = {"data": options.data, "data_dir": options.data_dir, "batch_size": options.batch_size}
    changes |= {name: value for name, value in given.items() if value is not None}
    if options.data not in (None, run_settings(options.model).get("data")):
        changes["held_out"] = None  # how the run divided its own text
    config = load_config(folder / "config.yaml", TextConfig, **changes)
    _check_stride(options, config)
    where = choose_device(options.device)
    network = load_language_model(folder).to(where)
    corpus = open_corpus(config, load_tokenizer(folder))
    say(corpus.description, quiet=options.quiet)
    samples, split = options.samples, options.split
    check_excerpts(corpus, split, config.length, samples, f"--samples {samples}")
    options = replace(options, data=config.data, data_dir=config.data_dir, batch_size=config.batch_size)
    run = Run(options, "eval", options.model, config.data)
    scores = evaluate_text(network, corpus, split, config, where, samples=samples, stride=options.stride)
    result = {
        "model": options.model,
        "task": config.task,
        "data": config.data,
        "split": split,
        **drawn(samples, corpus.excerpts(split, config.length)),
        **({"length": config.length, "stride": options.stride or config.length} if config.task == "lm" else {}),
        **scores,
        "tokens_per_second": scores["tokens"] / run.seconds,
    }
    what = f"{options.model} on {config.data}"
    only = "" if samples is None else f", {samples:,} excerpts of {config.length} tokens{of_all(result)}"
    report = Report(what, question=f"How well does it predict the {split} part?")
    headline = f"{words(scores).capitalize()}{only}. {context_sentence(config, options.stride)}"
    report.headline(headline, facts_of(scores))
    text = f"{what} ({split}): {words(scores)}, {scores['tokens']:,} tokens{only}"
    run.finish(report, result, text, seeds=[], options=options)


def _check_stride(options: EvalOptions, config: TextConfig) -> None:
    stride = options.stride
    if stride is None:
        return
    if config.task != "lm":
        raise ValueError(f"--stride {stride}: is for language models, this one fills in masked tokens; leave it out")
    if options.samples is not None:
        raise ValueError(f"--stride {stride}: is for the whole part; leave --samples out")
    if not 1 <= stride <= config.length:
        raise ValueError(f"--stride {stride}: give 1 to {config.length}, the context of this run")
