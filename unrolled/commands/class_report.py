"""What pages say of a classifier class by class: the confusion matrix, and the images of its worst errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unrolled.reading import Json

if TYPE_CHECKING:
    from unrolled.data import ImageSource
    from unrolled.instruments.readouts.confusion import Confusion
    from unrolled.report import Report

_ROWS = 60  # of a table and a map; with more classes the table has those with the lowest accuracy
_SIDE = 160  # pixels of an image on the page


def class_records(confusion: Confusion, source: ImageSource) -> Json:
    """What an answer says of classes: `classes`, which are `Confusion.records`, `confused`, and `worst` by name."""
    worst = [
        {
            "image": source.name(each.index), "index": each.index, "class": confusion.classes[each.label],
            "predicted": confusion.classes[each.predicted], "confidence": each.confidence,
        }
        for each in confusion.worst
    ]  # fmt: skip
    pairs = [{"class": a, "predicted": b, "images": count} for a, b, count in confusion.confused()]
    return {"classes": confusion.records(), "confused": pairs, "worst": worst}


def class_sections(report: Report, confusion: Confusion, source: ImageSource) -> None:
    """Add accuracy by class, the confusion matrix and the worst errors to a page."""
    rows = confusion.records()
    section = report.section("Class by class")
    if len(confusion.classes) <= _ROWS:
        section.figure(
            confusion.panel(),
            name="confusion",
            caption="A row is the images of one class, in % of them; a column what they were taken for: the diagonal "
            "is right.",
        )
        caption = "Every class, with the other class its images are most often taken for."
    else:
        rows = sorted(rows, key=lambda row: row["accuracy"])[:_ROWS]
        caption = f"The {len(rows)} of {len(confusion.classes):,} classes with the lowest accuracy."
    section.table(
        ["class", "images", "right", "accuracy %", "most often taken for"],
        [
            [
                row["class"], f"{row['images']:,}", f"{row['right']:,}", f"{100 * row['accuracy']:.1f}",
                "-" if row["taken_for"] is None else f"{row['taken_for']} ({row['taken_for_times']:,})",
            ]
            for row in rows
        ],
        caption=caption,
    )  # fmt: skip
    if not confusion.worst:
        return
    from unrolled.report import ImageGrid, ImageRow

    names = [f"{confusion.classes[each.label]} → {confusion.classes[each.predicted]}" for each in confusion.worst]
    images = [_small(source, each.index) for each in confusion.worst]
    grid = ImageGrid(
        title="What it is → what it was taken for", rows=[ImageRow(images=images, names=names)], largest=91
    )
    section = report.section("Worst errors").figure(
        grid, name="worst", caption="The wrong answers it is surest of, the surest first."
    )
    section.table(
        ["image", "is", "taken for", "probability %"],
        [
            [source.name(each.index), confusion.classes[each.label], confusion.classes[each.predicted],
             f"{100 * each.confidence:.1f}"]
            for each in confusion.worst
        ],
    )  # fmt: skip


def _small(source: ImageSource, index: int) -> Any:
    """uint8 [h, w, 3], at most `_SIDE` wide and high."""
    import numpy as np
    from PIL import Image

    picture = source.load(index)[0]
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture)
        picture = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
    picture = picture.convert("RGB")
    picture.thumbnail((_SIDE, _SIDE))
    return np.asarray(picture)
