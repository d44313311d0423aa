"""What pages say is true: numbers and the map are those of the code, links resolve. Examples: `test_documentation`."""

import json
import re
from pathlib import Path

import pytest

from tests import study_docs
from tests.readme_tree import PAGE, ROOT, tree
from website import fill

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_tree_is_the_packages():
    assert f"```text\n{tree()}\n```" in PAGE.read_text(), "run: python -m tests.readme_tree"


@pytest.mark.parametrize("page", fill.pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_numbers_are_those_of_the_reports(page: Path):
    assert fill.fill(page.read_text(), page) == page.read_text(), "run: python -m website.fill"


def test_every_record_of_a_benchmark_is_shown_and_names_what_made_it():
    shown = "".join(page.read_text() for page in fill.pages())
    for path in sorted(fill.BENCHMARKS.glob("*.json")):
        assert f"<!-- benchmark {path.stem} -->" in shown, f"{path.name} is on no page"
        record = json.loads(path.read_text())
        if script := re.match(r"python (?:-m benchmarks\.|benchmarks/)(\w+)", record["command"]):
            assert (ROOT / "benchmarks" / f"{script[1]}.py").is_file(), record["command"]
        else:
            assert record["command"] == "make demo"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_every_study_that_is_written_up_is_among_the_results():
    shown = "".join(page.read_text() for page in sorted((ROOT / "docs" / "results").glob("*.md")))
    left = [path.parent.name for path in study_docs.STUDIES.glob("*/report.json")]
    assert [name for name in left if f"<!-- summary {name} -->" not in shown] == []


@pytest.mark.parametrize("path", sorted(study_docs.STUDIES.glob("*/report.json")), ids=lambda path: path.parent.name)
def test_committed_reports_name_no_folder_of_a_machine(path: Path):
    report = json.loads(path.read_text())
    assert study_docs.without_paths(report) == report


@pytest.mark.parametrize("path", sorted(study_docs.STUDIES.glob("*/report.json")), ids=lambda path: path.parent.name)
def test_what_a_summary_counts_is_what_the_claims_came_out_as(path: Path):
    report = json.loads(path.read_text())
    verdicts = [claim["verdict"] for claim in report["claims"]]
    for count, verdict in re.findall(r"\b(\d+) ((?:not )?reproduced)\b", report["summary"]):
        assert verdicts.count(verdict) == int(count), report["summary"]


def test_the_pages_of_studies_are_what_their_reports_say():
    assert study_docs.COUNT.search(study_docs.README.read_text()), "README.md no longer says how many are written up"
    for page, text in study_docs.pages().items():
        assert page.read_text() == text, f"{page}: run: python -m tests.study_docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_repository_resolve(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|<img src=\"([^\"]+)\"", page.read_text())
    links = [link for pair in links for link in pair if link]
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def anchors(page: Path) -> set[str]:
    """What links may end in: the headings of a page, as the site and hosts of repositories write them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_into_pages_end_at_a_heading(page: Path):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            there = page.parent / target if target else page
            assert anchor in anchors(there), f"{page.name}: {target}#{anchor}"
