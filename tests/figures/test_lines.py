"""Line charts: whatever the numbers and names, everything is drawn, named where it ends, and legible."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.figures.drawing import boxes, chart, faults
from unrolled.figures import LineChart, Series
from unrolled.figures.style import COLOURS, DARK, LIGHT
from unrolled.figures.words import labels, log_ticks, short, shortened, spread_out, ticks, width, wrapped


def curves(drawing: str) -> dict[str, str]:
    """Look of a line of width 2 -> its commands."""
    root = ElementTree.fromstring(drawing)
    found = [e for e in root.iter("path") if e.get("stroke-width") == "2"]
    return {f"{e.get('class')}{' dashed' if e.get('stroke-dasharray') else ''}": e.get("d", "") for e in found}


finite = st.floats(-1e12, 1e12)
any_number = st.one_of(finite, st.sampled_from([math.nan, math.inf, -math.inf]))


@settings(max_examples=15, deadline=None)
@given(
    lines=st.lists(
        st.lists(st.tuples(finite, any_number, st.floats(0, 1e6)), min_size=1, max_size=18), min_size=1, max_size=16
    ),
    log_x=st.booleans(),
    log_y=st.booleans(),
    names=st.lists(st.text(max_size=60), min_size=18, max_size=18),
)
def test_any_numbers_and_names_make_a_legible_drawing(
    lines: list[list[tuple[float, float, float]]], log_x: bool, log_y: bool, names: list[str]
) -> None:
    series = []
    for name, line in zip(names, lines, strict=False):
        x, y, error = zip(*line, strict=True)
        x = tuple(abs(value) + 1e-9 for value in x) if log_x else x
        series.append(Series(label=name, x=x, y=y, error=error))
    chart = LineChart(title=names[-1], x_label=names[-2], series=series, log_x=log_x, log_y=log_y)
    text = chart.svg("a", standalone=True)
    root = ElementTree.fromstring(text)
    for element in root.iter():
        for name in ("x", "y", "d"):
            for number in re.findall(r"[-\w.+]+", re.sub("[MLCQaz]", " ", element.get(name, ""))):
                assert "nan" not in number
                assert "inf" not in number
    assert faults(text) == []


@given(low=st.floats(-1e9, 1e9), span=st.floats(1e-6, 1e9))
def test_ticks_are_few_even_and_inside(low: float, span: float) -> None:
    high = low + span
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return
    found = ticks(low, high)
    assert 1 <= len(found) <= 7
    slack = 1e-6 * (high - low) + 1e-9 * abs(high)
    assert low - slack <= found[0]
    assert found[-1] <= high + slack
    assert found == sorted(found)


@given(low=st.floats(1e-12, 1e9), ratio=st.floats(1.01, 1e9))
def test_a_logarithmic_axis_has_more_than_one_tick(low: float, ratio: float) -> None:
    found = log_ticks(low, low * ratio)
    assert 2 <= len(found) <= 12
    assert len(set(labels(found))) == len(found)


@given(
    places=st.lists(st.floats(0, 100), min_size=1, max_size=6).map(sorted),
    sizes=st.lists(st.floats(5, 16), min_size=6, max_size=6),
)
def test_labels_are_spread_in_order_without_overlap(places: list[float], sizes: list[float]) -> None:
    sizes = sizes[: len(places)]
    found = spread_out(places, sizes, 0, 100)
    for (a, b), (m, n) in zip(itertools.pairwise(found), itertools.pairwise(sizes), strict=True):
        assert b - a >= (m + n) / 2 - 1e-6
    assert found[0] >= sizes[0] / 2 - 1e-6
    assert found[-1] <= 100 - sizes[-1] / 2 + 1e-6


@given(text=st.text(min_size=1, max_size=80), room=st.floats(30, 300))
def test_wrapped_and_shortened_text_fits(text: str, room: float) -> None:
    assert all(width(line) <= room or len(line) == 1 for line in wrapped(text, room).split("\n"))
    assert width(shortened(text.replace("\n", " "), room)) <= room


def test_lines_break_between_words_and_keep_every_sign() -> None:
    text = "held-out loss at t = 29, of crate_nano_patch4_32.cifar10"
    lines = wrapped(text, 150).split("\n")
    assert len(lines) > 1
    assert " ".join(lines).replace(" ", "") == text.replace(" ", "")
    assert not any("cifar1" in line and "cifar10" not in line for line in lines)


@pytest.mark.parametrize(
    ("value", "text"), [(1e-4, "1e-4"), (0.0025, "0.0025"), (2e6, "2e6"), (-0.5, "-0.5"), (0, "0")]
)
def test_numbers_beside_an_axis_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_points_at_the_only_x_stand_side_by_side_and_no_line_crosses_the_panel() -> None:
    series = [Series(label=n, x=[60], y=[0.5]) for n in ("a", "b", "c")]
    svg = LineChart(title="t", x_label="steps", series=series).svg("i")
    places = sorted(float(d[1:].split(" ")[0]) for d in curves(svg).values())
    assert len(places) == 3
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert places[1] - places[0] > 8
    assert re.findall(r'text-anchor="middle">([^<]*)<', svg) == ["60", "steps"]
    assert 'opacity="0.5"' not in svg  # no leader


def test_gap_breaks_the_line_and_dashes_mark_controls() -> None:
    found = curves(chart().svg("a"))
    trained, control = found["s0"], found["s0 dashed"]
    assert (trained.count("M"), trained.count("L")) == (1, 2)
    assert (control.count("M"), control.count("L")) == (2, 0)


def test_lines_of_one_colour_differ_in_dashes_and_marks() -> None:
    series = [Series(label=str(i), x=[1, 10, 100], y=[i, i + 1, i + 2]) for i in range(2 * COLOURS)]
    svg = LineChart(title="t", x_label="x", series=series).svg("a")
    assert len(curves(svg)) == 2 * COLOURS  # by class and dashes
    paths = [e for e in ElementTree.fromstring(svg).iter("path") if e.get("stroke-width") == "1.8"]
    assert len({re.sub(r"[\d. -]+", "", path.get("d", "")) for path in paths}) >= 6  # outlines of marks


def test_a_logarithmic_x_spreads_powers_evenly_and_has_no_zero() -> None:
    line = Series(label="a", x=[1, 10, 100], y=[3.0, 2.0, 1.0])
    (d,) = curves(LineChart(title="t", x_label="x", series=[line], log_x=True).svg("a")).values()
    first, second, third = (float(point.split(" ")[0]) for point in re.split("[ML]", d)[1:])
    assert second - first == pytest.approx(third - second, abs=0.2)
    with pytest.raises(ValueError, match="log_x needs an x above 0"):
        chart(log_x=True)


def test_every_line_is_named_at_its_end_in_its_colour() -> None:
    root = ElementTree.fromstring(chart().svg("a"))
    named = {e.text: e.get("class") for e in root.iter("text") if "label" in e.get("class", "")}
    assert named == {"CRATE": "label f-s0", "CRATE untrained": "label f-s0"}
    ends = {text: (box[1] + box[3]) / 2 for text, box in boxes(root) if text in named}
    assert ends["CRATE untrained"] < ends["CRATE"]  # 1.1 is above 1.0


def test_a_drawing_has_no_colour_of_its_own_and_is_the_same_every_time() -> None:
    first, second = (chart(series=[*chart().series]).svg("a") for _ in range(2))
    assert first == second
    assert not re.search(r"#[0-9a-f]{3}|rgb\(|style=|font-size=|\d{4}-\d\d", first)


def test_drawn_on_the_axes_of_others_it_keeps_their_style_and_place() -> None:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    assert chart().plot(left) is left
    assert (left.get_title(), left.get_xlabel()) == ("Rᶜ (nats)", "layer")
    assert [text.get_text() for text in left.texts] == ["CRATE untrained", "CRATE"]
    assert right.lines[:] == []
    figure.savefig("/dev/null", format="pdf")


def test_a_new_figure_is_made_by_pyplot() -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    ax = chart(log_y=True).plot()
    assert ax.figure is pyplot.gcf()
    assert ax.get_yscale() == "log"
    pyplot.close(ax.figure)


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, LIGHT["paper"]), (DARK, DARK["paper"])])
def test_text_and_lines_stand_out_from_the_paper(colours: dict[str, str], paper: str) -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for name in ("ink", "soft", *(f"s{i}" for i in range(COLOURS))):
        bright, dark = sorted((luminance(colours[name]), luminance(paper)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, name


def test_the_coding_rate_is_written_one_way() -> None:
    series = [Series(label="R^c, all", x=[0, 1], y=[1.0, 2.0])]
    drawing = LineChart(title="R^c and R^2, WR^c", x_label="R^c", series=series).svg("a")
    assert drawing.count("Rᶜ") >= 5
    assert re.findall(r"\w*R\^\w", drawing) == ["WR^c"] * 3
