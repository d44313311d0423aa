"""Pictures on the page of `crate-hour`: where maps fit best and worst, and what `explain` says of two photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from unrolled.studies.cells import Result
from unrolled.studies.crate.credits import PHOTOS
from unrolled.studies.crate.emergence.claims import head_name
from unrolled.studies.crate.emergence.photos import as_square, samples
from unrolled.studies.crate.hour.networks import WORDS, given
from unrolled.studies.crate.hour.photos import Things
from unrolled.studies.crate.hour.pictures import Pictured
from unrolled.studies.crate.hour.view import MAP, View

if TYPE_CHECKING:
    from unrolled.report import ImageGrid, ImageRow, Report

_SHOWN = 96  # pixels of a side in the report
_GROUND, _BLANK, _THING = 40, 130, 235


def pictures(report: Report, view: View) -> None:
    """The best and the worst maps, and evidence on photos that may be shown."""
    config = view.config
    shown = {row.cell.things.network.weights: row.result for row in view.results.of(Pictured)}
    names = [name for name in config.looked_at if name in shown]
    panels = [panel for name in names for panel in _annotated(view, name, shown)]
    if not panels:
        return
    report.section(
        "What it looks like",
        f"The {config.pictured} photos of COCO that the class token's attention fits best and worst, of the "
        f"{config.photos} that scores are of: what people marked as things, in white (annotations CC BY 4.0; most of "
        "the photos themselves may not be shown; grey has no label and does not count), the map of the layer and head "
        "chosen on other photos, and its largest 60 % of entries. Below each its Jaccard index and that of a bump in "
        "the middle: maps fit where things are large and in the middle, and so does the bump.",
    ).figure(panels, name="best-and-worst").figure(
        [_samples(view, name, shown[name]) for name in names],
        name="samples",
        caption=f"{PHOTOS}, squeezed to squares, which no class of CIFAR-10 fits and which took no part in any choice. "
        "What the network names is the class of highest probability at 32 px; evidence, by `unrolled explain`, is "
        "orange for it and blue against it.",
    )


def _annotated(view: View, name: str, shown: dict[str, Result]) -> list[ImageGrid]:
    from unrolled.report import ImageGrid, ImageRow, heat

    bump = view.baseline()
    row = view.of(Things, given(name))
    assert row is not None  # the pictures need it
    layer, head = row["maps"][MAP]["picked"]
    where = head_name(head, row["heads"])
    entries = shown[name]["annotated"]
    half = len(entries) // 2
    out = []
    for words, chosen in (("best", entries[:half]), ("worst", entries[half:])):
        beside = [f"{each['jaccard']:.2f}" for each in chosen]
        if bump is not None:
            beside = [f"{text}, {bump[each['place']]:.2f}" for text, each in zip(beside, chosen, strict=True)]
        rows = [
            ImageRow(images=[_greys(each["silhouette"]) for each in chosen], label="things, as people marked them"),
            ImageRow(
                images=[heat(_enlarged(each["map"])) for each in chosen],
                label=f"attention, layer {layer}, {where if where == 'mean' else f'head {where}'}",
            ),
            ImageRow(images=[_greys(_enlarged(each["kept"])) for each in chosen], label="what is kept", names=beside),
        ]
        alt = f"Things, attention and mask of the {half} photos that {WORDS.get(name, name)} fits {words}."
        out.append(ImageGrid(title=f"{WORDS.get(name, name)}: {words}", rows=rows, alt=alt))
    return out


def _samples(view: View, name: str, result: Result) -> ImageGrid:
    from unrolled.report import ImageGrid, ImageRow, heat

    photos = list(as_square(samples(), _SHOWN).movedim(1, -1).round().clamp(0, 255).to(torch.uint8).numpy())
    images: list[NDArray[np.uint8]] = []
    names: list[str] = []
    for photo, each in zip(photos, result["samples"], strict=True):
        cut = np.where(_enlarged(each["kept"])[..., None] > 0, photo, photo // 5).astype(np.uint8)
        images += [photo, heat(_enlarged(each["map"])), cut, heat(_enlarged(each["evidence"]), signed=True)]
        names += ["photo", "attention", "kept", f"{each['label']}, {100 * each['probability']:.0f} %"]
    rows: Sequence[ImageRow] = [
        ImageRow(images=images[first : first + 4], names=names[first : first + 4]) for first in range(0, len(images), 4)
    ]
    words = WORDS.get(name, name)
    alt = f"Two photos with attention, mask and evidence of {words}."
    return ImageGrid(title=f"{words}: photos of no class that it knows", rows=rows, alt=alt)


def _enlarged(values: Any) -> NDArray[np.float64]:
    """A map of patches as pixels."""
    from unrolled.instruments.regions.segmentation import upsample

    whole = torch.tensor(values, dtype=torch.float64)
    pixels: NDArray[np.float64] = upsample(whole.flatten(), (whole.shape[0], whole.shape[1]), (_SHOWN, _SHOWN)).numpy()
    return pixels


def _greys(values: Any) -> NDArray[np.uint8]:
    """A mask in two greys, and a third where it is negative."""
    mask = np.asarray(values)
    return np.where(mask > 0, _THING, np.where(mask < 0, _BLANK, _GROUND)).astype(np.uint8)
