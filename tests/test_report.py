"""A report is one page that needs nothing else, says what it drew to everyone, and keeps every number."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.report import (
    Claim,
    Fact,
    ImageGrid,
    ImageRow,
    LineChart,
    Provenance,
    Report,
    Series,
    heat,
    mean_std,
)
from unrolled.report.charts import _DARK, _LIGHT, COLOURS, _short, ticks

HOSTILE = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order, ids are unique, addresses are collected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.refers: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [found["id"] or ""] if "id" in found else []
        self.refers += (found.get("aria-labelledby") or "").split()
        self.addresses += [v or "" for k, v in attrs if k in ("href", "src", "srcset", "action", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def chart(**options: Any) -> LineChart:
    series = [
        Series(label="CRATE", x=[0, 1, 2], y=[3.0, 2.0, 1.0], error=[0.1, 0.1, 0.1]),
        Series(label="CRATE untrained", x=[0, 1, 2], y=[3.0, math.nan, 1.1], color=0, dashed=True),
    ]
    return LineChart(**{"title": "Rᶜ (nats)", "x_label": "layer", "series": series, **options})


def full_report() -> Report:
    report = Report(f"A title {HOSTILE}", question=f"Why `code` {HOSTILE}?")
    report.headline(f"An answer {HOSTILE}", [Fact(label="Accuracy", value="98.1 ± 0.3 %", detail="3 seeds")])
    report.claims.append(Claim(statement=HOSTILE, source="a paper", published="1", measured="2", reproduced=False))
    section = report.section("Numbers", f"First {HOSTILE}\n\nsecond paragraph")
    section.table(["model", HOSTILE], [[HOSTILE, 12345], ["b", None]], caption=HOSTILE)
    section.figure([chart(), chart(title=HOSTILE)], caption=HOSTILE, name="rates")
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    grid = ImageGrid(title=HOSTILE, rows=[ImageRow(label=HOSTILE, images=[picture, heat(picture)], names=["a", "b"])])
    report.section("Numbers").figure(grid)
    report.results = {"accuracy": [0.98, np.float32(0.5), math.nan], "layers": {"a": np.arange(3)}}
    config = {"path": Path("a/b"), "nested": {"lr": 1e-3, "text": HOSTILE}}
    report.provenance = Provenance.collect(
        config=config, seeds=(0, 1), duration=84.0, command=f"unrolled demo {HOSTILE}"
    )
    return report


def test_page_is_well_formed_and_needs_nothing_else() -> None:
    text = full_report().to_html()
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.refers) <= set(page.ids)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", re.sub(r"data:[^\"']*", "", text))
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not re.search(r"\bnan\b", re.sub(r"data:[^\"']*", "", text).lower())


def test_text_is_escaped_and_shown_as_it_was() -> None:
    page = Page(full_report().to_html())
    assert page.text.count(HOSTILE) >= 12  # nowhere did it become markup
    assert "12\u202f345" in page.text
    assert "1 min 24 s" in page.text


def test_everything_drawn_is_also_said() -> None:
    page = Page(full_report().to_html())
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 3
    assert all(attributes["role"] == "img" and attributes["aria-labelledby"] for attributes in drawings)
    assert "CRATE: 3 at 0 to 1 at 2." in page.text
    assert page.text.count("The numbers") == 2


def test_written_files_hold_the_numbers(tmp_path: Path) -> None:
    paths = full_report().write(tmp_path / "new" / "folder")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    record = json.loads(paths.json.read_text(encoding="utf-8"), parse_constant=refuse)
    assert record["results"] == {"accuracy": [0.98, 0.5, None], "layers": {"a": [0, 1, 2]}}
    assert record["reproduced"] is False
    assert record["provenance"]["seeds"] == [0, 1]
    assert record["provenance"]["config"] == {"path": "a/b", "nested": {"lr": 1e-3, "text": HOSTILE}}
    assert {"unrolled", "python", "torch"} <= set(record["provenance"]["versions"])
    assert len({path.name for path in paths.figures}) == len(paths.figures) == 6
    for path in paths.figures:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    with next(path for path in paths.figures if path.suffix == ".csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["series", "layer", "Rᶜ (nats)", "error"]
    assert rows[1] == ["CRATE", "0.0", "3.0", "0.1"]
    assert len(rows) == 7
    assert not list((tmp_path / "new").rglob("*.part"))


def test_writing_again_replaces_the_report_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    Report("first").write(tmp_path)
    paths = Report("second").write(tmp_path)
    assert "second" in paths.html.read_text()
    assert "first" not in paths.html.read_text()
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_wrong_input_is_refused_by_name() -> None:
    section = Report("r").section("s")
    with pytest.raises(ValueError, match="rows must have 2 cells"):
        section.table(["a", "b"], [[1]])
    with pytest.raises(ValueError, match="panels"):
        section.figure([])
    with pytest.raises(ValueError, match="same length"):
        Series(label="a", x=[0, 1], y=[1.0])
    with pytest.raises(ValueError, match="empty"):
        Series(label="a", x=[], y=[])
    with pytest.raises(ValueError, match="finite"):
        Series(label="a", x=[math.inf], y=[0.0])
    with pytest.raises(ValueError, match="no series"):
        LineChart(title="t", x_label="x", series=[])
    with pytest.raises(ValueError, match="uint8"):
        ImageRow(images=[np.zeros((2, 2))])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"\[h, w\]"):
        heat(np.zeros(3))


finite = st.floats(-1e12, 1e12)
any_number = st.one_of(finite, st.sampled_from([math.nan, math.inf, -math.inf]))


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(
        st.lists(st.tuples(finite, any_number, st.floats(0, 1e6)), min_size=1, max_size=20), min_size=1, max_size=7
    ),
    log_y=st.booleans(),
)
def test_any_numbers_make_a_drawing(lines: list[list[tuple[float, float, float]]], log_y: bool) -> None:
    series = []
    for i, line in enumerate(lines):
        x, y, error = zip(*line, strict=True)
        series.append(Series(label=f"line {i}", x=x, y=y, error=error))
    text = LineChart(title="t", x_label="x", series=series, log_y=log_y).svg("a", standalone=True)
    root = ElementTree.fromstring(text)
    for element in root.iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "d", "points"):
            for number in re.findall(r"[-\w.+]+", element.get(name, "").replace("L", " ").replace("M", " ")):
                assert "nan" not in number
                assert "inf" not in number
    labels = sorted(float(e.get("y", "")) for e in root.iter() if "label" in e.get("class", ""))
    assert all(b - a > 13 for a, b in itertools.pairwise(labels))


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


@pytest.mark.parametrize(
    ("value", "text"), [(1e-4, "1e-4"), (0.0025, "0.0025"), (2e6, "2e6"), (-0.5, "-0.5"), (0, "0")]
)
def test_numbers_beside_an_axis_are_short(value: float, text: str) -> None:
    assert _short(value) == text


def test_signed_numbers_and_gaps_stand_to_the_right() -> None:
    report = Report("r")
    report.section("s").table(["a", "b"], [["x", "+0.1"], ["y", "-"]], caption="c")
    assert report.to_html().count('<td class="num">') == 2


def test_points_at_the_only_x_stand_side_by_side_and_no_line_crosses_the_panel() -> None:
    names = ("a", "b", "c")
    chart = LineChart(title="t", x_label="steps", series=[Series(label=n, x=[60], y=[0.5]) for n in names])
    svg = chart.svg("i")
    places = [float(x) for x in re.findall(r'class="curve s\d" d="M([\d.]+) ', svg)]
    assert len(places) == 3
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert places[1] - places[0] > 8
    assert re.findall(r'text-anchor="middle">([^<]*)<', svg) == ["60", "steps"]
    assert "leader" not in svg


def test_gap_breaks_the_line_and_dashes_mark_controls() -> None:
    root = ElementTree.fromstring(chart().svg("a"))
    curves = {e.get("class", ""): e.get("d", "") for e in root.iter() if "curve" in e.get("class", "")}
    trained, control = curves["curve s0"], curves["curve s0 dashed"]
    assert trained.count("M") == 1
    assert trained.count("L") == 2
    assert control.count("M") == 2
    assert control.count("L") == 0


@pytest.mark.parametrize(("colours", "paper"), [(_LIGHT, "#ffffff"), (_DARK, "#14171a")])
def test_text_and_lines_stand_out_from_the_paper(colours: dict[str, str], paper: str) -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for name in ("ink", "soft", *(f"s{i}" for i in range(COLOURS))):
        bright, dark = sorted((luminance(colours[name]), luminance(paper)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, name


def test_heat_orders_by_lightness_and_survives_flat_and_missing_values() -> None:
    ramp = heat(np.linspace(0, 1, 64)[None]).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(ramp[0]) > 0).all()
    assert heat(np.full((2, 2), 7.0)).tolist() == heat(np.zeros((2, 2))).tolist()
    assert heat(np.full((2, 2), np.nan)).shape == (2, 2, 3)


def test_mean_std_is_the_sample_deviation() -> None:
    assert mean_std([0.98, 0.99, 0.97], scale=100) == "98.0 ± 1.0"
    assert mean_std([0.5], digits=2) == "0.50"
    with pytest.raises(ValueError, match="values"):
        mean_std([])
