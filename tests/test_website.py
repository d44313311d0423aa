"""The site: every page has its place, every link leads somewhere, nothing is asked of another host, search works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import unrolled
from unrolled import cli
from website import api, checks, commands
from website.assemble import ROOT, _flat, assemble, pages, translate


@pytest.fixture(scope="module")
def put_together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("website") / "pages"
    return folder, assemble(folder)


def test_every_page_is_listed_once_and_there(put_together: tuple[Path, dict[str, Any]]) -> None:
    folder, config = put_together
    listed = _flat([entry for tab in config["nav"] for entry in tab.values()])
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))


def test_a_link_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"README.md: docs/none.md leads nowhere"):
        translate("[x](docs/none.md)", ROOT / "README.md", "inside/readme.md", {})


def test_links_are_those_of_the_site() -> None:
    places = {**pages(), **api.homes(ROOT)}

    def seen(text: str) -> str:
        return translate(text, ROOT / "README.md", "inside/readme.md", places)

    assert seen("[a](LOG.md)") == "[a](log.md)"
    assert seen("[a](docs/edit.md#x)") == "[a](../edit.md#x)"
    assert seen("![a](docs/demo.png)") == "![a](../demo.png)"
    assert seen("[a](unrolled/layers/ista.py)") == "[a](../reference/api/layers.md#unrolled.layers.ista)"
    assert seen("[`r`](pyproject.toml)") == "`r`"
    assert seen("[a](https://example.org)") == "[a](https://example.org)"
    assert seen("```text\n[a](none)\n```\n") == "```text\n[a](none)\n```\n"
    assert seen("R^c and `R^c`, R^2\n```text\nR^c\n```\n") == "Rᶜ and `R^c`, R²\n```text\nR^c\n```\n"


def test_the_reference_has_every_package_and_every_flag() -> None:
    packages = {name for name, home in unrolled._EXPORTS.items() if home is None}
    assert packages - {"errors"} <= set(api.PACKAGES) | {"errors"}
    written = commands.pages()
    for name in cli.VERBS:
        page = written[f"reference/commands/{name}.md"]
        for argument in cli.build([name])[name].assemble_argument_collection(parse_docstring=True):
            if argument.names and argument.names[0] != "*" and argument.parameter.show is not False:
                assert f"`{argument.names[0]}`" in page


def test_the_checks_see_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="c.html">3</a><img src="../x.png">'
        '<script src="https://elsewhere.example/a.js"></script><a href="https://elsewhere.example">4</a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="there">b</h1>')
    (tmp_path / "a.css").write_text("@font-face{src:url(https://fonts.example/f.woff)}")
    assert checks.broken(tmp_path) == ["a.html: b.html#gone", "a.html: c.html", "a.html: ../x.png"]
    (tmp_path / "b.html").write_text("<math><mi>x</mi><mi>\\arg</mi></math>")
    assert checks.untranslated(tmp_path) == ["b.html: \\arg"]
    assert checks.asked_of_others(tmp_path) == [
        "a.html: https://elsewhere.example/a.js",
        "a.css: https://fonts.example/f.woff",
    ]


@pytest.mark.slow
def test_the_site_builds_and_its_search_works_from_a_disk(tmp_path: Path) -> None:
    """`make docs` is this without the browser."""
    pytest.importorskip("zensical")
    from website.__main__ import build

    assert build(tmp_path / "site", tmp_path / "work") == []
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "site/index.html").as_uri())
        page.keyboard.press("Control+k")
        page.keyboard.type("coding rate")
        page.get_by_role("link", name="coding").first.wait_for(timeout=20_000)
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
