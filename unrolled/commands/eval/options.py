"""The flags of `unrolled eval`, whatever it measures, and what its results say of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from unrolled.commands.options import check_counts
from unrolled.harness import OutputFlags
from unrolled.subjects.options import LoaderFlags, OnError, SubjectFlags
from unrolled.subjects.runs import DataOf, completed

_OF_IMAGES = (
    "labels", "classes_by", "unknown_classes", "robustness", "robustness_images", "val_fraction", "split_seed",
    "image_size", "on_error",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvalOptions(SubjectFlags, LoaderFlags, OutputFlags):
    """Flags of `unrolled eval`."""

    model: str = field(kw_only=False)
    """A run folder, or any model by one string (`unrolled list`, timm:NAME, local:DIR, package.module:factory)."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which part of the data; all: a folder of classes that is one test set (ImageNet-V2). Class folders named by
    numbers are then the labels."""
    labels: Path | None = None
    """real.json of ImageNet ReaL: also the share of predictions that are among an image's labels, over the images that
    have some. The images are those of the ImageNet validation set, under their own names."""
    classes_by: Literal["name", "number"] = "name"
    """name: an image's class is the model's class of the same name, where both name theirs; images of classes that the
    model does not know are left out and counted. number: labels are taken as they are."""
    unknown_classes: Literal["raise", "skip"] | None = None
    """What to do with images of this split whose class the data's own training split lacks; default: as the run did,
    else raise."""
    samples: int | None = None
    """Use so many images of the split, drawn evenly, or of a text so many excerpts of its context; default: all."""
    stride: int | None = None
    """Of a run on text: tokens between the starts of two windows of its context. By default blocks do not overlap, and
    a token is predicted from 1 token up to the whole context; a half of the context gives each at least the other
    half, at twice the cost."""
    robustness: bool = False
    """Errors on images made worse in nine ways and five severities: 45 forward passes an image."""
    robustness_images: int = 1000
    """How many of the images for that, drawn evenly."""
    val_fraction: float | None = None
    """Share of the training split that is validation; default: that of the run, else 0.1 with --split val."""
    split_seed: int | None = None
    """Which images belong to which split, where the data set does not say; default: that of the run, else 0."""
    weights: Path | None = None
    """Load these instead: a folder of `unrolled convert`, a run folder or a published checkpoint."""
    batch_size: int | None = None
    """Images, or excerpts of text, in one forward pass; default: 128, of a run on text that of the run."""
    on_error: OnError = "raise"
    """An undecodable image stops the evaluation, or is named, counted and left out."""
    seed: int = 0
    """Of weights that are not loaded, of the corruptions, and, where the data have no validation part to fit the
    temperature on, of the fifth of the images it is then fitted on."""
    out: Path | None = None
    """Where config.yaml, report.html and report.json go; default: runs/eval-MODEL-DATA."""

    def __post_init__(self) -> None:
        check_counts(robustness_images=self.robustness_images, batch_size=self.batch_size, image_size=self.image_size,
                     stride=self.stride)  # fmt: skip
        check_counts(0, workers=self.workers, seed=self.seed, split_seed=self.split_seed)

    def divided(self) -> tuple[EvalOptions, DataOf]:
        """With what is left open about the data and their division into splits as in the model's run; and the run's."""
        options, data = completed(self)
        fraction = options.val_fraction
        if fraction is None:
            fraction = data.val_fraction or (0.1 if options.split == "val" else 0.0)
        seed = data.split_seed if options.split_seed is None else options.split_seed
        unknown = options.unknown_classes or data.unknown_classes
        return replace(options, split_seed=seed, val_fraction=fraction, unknown_classes=unknown), data

    def refuse_images(self) -> None:
        """Refuse the flags that are for images, where a language model is measured.

        Raises:
            ValueError: naming those that were given.
        """
        default = {item.name: item.default for item in fields(self)}
        given = [name for name in _OF_IMAGES if getattr(self, name) != default[name]]
        flags = ["--split all"] * (self.split == "all") + [f"--{name.replace('_', '-')}" for name in given]
        if flags:
            words = ("is", "it") if len(flags) == 1 else ("are", "them")
            raise ValueError(
                f"{', '.join(flags)}: {words[0]} for images, and {self.model} is a language model; leave {words[1]} out"
            )

    def refuse(self, *names: str) -> None:
        """Refuse flags that would be ignored of a run that is measured as it was trained."""
        for name in names:
            if getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')}: this run is measured as it was trained; leave it out")


def drawn(samples: int | None, available: int) -> dict[str, int]:
    """What `--samples` adds to a result: how many were asked for, and of how many; nothing without the flag."""
    return {} if samples is None else {"samples": samples, "samples_of": available}


def of_all(result: Mapping[str, Any]) -> str:
    """What such a result says after a number of samples: `` drawn evenly from 10,000``, or nothing."""
    return f" drawn evenly from {result['samples_of']:,}" if "samples_of" in result else ""
