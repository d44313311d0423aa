"""`unrolled ablate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.commands.options import check_counts, verb
from unrolled.harness import OutputFlags, Run
from unrolled.subjects.images import batches, images_of
from unrolled.subjects.models import choose_device, open_model
from unrolled.subjects.options import SubjectFlags
from unrolled.subjects.runs import completed
from unrolled.terminal import progress, table

if TYPE_CHECKING:
    from torch import Tensor

    from unrolled.instruments.effects import Effects
    from unrolled.report import Report

_WORDS = {"accuracy": "accuracy", "probability": "probability of the right class", "loss": "loss (nats)"}


@dataclass(frozen=True, kw_only=True)
class AblateOptions(SubjectFlags, OutputFlags):
    """Flags of `unrolled ablate`."""

    model: str = field(kw_only=False)
    places: tuple[str, ...] = ("block*/attn/head*",)
    """What is changed, one at a time: names that `trace` shows, heads (`block03/attn/head2`), atoms
    (`block03/ista/atom17`), with the wildcards * and ?."""
    change: Literal["zero", "mean"] = "zero"
    """What a place becomes: nothing, or its mean over the tokens of the image."""
    score: Literal["accuracy", "probability", "loss"] = "probability"
    """What is looked at, of the right class of each image."""
    split: Literal["train", "test"] = "test"
    """Which part of the data, divided as in the run the weights are from."""
    images: int = 256
    """How many images, drawn evenly from the whole split."""
    batch_size: int = 64
    """Images in one forward pass, whose blocks are kept."""
    seed: int = 0
    """Of weights that are not loaded, of random directions and the bootstrap."""
    out: Path | None = None
    """Where config.yaml, report.html and report.json go; default: runs/ablate-MODEL-DATA."""

    def __post_init__(self) -> None:
        check_counts(images=self.images, batch_size=self.batch_size)


@verb
def ablate(options: AblateOptions) -> None:
    """Remove heads, halves or atoms one at a time, and see what that does to the prediction.

    Beside each stands a change of the same size in a random direction: what that does too is no sign that the place
    matters. Intervals are over images.

        unrolled ablate runs/cifar10 --images 512
        unrolled ablate timm:vit_tiny_patch16_224 --pretrained --data cifar10 --data-dir data --score accuracy
        unrolled ablate crate_nano_patch4_32.cifar10 --data cifar10 --data-dir data --places "block05/ista/atom*"
    """
    from unrolled.data.sources import Subset
    from unrolled.instruments import causal, edits
    from unrolled.models.masked import whole_images

    options, subject = completed(options)
    where = choose_device(options.device)
    everything = images_of(subject, options.split, quiet=options.quiet)
    source = Subset.evenly(everything, options.images)
    network = whole_images(open_model(options, classes=len(everything.classes))).to(where)
    loader = batches(network, source, image_size=options.image_size, batch_size=options.batch_size)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        total = -(-len(source) // options.batch_size)
        for batch in progress(loader, total=total, what="ablate", quiet=options.quiet):
            yield batch.images.to(where), batch.labels.to(where)

    run = Run(options, "ablate", options.model, subject.data)
    change = edits.zero if options.change == "zero" else edits.token_mean
    effects = causal.ablate(
        network, pairs(), lambda out, labels: _score(out, labels, options.score), options.places,
        change=change, seed=options.seed,
    )  # fmt: skip
    rows = [{key: value for key, value in asdict(row).items() if key != "samples"} for row in effects]
    result = {
        "model": options.model, "data": subject.data, "split": options.split, "images": len(source),
        "change": options.change, "score": options.score, "unchanged": effects.score, "places": rows,
    }  # fmt: skip
    run.finish(_report(result, effects), result, _table(effects, options.score), seeds=[options.seed])


def _score(out: Any, labels: Tensor, score: str) -> Tensor:
    logits: Tensor = out if hasattr(out, "log_softmax") else out.logits
    if score == "accuracy":
        return (logits.argmax(-1) == labels).double()
    log_probability = logits.double().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    return -log_probability if score == "loss" else log_probability.exp()


def _rows(effects: Effects) -> list[list[str]]:
    return [
        [row.name, f"{row.change:+.4f}", f"[{row.low:+.4f}, {row.high:+.4f}]", f"{row.control:+.4f}"] for row in effects
    ]


def _table(effects: Effects, score: str) -> str:
    columns = ["place", "change", "95 % interval", "random change"]
    return f"{table(columns, _rows(effects))}\n{_WORDS[score]} without a change: {effects.score:.4f}"


def _report(result: dict[str, Any], effects: Effects) -> Report:
    from unrolled.report import Fact, Report

    label = _WORDS[result["score"]]
    report = Report(f"What the parts of {result['model']} cause", question="What does the model need each part for?")
    largest = max(effects, key=lambda row: abs(row.change))
    clear = [row for row in effects if row.low > 0 or row.high < 0]
    report.headline(
        f"{largest.name} matters most: without it the {label} changes by {largest.change:+.4f} "
        f"[{largest.low:+.4f}, {largest.high:+.4f}], by {largest.control:+.4f} under a random change of that size. "
        f"{len(clear)} of {len(effects)} places have an interval without 0, each by itself.",
        [
            Fact(label=f"{label}, unchanged", value=f"{effects.score:.4f}", detail=f"{result['images']:,} images"),
            Fact(label="Places", value=str(len(effects)), detail=f"each by itself: {result['change']}"),
        ],
    )
    section = report.section(
        "Every place",
        f"Change of the {label} when the place becomes {_BECOMES[result['change']]}; below zero, the {label} falls. "
        "`random change` moves the place as far at every token, in a random direction. What two parts do together is "
        "not seen here.",
    )
    caption = f"Mean over {result['images']:,} images of {result['data']}."
    section.figure(effects.panel(), name="places", caption=caption)
    section.table(["place", "change", "95 % interval over images", "random change"], _rows(effects))
    return report


_BECOMES = {"zero": "nothing", "mean": "its mean over the tokens of the image"}
