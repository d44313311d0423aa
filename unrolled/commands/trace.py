"""`unrolled trace`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unrolled.commands.options import check_counts, verb
from unrolled.harness import OutputFlags, Run
from unrolled.subjects.images import batches, images_of
from unrolled.subjects.models import choose_device, open_trained, origin
from unrolled.subjects.options import SubjectFlags
from unrolled.subjects.runs import completed
from unrolled.terminal import progress, say

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TraceOptions(SubjectFlags, OutputFlags):
    """Flags of `unrolled trace`."""

    model: str = field(kw_only=False)
    split: Literal["train", "test"] = "test"
    """Which part of the data, divided as in the run the weights are from."""
    images: int = 256
    """How many images, or windows of a corpus of text, drawn evenly from the whole split."""
    data: str | None = None
    """Data set or corpus of text; default: the one of the run folder, else digits."""
    eps: float = 0.1
    """Distortion of the coding rates."""
    protocol: Literal["paper", "published"] = "paper"
    """`paper`: tokens divided by their norm, at Z+half; `published`: what the published code's hook computes."""
    text: tuple[str, ...] = ()
    """Texts for a language model, in quotes."""
    texts: Path | None = None
    """A file with one text a line, for a language model."""
    length: int | None = None
    """Tokens of a text; default: of a corpus those of the run, else 256, or as many as the model takes and learnt from
    where these are fewer; of texts all."""
    stack: str | None = None
    """Of a model with several stacks of blocks the one to measure, such as `decoder` of T5; default: the main one. Of
    two towers that is taken which reads what is shown."""
    batch_size: int = 32
    """Images or texts in one forward pass."""
    seed: int = 0
    """Of weights that are not loaded, and of the untrained control's, which are others."""
    out: Path | None = None
    """Where config.yaml, report.html and report.json go; default: runs/trace-MODEL-DATA."""

    def __post_init__(self) -> None:
        check_counts(images=self.images)
        if self.length is not None:
            check_counts(length=self.length)


@verb
def trace(options: TraceOptions) -> None:
    """Show what every layer does to the coding rates and the sparsity of its tokens.

    The same architecture with fresh weights is measured on the same samples (the columns marked 0): an untrained CRATE
    already compresses and sparsifies, so only what goes beyond it was learned. Language models are shown texts; of a
    corpus the report also says by position what the context does.

        unrolled trace runs/digits --images 1000
        unrolled trace crate_nano_patch2_8 --weights runs/digits --data digits
        unrolled trace timm:vit_tiny_patch16_224 --data cifar10 --data-dir data
        unrolled trace hf:gpt2 --text "The cat sat on the mat." "Two texts, two samples."
        unrolled trace hf:Qwen/Qwen2.5-0.5B --data tinyshakespeare --data-dir data --images 16
        unrolled trace hf:google-t5/t5-small --texts sentences.txt --stack decoder
        unrolled trace runs/text
    """
    from unrolled.subjects.texts import reads_text

    if reads_text(options):
        _trace_texts(options)
    else:
        _trace_images(options)


def _trace_images(options: TraceOptions) -> None:
    from unrolled.commands.trace_report import image_report, legend, table_of
    from unrolled.data.sources import Subset
    from unrolled.instruments import trace_report
    from unrolled.models.encoders import part_name, tower_of
    from unrolled.models.masked import whole_images

    if options.length is not None:
        raise ValueError("--length: is of texts; leave it out")
    options, data = completed(options)
    where = choose_device(options.device)
    everything = images_of(data, options.split, quiet=options.quiet)
    source = Subset.evenly(everything, options.images)
    opened, stopped = open_trained(options, everything)
    whole = whole_images(opened)
    network = tower_of(whole, "image")
    tower = part_name(whole, network)
    _say_part(tower, options)
    loader = batches(network, source, image_size=options.image_size, batch_size=options.batch_size)

    def pixels() -> Iterator[Tensor]:
        total = -(-len(source) // options.batch_size)
        for batch in progress(loader, total=total, what="trace", quiet=options.quiet):
            yield batch.images

    run = Run(options, "trace", options.model, data.data)
    # under the same seed, the control of a model with random weights could be that model itself
    layers = trace_report(
        network, pixels(), options.eps, options.protocol, device=where, stack=options.stack, seed=options.seed + 1
    )
    result = {
        "model": options.model, "data": data.data, "split": options.split, "weights": origin(options),
        **stopped, **({"part": tower} if tower else {}), **layers, "seed": options.seed,
    }  # fmt: skip
    say(legend(), quiet=options.quiet)
    run.finish(image_report(result), result, table_of(result), seeds=[options.seed])


def _trace_texts(options: TraceOptions) -> None:
    from unrolled.commands.trace_report import legend, table_of, text_report
    from unrolled.commands.trace_text import context_sentences, in_context
    from unrolled.instruments import trace_report
    from unrolled.subjects.texts import of_random_weights, open_reader, open_texts

    where = choose_device(options.device)
    reader = open_reader(options, stack=options.stack)
    texts = open_texts(reader, options)
    say(f"data: {texts.description}", quiet=options.quiet)
    _say_part(reader.part, options)
    if reader.random:
        say(f"note: {of_random_weights(options.model)}")
    run = Run(options, "trace", options.model, texts.name)
    parts = list(texts.batches(options.batch_size))
    shown = (reader.given(ids) for ids in progress(parts, total=len(parts), what="trace", quiet=options.quiet))
    longest = max(len(ids) for ids in texts.ids)
    positions = sorted({-(-longest * part // 8) for part in range(1, 9)})
    layers = trace_report(
        reader.module, shown, options.eps, options.protocol, device=where, stack=options.stack, positions=positions,
        seed=options.seed + 1,
    )  # fmt: skip
    result = {
        "model": options.model, "data": texts.name, "text": texts.description,
        "weights": "random" if reader.random else options.model, **({"part": reader.part} if reader.part else {}),
        **layers, "seed": options.seed,
        **in_context(reader, texts, where, options.batch_size),
    }  # fmt: skip
    say(legend(), quiet=options.quiet)
    answer = "\n\n".join([table_of(result), *context_sentences(result)])
    run.finish(text_report(result), result, answer, seeds=[options.seed])


def _say_part(part: str, options: TraceOptions) -> None:
    if part:
        say(f"note: of {options.model} its {part} is traced, which reads what is shown", quiet=options.quiet)
