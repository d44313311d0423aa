"""Images that a model is shown: those of a data set, divided as in the model's run, preprocessed as it expects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from unrolled.terminal import say

if TYPE_CHECKING:
    from torch import nn

    from unrolled.data import Batch, ImageSource
    from unrolled.subjects.options import OnError
    from unrolled.subjects.runs import DataOf


def images_of(data: DataOf, split: Any, *, quiet: bool) -> ImageSource:
    """The images that a verb which looks at no labels takes; said on stderr."""
    from unrolled.data import open_images

    source = open_images(
        data.data, split, data_dir=data.data_dir, val_fraction=data.val_fraction, seed=data.split_seed,
        unknown_classes="skip",
    )  # fmt: skip
    say_data(quiet=quiet, **{split: source})
    return source


def batches(
    model: nn.Module,
    source: ImageSource,
    *,
    image_size: int | None,
    batch_size: int,
    workers: int = 0,
    on_error: OnError = "raise",
) -> Iterable[Batch]:
    """All images of `source` in order, preprocessed as `model` expects."""
    from unrolled.data import eval_loader, eval_transform, model_input

    expects = model_input(model, native_size=source.native_size, image_size=image_size)
    transform = eval_transform(
        expects["input_size"],
        expects["mean"],
        expects["std"],
        interpolation=expects["interpolation"],
        crop_pct=expects["crop_pct"],
    )
    return eval_loader(source, transform, batch_size=batch_size, workers=workers, on_error=on_error)


def say_data(*, quiet: bool, **parts: ImageSource | None) -> None:
    """Say on stderr what was read, in one line, and what makes its scores mean little."""
    from unrolled.data.classes import reading_note

    say(f"data: {reading_note(**parts)}", quiet=quiet)
