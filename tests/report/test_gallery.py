"""The gallery: every claim of the committed studies on one index, no link that leads nowhere, no script."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from unrolled import cli
from unrolled.report import Claim, LineChart, Report, Series
from unrolled.report.gallery import read_studies, write_gallery
from unrolled.report.notes import read_notes, screenshots, to_html

COMMITTED = Path(__file__).resolve().parents[2] / "docs/studies"


class Page(HTMLParser):
    """What a page links to, its ids, its images without a description, and its unclosed tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.bare: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag != "script"
        self.links += [value for key in ("href", "src") if (value := values.get(key))]
        self.ids += [value for value in [values.get("id")] if value]
        if tag == "img" and not values.get("alt"):
            self.bare.append(str(values.get("src")))
        if tag not in ("meta", "link", "img", "input", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def study(folder: Path, name: str, *, title: str = "A claim") -> Report:
    report = Report(title, question="Is `a < b`?")
    report.claims = [Claim(statement="<b>x</b> & y", source="arXiv 1", published="2", measured="1", reproduced=False)]
    chart = LineChart(title="Loss, nats", x_label="step", series=[Series(label="a", x=[0, 1], y=[1, 2])])
    report.section("Curves").figure([chart, chart], caption="Two alike.").figure(chart, name="alone").text("Words.")
    report.write(folder / name)
    return report


def broken(site: Path) -> list[str]:
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        assert page.open == []
        assert len(page.ids) == len(set(page.ids))
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            inside = target.is_file() and site.resolve() in target.parents
            if parts.scheme or not inside or (parts.fragment and parts.fragment not in pages[target].ids):
                found.append(f"{path.name}: {link}")
    return found


def test_the_committed_studies(tmp_path: Path) -> None:
    studies = read_studies(COMMITTED)
    notes, pictures = read_notes(COMMITTED.parent, without=COMMITTED), screenshots(COMMITTED.parent)
    assert [note.name for note in notes] == ["cifar10"]
    assert "demo.png" in [path.name for path, _ in pictures]
    site = write_gallery(studies, tmp_path / "site", notes=notes, pictures=pictures).parent
    assert broken(site) == []
    index = Page(site / "index.html")
    assert index.bare == []
    for each in studies:
        assert each.name in index.ids
        assert f"{each.name}/index.html" in index.links
        assert Page(site / each.name / "index.html").bare == []
    text = (site / "index.html").read_text()
    for name in ["cifar10/index.html", *(f"pictures/{path.name}" for path, _ in pictures)]:
        assert name in index.links
    note = (site / "cifar10/index.html").read_text()
    assert note.count("<img") == (COMMITTED.parent / "cifar10.md").read_text().count("![")
    assert "<td>65.1 %</td>" in note
    assert "**" not in note
    questions, rest = text.split("</nav>", 1)
    for each in studies:  # every question with its verdicts, before the first study
        verdicts = [claim["reproduced"] for claim in each.report["claims"]]
        line = re.search(rf'<li class="asked [^"]*"><a href="#{each.name}">.*?</li>', questions, re.DOTALL)
        assert line is not None
        counts = [int(number) for number in re.findall(r'aria-label="(\d+) ', line[0])]
        assert counts == [verdicts.count(kind) for kind in (True, False, None) if kind in verdicts]
        assert f'id="{each.name}"' in rest
    assert text.count('class="statement"') == sum(len(each.report["claims"]) for each in studies)
    for path in site.rglob("*.html"):
        assert not re.search(r"(?<![\w.])/(work|home|root|tmp)/", path.read_text()), f"{path}: an absolute path"


def test_missing_figures_are_said_and_the_others_shown(tmp_path: Path) -> None:
    study(tmp_path / "in", "mesa-some")
    (tmp_path / "in/mesa-some/figures/alone.svg").unlink()
    site = write_gallery(read_studies(tmp_path / "in"), tmp_path / "site").parent
    assert broken(site) == []
    page = Page(site / "mesa-some/index.html")
    shown = [link for link in page.links if link.endswith(".svg")]
    assert shown == ["figures/curves-loss-nats.svg", "figures/curves-loss-nats-2.svg"]
    assert "this drawing is not kept here" in (site / "mesa-some/index.html").read_text()
    shutil.rmtree(tmp_path / "in/mesa-some/figures")
    site = write_gallery(read_studies(tmp_path / "in"), tmp_path / "bare").parent
    assert broken(site) == []
    assert not [link for link in Page(site / "index.html").links if link.endswith(".svg")]


def test_text_of_reports_is_escaped_and_filters_know_the_lines(tmp_path: Path) -> None:
    for name in ("crate-a", "platonic-b", "else-c"):
        study(tmp_path / "in", name, title=f"<i>{name}</i>")
    text = write_gallery(read_studies(tmp_path / "in"), tmp_path / "site").read_text()
    assert "&lt;b&gt;x&lt;/b&gt; &amp; y" in text
    assert "<i>" not in text
    for key in ("crate", "platonic", "other"):
        assert f'id="line-{key}"' in text
        assert f"main:has(#line-{key}:checked) :is(.study,.asked):not(.{key})" in text
    assert 'id="line-mesa"' not in text
    assert text.index('id="crate-a"') < text.index('id="platonic-b"') < text.index('id="else-c"')


def test_a_notice_is_read_first(tmp_path: Path) -> None:
    report = study(tmp_path / "in", "mesa-one")
    report.notice = "Only a trial."
    report.write(tmp_path / "in/mesa-one")
    write_gallery(read_studies(tmp_path / "in"), tmp_path / "site")
    for page in ("index.html", "mesa-one/index.html"):
        text = (tmp_path / "site" / page).read_text()
        assert text.index("Only a trial.") < text.index("Is <code>a &lt; b</code>?")
    assert broken(tmp_path / "site") == []


def test_folders_of_data_are_not_told(tmp_path: Path) -> None:
    study(tmp_path / "in", "mesa-some")
    path = tmp_path / "in/mesa-some/report.json"
    report = json.loads(path.read_text())
    report["provenance"]["command"] = "unrolled study mesa-some --data-dir /data/here --budget cpu"
    report["provenance"]["config"] = {"data_dir": "/data/here"}
    path.write_text(json.dumps(report))
    site = write_gallery(read_studies(tmp_path / "in"), tmp_path / "site").parent
    for page in site.rglob("*.html"):
        assert "--data-dir DATA --budget cpu" in page.read_text()
        assert "/data/here" not in page.read_text()


def test_pages_written_by_hand(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for name in ("studies", "words"):
        (docs / name).mkdir(parents=True)
    study(docs / "studies", "mesa-some")
    (docs / "words/a.svg").write_text("<svg/>")
    (docs / "words.md").write_text(
        "# Words & more\n\nA *lead* with `a < b`.\n\n![what <it> shows](words/a.svg)\n\n"
        "[gone](../else.md) [up](words/../x)\n"
        "\n- **one** thing\n  goes on\n- two\n\n## Next\n\n| a | b |\n|---|---|\n| 1 | `2` |\n"
        "\n```bash\nrun **this** < that\n```\n"
    )
    (docs / "lonely.md").write_text("# No folder\n")
    (docs / "pictures.md").write_text("![Two models side by side](explorer-both.png)\n")
    for name in ("explorer-attention.png", "explorer-both.png", "other.png"):
        (docs / name).write_bytes(b"png")
    assert cli.run(["gallery", "--studies", str(docs / "studies"), "--out", str(tmp_path / "site"), "--quiet"]) == 0
    site = tmp_path / "site"
    assert broken(site) == []
    index, page = (site / "index.html").read_text(), (site / "words/index.html").read_text()
    assert "Words &amp; more" in index
    assert "explore</code>: attention." in index
    assert "explore</code>: two models side by side." in index
    assert 'src="words/a.svg"' in index
    assert "lonely" not in index
    assert sorted(path.name for path in (site / "pictures").iterdir()) == [
        "explorer-attention.png",
        "explorer-both.png",
    ]
    for piece in (
        "<em>lead</em> with <code>a &lt; b</code>",
        '<img src="a.svg" alt="what &lt;it&gt; shows"',
        "<p>gone up</p>",
        "<li><strong>one</strong> thing\ngoes on</li>\n<li>two</li>",
        "<h2>Next</h2>",
        "<td><code>2</code></td>",
        '<pre><code class="language-bash">run **this** &lt; that\n</code></pre>',
    ):
        assert piece in page
    assert to_html("<script>", {}) == "<p>&lt;script&gt;</p>\n"


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "<javascript:alert(1)>",
        "<https://elsewhere.example>",
        "![x](//elsewhere.example/a.png)",
        "<img src=x onerror=alert(1)>",
        "[x]: javascript:alert(1)\n\n[x] ![x]",
        "[a [b](words/b) c](javascript:x)",
        "| a |\n|---|\n| <svg onload=alert(1)> |",
        "```<b>\n</code><script>alert(1)</script>\n```",
    ],
)
def test_markdown_of_others_leads_nowhere_and_runs_nothing(text: str) -> None:
    seen: list[tuple[str, list[str]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, [name for name, _ in attrs]))

    Tags().feed(to_html(text, {}))
    assert {tag for tag, _ in seen} <= {"p", "div", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
    assert {name for _, names in seen for name in names} <= {"class", "tabindex", "role", "aria-label", "scope"}


def test_the_verb_and_its_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path / "in", "mesa-some")
    arguments = ["gallery", "--studies", str(tmp_path / "in"), "--out", str(tmp_path / "site"), "--json"]
    assert cli.run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["studies"] == ["mesa-some"]
    assert cli.run(["gallery", "--studies", str(tmp_path / "in"), "--out", str(tmp_path / "in")]) == 2
    assert cli.run(["gallery", "--studies", str(tmp_path / "none"), "--out", str(tmp_path / "site")]) == 3
    refused = (("{", "not valid JSON", 1), ("[]", "not a report", 2), ('{"format": "x"}', "not a report", 2))
    for text, said, code in refused:
        (tmp_path / "in/mesa-some/report.json").write_text(text)
        assert cli.run(arguments) == code
        assert said in capsys.readouterr().err


def test_a_page_shows_pictures_of_other_pages_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for path in ("note/own.svg", "other/figure.svg", "other/secret.txt", "../outside.svg"):
        (docs / path).parent.mkdir(parents=True, exist_ok=True)
        (docs / path).write_text("<svg/>")
    targets = ("note/own.svg", "other/figure.svg", "other/secret.txt", "../outside.svg")
    (docs / "note.md").write_text("# Note\n\nLead.\n\n" + "\n".join(f"![words]({target})" for target in targets))
    (note,) = read_notes(docs, without=docs / "studies")
    page = note.page(tmp_path / "site")
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"own.svg", "other-figure.svg"}
    assert page.count("<img") == 2
