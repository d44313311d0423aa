"""Pages in a real browser: nothing is wider than its place, titles break between words, pictures use the width."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from unrolled.report import Fact, ImageGrid, ImageRow, LineChart, Report, Series

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("UNROLLED_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]
TITLE = "Completions by crate_mae_nano_patch4_32.cifar10"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    report = Report(TITLE, question="What?")
    report.headline("An answer.", [Fact(label=f"Fact {i}", value="0.977 ± 0.001") for i in range(5)])
    pictures = ImageRow(images=[np.zeros((32, 32, 3), np.uint8)] * 5, names=[f"stamp {i}" for i in range(5)])
    columns = ["name", *(f"column {i}" for i in range(12))]
    line = Series(label="a line with a long name", x=[0, 1], y=[1.0, 2.0])
    chart = LineChart(title="Loss", x_label="step", series=[line])
    section = report.section("Pictures").figure(ImageGrid(title="Sheet", rows=[pictures]), caption="Five.")
    section.table(columns, [["a", *[1.2345] * 12]], caption="Wide.").figure([chart, chart], caption="Two.")
    return report.write(tmp_path_factory.mktemp("layout")).html.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


def boxes(page: Any, selector: str) -> list[dict[str, float]]:
    return page.eval_on_selector_all(
        selector,
        "found => found.map(e => e.getBoundingClientRect()).map(b => ({left: b.left, top: b.top, width: b.width}))",
    )


@pytest.mark.parametrize("width", [1400, 800, 390])
def test_a_page_fits_and_uses_the_width(width: int, browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    lines = page.eval_on_selector(
        "h1",
        """h1 => {const range = document.createRange(), rows = {}, walk = document.createTreeWalker(h1, 4);
        for (let node; node = walk.nextNode();) for (let i = 0; i < node.length; i++) {
            range.setStart(node, i); range.setEnd(node, i + 1);
            const box = range.getClientRects()[0];
            if (box) rows[Math.round(box.bottom)] = (rows[Math.round(box.bottom)] || '') + node.data[i]; }
        return Object.values(rows)}""",
    )
    assert all(line.rstrip()[-1] in "_./" or (line.rstrip() + " ") in TITLE + " " for line in lines), lines
    pictures = boxes(page, ".row img")
    assert min(box["width"] for box in pictures) > 110
    if width == 1400:
        assert len({box["top"] for box in pictures}) == 1
        assert pictures[-1]["left"] + pictures[-1]["width"] - pictures[0]["left"] > 900
        assert (
            page.eval_on_selector_all(".scroll", "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).length")
            == 0
        )
    facts = boxes(page, ".facts div")
    last = [box for box in facts if box["top"] == facts[-1]["top"]]
    assert len(last) > 1 or last[0]["width"] > 300
    page.close()


def test_dark_and_light_pages_have_their_own_colours(browser: Any, address: str) -> None:
    seen = set()
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(address)
        seen.add(page.eval_on_selector("svg .s0", "e => getComputedStyle(e).stroke"))
        page.close()
    assert seen == {"rgb(0, 103, 165)", "rgb(108, 184, 238)"}
