"""Scatter plots and cluster trees: every point and leaf is there, nothing leaves the page, bad input is refused."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage

from tests.figures.drawing import SVG, boxes, faults
from unrolled.figures import Scatter, Tree
from unrolled.report import Report


def test_a_scatter_names_its_points_and_leaves_out_what_is_not_finite(tmp_path) -> None:
    chart = Scatter(
        title="score",
        x_label="accuracy",
        x=[0.1, 0.5, 0.9],
        y=[1.0, math.nan, 3.0],
        names=["a<b", "gone", "c"],
        groups=["CRATE", "ViT", "ViT"],
        error=[0.1, 0.1, 0.2],
    )
    root = ET.fromstring(chart.svg("x", standalone=True))
    titles = [e.text for e in root.iter(f"{SVG}title")]
    assert "a<b: 0.1, 1" in titles
    assert not any("gone" in str(title) for title in titles)
    assert {"CRATE", "ViT"} <= {e.text for e in root.iter(f"{SVG}text")}
    report = Report("r")
    report.section("s").figure(chart, name="points")
    report.write(tmp_path)
    assert (tmp_path / "figures/points.csv").read_text().splitlines()[1].startswith("a<b,CRATE,0.1,1")


def test_an_interval_ends_where_it_ends_and_not_as_far_beyond_the_point() -> None:
    chart = Scatter(title="AUC", x_label="d'", x=[1.0, 2.0, 3.0], y=[0.9, 1.0, 0.8],
                    interval=[(0.6, 0.95), (0.7, 1.0), (math.nan, math.nan)])  # fmt: skip
    _, ax = plt.subplots()
    chart.plot(ax)
    bars = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 2]
    assert [tuple(map(float, bar)) for bar in bars] == [(0.6, 0.95), (0.7, 1.0)]
    plt.close("all")
    assert chart.data()[0][-2:] == ["low", "high"]
    assert chart.data()[1][1][-2:] == [0.7, 1.0]
    with pytest.raises(ValueError, match="interval"):
        Scatter(title="t", x_label="x", x=[1, 2], y=[1, 2], interval=[(0, 1)])


def test_names_never_overlap_however_crowded() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 2))
    chart = Scatter(
        title="t", x_label="x", x=points[:, 0], y=points[:, 1], names=[f"model-{i}" for i in range(60)], equal=True
    )
    drawing = chart.svg("x")
    assert drawing.count(">model-") > 5
    assert faults(drawing) == []


def test_a_point_at_the_edge_beside_another_keeps_its_name() -> None:
    names = ["soft_matching", "procrustes", "pwcca"]
    chart = Scatter(title="AUC", x_label="d'", x=[1, 0.8, 0], y=[1, 0.98, 0], names=names)
    root = ET.fromstring(chart.svg("x", standalone=True))
    assert {*names} <= {each.text for each in root.iter(f"{SVG}text")}


def test_names_stay_off_the_numbers_of_the_axis() -> None:
    chart = Scatter(
        title="t" * 80,
        x_label="a long name of what is measured along this axis, in the units that it is measured in",
        y_label="and another of what is measured upwards, which is about as long as that of the other axis",
        x=[0.0, 0.01, 1.0],
        y=[0.0, 1.0, 0.5],
        names=["a name that goes far to the left", "decoupled", "c"],
        groups=["a group whose name is much longer than there is room for", "b", "c"],
    )
    assert faults(chart.svg("x")) == []


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [math.nan]])
def test_degenerate_points_still_draw(values: list[float]) -> None:
    root = ET.fromstring(Scatter(title="t", x_label="x", x=values, y=values, equal=len(values) > 1).svg("x"))
    assert "t" in [e.text for e in root.iter("text")]
    assert len(list(root.iter("g"))) == sum(math.isfinite(value) for value in values)


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="names"):
        Scatter(title="t", x_label="x", x=[1, 2], y=[1, 2], names=["a"])
    with pytest.raises(ValueError, match="same length"):
        Scatter(title="t", x_label="x", x=[], y=[])


def test_a_tree_puts_like_beside_like() -> None:
    values = np.array([[0.0], [10.0], [0.1], [10.2], [5.0]])
    tree = Tree(title="t", merges=linkage(values, "average"), leaves=list("abcde"), x_label="distance")
    order = [tree.leaves[i] for i in tree.order()]
    assert abs(order.index("a") - order.index("c")) == 1
    assert abs(order.index("b") - order.index("d")) == 1
    root = ET.fromstring(tree.svg("x"))
    assert set("abcde") <= {e.text for e in root.iter("text")}
    assert len(tree.data()[1]) == 4
    with pytest.raises(ValueError, match="merges"):
        Tree(title="t", merges=np.zeros((3, 4)), leaves=["a", "b"], x_label="x")


def test_long_names_of_points_are_shortened_in_the_middle_not_left_out() -> None:
    long = "a_model_with_a_very_long_name_that_goes_on_and_on_patch4_32"
    drawing = Scatter(title="map", x_label="x", x=[0, 1, 1], y=[0, 1, 0.4], names=["one", "two", long], equal=True)
    texts = [text for text, _ in boxes(ET.fromstring(drawing.svg("a", standalone=True)))]
    assert any(text.startswith("a_m") and text.endswith("_32") and "…" in text for text in texts)
    assert faults(drawing.svg("a", standalone=True)) == []
