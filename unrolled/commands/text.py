"""`unrolled train --task lm|mlm`, and `unrolled eval` of the runs it makes."""

from __future__ import annotations

import json as json_module
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrolled.commands.common import (
    Device,
    choose_device,
    default_folder,
    drawn,
    of_all,
    run_settings,
    say_where,
    saying_how_to_resume,
    write_run,
)
from unrolled.locks import hold
from unrolled.train.config import TrainConfig

if TYPE_CHECKING:
    from unrolled.report import Report
    from unrolled.train import LanguageResult

_SAMPLE = 200


def run_text(config: TrainConfig, *, json: bool) -> None:
    """Train on text, write the report into the run folder, and print what came out."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from unrolled.train import fit_text

    began = time.perf_counter()
    with saying_how_to_resume("train", config.out, config.model):
        result = fit_text(config)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    hold(result.run_dir)
    facts = {
        "run": str(result.run_dir),
        "task": result.config.task,
        "model": result.config.model,
        "data": result.config.data,
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "steps": result.steps,
        "chosen_step": result.chosen_step,
        "tokens_per_second": result.tokens_per_second,
        "test": result.test,
        "validation": [entry for entry in result.metrics if entry["split"] == "val"],
    }
    page = _report(result, facts, time.perf_counter() - began).write(result.run_dir).html
    say_where(page, quiet=config.quiet)
    if json:
        print(json_module.dumps({**facts, "report": str(page)}, indent=2))
        return
    print(
        f"{facts['model']} on {facts['data']}: test {_words(result.test)}, {facts['parameters']:,} parameters, "
        f"{facts['steps']:,} steps, {facts['tokens_per_second']:,.0f} tokens/s; the model is in {result.run_dir}"
    )


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
    from unrolled.data.tokens import load_tokenizer
    from unrolled.models.encoder import load_language_model
    from unrolled.report import Provenance, Report
    from unrolled.train import load_config
    from unrolled.train.text_run import check_excerpts, evaluate_text, open_corpus

    folder = Path(model.removeprefix("local:")).expanduser()
    changes: dict[str, Any] = {"accumulate": 1, "devices": 1, "num_nodes": 1}
    given = {"data": data, "data_dir": data_dir, "batch_size": batch_size}
    changes |= {name: value for name, value in given.items() if value is not None}
    config = load_config(folder / "config.yaml", TrainConfig, **changes)
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
        print(corpus.said, file=sys.stderr)
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
    report.headline(f"{_words(scores).capitalize()}{only}. {said_of_context(config, stride)}", _facts(scores))
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
        print(f"{model} on {config.data} ({split}): {_words(scores)}, {scores['tokens']:,} tokens{only}")


def said_of_context(config: TrainConfig, stride: int | None = None) -> str:
    """From how much text each held-out token is predicted."""
    length = config.length
    if config.task == "mlm":
        return (
            f"The text is cut into windows of {length} tokens side by side; {config.mask_share:.0%} of each, the same "
            "ones every time, are masked, and none is predicted twice."
        )
    if stride is None or stride == length:
        return (
            f"The text is cut into blocks of {length} tokens that do not overlap, so that a token is predicted from 1 "
            f"to {length} tokens, half of that on average; `unrolled eval --stride` gives it more."
        )
    return (
        f"Windows of {length} tokens every {stride}: after the first, a token is predicted from at least "
        f"{length - stride + 1} tokens."
    )


def is_text_run(model: str) -> bool:
    """Whether a MODEL argument is the folder of a run on text."""
    return run_settings(model).get("task", "classify") in ("lm", "mlm")


def _words(scores: dict[str, Any]) -> str:
    if "bits_per_byte" in scores:
        return f"loss {scores['loss']:.4f} nats per token, {scores['bits_per_byte']:.4f} bits per byte"
    return f"loss {scores['loss']:.4f} nats per masked token, {100 * scores['accuracy']:.2f} % of them right"


def _facts(scores: dict[str, Any]) -> list[Any]:
    from unrolled.report import Fact

    facts = [
        Fact(label="Loss", value=f"{scores['loss']:.4f}", detail="cross-entropy, nats per predicted token"),
        Fact(label="Likeliest token is right", value=f"{100 * scores['accuracy']:.2f} %"),
    ]
    if "bits_per_byte" in scores:
        detail = f"{scores['bytes']:,} bytes"
        facts.insert(0, Fact(label="Bits per byte", value=f"{scores['bits_per_byte']:.4f}", detail=detail))
    return facts


def _report(result: LanguageResult, facts: dict[str, Any], seconds: float) -> Report:
    from unrolled.report import Fact, Provenance, Report, learning_curves

    config = result.config
    masked = config.task == "mlm"
    what = "masked tokens" if masked else "the next token"
    report = Report(
        f"{config.model} trained on {config.data}", question=f"How well does it predict {what} of text it never saw?"
    )
    report.headline(
        f"On the test part: {_words(result.test)}. {said_of_context(config)}",
        [
            *_facts(result.test),
            Fact(label="Parameters", value=f"{facts['parameters']:,}"),
            Fact(
                label="Training speed",
                value=f"{result.tokens_per_second:,.0f} tokens/s",
                detail=f"{result.steps:,} steps",
            ),
        ],
    )
    only = "" if config.eval_samples is None else f" ({config.eval_samples:,} excerpts of it, drawn evenly)"
    panels = learning_curves({"": [result.metrics]})
    if panels:
        report.section("Learning curves").figure(
            panels,
            name="curves",
            caption="One run; accuracy is how often the likeliest token is right. The training loss is averaged since "
            f"the point before. Dotted: the validation part{only}, by which the weights of step {result.chosen_step} "
            "were chosen.",
        )
    if not masked and hasattr(result.model, "generate"):
        report.section(
            "A sample",
            "What the model writes after the first words of the test part, the likeliest token every time: "
            f"`{_sample(result)}`",
        )
    report.results = {**facts, "metrics": result.metrics}
    report.provenance = Provenance.collect(config=config, seeds=[config.seed], duration=seconds)
    return report


def _sample(result: LanguageResult) -> str:
    from unrolled.train.text_run import open_corpus

    tokens = open_corpus(result.config, result.tokenizer).tokens["test"]
    length = result.config.length
    prompt = tokens[: min(32, length // 2)]
    device = next(result.model.parameters()).device
    generate: Any = result.model.generate
    more = generate(prompt[None].to(device), min(_SAMPLE, length - len(prompt)))[0]
    return result.tokenizer.decode(more.cpu()).replace("`", "'").replace("\n", " / ")
