"""Put the pages of the site into one folder: those of docs/, files of the repository, and what is read off the code."""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from unrolled.figures.escaping import typeset
from website import api, commands, notebooks

ROOT = Path(__file__).resolve().parents[1]
DOCS, HERE = ROOT / "docs", Path(__file__).parent
LINES = {"crate": "White-box transformers", "mesa": "Mesa-optimisation", "platonic": "Platonic representations"}

# files outside docs/ that are pages
ELSEWHERE = {
    "CONTRIBUTING.md": "inside/contributing.md",
    "CHANGELOG.md": "inside/changelog.md",
    "LOG.md": "inside/log.md",
    "SECURITY.md": "inside/security.md",
}
_LINK = re.compile(r"(?P<mark>!?)\[(?P<text>(?:[^\]\[]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)(?P<title>[^)]*)\)")
_FENCE = re.compile(r"^(```.*?^```\s*?$)", flags=re.DOTALL | re.MULTILINE)


def pages() -> dict[Path, str]:
    """Every written page: its file -> where it goes."""
    found = {DOCS / path.relative_to(DOCS): path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))}
    for path, place in found.items():
        if place.startswith("studies/") and path.name == "README.md":
            found[path] = place.removesuffix("README.md") + "index.md"
    found |= {ROOT / name: place for name, place in ELSEWHERE.items() if (ROOT / name).is_file()}
    found |= {path: f"notebooks/{path.stem}.md" for path in notebooks.scripts()}
    cards = sorted((ROOT / "unrolled/weights").glob("*.md"))
    return found | {card: f"reference/weights/{card.name}" for card in cards}


def assemble(out: Path, *, run: bool = False) -> dict[str, Any]:
    """Write all pages and their pictures below `out`; the configuration of the generator for them.

    Args:
        out: a folder, emptied first.
        run: the notebooks too; without, their pages have the cells alone.

    Raises:
        ValueError: a link leads to no file, or a notebook fails.
    """
    shutil.rmtree(out, ignore_errors=True)
    written = pages()
    for path in sorted(DOCS.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            _copy(path, out / path.relative_to(DOCS))
    for path in sorted((HERE / "assets").iterdir()):
        _copy(path, out / "assets" / path.name)
    generated = {**api.pages(ROOT), **commands.pages()}
    places = {**written, **api.homes(ROOT), ROOT / "README.md": "index.md"}
    scripts = notebooks.scripts()
    ran = notebooks.run(scripts) if run else {path: notebooks.read(path) for path in scripts}
    for path, place in written.items():
        here = partial(translate, path=path, place=place, places=places)
        if path in ran:
            _write(out / place, notebooks.page(ran[path], path.stem, (out / place).parent, here))
        else:
            _write(out / place, here(path.read_text(encoding="utf-8")))
    for place, text in generated.items():
        _write(out / place, text)
    return yaml.safe_load((HERE / "config.yml").read_text()) | {
        "docs_dir": out.name,
        "nav": navigation([*written.values()], [*generated]),
    }


def translate(text: str, path: Path, place: str, places: dict[Path, str]) -> str:
    """A page's text with its links as they are from `place`: to pages, to pictures; a file without a page is its name.

    Raises:
        ValueError: a link leads to no file.
    """

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        there = (path.parent / target).resolve()
        if not there.exists():
            raise ValueError(f"{path.relative_to(ROOT)}: {match['target']} leads nowhere")
        readme = there / "README.md"
        goal = places.get(there) or places.get(readme)
        if goal is None and there.is_file() and DOCS in there.parents:
            goal = there.relative_to(DOCS).as_posix()
        if goal is None:
            return match["text"]
        page, _, own = goal.partition("#")
        relative = os.path.relpath(page, os.path.dirname(place) or ".")
        fragment = f"#{anchor or own}" if anchor or own else ""
        return f"{match['mark']}[{match['text']}]({relative}{fragment}{match['title']})"

    parts = _FENCE.split(_without_front_matter(text))
    return "".join(part if part.startswith("```") else _printed(_LINK.sub(link, part)) for part in parts)


def _printed(prose: str) -> str:
    """As figures print it, `R^c` with its sign raised; code stays as it is typed."""
    return "".join(piece if piece.startswith("`") else typeset(piece) for piece in re.split(r"(`[^`\n]+`)", prose))


def navigation(written: list[str], generated: list[str]) -> list[Any]:
    """The tabs of `nav.yml`, with what they leave to be found: studies, reference, pages nobody named."""
    nav = yaml.safe_load((HERE / "nav.yml").read_text())
    tabs = {name: entries for tab in nav for name, entries in tab.items()}
    tabs["Home"] = "index.md"
    tabs = {name: _present(entries, written) for name, entries in tabs.items()}
    tabs["Studies"] = ["studies.md", *_studies(written)]
    tabs["Reference"] = [
        {"Python": [place for place in generated if place.startswith("reference/api/")]},
        {"Command line": [place for place in generated if place.startswith("reference/commands/")]},
        {"Weights that ship": [place for place in written if place.startswith("reference/weights/")]},
    ]
    inside = [place for place in written if place.startswith("inside/")]
    tabs["Inside"] = sorted(set(inside), key=lambda place: (place in ELSEWHERE.values(), place))
    named = set(_flat([*tabs.values()]))
    rest = [place for place in written if place not in named]
    tabs["How to"] += sorted(rest, key=lambda place: (not place.startswith("howto/"), place))
    return [{name: entries} for name, entries in tabs.items() if entries]


def _studies(written: list[str]) -> list[Any]:
    return [
        {title: [place for place in written if place.startswith(f"studies/{line}-")]} for line, title in LINES.items()
    ]


def _present(entries: Any, written: list[str]) -> Any:
    """Entries whose pages are there."""
    if isinstance(entries, dict):
        return {name: _present(below, written) for name, below in entries.items()}
    if isinstance(entries, list):
        return [_present(entry, written) for entry in entries if not isinstance(entry, str) or entry in written]
    return entries


def _flat(entries: Any) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [place for entry in values for place in _flat(entry)]


def _without_front_matter(text: str) -> str:
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, to)
