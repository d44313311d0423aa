"""Grids of pictures: where each lies, and that colours of maps keep their order."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.figures.drawing import faults
from unrolled.figures import ImageGrid, ImageRow, heat


def test_large_images_go_on_in_the_next_line_and_small_ones_stay_crisp() -> None:
    rows = [ImageRow(images=[np.zeros((100, 200, 3), np.uint8)] * 5, names=list("abcde"))]
    drawn = re.findall(
        r'<image( class="small")? x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"',
        ImageGrid(title="t", rows=rows, largest=196).svg("i"),
    )
    assert [(float(x), float(width), float(height)) for _, x, _, width, height in drawn] == [
        (0.0 if i % 2 == 0 else 204.0, 196.0, 98.0) for i in range(5)
    ]
    heights = [float(y) for _, _, y, _, _ in drawn]
    assert heights == sorted(heights)
    assert len(set(heights)) == 3
    assert {small for small, *_ in drawn} == {""}
    tiny = ImageGrid(title="t", rows=[ImageRow(images=[np.zeros((32, 32), np.uint8)])]).svg("i")
    assert 'class="small"' in tiny
    with pytest.raises(ValueError, match="largest"):
        ImageGrid(title="t", rows=rows, largest=500)


def test_pixels_are_as_they_were_given() -> None:
    import base64
    import io

    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    svg = ImageGrid(title="t", rows=[ImageRow(images=[picture], label="r", names=["n"])]).svg("i")
    found = re.search(r"data:image/png;base64,([^\"]+)", svg)
    assert found is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))))
    np.testing.assert_array_equal(shown, picture)


def test_names_of_neighbours_do_not_overlap() -> None:
    rows = [ImageRow(images=[np.zeros((8, 8), np.uint8)] * 6, label="l" * 90, names=["a long name of one"] * 6)]
    assert faults(ImageGrid(title="t" * 90, rows=rows).svg("i")) == []


def test_heat_orders_by_lightness_and_survives_flat_and_missing_values() -> None:
    ramp = heat(np.linspace(0, 1, 64)[None]).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(ramp[0]) > 0).all()
    assert heat(np.full((2, 2), 7.0)).tolist() == heat(np.zeros((2, 2))).tolist()
    assert heat(np.full((2, 2), np.nan)).shape == (2, 2, 3)
