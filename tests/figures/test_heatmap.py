"""Heat maps: every value is in the drawing and in the numbers beside it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from tests.figures.drawing import SVG, faults
from unrolled.figures import HeatMap, heat
from unrolled.report import Report

VALUES = np.array([[0.1, 0.2, np.nan], [0.3, 0.9, 0.4]])


def test_a_heat_map_draws_says_and_lists_its_values(tmp_path) -> None:
    chart = HeatMap(title="a<b", values=VALUES, rows=["r0", "r1"], columns=["c0", "c<1", "c2"], mark=(1, 1))
    root = ET.fromstring(chart.svg("x", standalone=True))
    titles = [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "r1 x c<1: 0.9" in titles
    assert not any("r0 x c2" in str(title) for title in titles)
    assert chart.description() == "a<b: 2 x 3 values from 0.1 to 0.9; marked: r1 and c<1."
    report = Report("r")
    report.section("s").figure(chart, name="map")
    report.write(tmp_path)
    assert (tmp_path / "figures/map.csv").read_text().splitlines()[2] == "r1,0.3,0.9,0.4"
    assert "c&lt;1" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["7", "block{:02d}", "a rather long name of a layer number {}", "a.{}\nb"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 12), (12, 3), (1, 40), (80, 60)])
def test_any_size_and_any_names_fit(shape: tuple[int, int], name: str) -> None:
    rows, columns = ([name.format(i) for i in range(count)] for count in shape)
    values = np.arange(shape[0] * shape[1], dtype=float).reshape(shape) - 3
    options = {"row_label": "layers of one", "column_label": "layers of the other", "mark": (0, 0)}
    chart = HeatMap(title="t " * 60, values=values, rows=rows, columns=columns, signed=True, **options)
    assert faults(chart.svg("x")) == []


def test_a_large_map_is_one_image() -> None:
    shape = (454, 352)
    names = [[f"block{i:02d}" for i in range(count)] for count in shape]
    values = np.random.default_rng(0).normal(size=shape)
    svg = HeatMap(title="t", values=values, rows=names[0], columns=names[1]).svg("x")
    assert len(svg) < 700_000
    assert len(list(ET.fromstring(svg).iter("image"))) == 2  # and its key


def test_names_of_all_columns_are_there_where_they_fit_upright() -> None:
    columns = [f"metric number {i}" for i in range(8)]
    root = ET.fromstring(HeatMap(title="t", values=np.eye(8), rows=columns, columns=columns).svg("x"))
    assert [e.text for e in root.iter("text")].count("metric number 3") == 2


def test_zero_is_pale_and_signs_have_their_colours() -> None:
    colours = heat(np.array([[-2.0, -0.5, 0.0, 0.5, 1.0]]), signed=True)[0].astype(int)
    assert colours[2].min() > 240
    assert (colours[:2, 2] > colours[:2, 0]).all()  # blue
    assert (colours[3:, 0] > colours[3:, 2]).all()  # orange
    assert colours[1].sum() > colours[0].sum()  # paler nearer zero
    chart = HeatMap(title="t", values=np.array([[-2.0, 0.0, 1.0]]), rows=["r"], columns=list("abc"), signed=True)
    key = [e.text for e in ET.fromstring(chart.svg("x", standalone=True)).iter(f"{SVG}text")][-3:]
    assert key == ["2", "0", "-2"]


def test_values_that_do_not_fit_their_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'t'"):
        HeatMap(title="t", values=VALUES, rows=["a"], columns=["b"])


def test_a_narrow_range_has_the_whole_palette_and_a_bar_that_tells_its_ends_apart() -> None:
    values = np.linspace(0.60701, 0.60704, 12).reshape(3, 4)
    drawing = HeatMap(title="scores", values=values, rows=list("abc"), columns=list("wxyz"))
    assert drawing.scale_words() == "Colours run from 0.60701 to 0.60704, the range of what is shown."
    svg = drawing.svg("a", standalone=True)
    assert ">0.60701<" in svg
    assert ">0.60704<" in svg
    wide = HeatMap(title="scores", values=np.linspace(0, 1, 12).reshape(3, 4), rows=list("abc"), columns=list("wxyz"))
    colours = [re.findall(r'<rect[^>]*fill="(#\w+)"', each.svg("a", standalone=True)) for each in (drawing, wide)]
    assert colours[0] == colours[1]
