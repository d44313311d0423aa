"""`unrolled ablate`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unrolled.commands.options import verb
from unrolled.commands.sweep import (
    ScoreName,
    SweepFlags,
    add_places,
    causal_reader,
    cells_of,
    has_intervals,
    how_many_are_clear,
    positions_of,
    predicted,
    score_for,
    store_of,
    within,
)
from unrolled.harness import Answer, Run
from unrolled.reading import Json
from unrolled.subjects.images import batches, images_of
from unrolled.subjects.models import choose_device, open_model, origin
from unrolled.subjects.runs import completed
from unrolled.terminal import progress, say, table

if TYPE_CHECKING:
    from torch import nn

    from unrolled.instruments.causal import Effects, Score
    from unrolled.report import Report

_BECOMES = {"zero": "nothing", "mean": "its mean over the tokens of the sample"}


@dataclass(frozen=True, kw_only=True)
class AblateOptions(SweepFlags):
    """Flags of `unrolled ablate`."""

    places: tuple[str, ...] = ("block*/attn/head*",)
    """What is changed, one at a time: names that `trace` shows, heads (`block03/attn/head2`), subspaces of what enters
    a block (`block03/subspace2`), atoms (`block03/ista/atom17`), with the wildcards * and ?."""
    change: Literal["zero", "mean"] = "zero"
    """What a place becomes: nothing, or its mean over the tokens of the sample."""
    score: ScoreName | None = None
    """What is looked at: of the right class of each image, or of the tokens of each text; default: the probability, of
    texts the bits per byte. `logit-difference` is that to the best other class; `jaccard`, on annotated photos (--data
    ade20k, bsds, coco, masks or voc), how well the class token's attention in the last block but one fits the things
    that are marked."""
    out: Path | None = None
    """Where config.yaml, report.html and report.json go; default: runs/ablate-MODEL-DATA. A sweep that was stopped goes
    on there."""


@verb
def ablate(options: AblateOptions) -> None:
    """Remove heads, halves, subspaces or atoms one at a time, and see what that does to the prediction.

    Beside each stands a change of the same size in a random direction: what that does too is no sign that the place
    matters. Intervals are over images or texts. Stopped, it goes on when it is called again with the same flags.

        unrolled ablate runs/cifar10 --images 512
        unrolled ablate timm:vit_tiny_patch16_224 --pretrained --data cifar10 --data-dir data --score accuracy
        unrolled ablate crate_nano_patch4_32.cifar10 --data cifar10 --data-dir data --places "block05/ista/atom*"
        unrolled ablate runs/cifar10 --places "block??" --positions each
        unrolled ablate runs/imagenet --score jaccard --data coco --data-dir data/coco --images 100
        unrolled ablate hf:gpt2 --data tinyshakespeare --data-dir data --images 32 --batch-size 4
    """
    from unrolled.subjects.texts import reads_text

    if options.score == "jaccard":
        _ablate_masks(options)
    elif reads_text(options):
        _ablate_texts(options)
    else:
        _ablate_images(options)


def _ablate_images(options: AblateOptions) -> None:
    from unrolled.data.sources import Subset
    from unrolled.models.masked import whole_images

    if options.length is not None:
        raise ValueError("--length: is of texts; leave it out")
    options, subject = completed(options)
    options = replace(options, score=options.score or "probability")
    score, _ = score_for(str(options.score))
    where = choose_device(options.device)
    everything = images_of(subject, options.split, quiet=options.quiet)
    source = Subset.evenly(everything, options.images)
    network = whole_images(open_model(options, classes=len(everything.classes), head=True)).to(where)
    loader = batches(network, source, image_size=options.image_size, batch_size=options.batch_size)
    bar = progress(loader, total=-(-len(source) // options.batch_size), what="ablate", quiet=options.quiet)
    shown = ((batch.images.to(where), batch.labels.to(where)) for batch in bar)
    details = {"data": subject.data, "split": options.split, "images": len(source), "weights": origin(options)}
    _sweep(options, network, shown, score, details, f"{len(source):,} images of {subject.data} ({options.split} split)")


def _ablate_masks(options: AblateOptions) -> None:
    from unrolled.data.sources import evenly
    from unrolled.instruments.causal import Attending, marked, scores
    from unrolled.subjects.masks import open_marked
    from unrolled.subjects.pictures import opened_for_pictures

    if options.data is None:
        raise ValueError("--data: --score jaccard needs annotated photos; give ade20k, bsds, coco, masks or voc")
    source = open_marked(options.data, options.data_dir)
    say(f"data: {source.description}", quiet=options.quiet)
    where = choose_device(options.device)
    network, prepared = opened_for_pictures(options, where)
    rows = evenly(min(options.images, len(source)), len(source)).tolist()

    def shown() -> Iterator[Any]:
        for row in progress(rows, total=len(rows), what="ablate", quiet=options.quiet):
            scene = source.load(row)
            if scene.foreground().any():  # else there is nothing to fit
                pixels = prepared.tensor(scene.image).to(where)
                grid = prepared.grid(pixels)
                yield (pixels, grid), marked(grid, scene.foreground(), scene.ignore)

    details = {"data": options.data, "split": "val", "images": len(rows), "weights": origin(options)}
    model = Attending(network, prefix=prepared.prefix)
    _sweep(
        options, model, shown(), scores.SCORES["jaccard"].score, details, f"{len(rows):,} photos, {source.description}"
    )


def _ablate_texts(options: AblateOptions) -> None:
    from unrolled.subjects.texts import open_texts

    options = replace(options, score=options.score or "bits-per-byte")
    where = choose_device(options.device)
    reader = causal_reader(options)
    texts = open_texts(reader, options)
    say(f"data: {texts.description}", quiet=options.quiet)
    score, factor = score_for(str(options.score), predicted(reader, texts.ids))
    if math.isnan(factor):  # not of all tokens
        raise ValueError(f"--score {options.score}: is of answers; of texts take bits-per-byte or nats-per-token")
    parts = list(texts.batches(options.batch_size))
    bar = progress(parts, total=len(parts), what="ablate", quiet=options.quiet)
    shown = ((reader.given(ids.to(where)), (ids, factor)) for ids in bar)
    details = {"data": texts.name, "text": texts.description, "texts": len(texts.ids),
            "weights": "random" if reader.random else options.model}  # fmt: skip
    _sweep(options, reader.module.to(where), shown, score, details, texts.description)


def _sweep(
    options: AblateOptions, network: nn.Module, shown: Iterable[Any], score: Score, details: Json, seen: str
) -> None:
    from unrolled.instruments import causal, edits

    run = Run(options, "ablate", options.model, details["data"])
    store = store_of(run, options)
    effects = causal.ablate(
        network, shown, score, options.places, change=edits.zero if options.change == "zero" else edits.token_mean,
        positions=positions_of(options.positions), seed=options.seed, store=store,
    )  # fmt: skip
    result = {
        "model": options.model, **details, "change": options.change, "score": options.score, "unchanged": effects.score,
        "places": effects.records(),
    }  # fmt: skip
    label = causal.scores.SCORES[str(options.score)].words
    text = f"{table(*cells_of(effects))}\n{label} without a change: {effects.score:.4f}"
    run.finish(_report(result, effects, label, seen), result, text, seeds=[options.seed])
    store.remove()


def _report(result: Answer, effects: Effects, label: str, seen: str) -> Report:
    from unrolled.report import Fact, Report

    report = Report(f"What the parts of {result['model']} cause", question="What does the model need each part for?")
    largest = max(effects, key=lambda row: abs(row.change))
    random = "The weights are random: nothing here was learned. " if result["weights"] == "random" else ""
    report.headline(
        f"{random}{largest.name} matters most: without it the {label} changes by {largest.change:+.4f}"
        f"{within(largest.low, largest.high)}, by {largest.control:+.4f} under a random change of that size. "
        f"{how_many_are_clear(effects)}",
        [
            Fact(label=f"{label}, unchanged", value=f"{effects.score:.4f}", detail=seen),
            Fact(label="Places", value=str(len(effects)), detail=f"each by itself: {result['change']}"),
        ],
    )
    report.section("What the columns mean").table(
        ["column", "what it is (unit)", "direction"],
        [
            [
                "change",
                f"{label} with the place changed, less without; mean",
                "far from 0: the place matters, by itself",
            ],
            *(
                [
                    [
                        "95 % interval over samples",
                        "of the change, by bootstrap",
                        "without 0: more than chance, by itself",
                    ]
                ]
                if has_intervals(effects)
                else []
            ),
            ["random change", "the same of a random change as large", "as far from 0: any change there would do it"],
        ],
    )
    section = report.section(
        "Every place",
        f"Change of the {label} when the place becomes {_BECOMES[result['change']]}; below zero, it falls. "
        "`random change` moves the place as far at every token, in a random direction. `blockNN/subspaceK` is what the "
        "tokens that enter the block have in the subspace of its head K; `@` stands before the only token that is "
        "changed. What two parts do together is not seen here.",
    )
    add_places(section, effects, f"Mean over {seen}.")
    return report
