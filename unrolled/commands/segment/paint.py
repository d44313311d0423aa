"""`unrolled segment`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unrolled.commands.options import verb
from unrolled.commands.segment.options import SegmentOptions
from unrolled.harness import Run
from unrolled.subjects.models import choose_device, origin
from unrolled.terminal import progress, say, table

if TYPE_CHECKING:
    from unrolled.commands.segment.overlays import Shot, View
    from unrolled.subjects.pictures import Preparation


@verb
def segment(options: SegmentOptions) -> None:
    """Show which parts of pictures a model tells apart, without labels.

    Overlays are written for every picture, layer and method, and side by side in contact-sheet.png (a further sheet for
    every 100 rows) and in the report. Pictures keep their shape: positions are interpolated to it. `unrolled
    segment-eval` scores the same against what people marked.

        unrolled segment cat.jpg
        unrolled segment cat.jpg dog.jpg --model timm:vit_small_patch16_dinov3 --pretrained --method attention
        unrolled segment photos/ --model runs/crate --layers 3 5 --method maskcut --method pca
        unrolled segment cat.jpg --model crate_base_patch8_224 --weights models/crate-b8 --image-size 448
    """
    from unrolled.commands.segment.overlays import look
    from unrolled.commands.segment.report import numbers, segment_report, words, write_sheets
    from unrolled.data.pictures import find_pictures
    from unrolled.subjects.pictures import opened_for_pictures, stems

    paths = find_pictures(options.images)
    where = choose_device(options.device)
    network, prepared = opened_for_pictures(options, where, stride=options.stride)
    subject = paths[0].stem if len(paths) == 1 else f"{len(paths)}-pictures"
    run = Run(options, "segment", options.model, subject)
    skipped: list[str] = []
    bar = progress(paths, total=len(paths), what="segment", quiet=options.quiet)
    shots = _shots(bar, stems(paths), options.frames, options.on_error, skipped)
    views = [
        _written(run.folder, view)
        for batch in _batches(shots, prepared, options.batch_size)
        for view in look(network, prepared, batch, options.layers or (-2,), options)
    ]
    if not views:
        raise ValueError(f"images: none of {len(paths)} could be read; the first: {skipped[0]}")
    result = {
        "model": options.model, "weights": origin(options), "images": [view.row for view in views], "skipped": skipped
    }  # fmt: skip
    write_sheets(run.folder, views, options)
    meanings = "".join(f"\n{name}: {meaning}" for name, meaning in words(options))
    text = table(*numbers(result, options)) + ("" if options.quiet else f"\n{meanings}")
    run.finish(segment_report(result, views, options), result, text, seeds=[options.seed])


def _shots(
    paths: Iterable[Path], names: Sequence[str], frames: int, on_error: str, skipped: list[str]
) -> Iterator[Shot]:
    """Every picture, and every frame of an animation; what cannot be read is named in `skipped`, or stops."""
    from unrolled.commands.segment.overlays import Shot
    from unrolled.data.pictures import read_frames

    for path, name in zip(paths, names, strict=False):
        pictures = read_frames(path, most=frames)
        try:
            first = next(pictures)
            second = next(pictures, None)
            if second is None:
                yield Shot(first, path, name)
                continue
            for number, picture in enumerate(itertools.chain((first, second), pictures)):
                yield Shot(picture, path, f"{name}-{number:04d}", number)
        except (ValueError, OSError) as error:
            if on_error == "raise":
                raise
            skipped.append(" ".join(str(error).split()))
            say(f"skipped: {skipped[-1]}")


def _batches(shots: Iterable[Shot], prepared: Preparation, size: int) -> Iterator[list[Shot]]:
    """Neighbours that go into the model at one size, so that frames stay in order."""
    for _, group in itertools.groupby(shots, lambda shot: prepared.size_of(shot.picture)):
        while batch := list(itertools.islice(group, size)):
            yield batch


def _written(folder: Path, view: View) -> View:
    """Write the overlays; what is kept for the sheets are thumbnails, so that thousands of frames fit in memory."""
    from PIL import Image

    from unrolled.commands.sheets import thumbnail

    for method, pixels in view.overlays.items():
        Image.fromarray(pixels).save(folder / view.row["files"][method])
    small = {method: thumbnail(pixels) for method, pixels in view.overlays.items()}
    heads = [thumbnail(pixels) for pixels in view.heads]
    return dataclasses.replace(view, original=thumbnail(view.original), overlays=small, heads=heads)
