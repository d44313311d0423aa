"""Forests of intervals: every row is there with its ends, nothing leaves the page, bad input is refused."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib.pyplot as plt
import pytest

from tests.figures.drawing import SVG, faults
from unrolled.figures import Forest


def forest(**options: Any) -> Forest:
    rows = {
        "names": ["soft_matching", "a<b, a name that is longer than half of the width of a figure", "gone"],
        "values": [0.9, 0.6, math.nan],
        "interval": [(0.7, 1.0), (math.nan, math.nan), (0.1, 0.2)],
    }
    return Forest(**{"title": "AUC: architecture", "x_label": "AUC", "beside": 0.5, **rows, **options})


def test_rows_stand_from_top_to_bottom_with_their_ends() -> None:
    _, ax = plt.subplots()
    forest().plot(ax)
    bars = [tuple(map(float, line.get_xdata())) for line in ax.lines if list(line.get_ydata()) == [0, 0]]
    assert bars == [(0.7, 1.0)]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    low, high = ax.get_xlim()
    assert low < 0.1
    assert high > 1.0
    plt.close("all")
    columns, rows = forest().data()
    assert columns == ["name", "AUC", "low", "high"]
    assert rows[0] == ["soft_matching", 0.9, 0.7, 1.0]
    assert forest().description() == (
        "AUC of 3 rows with intervals, from soft_matching 0.9 to a<b, a name that is longer than half of the width of "
        "a figure 0.6."
    )


def test_what_is_pointed_at_is_said_and_nothing_leaves_the_page() -> None:
    drawing = forest().svg("x", standalone=True)
    assert faults(drawing) == []
    titles = [element.text for element in ET.fromstring(drawing).iter(f"{SVG}title")]
    assert "soft_matching: 0.9, 0.7 to 1" in titles
    assert not any(str(title).startswith("gone") for title in titles)


@pytest.mark.parametrize("one", ["names", "values", "interval"])
def test_rows_must_be_whole(one: str) -> None:
    with pytest.raises(ValueError, match="forest 'AUC: architecture': names, values and interval"):
        forest(**{one: []})


def test_nothing_known_and_all_alike_are_drawn() -> None:
    nothing = forest(values=[math.nan] * 3, interval=[(math.nan, math.nan)] * 3, beside=None)
    assert "none of which is known" in nothing.description()
    ET.fromstring(nothing.svg("x"))
    ET.fromstring(forest(values=[0.5] * 3, interval=[(0.5, 0.5)] * 3).svg("x"))
