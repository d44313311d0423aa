"""`unrolled eval` of runs on text."""

from __future__ import annotations

import json as json_module
import sys
import time
from pathlib import Path
from typing import Any

from unrolled.commands.common import (
    Device,
    choose_device,
    default_folder,
    drawn,
    of_all,
    run_settings,
    say_where,
    write_run,
)
from unrolled.train.config import TextConfig


def evaluate_run(
    model: str,
    *,
    data: str | None,
    data_dir: Path | None,
    split: str,
    samples: int | None,
    stride: int | None,
    batch_size: int | None,
    device: Device,
    out: Path | None,
    json: bool,
    quiet: bool,
) -> None:
    """Loss of the model a run on text ended with, with the run's own tokenizer, task and context."""
    from unrolled.commands.text_report import facts_of, said_of_context, words
    from unrolled.data.tokens import load_tokenizer
    from unrolled.models.encoder import load_language_model
    from unrolled.report import Provenance, Report
    from unrolled.train import load_config
    from unrolled.train.text import check_excerpts, evaluate_text, open_corpus

    folder = Path(model.removeprefix("local:")).expanduser()
    changes: dict[str, Any] = {"accumulate": 1, "devices": 1, "num_nodes": 1, "eval_every": None}
    given = {"data": data, "data_dir": data_dir, "batch_size": batch_size}
    changes |= {name: value for name, value in given.items() if value is not None}
    if data not in (None, run_settings(model).get("data")):
        changes["held_out"] = None  # how the run divided its own text
    config = load_config(folder / "config.yaml", TextConfig, **changes)
    if stride is not None and config.task != "lm":
        raise ValueError(f"--stride {stride}: is for language models, this one fills in masked tokens; leave it out")
    if stride is not None and samples is not None:
        raise ValueError(f"--stride {stride}: is for the whole part; leave --samples out")
    if stride is not None and not 1 <= stride <= config.length:
        raise ValueError(f"--stride {stride}: give 1 to {config.length}, the context of this run")
    where = choose_device(device)
    network = load_language_model(folder).to(where)
    corpus = open_corpus(config, load_tokenizer(folder))
    if not quiet:
        print(corpus.description, file=sys.stderr)
    check_excerpts(corpus, split, config.length, samples, f"--samples {samples}")
    began = time.perf_counter()
    scores = evaluate_text(network, corpus, split, config, where, samples=samples, stride=stride)
    seconds = time.perf_counter() - began
    result = {
        "model": model,
        "task": config.task,
        "data": config.data,
        "split": split,
        **drawn(samples, corpus.excerpts(split, config.length)),
        **({"length": config.length, "stride": stride or config.length} if config.task == "lm" else {}),
        **scores,
        "tokens_per_second": scores["tokens"] / seconds,
    }
    report = Report(f"{model} on {config.data}", question=f"How well does it predict the {split} part?")
    only = "" if samples is None else f", {samples:,} excerpts of {config.length} tokens{of_all(result)}"
    report.headline(f"{words(scores).capitalize()}{only}. {said_of_context(config, stride)}", facts_of(scores))
    report.results = result
    settings = {
        "model": model,
        "data": config.data,
        "data_dir": config.data_dir,
        "split": split,
        "samples": samples,
        "stride": stride,
        "batch_size": config.batch_size,
        "device": device,
    }
    report.provenance = Provenance.collect(config=settings, seeds=[], duration=seconds)
    page = write_run(out or default_folder("eval", model, config.data, settings), settings, report)
    say_where(page, quiet=quiet)
    if json:
        print(json_module.dumps({**result, "report": str(page)}, indent=2))
    else:
        print(f"{model} on {config.data} ({split}): {words(scores)}, {scores['tokens']:,} tokens{only}")


def is_text_run(model: str) -> bool:
    """Whether a MODEL argument is the folder of a run on text."""
    return run_settings(model).get("task", "classify") in TextConfig.tasks
