"""Sheets of pictures: what `segment`, `complete` and `explain` write beside their reports, and show in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unrolled.subjects.pictures import Pixels

if TYPE_CHECKING:
    from unrolled.report import Report

_THUMBNAIL = 240


def thumbnail(pixels: Pixels) -> Pixels:
    """The same picture, its longer side at most 240 pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _enlarged(pixels: Pixels) -> Pixels:
    """A thumbnail whose pixels are squares of whole pixels, as many as fit 240; a larger one as it is."""
    times = max(1, _THUMBNAIL // max(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def sheet(rows: Sequence[tuple[str, Sequence[Pixels]]], names: Sequence[str]) -> Image.Image:
    """A contact sheet: one row of pictures under a caption for each entry, names of the columns on top.

    Small pictures are enlarged pixel by pixel, to fill their column.
    """
    gap, line = 8, 20
    small = [(caption, [_enlarged(thumbnail(pixels)) for pixels in pictures]) for caption, pictures in rows]
    columns = max(len(pictures) for _, pictures in small)
    heights = [max(p.shape[0] for p in pictures) + line + gap for _, pictures in small]
    width = gap + columns * (_THUMBNAIL + gap)
    out = Image.new("RGB", (width, gap + line + sum(heights)), "white")
    draw = ImageDraw.Draw(out)
    font = ImageFont.load_default(13)
    for column, name in enumerate(names):
        draw.text((gap + column * (_THUMBNAIL + gap), gap), name, "black", font)
    top = gap + line
    for (caption, pictures), height in zip(small, heights, strict=True):
        draw.text((gap, top), caption, "dimgray", font)
        for column, pixels in enumerate(pictures):
            left = gap + column * (_THUMBNAIL + gap) + (_THUMBNAIL - pixels.shape[1]) // 2
            out.paste(Image.fromarray(pixels), (left, top + line))
        top += height
    return out


def grid_section(
    report: Report,
    title: str,
    panels: Sequence[tuple[str, str, Sequence[Pixels], Sequence[str]]],
    caption: str = "",
    *,
    largest: float | None = None,
) -> None:
    """A section of image grids in one figure: of each its title, description, pictures and their names.

    `largest` is the width of a picture where a panel is 400 wide; by default a row shares the width.
    """
    from unrolled.report import ImageGrid, ImageRow

    grids = [
        ImageGrid(
            title=heading,
            rows=[ImageRow(images=[thumbnail(pixels) for pixels in pictures], names=list(names))],
            alt=alt,
            largest=largest,
        )
        for heading, alt, pictures, names in panels
    ]
    report.section(title).figure(grids, caption=caption)
