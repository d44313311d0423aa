"""Heat maps: every value is in the drawing and in the numbers beside it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from unrolled.report import HeatMap, Report

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


@pytest.mark.parametrize("shape", [(1, 1), (454, 352), (1, 40)])
def test_any_size_fits_the_page(shape: tuple[int, int]) -> None:
    rows, columns = ([f"block{i:02d}" for i in range(count)] for count in shape)
    root = ET.fromstring(HeatMap(title="t", values=np.full(shape, np.nan), rows=rows, columns=columns).svg("x"))
    width = float(root.get("viewBox").split()[2])
    assert all(float(e.get("x")) <= width for e in root.iter("text"))


def test_values_that_do_not_fit_their_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'t'"):
        HeatMap(title="t", values=VALUES, rows=["a"], columns=["b"])
