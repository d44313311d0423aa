"""`unrolled eval` of language models that are no run's: bits per byte on a part of a corpus."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from unrolled.commands.eval.options import EvalOptions
from unrolled.harness import Answer, Run
from unrolled.subjects.models import choose_device
from unrolled.terminal import progress, say

_EXCERPT = 1000  # characters


def measures_language(options: EvalOptions) -> bool:
    """Whether the model is a language model of this package, or one of transformers and the data are texts."""
    from unrolled.data.text import is_text
    from unrolled.subjects.language import is_language_model, source_of

    if is_language_model(options.model):
        return True
    return is_text(options.data, options.data_dir) and source_of(options.model)[0] != "none"


def evaluate_language_model(options: EvalOptions) -> None:
    """Bits per byte, in windows of 256 tokens, or of as many as the model takes and learnt from where these are fewer,
    each with its mark of a text's begin.

    Raises:
        ValueError: there are no data, flags are of images, it does not predict the next token, or its tokenizer does
            not tell bytes.
    """
    from unrolled.data.text import open_text, text_names
    from unrolled.instruments.sequences.bits_per_byte import bits_per_byte
    from unrolled.report import Fact, Report
    from unrolled.subjects.texts import open_reader

    options.refuse_images()
    if options.data is None:
        raise ValueError(
            f"--data: {options.model} is a language model; name a corpus, one of {', '.join(text_names())} or folder, "
            "and with --data-dir where it is"
        )
    reader = open_reader(options)
    if not reader.causal or reader.bytes_of is None:
        reason = "has a tokenizer that does not tell bytes" if reader.causal else "does not predict the next token"
        raise ValueError(f"model: {options.model} {reason}; give a causal language model")
    split, options = options.split, replace(options, batch_size=options.batch_size or 8)
    assert split != "all"  # refused above
    part = open_text(str(options.data), split, data_dir=options.data_dir)
    say(part.description, quiet=options.quiet)
    training, seen, note = _training(options, split, random=reader.random)
    if note:
        say(f"note: {note}")
    length = reader.window
    texts = [part.text] if options.samples is None else _excerpts(part.text, options.samples)
    run = Run(options, "eval", options.model, str(options.data))
    begins = reader.encode("")[:1]
    tokenizer: Any = SimpleNamespace(encode=reader.pieces, bytes_of=reader.bytes_of)
    model = reader.module.to(choose_device(options.device))
    settings: dict[str, Any] = {"length": length, "stride": options.stride, "batch_size": options.batch_size}
    settings["start"] = begins[0] if begins else None
    total = Counter[str]()
    for text in progress(texts, total=len(texts), what="eval", quiet=options.quiet):
        measured = bits_per_byte(model, text, tokenizer, **settings)
        total.update({name: measured[name] for name in ("bits", "bytes", "tokens")})
    scores = {
        "loss": total["bits"] * math.log(2) / total["tokens"],
        "bits_per_byte": total["bits"] / total["bytes"],
        "bytes": total["bytes"],
        "tokens": total["tokens"],
    }
    result: Answer = {
        "model": options.model, "task": "lm", "data": options.data, "split": options.split, "length": length,
        "stride": options.stride or length, **({} if options.samples is None else {"samples": options.samples}),
        **training, **scores, "tokens_per_second": total["tokens"] / run.seconds,
        **({"notes": [note]} if note else {}),
    }  # fmt: skip
    words = f"{scores['bits_per_byte']:.4f} bits per byte, {scores['loss']:.4f} nats per token"
    windows = f"in windows of {length} tokens"
    what = f"{options.model} on {options.data}"
    report = Report(what, question=f"How well does it predict the {options.split} part?")
    report.headline(
        f"{words}, of {scores['bytes']:,} bytes in {scores['tokens']:,} tokens, {windows}. {seen}",
        [
            Fact(label="Bits per byte", value=f"{scores['bits_per_byte']:.4f}", detail=f"{scores['bytes']:,} bytes"),
            Fact(label="Loss", value=f"{scores['loss']:.4f}", detail="nats per predicted token"),
        ],
    )
    text = f"{what} ({options.split}): {words}, {windows}"
    run.finish(report, result, text, seeds=[options.seed] * reader.random, options=options)


def _training(
    options: EvalOptions, split: Literal["train", "val", "test"], *, random: bool
) -> tuple[dict[str, Any], str, str]:
    """Whether the model has seen the text in training: for the answer, for the page, and what warns of the score."""
    from unrolled.catalogue import learnt_from
    from unrolled.data.text import share_text
    from unrolled.subjects.runs import named
    from unrolled.subjects.texts import of_random_weights

    model = options.model
    if random:
        return {"weights": "random"}, "Its weights are random: nothing was learned.", of_random_weights(model)
    scheme, _, folder = named(model).partition(":")
    learnt = learnt_from(Path(folder)) if scheme == "local" else ()
    if not learnt:
        return {"weights": model}, "Whether the model has seen this text in training is not known.", ""
    facts = {"weights": model, "learnt_from": list(learnt)}
    corpora = f"the training parts of {', '.join(learnt[:-1])} and {learnt[-1]}"
    if any(share_text(str(options.data), split, corpus, "train") for corpus in learnt):
        note = f"{model} learnt from this text; --split test is of text that it has not seen"
        return facts, f"It learnt from this text, of {corpora}: the score says little of other text.", note
    return facts, f"It learnt from {corpora}.", ""


def _excerpts(text: str, count: int) -> list[str]:
    """So many excerpts of 1,000 characters, drawn evenly."""
    if not 1 <= count <= len(text) // _EXCERPT:
        raise ValueError(f"--samples {count}: give 1 to {len(text) // _EXCERPT}, excerpts of {_EXCERPT:,} characters")
    last = len(text) - _EXCERPT
    starts = [round(number * last / max(1, count - 1)) for number in range(count)]
    return [text[start : start + _EXCERPT] for start in starts]
