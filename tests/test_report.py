"""A report is one page that needs nothing else, says what it drew to everyone, and keeps every number."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.figures.drawing import chart
from unrolled.figures.words import number, with_error
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
)
from unrolled.report.parts import column_texts

HOSTILE = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "link", "br", "img", "hr", "input", "wbr"}


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
    assert len(drawings) == 2
    (pictures,) = [attributes for tag, attributes in page.tags if attributes.get("role") == "group"]
    assert pictures["aria-label"] == f"2 images: {HOSTILE}."
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [f"{HOSTILE} a", f"{HOSTILE} b"]
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


def test_signed_numbers_and_gaps_stand_to_the_right() -> None:
    report = Report("r")
    report.section("s").table(["a", "b"], [["x", "+0.1"], ["y", "-"]], caption="c")
    assert report.to_html().count('<td class="num">') == 2


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        ([-0.109, -0.00651, 1.54, 0.57], ["-0.109", "-0.007", "1.540", "0.570"]),  # changes, beside each other
        ([97.5, 98.0, None], ["97.5", "98.0", "–"]),
        ([0.5, math.nan, 0.25], ["0.50", "–", "0.25"]),
        ([1e-6, 0.5], ["1e-06", "0.5"]),  # a loss that would read as zero
        ([3, "x", 0.1234], ["3", "x", "0.123"]),
        ([1e7, 2.0], ["1.00e+07", "2"]),
        ([12.0, 3.0], ["12", "3"]),
    ],
)
def test_fractions_of_a_column_have_one_number_of_decimals(cells: list, texts: list[str]) -> None:
    assert column_texts(cells) == [text if text != "1e-06" else number(1e-6) for text in texts]


def test_an_error_says_how_many_decimals_its_value_has() -> None:
    pairs = [(130.0, 0.52), (77.014, 0.31), (86.04, 0.98), (0.50193, 0.0012), (1.0, 0.0), (123.4, 6.0)]
    said = [with_error(value, error) for value, error in pairs]
    assert said == ["130.0 ± 0.5", "77.0 ± 0.3", "86.0 ± 1.0", "0.5019 ± 0.0012", "1 ± 0", "123 ± 6"]
