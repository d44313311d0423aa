"""What the reports of runs on text say: losses in nats and bits, curves, and a sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unrolled.commands.train_report import size_and_speed, summary
from unrolled.report import Fact, Provenance, Report, learning_curves
from unrolled.train import TextConfig, TrainResult

_SAMPLE = 200
_TEMPERATURE = 0.8  # the likeliest token every time is "the the the" early in training


def words(scores: Mapping[str, Any]) -> str:
    """Scores on a part in words."""
    if "bits_per_byte" in scores:
        return f"loss {scores['loss']:.4f} nats per token, {scores['bits_per_byte']:.4f} bits per byte"
    return f"loss {scores['loss']:.4f} nats per masked token, {100 * scores['accuracy']:.2f} % of them right"


def facts_of(scores: Mapping[str, Any]) -> list[Fact]:
    """The numbers at the top of a page."""
    facts = [
        Fact(label="Loss", value=f"{scores['loss']:.4f}", detail="cross-entropy, nats per predicted token"),
        Fact(label="Likeliest token is right", value=f"{100 * scores['accuracy']:.2f} %"),
    ]
    if "bits_per_byte" in scores:
        detail = f"{scores['bytes']:,} bytes"
        facts.insert(0, Fact(label="Bits per byte", value=f"{scores['bits_per_byte']:.4f}", detail=detail))
    return facts


def run_report(result: TrainResult, seconds: float) -> Report:
    """The report of a run."""
    config = result.config
    assert isinstance(config, TextConfig)
    assert result.test is not None
    masked = config.task == "mlm"
    what = "masked tokens" if masked else "the next token"
    report = Report(
        f"{config.model} trained on {config.data}", question=f"How well does it predict {what} of text it never saw?"
    )
    report.headline(
        f"On the test part: {words(result.test)}. {context_sentence(config)}",
        [
            *facts_of(result.test),
            *size_and_speed(result),
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
            f"What the model writes after the first words of the test part, drawn at temperature {_TEMPERATURE}: "
            f"`{_sample(result)}` `unrolled generate` writes more.",
        )
    report.results = {**summary(result), "metrics": result.metrics}
    report.provenance = Provenance.collect(config=config, seeds=[config.seed], duration=seconds)
    return report


def _sample(result: TrainResult) -> str:
    """What the model writes after the first words of the test part."""
    tokens, tokenizer = result.data.tokens["test"], result.data.tokenizer
    length = result.config.length  # type: ignore[attr-defined]
    prompt = tokens[: min(32, length // 2)]
    device = next(result.model.parameters()).device
    generate: Any = result.model.generate
    more = generate(prompt[None].to(device), _SAMPLE, temperature=_TEMPERATURE, seed=0)[0]
    text: str = tokenizer.decode(more.cpu())
    return text.replace("`", "'").replace("\n", " / ")


def context_sentence(config: TextConfig, stride: int | None = None) -> str:
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
